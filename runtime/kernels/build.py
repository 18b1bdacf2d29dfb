"""Builds the CPU library: `python -m odestream.runtime.kernels.build`; with `--cuda` that for GPUs, see `build_cuda`.

The compiled guards of `build_guards` come with it.

A library's name holds a hash of the sources and of how they are compiled, so that one built from others is never
loaded. See `places` for where it is put.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CompatError, OdestreamError
from odestream.runtime.kernels.places import SOURCES, find, writable_folder

COMMAND = "python -m odestream.runtime.kernels.build"

# NaN and infinity keep their meaning: the runtime's guards look for them. The step may join a product and a sum into
# one rounding; streams may not, their decisions are Python's. CMakeLists.txt says the same.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
# With its jumps threaded, a vector loop of GCC would compute what follows a clamp once for each of its ends.
GCC_FLAGS = ("-fno-thread-jumps",)
JOINED, EXACT = "-ffp-contract=fast", "-ffp-contract=off"
PLAIN = ("bundle.cpp", "dispatch.cpp", "load.cpp", "odestream.cpp", "stream.cpp", "streams.cpp")
WITH_JSON, WITHOUT_JSON = ("manifest.cpp", "snapshot.cpp"), ("without_json.cpp",)
STEP = "cpu_step.cpp"
COMPILERS = ("c++", "g++", "clang++")
_REMEDY = "install a compiler for C++17, such as g++ 9 or later, or use the onnxruntime backend"


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name → flags of every instruction set that this machine's library holds a step for."""
    if platform.machine() in ("x86_64", "AMD64"):
        return {"x86_64_v3": ("-march=x86-64-v3",), "x86_64_v4": ("-march=x86-64-v4",)}
    return {"portable": ()}


def units(
    sets: Mapping[str, tuple[str, ...]], json: tuple[str, ...] | None
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Source, instruction set ("" where it is for all) and flags of everything that makes up a library.

    json: see `json_flags`.
    """
    for source in (*PLAIN, *(WITHOUT_JSON if json is None else WITH_JSON)):
        yield source, "", (*FLAGS, EXACT, *(json or ()))
    for name, flags in sets.items():
        yield STEP, name, (*FLAGS, JOINED, *flags, f"-DODE_ISA={name}")


def json_flags(compiler: str) -> tuple[str, ...] | None:
    """With which flags `compiler` finds nlohmann/json: the package of PyPI first, then its own; None where it is not.

    Only C programs need it, to open bundles and to save streams: without it a library is built that refuses these.
    """
    package = importlib.util.find_spec("nlohmann_json")
    if package is not None and package.origin is not None:
        return ("-isystem", str(Path(package.origin).parent / "include"))
    probe = [compiler, "-x", "c++", "-std=c++17", "-fsyntax-only", "-include", "nlohmann/json_fwd.hpp", os.devnull]
    return () if subprocess.run(probe, check=False, capture_output=True).returncode == 0 else None


def own_flags(compiler: str) -> tuple[str, ...]:
    """The flags that only GCC knows, where `compiler` is one; clang says that it is GCC too."""
    probe = [compiler, "-x", "c++", "-dM", "-E", os.devnull]
    macros = subprocess.run(probe, check=False, capture_output=True, text=True).stdout
    return GCC_FLAGS if "__GNUC__" in macros and "__clang__" not in macros else ()


def library_name() -> str:
    """The file name of the library that belongs to these sources on this machine."""
    digest = hashlib.sha256(repr((FLAGS, GCC_FLAGS, JOINED, EXACT, sorted(instruction_sets().items()))).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"libodestream-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def find_library() -> Path | None:
    """The built library of these sources, None where there is none."""
    return find(library_name())


def find_compiler() -> str:
    """`$CXX`, or the first C++ compiler on the path; CompatError without one."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    missing = f"{wanted!r}, which CXX names, is not there" if wanted else "no C++ compiler is on the path"
    raise CompatError(f"{missing}; install one (Debian, Ubuntu: apt install g++) and run: {COMMAND}")


def build(out: Path | None = None, extra: tuple[str, ...] = ()) -> Path:
    """Compile the library into the folder `out` (see the module for the default) and return its path.

    extra: flags for the compiler, such as a sanitizer's. Raises CompatError where there is no compiler or it fails.
    """
    compiler = find_compiler()
    target = (out or writable_folder()) / library_name()
    with tempfile.TemporaryDirectory() as scratch:
        made = compile_library(compiler, Path(scratch), extra)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, made.read_bytes())
    return target


def compile_library(compiler: str, folder: Path, extra: tuple[str, ...]) -> Path:
    """Compile and link inside `folder`."""
    objects, own = [], own_flags(compiler)
    for source, name, flags in units(instruction_sets(), json_flags(compiler)):
        target = folder / f"{Path(source).stem}{name}.o"
        run_compiler(_REMEDY, compiler, *flags, *own, *extra, "-c", str(SOURCES / source), "-o", str(target))
        objects.append(str(target))
    library = folder / "library.so"
    run_compiler(_REMEDY, compiler, "-shared", *extra, *objects, "-o", str(library))
    return library


def main() -> None:
    """Build from the command line; exit status 2 and one sentence where it cannot be done."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build the library of the native backend.")
    parser.add_argument("--out", type=Path, help="folder for the library (default: beside its sources, or the cache)")
    parser.add_argument("--force", action="store_true", help="build it even if it is there")
    parser.add_argument("--cuda", action="store_true", help="build the library for NVIDIA GPUs, by nvcc")
    parser.add_argument("--arch", help="with --cuda: compute capabilities such as 87,90 (default: this GPU's, or all)")
    options = parser.parse_args()
    try:
        print(_build_as(options))
    except OdestreamError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _build_as(options: argparse.Namespace) -> Path:
    from odestream.runtime.kernels import build_cuda  # which needs this module

    architectures = tuple(options.arch.split(",")) if options.arch else ()
    if architectures and not options.cuda:
        raise CompatError("--arch chooses GPUs; give it together with --cuda")
    again = options.force or options.out is not None
    if options.cuda:
        found = None if again else build_cuda.find_cuda_library()
        return found or build_cuda.build_cuda(options.out, architectures, _tell)
    found = (None if again else find_library()) or build(options.out)
    _add_guards(options.out, again)
    return found


def _add_guards(out: Path | None, again: bool) -> None:
    """Build the compiled guards too; a sentence where they cannot be: the runtime does without."""
    from odestream.runtime.kernels import build_guards  # which needs this module

    try:
        if again or build_guards.find_guards() is None:
            build_guards.build_guards(out)
    except CompatError as error:
        print(error, file=sys.stderr)


def _tell(source: str) -> None:
    print(f"compiling {source}", file=sys.stderr, flush=True)


def run_compiler(remedy: str, *command: str) -> None:
    """Run a command; CompatError with its first error and the remedy where it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise CompatError(f"{command[0]} cannot build the native library ({lines[0].strip()[:300]}); {remedy}")


if __name__ == "__main__":
    main()
