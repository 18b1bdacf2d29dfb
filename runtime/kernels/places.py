"""Where compiled files lie: beside the kernels' sources where that folder can be written, else in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
BESIDE = Path(__file__).parent / "lib"


def cache_folder() -> Path:
    """The user's cache: `$XDG_CACHE_HOME/odestream`, or `~/.cache/odestream`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "odestream"


def folders() -> Iterator[Path]:
    """Where a compiled file may lie, in the order in which it is looked for."""
    yield BESIDE
    with suppress(RuntimeError):  # a service may have no home
        yield cache_folder()


def find(name: str) -> Path | None:
    """The compiled file of that name, None where there is none, or none that this user may see."""
    with suppress(OSError):  # or one that it cannot read
        return next((folder / name for folder in folders() if (folder / name).is_file()), None)
    return None


def writable_folder() -> Path:
    """Where a compiled file is put."""
    folder = BESIDE if BESIDE.exists() else BESIDE.parent
    return BESIDE if os.access(folder, os.W_OK) else cache_folder()
