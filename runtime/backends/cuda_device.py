"""The CUDA runtime, as far as a backend needs it: one device, memory, a stream, graphs; by way of cuda-bindings.

A failed call raises a typed error. Some failures (an illegal address, a failed launch) leave the process's context in
ruins: from then on every call is refused at once, since its result could not be trusted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.backends.device_loss import OUT_OF_MEMORY, STICKY, DeviceLoss
from odestream.runtime.errors import CompatError, ResourceError, StateError

_ALIGNMENT = 256


@dataclass(frozen=True)
class Gpu:
    """name, multiprocessors; capability such as 8.9; driver and runtime: versions of CUDA that they speak."""

    name: str
    multiprocessors: int
    capability: str
    driver: str
    runtime: str

    @property
    def architecture(self) -> str:
        """As engines are named: `sm89`."""
        return f"sm{self.capability.replace('.', '')}"


def find_gpu() -> Gpu:
    """The GPU that this process uses; CompatError where there is none."""
    return Cuda().gpu


def load_bindings() -> Any:
    """The module `cuda.bindings.runtime`; CompatError says how to install it."""
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as cause:
        raise CompatError(
            f"cuda-bindings is not installed ({cause}); pip install 'cuda-bindings' of this machine's CUDA, such as "
            "12.6 on JetPack 6"
        ) from cause
    return runtime


class Cuda:
    """Device 0 of this process, or what CUDA_VISIBLE_DEVICES makes of it. gpu: what it is."""

    def __init__(self) -> None:
        self._api = load_bindings()
        self._loss = DeviceLoss()
        self.gpu = self._describe()

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device; ResourceError where they are not to be had."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give memory back; a lost device has none any more."""
        if not self._loss:
            self._call("cudaFree", address)

    def pinned(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Address and bytes of host memory that the device copies from by itself."""
        address = int(self._call("cudaHostAlloc", size, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[:] = 0
        return address, array

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""
        if not self._loss:
            self._call("cudaFreeHost", address)

    def stream(self) -> Any:
        """A stream that waits for no other."""
        return self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    def close_stream(self, stream: Any) -> None:
        """End a stream."""
        if not self._loss:
            self._call("cudaStreamDestroy", stream)

    def copy_in(self, device: int, host: int, size: int, stream: Any) -> None:
        """Start a copy from the host to the device."""
        self._call("cudaMemcpyAsync", device, host, size, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, host: int, device: int, size: int, stream: Any) -> None:
        """Start a copy from the device to the host."""
        self._call("cudaMemcpyAsync", host, device, size, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def synchronize(self, stream: Any) -> None:
        """Wait for a stream; failures of what ran on it come up here."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """A graph of what `enqueue` puts on the stream, which does not run."""
        self._call("cudaStreamBeginCapture", stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            self._api.cudaStreamEndCapture(stream)  # the first error is the one to tell
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Start a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        """Free a captured graph."""
        if not self._loss:
            self._call("cudaGraphExecDestroy", graph)

    def _describe(self) -> Gpu:
        try:
            found = self._call("cudaGetDeviceProperties", 0)
            driver, runtime = self._call("cudaDriverGetVersion"), self._call("cudaRuntimeGetVersion")
        except (StateError, ResourceError) as cause:
            raise CompatError(f"no GPU can be used here ({cause}); install its driver, or use a CPU backend") from cause
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(
            name.strip("\0 "),
            int(found.multiProcessorCount),
            f"{found.major}.{found.minor}",
            _version(int(driver)),
            _version(int(runtime)),
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        self._loss.refuse()
        error, *results = getattr(self._api, name)(*arguments)
        if int(error) != 0:
            self._raise(name, int(error), arguments)
        return results[0] if results else None

    def _raise(self, name: str, error: int, arguments: tuple[Any, ...]) -> None:
        said = f"{name}: CUDA error {error}"
        if error == OUT_OF_MEMORY:
            size = arguments[0] if name in ("cudaMalloc", "cudaHostAlloc") else "more"
            raise ResourceError(f"{said}, out of memory for {size} bytes; bind fewer streams, or free the device")
        if error in STICKY:
            raise self._loss.mark(said)
        raise StateError(f"{said}; nothing was changed, odestream doctor tells what is installed")


def _version(number: int) -> str:
    """12060 → 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


def padded(size: int) -> int:
    """The next multiple of what device tensors are aligned to."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
