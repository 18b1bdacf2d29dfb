"""Folders that one owner at a time writes into."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

from odestream.runtime.errors import SessionBusy


def lock_file(path: Path, busy: str) -> BinaryIO:
    """Hold the lock `path` until the file is closed or the process ends, however it ends.

    SessionBusy where somebody else holds it, in this process or another. busy: who that is, and the remedy.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        file.close()
        raise SessionBusy(f"{path.parent}: {busy}") from cause
    return file
