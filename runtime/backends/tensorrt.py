"""TensorRT and TensorRT-RTX: engines that `odestream compile` built, the state in two buffers on the device.

Which of the two packages runs is what the bundle's engines were built with. Before anything is loaded, an engine's
sidecar is compared with this machine and the bundle, then its bytes with their hash; plugins are registered first. A
step is one CUDA graph: inputs to the device, the engine, outputs back. The graph is captured after a first run on
buffers of its own, which no stream's state ever was in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena, Layout, initial
from odestream.runtime.backends import Engine
from odestream.runtime.backends.cuda_device import Cuda
from odestream.runtime.backends.device_block import DeviceBlock
from odestream.runtime.backends.engine_store import (
    Here,
    Stored,
    built_targets,
    check_engine,
    compile_command,
    engines_of,
    find_engine,
)
from odestream.runtime.backends.trt_package import Package, load_package, make_logger
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.engine import STATE_MAGNITUDE, EngineRecord
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import BundleError, CompatError, ResourceError, StateError
from odestream.runtime.guards import finite

NAME = "tensorrt"

_SCRATCH = 2  # the copies of the state that only warm-up runs read and write
_STATE_COPIES = 4


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """Load a bundle's engines; CompatError where there is none that fits, or its package or a GPU is missing."""
    if threads != 1:
        raise CompatError(f"threads is {threads}, but {NAME} runs on a GPU; leave it out")
    targets = built_targets(bundle)
    if not targets:
        raise CompatError(f"{engines_of(bundle)}: no engine; run {compile_command(bundle, 'tensorrt')} (or trt-rtx)")
    tried = [_try(bundle, target) for target in targets]
    engine = next((found for found in tried if isinstance(found, TensorrtEngine)), None)
    if engine is None:
        raise CompatError("; ".join(map(str, tried)))
    return engine


def _try(bundle: Bundle, target: str) -> TensorrtEngine | CompatError:
    try:
        return TensorrtEngine(bundle, load_package(target), Cuda())
    except CompatError as error:
        return error


class TensorrtEngine:
    """The engines of a bundle's buckets, each loaded when it is first used and shared by all bindings."""

    name = NAME

    def __init__(self, bundle: Bundle, package: Package, cuda: Cuda) -> None:
        self.bundle, self.package, self.cuda = bundle, package, cuda
        self._here = Here(package, cuda.gpu)
        self._logger, self._messages = make_logger(package)
        self._runtime = package.module.Runtime(self._logger)
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Any, EngineRecord]] = {}
        self._plugins: set[str] = set()
        self._closed = False
        self.loaded(bundle.manifest.default_graph)

    @property
    def spec(self) -> StepSpec:
        """The step's inputs, outputs and state."""
        return self.bundle.manifest.spec

    def bind(self, batch: int) -> TensorrtBinding:
        """Buffers for `batch` streams; CompatError where no profile takes so many, ResourceError without the memory."""
        return TensorrtBinding(self, batch)

    def close(self) -> None:
        """Let go of the engines; bindings that already exist must not run any more."""
        with self._lock:
            self._closed = True
            self._loaded.clear()

    def loaded(self, label: str) -> tuple[Any, EngineRecord]:
        """The engine of bucket `label` and its record; CompatError where none fits or TensorRT refuses it."""
        with self._lock:
            if self._closed:
                raise StateError("the engine is closed; load the bundle again")
            if label not in self._loaded:
                self._loaded[label] = self._load(find_engine(self.bundle, label, self._here))
            return self._loaded[label]

    def context(self, label: str) -> Any:
        """A new execution context; ResourceError where the device has no room for it."""
        engine, _ = self.loaded(label)
        context = engine.create_execution_context()
        if context is None:
            raise ResourceError(
                f"{self.package.target} gave no execution context for bucket {label} ({self.said()}); "
                "bind fewer streams, or free the device"
            )
        return context

    def said(self) -> str:
        """What the package's last error was."""
        return self._messages.take() or "it gave no reason"

    def _load(self, stored: Stored) -> tuple[Any, EngineRecord]:
        data, record = check_engine(stored.path, stored.record), stored.record
        plugin = stored.plugin
        if plugin is not None and plugin.copy not in self._plugins:
            if self._runtime.get_plugin_registry().load_library(plugin.copy) is None:
                raise CompatError(f"{plugin.path}: {self.package.target} refuses it ({self.said()}); build it again")
            self._plugins.add(plugin.copy)
        if "version_compatible" in record.flags:
            self._runtime.engine_host_code_allowed = True  # such an engine brings the runtime of its own version
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise CompatError(
                f"{stored.path}: {self.package.target} {self.package.version} refuses it ({self.said()}); run on this "
                f"machine: {compile_command(self.bundle, self.package.target)}"
            )
        _check_tensors(engine, self.spec, str(stored.path))
        return engine, record


