"""A GPU and a TensorRT that are not there: they keep their promises on the CPU, or break them as a test asks for.

Device memory is host memory, a stream does things at once, a capture keeps them for later, and an engine is an ONNX
file that onnxruntime runs. So what is tested with it is our handling: addresses, buffers, captures, errors. It says
nothing about a real GPU or a real engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from odestream.export.engine import whole_model
from odestream.runtime.backends.cuda_device import Gpu
from odestream.runtime.backends.plugin_library import PLUGIN_ABI
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.engine import (
    SIDECAR_VERSION,
    EngineRecord,
    GpuRecord,
    PluginRecord,
    encode_record,
    engine_key,
    engine_name,
)
from odestream.runtime.contract.manifest import WEIGHTS_NAME

GPU = Gpu("Scripted RTX", 58, "8.9", "13.0", "13.0")
PLUGIN = PluginRecord("libodestream_plugins.so", hashlib.sha256(b"library").hexdigest(), PLUGIN_ABI)
OUT_OF_MEMORY, ILLEGAL_ADDRESS, BAD_VALUE = 2, 700, 1


@dataclass
class Script:
    """What is to go wrong, and what happened. errors: CUDA call → its next error codes, 0 for none."""

    errors: dict[str, list[int]] = field(default_factory=dict)
    null_engine: bool = False
    null_context: bool = False
    refuse_run: bool = False
    spoil: str = ""  # an output tensor to fill with NaN
    delay_s: float = 0.0
    live: dict[int, Any] = field(default_factory=dict)
    captured: list[Callable[[], None]] | None = None
    copied_in: list[int] = field(default_factory=list)
    loaded_plugins: list[bytes] = field(default_factory=list)
    graphs: int = 0

    def put(self, action: Callable[[], None]) -> None:
        """On the stream: at once, or into the capture."""
        if self.captured is None:
            action()
        else:
            self.captured.append(action)


class Runtime:
    """Stands for the module `cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, script: Script, gpu: Gpu = GPU) -> None:
        self.script, self.gpu = script, gpu

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """`cudaName` is `_Name`, behind the errors that the script has for it."""
        method = object.__getattribute__(self, f"_{name.removeprefix('cuda')}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            errors = self.script.errors.get(name, [])
            error = errors.pop(0) if errors else 0
            if error:
                return error, None
            result = method(*arguments)
            return (0,) if result is None else (0, result)

        return call

    def _GetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = map(int, self.gpu.capability.split("."))
        name, count = self.gpu.name.encode(), self.gpu.multiprocessors
        return SimpleNamespace(name=name, multiProcessorCount=count, major=major, minor=minor)

    def _DriverGetVersion(self) -> int:  # noqa: N802
        return _number(self.gpu.driver)

    def _RuntimeGetVersion(self) -> int:  # noqa: N802
        return _number(self.gpu.runtime)

    def _Malloc(self, size: int) -> int:  # noqa: N802
        memory = np.full(size + 256, 0xFF, np.uint8)  # every float in it is NaN
        address = int(-(-memory.ctypes.data // 256) * 256)
        self.script.live[address] = memory
        return address

    def _HostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        return self._Malloc(size)

    def _Free(self, address: int) -> None:  # noqa: N802
        del self.script.live[address]

    def _FreeHost(self, address: int) -> None:  # noqa: N802
        self._Free(address)

    def _StreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        return 77

    def _StreamDestroy(self, stream: int) -> None:  # noqa: N802
        pass

    def _StreamSynchronize(self, stream: int) -> None:  # noqa: N802
        pass

    def _MemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        def copy() -> None:
            if kind == 1:
                self.script.copied_in.append(size)
            ctypes.memmove(target, source, size)

        self.script.put(copy)

    def _StreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        self.script.captured = []

    def _StreamEndCapture(self, stream: int) -> list[Callable[[], None]]:  # noqa: N802
        captured, self.script.captured = self.script.captured or [], None
        return captured

    def _GraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> list[Callable[[], None]]:  # noqa: N802
        self.script.graphs += 1
        return list(graph)

    def _GraphDestroy(self, graph: Any) -> None:  # noqa: N802
        pass

    def _GraphLaunch(self, graph: list[Callable[[], None]], stream: int) -> None:  # noqa: N802
        for action in graph:
            action()

    def _GraphExecDestroy(self, graph: Any) -> None:  # noqa: N802
        pass


def tensorrt_module(script: Script, version: str = "1.7.1.116") -> Any:
    """Stands for the module `tensorrt` or `tensorrt_rtx`."""

    class Plugins:
        def load_library(self, path: str) -> object:
            script.loaded_plugins.append(Path(path).read_bytes())
            return object()

    class Loader:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def get_plugin_registry(self) -> Plugins:
            return Plugins()

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            if script.null_engine:
                self.logger.log(1, "Error Code 6: the engine plan file is not compatible")
                return None
            return ScriptedEngine(script, data, self.logger)

    class Logger:
        pass

    return SimpleNamespace(__version__=version, ILogger=Logger, Runtime=Loader)


class ScriptedEngine:
    """An engine whose plan is an ONNX file."""

    def __init__(self, script: Script, data: bytes, logger: Any) -> None:
        self.script, self.logger = script, logger
        self.session = onnxruntime.InferenceSession(data)
        self.names = [port.name for port in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def create_execution_context(self) -> Any:
        if self.script.null_context:
            self.logger.log(1, "Error Code 2: OutOfMemory (requested 123 bytes)")
            return None
        return ScriptedContext(self)


class ScriptedContext:
    """Runs the plan over the addresses that it was told."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine, self.script = engine, engine.script
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return profile == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return name in self.engine.names

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names and address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        if self.script.refuse_run:
            self.engine.logger.log(1, "Error Code 1: Cuda Runtime (invalid resource handle)")
            return False
        addresses = dict(self.addresses)  # a captured graph keeps the addresses of its capture
        self.script.put(lambda: self._execute(addresses))
        return True

    def _execute(self, addresses: dict[str, int]) -> None:
        time.sleep(self.script.delay_s)
        ports = {port.name: port for port in self.engine.session.get_inputs()}
        feed = {n: _view(addresses[n], self.shapes[n], _DTYPES[ports[n].type]).copy() for n in ports}
        names = [port.name for port in self.engine.session.get_outputs()]
        for name, value in zip(names, self.engine.session.run(names, feed), strict=True):
            if name == self.script.spoil:
                value = np.full_like(value, np.nan)
            _view(addresses[name], value.shape, value.dtype)[...] = value


_DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}


def _view(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


def _number(version: str) -> int:
    major, minor = map(int, version.split("."))
    return 1000 * major + 10 * minor


def write_engines(bundle: Bundle, folder: Path, **changes: Any) -> None:
    """A plan and a sidecar of each bucket; `changes` to the sidecar are covered by its key."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, file in bundle.manifest.graphs.items():
        data = whole_model(bundle, label).SerializeToString()
        record = EngineRecord(
            sidecar=SIDECAR_VERSION,
            target="trt-rtx",
            version="1.7.1.116",
            label=label,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            graph_sha256=bundle.manifest.files[file].sha256,
            weights_sha256=bundle.manifest.files[WEIGHTS_NAME].sha256,
            plugin=None,
            calls={},
            proof="",
            architectures=("sm89",),
            gpu=GpuRecord(GPU.name, GPU.multiprocessors, GPU.capability),
            cuda="13.0",
            driver="13.0",
            flags=("strongly_typed",),
            profiles=((1, 8, 8),),
            host=f"{platform.system()} {platform.machine()}",
            layers=1,
            build_seconds=0.0,
            odestream="0.1.0",
            key="",
        )
        record = msgspec.structs.replace(record, **changes)
        if "key" not in changes:
            record = msgspec.structs.replace(record, key=engine_key(record))
        path = folder / engine_name(file, record)
        path.write_bytes(data)
        path.with_name(path.name + ".json").write_bytes(encode_record(record))
