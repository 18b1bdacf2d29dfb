"""Builds the compiled checks of `odestream.runtime.guards`; `python -m odestream.runtime.kernels.build` calls it.

The module keeps to Python's stable ABI: one file for every CPython from 3.11 on. Like the library's, its name holds a
hash of its source and flags, and it lies where that would.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CompatError
from odestream.runtime.kernels.places import SOURCES, find, writable_folder

SOURCE = SOURCES / "guards.c"
FLAGS = ("-x", "c", "-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
MODULE = "odestream_guards"
STABLE_ABI = ".abi3.so"
_REMEDY = "the steps go on with numpy's checks, which take longer"


def guards_name() -> str:
    """The file name of the module that belongs to this source on this machine."""
    digest = hashlib.sha256(repr(FLAGS).encode() + SOURCE.read_bytes()).hexdigest()
    return f"{MODULE}-{platform.machine()}-{digest[:16]}{STABLE_ABI}"


def find_guards() -> Path | None:
    """The built module of this source, None where there is none."""
    return find(guards_name())


def can_build() -> bool:
    """Whether this Python's headers are new enough."""
    return sys.version_info >= (3, 11)


def build_guards(out: Path | None = None, extra: tuple[str, ...] = ()) -> Path:
    """Compile the module into the folder `out` (see `build` for the default) and return its path.

    extra: more flags. Raises CompatError where there is no compiler, it fails, or this Python's headers are missing or
    older than 3.11, the first whose stable ABI has buffers; what a later one has built runs on 3.10 too.
    """
    if not can_build():
        raise CompatError(
            "the guards stay numpy's: compiling them needs Python 3.11 or later, so use one where µs count"
        )
    from odestream.runtime.kernels.build import find_compiler, run_compiler  # whose imports a runtime need not load

    compiler, headers = find_compiler(), Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise CompatError(
            f"no Python.h in {headers}: the guards stay numpy's; install it (Debian, Ubuntu: apt install python3-dev)"
        )
    target = (out or writable_folder()) / guards_name()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "guards.so"
        run_compiler(_REMEDY, compiler, *FLAGS, *extra, f"-I{headers}", str(SOURCE), "-o", str(made))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, made.read_bytes())
    return target
