"""ONNX Runtime on a GPU: its CUDA provider, the state on the device in two sets of tensors, a CUDA graph each way.

The provider runs the whole graph or is refused: a node that would fall back to the CPU fails the load.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena, Layout, aligned, initial
from odestream.runtime.backends import Engine
from odestream.runtime.backends.device_loss import OUT_OF_MEMORY, STICKY, DeviceLoss
from odestream.runtime.backends.onnxruntime import OnnxEngine, first_line
from odestream.runtime.bundle import Bundle
from odestream.runtime.errors import CompatError, OdestreamError, ResourceError, StateError
from odestream.runtime.guards import finite

NAME = "onnxruntime-cuda"

_CUDA_FAILURE = re.compile(r"CUDA failure (?P<code>\d+): [^;\n]*")
_NO_MEMORY = re.compile(
    rf"CUDA failure {OUT_OF_MEMORY}:|Failed to allocate memory|Available memory of \d+ is smaller than requested"
)
_RESTORE = "restore the stream from a snapshot"


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """Load a bundle; CompatError where onnxruntime is missing or comes without its CUDA provider."""
    try:
        import onnxruntime
    except ImportError as cause:
        raise CompatError(f"onnxruntime is not installed ({cause}); run: pip install 'odestream[gpu]'") from cause
    return OnnxCudaEngine(onnxruntime, bundle, threads)


class OnnxCudaEngine(OnnxEngine):
    """One InferenceSession for each bucket on the GPU; see `OnnxEngine`."""

    name = NAME
    provider = "CUDAExecutionProvider"
    provider_options = MappingProxyType({"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"})
    remedy = "install 'odestream[gpu]' without 'odestream[cpu]', or JetPack's onnxruntime-gpu wheel"
    device = "cuda"

    def __init__(self, module: Any, bundle: Bundle, threads: int) -> None:
        self.loss = DeviceLoss()
        self.running = threading.Lock()  # a session that captures or replays CUDA graphs is for one thread at a time
        super().__init__(module, bundle, threads)

    def refuse(self) -> None:
        """CompatError where this onnxruntime has no such provider; asked for it, it would only warn."""
        available = self._ort.get_available_providers()
        if self.provider not in available:
            raise CompatError(f"asked onnxruntime for {self.provider}, it has {', '.join(available)}; {self.remedy}")

    def refusal(self, where: str, cause: Exception) -> OdestreamError:
        """See `OnnxEngine.refusal`; a device without memory, or lost, says nothing of the bundle."""
        reason = f"{where}: onnxruntime refuses it ({first_line(cause)})"
        return self._of_device(where, cause) or CompatError(
            f"{reason}; use --backend onnxruntime, or export the bundle again"
        )

    def failure(self, what: str, cause: Exception, remedy: str) -> OdestreamError:
        """The error of a call that onnxruntime failed in; one that loses the device is remembered."""
        what = f"{self.name} failed {what}"
        return self._of_device(what, cause) or StateError(f"{what} ({first_line(cause)}); {remedy}")

    def bind(self, batch: int) -> OnnxCudaBinding:
        """Buffers for `batch` streams, the state at its initial values; ResourceError where the GPU has no room."""
        return OnnxCudaBinding(self, batch)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A tensor on the device."""
        self.loss.refuse()
        try:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self.device, 0)
        except Exception as cause:
            raise self.failure("making a tensor", cause, "nothing was changed, load the bundle again") from cause

    def run_options(self, graph: int) -> Any:
        """Options that name the CUDA graph which a call captures, and replays from then on."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def _of_device(self, what: str, cause: Exception) -> OdestreamError | None:
        """What a failure says of the device, which onnxruntime tells in words alone; None where nothing."""
        text = str(cause)
        found = _CUDA_FAILURE.search(text)
        if found and int(found["code"]) in STICKY:
            return self.loss.mark(f"{what} ({found[0].strip()})")
        if _NO_MEMORY.search(text):
            return ResourceError(f"{what} ({first_line(cause)}); bind fewer streams, or free the device")
        return None


class OnnxCudaBinding:
    """See `odestream.runtime.backends.Binding`; `arena` and `next_arena` bring copies from the device.

    `finite` brings the new state too: the graph has no output that would tell.
    """

    _graphs = itertools.count(1)  # sessions are shared, and a graph belongs to the tensors of one binding

    def __init__(self, engine: OnnxCudaEngine, batch: int) -> None:
        spec = engine.spec
        self.batch, self._engine, self._spec = batch, engine, spec
        outputs, self._layout = Layout(spec.outputs, batch), Layout(spec.state, batch)
        self.inputs: Mapping[str, NDArray[Any]] = {t.name: aligned((batch, *t.shape), t.dtype) for t in spec.inputs}
        self.flat_outputs = outputs.empty()
        self.outputs: Mapping[str, NDArray[np.float32]] = outputs.views(self.flat_outputs)
        self._given = {name: engine.empty(array.shape, array.dtype.type) for name, array in self.inputs.items()}
        self._answers = {name: engine.empty(array.shape, np.float32) for name, array in self.outputs.items()}
        shapes = self._layout.shapes
        self._sides = [{name: engine.empty(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
        self._side = 0
        self._bound: dict[str, tuple[Any, list[tuple[Any, Any]]]] = {}
        self.set_state(initial(spec.state, batch))

    @property
    def arena(self) -> Arena:
        """The state, copied from the device."""
        return self._read(self._side)

    @property
    def next_arena(self) -> Arena:
        """The new state, copied from the device."""
        return self._read(self._side ^ 1)

    def run(self, label: str) -> None:
        """Run the graph of bucket `label` from inputs and state; StateError where the provider fails."""
        self._engine.loss.refuse()
        session, ways = self._bound.get(label) or self._bind(label)
        io, options = ways[self._side]
        try:
            with self._engine.running:
                for name, value in self._given.items():
                    value.update_inplace(self.inputs[name])
                session.run_with_iobinding(io, options)
                io.synchronize_outputs()
                for name, view in self.outputs.items():
                    view[...] = self._answers[name].numpy()
        except Exception as cause:
            remedy = "the step was discarded, check its inputs"
            raise self._engine.failure(f"in bucket {label}", cause, remedy) from cause

    def swap(self) -> None:
        """Make the new state the state."""
        self._side ^= 1

    def set_state(self, arena: Arena) -> None:
        """Copy a state to the device."""
        self._write(arena, self._side)

    def set_next_state(self, arena: Arena) -> None:
        """Copy a new state to the device, as if a run had left it."""
        self._write(arena, self._side ^ 1)

    def finite(self) -> bool:
        """Whether the last run's outputs and new state hold neither NaN nor infinity."""
        return finite(self.flat_outputs) and finite(self.next_arena)

    def _read(self, side: int) -> Arena:
        arena = self._layout.empty()
        self._engine.loss.refuse()
        try:
            for name, view in self._layout.views(arena).items():
                view[...] = self._sides[side][name].numpy()
        except Exception as cause:
            raise self._engine.failure("reading a state", cause, _RESTORE) from cause
        return arena

    def _write(self, arena: Arena, side: int) -> None:
        self._engine.loss.refuse()
        try:
            for name, view in self._layout.views(arena).items():
                self._sides[side][name].update_inplace(np.ascontiguousarray(view))
        except Exception as cause:
            raise self._engine.failure("setting a state", cause, _RESTORE) from cause

    def _bind(self, label: str) -> tuple[Any, list[tuple[Any, Any]]]:
        session = self._engine.session(label)
        ways = [(self._io(session, side), self._engine.run_options(next(self._graphs))) for side in range(2)]
        self._bound[label] = session, ways
        return self._bound[label]

    def _io(self, session: Any, side: int) -> Any:
        io = session.io_binding()
        for name, value in self._given.items():
            io.bind_ortvalue_input(name, value)
        for name, value in self._sides[side].items():
            io.bind_ortvalue_input(f"state_in_{name}", value)
        for name, value in self._answers.items():
            io.bind_ortvalue_output(name, value)
        for name, value in self._sides[side ^ 1].items():
            io.bind_ortvalue_output(f"state_out_{name}", value)
        return io
