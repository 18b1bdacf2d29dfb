"""Where plugin libraries may lie. A path outside these folders is never opened: a library runs when it is loaded.

What was hashed is what is loaded: a copy that only this process holds, since a loader takes a path, and the file of
that name may be another one by then.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from odestream.runtime.contract.engine import PluginRecord
from odestream.runtime.errors import CompatError, PathError
from odestream.runtime.kernels.places import folders

PLUGIN_ABI = 2
READABLE = (1, PLUGIN_ABI)  # 2 added a field that may be missing: engines of 1 run with their own library
FOLDERS_VARIABLE = "ODESTREAM_PLUGIN_FOLDERS"
_SYSTEM = (Path("/usr/local/lib/odestream"), Path("/usr/lib/odestream"))
_REBUILD = "build it again from runtime/kernels/csrc (see JETSON.md) and compile the bundle again"


# File descriptors by sha256, open until the process ends, unless somebody closes what is not theirs, as a process does
# that becomes a daemon. A number is used once: a loader takes a path that it knows for the library that it has.
_copies: dict[str, int] = {}
_used: list[int] = []
_lock = threading.Lock()


@dataclass(frozen=True)
class PluginLibrary:
    """A library that was found. path: where. copy: what a loader is to be given, of the bytes that were hashed."""

    path: Path
    copy: str


def plugin_folders() -> tuple[Path, ...]:
    """The folders of built kernels, those of the system, and what ODESTREAM_PLUGIN_FOLDERS lists, colon by colon."""
    named = [Path(part) for part in os.environ.get(FOLDERS_VARIABLE, "").split(":") if part]
    return tuple(folder.resolve() for folder in (*folders(), *_SYSTEM, *named))


def allowed_plugin(path: Path) -> Path:
    """The path without links; PathError where it lies outside the folders, CompatError where there is no file."""
    resolved = path.resolve()
    if resolved.parent not in plugin_folders():
        listed = ", ".join(map(str, plugin_folders()))
        raise PathError(f"{path}: plugin libraries are loaded from {listed} alone; move it, or set {FOLDERS_VARIABLE}")
    if not resolved.is_file():
        raise CompatError(f"{path}: no such plugin library; {_REBUILD}")
    return resolved


def plugin_record(path: Path) -> PluginRecord:
    """File name, hash and interface version of an allowed library; CompatError where it is none of ours."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    try:
        abi = int(ctypes.CDLL(_copy(data, digest)).odestream_plugin_abi())
    except (OSError, AttributeError) as cause:
        raise CompatError(f"{path}: not a plugin library of odestream ({cause}); {_REBUILD}") from cause
    if abi != PLUGIN_ABI:
        raise CompatError(f"{path}: plugin interface {abi}, this odestream needs {PLUGIN_ABI}; {_REBUILD}")
    return PluginRecord(path.name, digest, abi)


def find_plugin(record: PluginRecord) -> PluginLibrary:
    """The library that an engine was built with; CompatError where it is missing, another, or of another interface."""
    if record.abi not in READABLE:
        raise CompatError(
            f"{record.file}: plugin interface {record.abi}, this odestream reads "
            f"{' and '.join(map(str, READABLE))}; {_REBUILD}"
        )
    if Path(record.file).name != record.file:
        raise PathError(f"{record.file!r}: a plugin library is named without a folder; {_REBUILD}")
    found = [folder / record.file for folder in plugin_folders() if (folder / record.file).is_file()]
    if not found:
        raise CompatError(
            f"{record.file}: the plugin library that the engine calls is in none of "
            f"{', '.join(map(str, plugin_folders()))}; copy it there, or {_REBUILD}"
        )
    for path in map(allowed_plugin, found):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == record.sha256:
            return PluginLibrary(path, _copy(data, record.sha256))
    raise CompatError(f"{found[0]}: another plugin library than the engine was built with; {_REBUILD}")


def _copy(data: bytes, digest: str) -> str:
    """The path of a file without a name that holds `data`; the same one for the same bytes."""
    with _lock:
        if digest not in _copies or not _holds(_copies[digest], data):
            _copies[digest] = _new(data)
            _used.append(_copies[digest])
        return f"/proc/self/fd/{_copies[digest]}"


def _holds(descriptor: int, data: bytes) -> bool:
    """Whether that still is a file without a name that holds `data`."""
    try:
        return os.fstat(descriptor).st_nlink == 0 and os.pread(descriptor, len(data) + 1, 0) == data
    except OSError:
        return False


def _new(data: bytes) -> int:
    with open(_nameless(), "wb") as file:
        file.write(data)
        file.flush()
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max(_used, default=2) + 1)


def _nameless() -> int:
    """In memory, or on the disk where this Python was built for a C library that is too old for that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("odestream")
    made, path = tempfile.mkstemp()
    Path(path).unlink()
    return made
