"""The CUDA library compiled for the CPU: its own sources over the stand-in for CUDA in `cuda_on_cpu`."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from filelock import FileLock

from odestream.runtime.kernels.build import SOURCES, find_compiler
from odestream.runtime.kernels.build_cuda import CUDA_SOURCES

STAND_IN = Path(__file__).parent / "cuda_on_cpu"
CACHE = Path(__file__).parents[2] / ".cache" / "cuda_on_cpu"
FLAGS = ("-std=c++17", "-g", "-fPIC", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def emulated_library(sanitizer: str = "") -> Path:
    """The library, built if its sources or flags changed. sanitizer: none, "thread" or "address".

    The stand-in itself is compiled without the sanitizer, which is then told of fibers and barriers by it.
    """
    flags = {
        "": ("-O1",),
        "thread": ("-O1", "-fsanitize=thread"),
        "address": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    }[sanitizer]
    scheduler = {"": (), "thread": ("-DWITH_TSAN",), "address": ("-DWITH_ASAN",)}[sanitizer]
    target = CACHE / f"{sanitizer or 'plain'}-{_digest(repr((FLAGS, flags, scheduler)))}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # of several test processes, one compiles
        if not target.is_file():
            made = target.with_suffix(".unfinished")
            _compile(made, flags, scheduler)
            made.rename(target)
    return target


def _compile(target: Path, flags: tuple[str, ...], scheduler: tuple[str, ...]) -> None:
    compiler, units = find_compiler(), [(SOURCES / source, flags) for source in CUDA_SOURCES]
    units += [(STAND_IN / "parts.cpp", ("-O0",)), (STAND_IN / "cuda_on_cpu.cpp", ("-O2", *scheduler))]
    objects = []
    for source, own in units:
        made = target.with_name(f"{target.name}-{source.stem}.o")
        includes = (f"-I{SOURCES}", f"-I{STAND_IN}")
        subprocess.run([compiler, *FLAGS, *own, *includes, "-xc++", "-c", str(source), "-o", str(made)], check=True)
        objects.append(made)
    subprocess.run([compiler, "-shared", *flags, *map(str, objects), "-o", str(target)], check=True)
    for made in objects:
        made.unlink()


def _digest(flags: str) -> str:
    digest = hashlib.sha256(flags.encode())
    for path in sorted([*SOURCES.iterdir(), *STAND_IN.iterdir()]):
        if path.suffix == ".h" or path.name in CUDA_SOURCES or path.parent == STAND_IN:
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
