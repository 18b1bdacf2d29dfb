"""Files and directories that appear at their final path whole, or not at all.

What is written goes to a temporary name beside the target, is synced, and is then renamed; the directory is
synced last, so that the rename itself survives a power cut.

A writer holds a lock on its temporary file until that has its final name. A temporary file without a lock was left by a
writer that was killed: whoever writes the same file next removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from odestream.runtime.errors import PathError

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; after a failure or a kill it holds the old bytes or the new ones, nothing else."""
    remove_leftovers(path.parent, path.name.__eq__)
    replace_bytes(path, data)


def replace_bytes(path: Path, data: bytes) -> None:
    """The same for one of many files in a folder, which is not searched for what killed writers left."""
    with _published(path) as file:
        file.write(data)


@contextmanager
def new_file(final: Path, force: bool = False) -> Iterator[BinaryIO]:
    """A temporary file beside `final` that is published there when the block ends, and removed if it raises.

    Raises PathError if `final` exists and `force` is not given.
    """
    refuse_existing(final, force)
    remove_leftovers(final.parent, final.name.__eq__)
    with _published(final) as file:
        yield file


def remove_leftovers(folder: Path, fits: Callable[[str], bool]) -> None:
    """Remove what killed writers left of files whose name fits; the temporary file of a writer that lives stays.

    What cannot be removed is no reason not to write.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            temporary = _TEMPORARY.fullmatch(path.name)
            if temporary is not None and fits(temporary[1]):
                _remove_abandoned(path)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise PathError if `path` exists (a dangling link counts) and `force` was not given."""
    if not force and os.path.lexists(path):
        raise PathError(f"{path} exists already; choose another path or pass --force to replace it")


@contextmanager
def new_directory(final: Path, force: bool = False) -> Iterator[Path]:
    """A temporary directory beside `final` that is published there when the block ends, and removed if it raises."""
    refuse_existing(final, force)
    temporary = _beside(final)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish_directory(temporary, final, force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(temporary: Path, final: Path, force: bool = False) -> None:
    """Sync the files of `temporary` (a flat directory beside `final`) and rename it to `final`.

    Raises PathError if `final` exists and `force` is not given. With `force` the old directory is removed after, so
    that `final` never holds a mixture of both. The two change places in one operation where the file system can do
    that; elsewhere the old one is moved aside first, and for a moment `final` is missing.
    """
    refuse_existing(final, force)
    for entry in temporary.iterdir():
        _sync(entry, os.O_RDONLY)
    _sync_directory(temporary)
    old = _replace(temporary, final) if os.path.lexists(final) else None
    if old is None:
        temporary.rename(final)
    _sync_directory(final.parent)
    if old is not None:
        _remove(old)


def _replace(temporary: Path, final: Path) -> Path:
    """Put `temporary` in the place of `final`; where that lies then."""
    if _exchange(temporary, final):
        return temporary
    old = _beside(final, "old")
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        old.rename(final)
        raise
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Have two paths change places in one operation; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0


@contextmanager
def _published(final: Path) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `final` when the block ends, and is removed if it raises."""
    temporary, file = _create(final)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(final)  # before the file is closed, since that ends its lock
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(final.parent)


def _create(final: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file and its path, locked where the file system has locks; without, nobody removes it."""
    while True:
        temporary = _beside(final)
        file = temporary.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()  # it was taken for a leftover before it was locked
            continue
        except OSError:
            return temporary, file
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # the same, and it is gone already


def _beside(path: Path, suffix: str = "tmp") -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.{suffix}"


def _remove_abandoned(temporary: Path) -> None:
    with suppress(OSError), temporary.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_directory(path: Path) -> None:
    _sync(path, _DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
