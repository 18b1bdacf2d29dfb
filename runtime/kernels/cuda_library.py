"""The CUDA library through ctypes: its structs and functions as `csrc/odestream_cuda.h` declares them."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from odestream.runtime.errors import CompatError, ResourceError
from odestream.runtime.kernels.build_cuda import CUDA_COMMAND, find_cuda_library
from odestream.runtime.kernels.library import Config, Weight

CUDA_ABI = 2
CUDA_LIBRARY_VARIABLE = "ODESTREAM_CUDA_LIBRARY"
"""Names a library to load instead of the one that was built here."""

PRECISIONS = MappingProxyType({"fp32": 0, "fp16": 1, "bf16": 2})
"""A bundle's dtype → what its matrices' weights are on the device."""

NO_MEMORY, LOST = 7, 8
"""Statuses that are more than a refusal; see `csrc/odestream_cuda.h`."""

ELSEWHERE = "or use the native or onnxruntime backend"
_REMEDIES = {
    1: "use the onnxruntime backend",
    3: f"install NVIDIA's driver for this library's CUDA or a later one, {ELSEWHERE}",
    4: f"see which GPUs nvidia-smi lists and CUDA_VISIBLE_DEVICES hides, {ELSEWHERE}",
    5: f"build it for this GPU, of compute capability 8.0 or later ({CUDA_COMMAND} --force --arch native), {ELSEWHERE}",
    6: f"see that the GPU is in order (nvidia-smi), {ELSEWHERE}",
    NO_MEMORY: f"free the device, {ELSEWHERE}",
    LOST: f"start the process again, {ELSEWHERE}",
}


class DeviceInfo(Structure):
    """`odestream_cuda_device`."""

    _fields_ = [
        ("name", c_char * 256),
        *((name, c_int32) for name in ("major", "minor", "processors", "driver", "runtime")),
    ]


class Buffers(Structure):
    """`odestream_cuda_buffers`."""

    _fields_ = [(name, c_void_p) for name in ("x", "mask", "dt", "phase", "outputs")]


@dataclass(frozen=True)
class Gpu:
    """A GPU that a model can run on. capability: such as 8.7; driver, runtime: CUDA versions of driver and library."""

    name: str
    capability: str
    processors: int
    driver: str
    runtime: str


def load_cuda_library() -> ctypes.CDLL:
    """The CUDA library, its functions typed; it loads where there is no GPU too.

    Raises CompatError where none is built, where it cannot be loaded or is of another ABI version.
    """
    named = os.environ.get(CUDA_LIBRARY_VARIABLE)
    path = Path(named) if named else find_cuda_library()
    if path is None:
        raise CompatError(f"native-cuda is not built for this version and machine; run: {CUDA_COMMAND}")
    return _load(path.absolute())


def find_gpu(library: ctypes.CDLL, device: int = 0) -> Gpu:
    """GPU number `device`; CompatError where there is none on which the library can run."""
    info = DeviceInfo()
    _refuse(library, library.odestream_cuda_describe(device, ctypes.byref(info)), "native-cuda cannot run here")
    return Gpu(
        info.name.decode(), f"{info.major}.{info.minor}", info.processors, _version(info.driver), _version(info.runtime)
    )


def check(library: ctypes.CDLL, status: int, what: str) -> None:
    """Raise where a call of the library gave another status than 0: ResourceError without memory, else CompatError."""
    if status == NO_MEMORY:
        reason = library.odestream_cuda_last_error().decode()
        raise ResourceError(f"{what} ({reason}); bind fewer streams, or free the device")
    _refuse(library, status, what)


def _refuse(library: ctypes.CDLL, status: int, what: str) -> None:
    if status != 0:
        reason = library.odestream_cuda_last_error().decode()
        raise CompatError(f"{what} ({reason}); {_REMEDIES.get(status, ELSEWHERE)}")


@cache
def _load(path: Path) -> ctypes.CDLL:
    again = f"build it again: {CUDA_COMMAND} --force"
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.odestream_cuda_abi())
    except (OSError, AttributeError) as cause:
        raise CompatError(f"{path}: not a CUDA library of odestream ({cause}); {again}") from cause
    if found != CUDA_ABI:
        raise CompatError(f"{path}: ABI version {found}, this odestream needs {CUDA_ABI}; {again}")
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    signatures: dict[str, tuple[object, list[object]]] = {
        "last_error": (c_char_p, []),
        "describe": (c_int32, [c_int32, c_void_p]),
        "create": (c_int32, [POINTER(Config), POINTER(Weight), c_size_t, c_int32, c_int32, POINTER(c_void_p)]),
        "destroy": (None, [c_void_p]),
        "layout": (c_char_p, [c_void_p]),
        "bind": (c_int32, [c_void_p, c_int32, POINTER(c_void_p)]),
        "release": (None, [c_void_p]),
        "buffers_of": (Buffers, [c_void_p]),
        "prepare": (c_int32, [c_void_p, c_int32]),
        "run": (c_int32, [c_void_p, c_int32]),
        "finite": (c_int32, [c_void_p]),
        "swap": (None, [c_void_p]),
        "set_state": (c_int32, [c_void_p, c_int32, c_void_p]),
        "get_state": (c_int32, [c_void_p, c_int32, c_void_p]),
        "time": (c_int32, [c_void_p, c_int32, c_int32, POINTER(c_float)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"odestream_cuda_{name}")
        function.restype, function.argtypes = result, arguments


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
