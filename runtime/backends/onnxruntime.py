"""ONNX Runtime on the CPU.

Graphs and weights come from the hashed bytes; ONNX Runtime never opens a file. A binding holds two contiguous
state arenas and, for each bucket, two I/O bindings over them (A → B and B → A), so that a step is one call
without a name looked up and accepting a result is a change of sides.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.backends import Binding, Engine
from odestream.runtime.backends.external import ExternalTensor, external_tensors
from odestream.runtime.backends.host import HostBinding
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import WEIGHTS_NAME, WeightEntry
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import BundleError, CompatError, OdestreamError, StateError

NAME = "onnxruntime"

_PROVIDER = "CPUExecutionProvider"
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}
_GRAPH_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
_SILENT = 4
_NOWHERE = "/nonexistent"

Port = tuple[str, list[int]]


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """Load a bundle; CompatError names the extra to install where onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError as cause:
        raise CompatError(f"onnxruntime is not installed ({cause}); run: pip install 'odestream[cpu]'") from cause
    return OnnxEngine(onnxruntime, bundle, threads)


class OnnxEngine:
    """One InferenceSession for each bucket, made when it is first used and shared by all bindings."""

    name = NAME
    provider = _PROVIDER
    remedy = "install 'odestream[cpu]'"
    provider_options: Mapping[str, str] = MappingProxyType({})

    def __init__(self, module: Any, bundle: Bundle, threads: int) -> None:
        if threads < 1:
            raise CompatError(f"threads is {threads}, expected at least 1; leave it out for one thread")
        self._ort = module
        self._bundle = bundle
        self._threads = threads
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] = {}
        self._entries = {entry.name: entry for entry in bundle.manifest.weights}
        self.refuse()
        self.session(bundle.manifest.default_graph)

    @property
    def spec(self) -> StepSpec:
        """The step's inputs, outputs and state."""
        return self._bundle.manifest.spec

    def refuse(self) -> None:
        """CompatError for what this provider cannot run."""
        manifest = self._bundle.manifest
        if manifest.dtype == "bf16":
            raise CompatError(
                f"onnxruntime has no bfloat16 products on a CPU, which {manifest.name} needs; "
                "use --backend native or tensorrt, or export the model with --dtype fp16"
            )

    def bind(self, batch: int) -> Binding:
        """Buffers for `batch` streams, the state at its initial values."""
        return OnnxBinding(self, batch)

    def close(self) -> None:
        """Free the sessions; bindings that already exist must not run any more."""
        with self._lock:
            self._sessions.clear()

    def session(self, label: str) -> Any:
        """The InferenceSession of bucket `label`; BundleError where its graph is refused or differs from the spec."""
        with self._lock:
            if label not in self._sessions:
                self._sessions[label] = self._open(label)
            return self._sessions[label]

    def refusal(self, where: str, cause: Exception) -> OdestreamError:
        """The error of a graph that onnxruntime does not load."""
        return BundleError(f"{where}: onnxruntime refuses it ({first_line(cause)}); export the bundle again")

    def _open(self, label: str) -> Any:
        where = str(self._bundle.path / self._bundle.manifest.graphs[label])
        model = self._bundle.graph(label)
        options = self._options(model, where)
        try:
            chosen = (self.provider, dict(self.provider_options))
            session = self._ort.InferenceSession(model, options, providers=[chosen])
        except Exception as cause:
            raise self.refusal(where, cause) from cause
        if session.get_providers()[0] != self.provider:
            raise CompatError(f"asked onnxruntime for {self.provider}, got {session.get_providers()}; {self.remedy}")
        _check_ports(where, "inputs", session.get_inputs(), _expected(self.spec, "in"))
        _check_ports(where, "outputs", session.get_outputs(), _expected(self.spec, "out"))
        return session

    def _options(self, model: bytes, where: str) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _SILENT
        # A tensor that escaped the list below must fail to load instead of being read from a path.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        names = self._external_names(model, where)
        options.add_external_initializers(names, [self._weight(name) for name in names])
        if self.provider != _PROVIDER:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # all of it there, or refused
        return options

    def _external_names(self, model: bytes, where: str) -> list[str]:
        try:
            tensors = external_tensors(model)
        except ValueError as cause:
            raise BundleError(f"{where}: not an ONNX file ({cause}); export the bundle again") from cause
        for tensor in tensors:
            _check_external(where, tensor, self._entries.get(tensor.name))
        return [tensor.name for tensor in tensors]

    def _weight(self, name: str) -> Any:
        """An OrtValue over the hashed bytes; it does not copy, so the bundle outlives the sessions."""
        array = self._bundle.weights[name]
        if self._entries[name].dtype == "bfloat16":
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_TYPES["bfloat16"])
        return self._ort.OrtValue.ortvalue_from_numpy(array)


