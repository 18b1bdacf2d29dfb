"""Builds the CUDA library: `python -m odestream.runtime.kernels.build --cuda`, where nvcc is.

Named and placed as the CPU library is. It is linked with CUDA's runtime, so that it needs a driver and no toolkit.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CompatError
from odestream.runtime.kernels.build import COMMAND, run_compiler
from odestream.runtime.kernels.places import SOURCES, find, writable_folder

CUDA_COMMAND = f"{COMMAND} --cuda"
CUDA_SOURCES = ("cuda_step.cu", "cuda_model.cu", "cuda_binding.cpp", "odestream_cuda.cpp", "load.cpp")

# NaN and infinity keep their meaning: no fast maths. CMakeLists.txt says the same.
CUDA_FLAGS = ("-std=c++17", "-O3")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off")

ARCHITECTURES = ("80", "87", "89", "90", "120")
"""Compute capabilities that a library for any machine holds code for: A100, Orin, Ada, Hopper, Blackwell.

A GPU between them runs the code of the one before within its major version; a later one compiles the last one's PTX.
"""

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvmap")


def cuda_library_name() -> str:
    """The file name of the CUDA library that belongs to these sources on this machine."""
    digest = hashlib.sha256(repr((CUDA_FLAGS, HOST_FLAGS)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.name in CUDA_SOURCES or path.suffix == ".h":
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"libodestream_cuda-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def find_cuda_library() -> Path | None:
    """The built CUDA library of these sources, None where there is none."""
    return find(cuda_library_name())


def find_nvcc() -> str:
    """nvcc of `$CUDA_HOME`, of the path, or of /usr/local/cuda; CompatError without one."""
    home = os.environ.get("CUDA_HOME")
    for place in (f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(place)
        if found:
            return found
    raise CompatError(f"nvcc is not on the path; install the CUDA toolkit, 12 or later, and run: {CUDA_COMMAND}")


def default_architectures() -> tuple[str, ...]:
    """`native` on a machine with a GPU, else those of ARCHITECTURES that this nvcc knows."""
    return ("native",) if has_gpu() else known_architectures(find_nvcc())


def known_architectures(nvcc: str) -> tuple[str, ...]:
    """ARCHITECTURES without those that came after this nvcc: 120 came with 12.8. CompatError where none is left."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=False, capture_output=True, text=True).stdout.split()
    known = tuple(name for name in ARCHITECTURES if f"compute_{name}" in listed)
    if not known:
        raise CompatError(f"{nvcc} lists none of {', '.join(ARCHITECTURES)}; install the CUDA toolkit, 12 or later")
    return known


def has_gpu() -> bool:
    """Whether a driver has laid out the device files of an NVIDIA GPU or Jetson."""
    return any(Path(file).exists() for file in _DEVICE_FILES)


def architecture_flags(architectures: tuple[str, ...]) -> tuple[str, ...]:
    """nvcc's options for code of these compute capabilities, and PTX of the last; `native` is this machine's own."""
    if architectures == ("native",):
        return ("-arch=native",)
    if "native" in architectures or not all(name.rstrip("af").isdigit() for name in architectures):
        given = ",".join(architectures)
        raise CompatError(f"--arch is {given!r}; give native alone, or capabilities such as {','.join(ARCHITECTURES)}")
    code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    return (*code, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")


def build_cuda(
    out: Path | None = None, architectures: tuple[str, ...] = (), tell: Callable[[str], object] = lambda source: None
) -> Path:
    """Compile the CUDA library into the folder `out` and return its path.

    out: as of `build.build`. architectures: default_architectures unless given. tell: hears of each source before it is
    compiled, which takes up to minutes. Raises CompatError where there is no nvcc or it fails.
    """
    target = (out or writable_folder()) / cuda_library_name()
    flags = architecture_flags(architectures or default_architectures())
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for source in CUDA_SOURCES:
            tell(source)
            objects.append(Path(scratch) / f"{source}.o")
            compile_cuda(objects[-1], ("-c", "--threads=0", *flags), (source,))
        made = Path(scratch) / "library.so"
        compile_cuda(made, ("-shared", "-cudart=static", *flags), tuple(map(str, objects)))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, made.read_bytes())
    return target


def compile_cuda(target: Path, extra: tuple[str, ...], sources: tuple[str, ...] = CUDA_SOURCES) -> None:
    """One run of nvcc over `sources`, or objects by their full paths, with the library's flags and `extra`."""
    remedy = "install a CUDA toolkit, 12 or later, that knows these GPUs, or use the native or onnxruntime backend"
    host = f"-Xcompiler={','.join(HOST_FLAGS)}"
    paths = [str(SOURCES / source) for source in sources]
    run_compiler(remedy, find_nvcc(), *CUDA_FLAGS, host, *extra, *paths, "-o", str(target))
