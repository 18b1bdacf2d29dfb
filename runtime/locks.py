"""Folders that one owner at a time writes into."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import BinaryIO

from odestream.runtime.errors import SessionBusy

_LOG = logging.getLogger(__name__)


def lock_file(path: Path, busy: str) -> BinaryIO:
    """Hold the lock `path` until the file is closed or the process ends, however it ends.

    SessionBusy where somebody else holds it, in this process or another. busy: who that is, and the remedy. Where the
    file system has no locks, nobody is kept out, and a warning says so.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as cause:  # some network file systems say of a held lock: not permitted
        file.close()
        raise SessionBusy(f"{path.parent}: {busy}") from cause
    except OSError as cause:
        reason = (cause.strerror or str(cause)).lower()
        _LOG.warning("%s: cannot be locked (%s); see to it that nobody else writes there", path.parent, reason)
    return file
