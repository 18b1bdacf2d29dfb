"""Builds the library of TensorRT plugins: `python -m odestream.runtime.kernels.build_plugin`, where nvcc is.

It compiles against the headers of the TensorRT that will load it: JetPack and Debian have them in the system's include
path, an unpacked archive under its own `include`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CompatError, OdestreamError
from odestream.runtime.kernels.build_cuda import architecture_flags, compile_cuda, default_architectures
from odestream.runtime.kernels.places import SOURCES, writable_folder

PLUGIN_COMMAND = "python -m odestream.runtime.kernels.build_plugin"
PLUGIN_SOURCES = ("trt_plugin.cpp", "trt_parts.cpp", "cuda_step.cu")
ROOT_VARIABLE = "TENSORRT_ROOT"
HEADER = "NvInferRuntime.h"
_VERSION = re.compile(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR)(?:_ENTERPRISE)? (\d+)")
_OLDEST = (10, 1)  # the first with IPluginV3 as it still is


def find_headers(root: Path | None = None) -> Path:
    """The folder of NvInferRuntime.h: of `root`, of TENSORRT_ROOT, or the system's; CompatError without one."""
    named = root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)
    places = [named / "include", named] if named else []
    if named is None:
        triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
        places = [Path("/usr/include") / triplet, Path("/usr/include"), Path("/usr/local/include")]
    found = next((place for place in places if (place / HEADER).is_file()), None)
    if found is None:
        raise CompatError(
            f"no {HEADER} in {', '.join(map(str, places))}; install TensorRT's headers (JetPack, Debian: apt install "
            f"libnvinfer-headers-dev), or name an unpacked TensorRT with --tensorrt or {ROOT_VARIABLE}"
        )
    return found


def header_version(folder: Path) -> tuple[int, int]:
    """Major and minor version of the headers in `folder`; CompatError where they are too old or not TensorRT's."""
    text = (folder / "NvInferVersion.h").read_text(errors="replace") if (folder / "NvInferVersion.h").is_file() else ""
    numbers = {name: int(value) for name, value in _VERSION.findall(text)}
    version = numbers.get("MAJOR", 0), numbers.get("MINOR", 0)
    if version < _OLDEST:
        raise CompatError(
            f"{folder}: TensorRT {version[0]}.{version[1]}, the plugins need {_OLDEST[0]}.{_OLDEST[1]} or later; "
            f"name another with --tensorrt or {ROOT_VARIABLE}"
        )
    return version


def plugin_library_name(version: tuple[int, int]) -> str:
    """The file name of the library that belongs to these sources, this machine and a TensorRT."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.name in PLUGIN_SOURCES or path.suffix == ".h":
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"libodestream_plugins-trt{version[0]}.{version[1]}-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def build_plugin(out: Path | None = None, root: Path | None = None, architectures: tuple[str, ...] = ()) -> Path:
    """Compile the plugin library into the folder `out`, beside the other kernels by default, and return its path.

    root: of a TensorRT, see `find_headers`. architectures: compute capabilities such as 87; this GPU's, or all.
    Raises CompatError where headers or nvcc are missing or it fails.
    """
    headers = find_headers(root)
    target = (out or writable_folder()) / plugin_library_name(header_version(headers))
    flags = architecture_flags(architectures or default_architectures())
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "library.so"
        compile_cuda(made, ("-shared", "-cudart=static", "-isystem", str(headers), *flags), PLUGIN_SOURCES)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, made.read_bytes())
    return target


def main() -> None:
    """Build from the command line; exit status 2 and one sentence where it cannot be done."""
    parser = argparse.ArgumentParser(prog=PLUGIN_COMMAND, description="Build the library of TensorRT plugins.")
    parser.add_argument("--out", type=Path, help="folder for the library (default: beside its sources, or the cache)")
    parser.add_argument("--tensorrt", type=Path, help="an unpacked TensorRT (default: the system's)")
    parser.add_argument("--arch", help="compute capabilities such as 87,89 (default: this GPU's, or all)")
    options = parser.parse_args()
    try:
        print(build_plugin(options.out, options.tensorrt, tuple(options.arch.split(",")) if options.arch else ()))
    except OdestreamError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