class OnnxBinding(HostBinding):
    """See `odestream.runtime.backends.Binding`."""

    def __init__(self, engine: OnnxEngine, batch: int) -> None:
        super().__init__(engine.spec, batch)
        self._engine = engine
        self._bound: dict[str, tuple[Any, tuple[Any, Any]]] = {}

    def run(self, label: str) -> None:
        """Run the graph of bucket `label` from inputs and arena into outputs and next_arena."""
        session, pair = self._bound.get(label) or self._bind(label)
        try:
            session.run_with_iobinding(pair[self._side])
        except Exception as cause:
            raise StateError(
                f"onnxruntime failed in bucket {label} ({first_line(cause)}); the step was discarded, check its inputs"
            ) from cause

    def _bind(self, label: str) -> tuple[Any, tuple[Any, Any]]:
        session = self._engine.session(label)
        first, second = self._sides
        self._bound[label] = session, (self._io(session, first, second), self._io(session, second, first))
        return self._bound[label]

    def _io(self, session: Any, source: NDArray[np.float32], target: NDArray[np.float32]) -> Any:
        io = session.io_binding()
        sources, targets = self._state_layout.views(source), self._state_layout.views(target)
        for name, array in (*self.inputs.items(), *_prefixed("state_in_", sources)):
            io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in (*self.outputs.items(), *_prefixed("state_out_", targets)):
            io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return io


def _prefixed(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    return [(prefix + name, array) for name, array in arrays.items()]


def _check_external(where: str, tensor: ExternalTensor, entry: WeightEntry | None) -> None:
    """The graph and the manifest must mean the same bytes."""
    if entry is None:
        raise BundleError(
            f"{where}: initializer {tensor.name} is not among the manifest's weights; export the bundle again"
        )
    found = (
        tensor.data.get("location"),
        tensor.data.get("offset", "0"),
        tensor.data.get("length", str(entry.length)),
        tensor.shape,
        tensor.data_type,
    )
    expected = (WEIGHTS_NAME, str(entry.offset), str(entry.length), entry.shape, _ONNX_TYPES.get(entry.dtype))
    if found != expected:
        raise BundleError(
            f"{where}: initializer {tensor.name} is {found} (location, offset, length, shape, type), "
            f"the manifest says {expected}; export the bundle again"
        )


def _expected(spec: StepSpec, side: str) -> dict[str, Port]:
    tensors = spec.inputs if side == "in" else spec.outputs
    ports: dict[str, Port] = {t.name: (_GRAPH_TYPES[t.dtype], list(t.shape)) for t in tensors}
    return ports | {f"state_{side}_{m.name}": (_GRAPH_TYPES["float32"], list(m.shape)) for m in spec.state}


def _check_ports(where: str, kind: str, found: list[Any], expected: dict[str, Port]) -> None:
    """Names first, then dtype and shape of each; the batch axis must be free."""
    names = sorted(port.name for port in found)
    if names != sorted(expected):
        raise BundleError(f"{where}: {kind} are {names}, expected {sorted(expected)}; export the bundle again")
    for port in found:
        dtype, shape = expected[port.name]
        free = bool(port.shape) and not isinstance(port.shape[0], int)
        if port.type != dtype or not free or list(port.shape[1:]) != shape:
            raise BundleError(
                f"{where}: {port.name} is {port.type}{port.shape}, expected {dtype}{['B', *shape]}; "
                "export the bundle again"
            )


def first_line(cause: Exception) -> str:
    """What onnxruntime said, cut to what fits into a message."""
    return str(cause).strip().split("\n", 1)[0][:300]