class TensorrtBinding:
    """See `odestream.runtime.backends.Binding`; `arena` and `next_arena` bring copies from the device."""

    def __init__(self, engine: TensorrtEngine, batch: int) -> None:
        spec, cuda = engine.spec, engine.cuda
        self.batch, self._engine, self._cuda = batch, engine, cuda
        _profile(engine.loaded(engine.bundle.manifest.default_graph)[1], batch)
        outputs, self._layout = Layout(spec.outputs, batch), Layout(spec.state, batch)
        self.flat_outputs = outputs.empty()
        self.outputs: Mapping[str, NDArray[np.float32]] = outputs.views(self.flat_outputs)
        answers = [(t.name, (batch, *t.shape), t.dtype) for t in spec.outputs]
        magnitude = [(STATE_MAGNITUDE, (batch,), "float32")] if spec.state else []
        self._given = DeviceBlock(cuda, [(t.name, (batch, *t.shape), t.dtype) for t in spec.inputs])
        self._answers = DeviceBlock(cuda, [*answers, *magnitude])
        self._state = DeviceBlock(cuda, [(m.name, (batch, *m.shape), "float32") for m in spec.state], _STATE_COPIES)
        self.inputs: Mapping[str, NDArray[Any]] = self._given.host
        self._stream = cuda.stream()
        self._steps: dict[str, tuple[Any, tuple[Any, Any]]] = {}
        self._graphs: list[Any] = []
        free = weakref.finalize(self, _release, cuda, self._stream, self._graphs)
        free.atexit = False  # a daemon thread may be inside the library then
        self._side = 0
        start = initial(spec.state, batch)
        for copy in range(_STATE_COPIES):
            self._write(start, copy)

    @property
    def arena(self) -> Arena:
        """The state, copied from the device."""
        return self._read(self._side)

    @property
    def next_arena(self) -> Arena:
        """The new state, copied from the device."""
        return self._read(self._side ^ 1)

    def run(self, label: str) -> None:
        """Run the engine of bucket `label` from inputs and state; StateError where the device fails."""
        _, graphs = self._steps.get(label) or self._prepare(label)
        self._cuda.launch(graphs[self._side], self._stream)
        self._cuda.synchronize(self._stream)
        for name, view in self.outputs.items():
            view[...] = self._answers.host[name]

    def swap(self) -> None:
        """Make the new state the state."""
        self._side ^= 1

    def set_state(self, arena: Arena) -> None:
        """Copy a state to the device."""
        self._write(arena, self._side)

    def set_next_state(self, arena: Arena) -> None:
        """Copy a new state to the device, as if a run had left it."""
        self._write(arena, self._side ^ 1)
        magnitude = self._answers.host.get(STATE_MAGNITUDE)
        if magnitude is not None:
            magnitude[...] = 0.0 if finite(arena) else np.nan

    def finite(self) -> bool:
        """Whether the last run's outputs and new state hold neither NaN nor infinity; the state stays where it is."""
        magnitude = self._answers.host.get(STATE_MAGNITUDE)
        return finite(self.flat_outputs) and (magnitude is None or bool(np.isfinite(magnitude).all()))

    def _read(self, copy: int) -> Arena:
        self._state.download(self._stream, copy)
        self._cuda.synchronize(self._stream)
        arena = self._layout.empty()
        for name, view in self._layout.views(arena).items():
            view[...] = self._state.host[name]
        return arena

    def _write(self, arena: Arena, copy: int) -> None:
        for name, view in self._layout.views(arena).items():
            self._state.host[name][...] = view
        self._state.upload(self._stream, copy)
        self._cuda.synchronize(self._stream)

    def _prepare(self, label: str) -> tuple[Any, tuple[Any, Any]]:
        """A context for this batch, and the graphs of both directions between the buffers."""
        context = self._engine.context(label)
        profile = _profile(self._engine.loaded(label)[1], self.batch)
        if not context.set_optimization_profile_async(profile, int(self._stream)):
            raise StateError(f"bucket {label}: profile {profile} is refused ({self._engine.said()}); compile it again")
        self._cuda.synchronize(self._stream)
        spec = self._engine.spec
        for name, array in self.inputs.items():
            self._set(context.set_input_shape(name, array.shape), label, name)
        for member in spec.state:
            name = f"state_in_{member.name}"
            self._set(context.set_input_shape(name, (self.batch, *member.shape)), label, name)
        self._point(context, label, _SCRATCH, _SCRATCH + 1)
        self._enqueue(context, label)
        self._cuda.synchronize(self._stream)
        graphs = self._capture(context, label, 0), self._capture(context, label, 1)
        self._steps[label] = context, graphs
        return self._steps[label]

    def _capture(self, context: Any, label: str, side: int) -> Any:
        self._point(context, label, side, side ^ 1)
        graph = self._cuda.capture(self._stream, lambda: self._enqueue(context, label))
        self._graphs.append(graph)
        return graph

    def _point(self, context: Any, label: str, source: int, target: int) -> None:
        """Tell the context where every tensor lies; source and target: copies of the state."""
        addresses = {name: self._given.address(name) for name in self._given.offsets}
        addresses |= {name: self._answers.address(name) for name in self._answers.offsets}
        addresses |= {f"state_in_{name}": self._state.address(name, source) for name in self._state.offsets}
        addresses |= {f"state_out_{name}": self._state.address(name, target) for name in self._state.offsets}
        for name, address in addresses.items():
            self._set(context.set_tensor_address(name, address), label, name)

    def _enqueue(self, context: Any, label: str) -> None:
        self._given.upload(self._stream)
        if not context.execute_async_v3(int(self._stream)):
            package, said = self._engine.package.target, self._engine.said()
            raise StateError(f"{package} failed in bucket {label} ({said}); the step was discarded")
        self._answers.download(self._stream)

    def _set(self, done: bool, label: str, name: str) -> None:
        if not done:
            raise StateError(f"bucket {label}: {name} is refused ({self._engine.said()}); compile the bundle again")


def _profile(record: EngineRecord, batch: int) -> int:
    """The optimisation profile for a batch size; CompatError names the sizes that there are."""
    for place, (least, _, most) in enumerate(record.profiles):
        if least <= batch <= most:
            return place
    ranges = ", ".join(f"{least} to {most}" for least, _, most in record.profiles)
    raise CompatError(
        f"{batch} streams at once, but the engine of bucket {record.label} takes {ranges}; bind fewer, or compile the "
        f"bundle with --batch {batch}"
    )


def _check_tensors(engine: Any, spec: StepSpec, where: str) -> None:
    """An engine that is ours has the step's tensors, and no others."""
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    expected = {t.name for t in (*spec.inputs, *spec.outputs)}
    expected |= {f"state_{side}_{m.name}" for side in ("in", "out") for m in spec.state}
    expected |= {STATE_MAGNITUDE} if spec.state else set()
    if found != expected:
        wrong = ", ".join(sorted(found ^ expected))
        raise BundleError(f"{where}: its tensors differ from the bundle's in {wrong}; compile the bundle again")


def _release(cuda: Cuda, stream: Any, graphs: list[Any]) -> None:
    for graph in graphs:
        cuda.free_graph(graph)
    cuda.close_stream(stream)
