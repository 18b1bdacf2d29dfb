"""Our own kernels on the CPU, by way of the C library in `odestream.runtime.kernels`.

The library gets the cell's configuration from the manifest and the weights from the hashed bytes, and packs them once
into the order in which its products read them. A binding holds two contiguous state arenas and, for each direction
between them, one C struct with every pointer, so that a step is one call with three numbers.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena, aligned
from odestream.runtime.backends import Engine
from odestream.runtime.backends.host import HostBinding
from odestream.runtime.backends.native_batch import NativeBatch
from odestream.runtime.backends.native_stream import NativeCore
from odestream.runtime.bundle import Bundle
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest, WeightEntry
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import CompatError, StateError
from odestream.runtime.gaps import bucket_rule
from odestream.runtime.kernels.configuration import ELSEWHERE, layout_text, native_config
from odestream.runtime.kernels.library import Call, Weight, load_library

NAME = "native"


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """Load a bundle; CompatError where the library is not built, or the bundle is not one that it can run."""
    if threads != 1:
        raise CompatError(f"threads is {threads}, but native runs a call on one thread; leave it out, or {ELSEWHERE}")
    return NativeEngine(load_library(), bundle)


class NativeEngine:
    """A model of the C library; it lives until the engine is closed and its last binding is gone."""

    name = NAME

    def __init__(self, library: ctypes.CDLL, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._model: NativeModel | None = NativeModel(library, bundle)
        self._manifest = manifest
        self._steps = {label: int(label) for label in manifest.graphs}

    def bind(self, batch: int) -> NativeBinding:
        """Buffers for `batch` streams, the state at its initial values; StateError once the engine is closed."""
        return NativeBinding(self._open(), self._manifest.spec, self._steps, batch)

    def core(self, buckets: Sequence[int] | None = None) -> NativeCore:
        """A stream of the library; see `odestream.runtime.backends.Streamer`."""
        rule = bucket_rule(self._manifest, Clock(self._manifest.time), buckets)
        return NativeCore(self._open(), self._manifest, rule)

    def batch(self) -> NativeBatch:
        """What steps many of its streams in one call."""
        return NativeBatch(self._open(), self._manifest)

    def close(self) -> None:
        """Let go of the model; bindings and streams that already exist keep it."""
        self._model = None

    def _open(self) -> NativeModel:
        if self._model is None:
            raise StateError("the engine is closed; load the bundle again")
        return self._model


class NativeModel:
    """Owns an `odestream_model` and frees it. instruction_set: what it runs on here."""

    def __init__(self, library: ctypes.CDLL, bundle: Bundle) -> None:
        manifest = bundle.manifest
        config, (weights, _kept) = native_config(manifest), library_weights(manifest, bundle.weights)
        self.library = library
        self.pointer = library.odestream_create(ctypes.byref(config), weights, len(weights))
        if not self.pointer:
            raise CompatError(
                f"native does not support {manifest.name} ({library.odestream_last_error().decode()}); {ELSEWHERE}"
            )
        free = weakref.finalize(self, library.odestream_destroy, self.pointer)
        free.atexit = False  # a daemon thread may be inside the library then
        self.instruction_set: str = library.odestream_instruction_set().decode()
        self.scratch_bytes: int = library.odestream_scratch_bytes(self.pointer)
        found, expected = library.odestream_layout(self.pointer).decode(), layout_text(manifest.spec)
        if found != expected or takes_tokens(manifest.spec) != (config.task == _TOKENS):
            raise CompatError(f"native steps over {found}, {manifest.name} over {expected}; export it again")


class NativeBinding(HostBinding):
    """See `odestream.runtime.backends.Binding`."""

    def __init__(self, model: NativeModel, spec: StepSpec, steps: Mapping[str, int], batch: int) -> None:
        super().__init__(spec, batch)
        self._scratch = aligned((model.scratch_bytes,), np.uint8)
        self._model = model
        self._steps = steps
        self._step = model.library.odestream_step
        self._calls = (self._call(self.arena, self.next_arena), self._call(self.next_arena, self.arena))
        self._pointers = tuple(ctypes.addressof(call) for call in self._calls)

    def run(self, label: str) -> None:
        """Run `label` solver steps from inputs and arena into outputs and next_arena."""
        if self._step(self._model.pointer, self._pointers[self._side], self._steps[label]):
            raise StateError(
                f"native failed in bucket {label} ({self._model.library.odestream_last_error().decode()}); "
                "the step was discarded, check its inputs"
            )

    def _call(self, source: Arena, target: Arena) -> Call:
        arrays = {**self.inputs, **self.outputs, "state": source, "next_state": target, "scratch": self._scratch}
        return Call(batch=self.batch, **{name: array.ctypes.data for name, array in arrays.items()})


_TOKENS = 2
_FLOATS = ("float32", "float16", "bfloat16")


def takes_tokens(spec: StepSpec) -> bool:
    """Whether x is an integer."""
    return any(tensor.name == "x" and tensor.dtype == "int64" for tensor in spec.inputs)


def library_weights(
    manifest: Manifest, arrays: Mapping[str, NDArray[np.generic]]
) -> tuple[ctypes.Array[Weight], list[NDArray[np.generic]]]:
    """The manifest's weights for the library, and the arrays that must outlive its reading of them."""
    entries = [entry for entry in manifest.weights if entry.dtype in _FLOATS]
    kept = [_widened(entry, arrays[entry.name]) for entry in entries]
    structs = [_weight(entry, array) for entry, array in zip(entries, kept, strict=True)]
    return (Weight * len(structs))(*structs), kept


def _widened(entry: WeightEntry, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A weight as contiguous float32; every float16 and bfloat16 is one exactly."""
    if entry.dtype == "bfloat16":
        wide: NDArray[np.generic] = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    return np.ascontiguousarray(array, np.float32)


def _weight(entry: WeightEntry, array: NDArray[np.generic]) -> Weight:
    rows = entry.shape[0] if entry.shape else 1
    columns = int(np.prod(entry.shape[1:], dtype=np.int64))
    return Weight(entry.name.encode(), array.ctypes.data, rows, columns)
