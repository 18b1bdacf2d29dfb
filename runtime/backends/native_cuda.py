"""Our own kernels on an NVIDIA GPU, by way of the CUDA library in `odestream.runtime.kernels`.

One launch runs the whole step, in a graph with the copies of inputs and outputs around it. The state stays on the
device in two buffers that change sides; reading `arena` brings a copy. Matrices keep the precision of the bundle;
state, sums and errors are float32.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from ctypes import c_void_p
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from odestream.runtime.arena import Arena, Layout, initial
from odestream.runtime.backends import Engine
from odestream.runtime.backends.device_loss import DeviceLoss
from odestream.runtime.backends.native import library_weights, takes_tokens
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import CompatError, StateError
from odestream.runtime.kernels.configuration import layout_text, native_config
from odestream.runtime.kernels.cuda_library import (
    LOST,
    NO_MEMORY,
    PRECISIONS,
    Gpu,
    check,
    find_gpu,
    load_cuda_library,
)

NAME = "native-cuda"

_TOKENS = 2


def open_engine(bundle: Bundle, threads: int = 1) -> Engine:
    """Load a bundle on the first GPU that CUDA lists.

    Raises CompatError where the library is not built, no driver or GPU is there, its compute capability is below 8.0,
    or the bundle is not one that the kernels run; ResourceError where the GPU has no memory for it.
    """
    if threads != 1:
        raise CompatError(f"threads is {threads}, but native-cuda waits on one thread; leave it out")
    return NativeCudaEngine(load_cuda_library(), bundle)


class NativeCudaEngine:
    """A model of the CUDA library on `gpu`; it lives until the engine is closed and its last binding is gone."""

    name = NAME

    def __init__(self, library: ctypes.CDLL, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.gpu: Gpu = find_gpu(library)
        self._model: NativeCudaModel | None = NativeCudaModel(library, bundle)
        self._spec = manifest.spec
        self._steps = {label: int(label) for label in manifest.graphs}

    def bind(self, batch: int) -> NativeCudaBinding:
        """Buffers for `batch` streams, the state at its initial values.

        ResourceError where the GPU has no room for them, StateError once the engine is closed or the GPU lost.
        """
        if self._model is None:
            raise StateError("the engine is closed; load the bundle again")
        self._model.loss.refuse()
        return NativeCudaBinding(self._model, self._spec, self._steps, batch)

    def close(self) -> None:
        """Let go of the model; bindings that already exist keep it."""
        self._model = None


class NativeCudaModel:
    """Owns an `odestream_cuda_model`. loss: whether its GPU is lost, for all of its bindings."""

    def __init__(self, library: ctypes.CDLL, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.loss = DeviceLoss()
        config, (weights, _kept) = native_config(manifest), library_weights(manifest, bundle.weights)
        self.library = library
        self.pointer = c_void_p()
        status = library.odestream_cuda_create(
            ctypes.byref(config), weights, len(weights), 0, _precision(manifest), ctypes.byref(self.pointer)
        )
        check(library, status, f"native-cuda cannot load {manifest.name}")
        free = weakref.finalize(self, library.odestream_cuda_destroy, self.pointer)
        free.atexit = False  # a daemon thread may be inside the library then
        found, expected = library.odestream_cuda_layout(self.pointer).decode(), layout_text(manifest.spec)
        if found != expected or takes_tokens(manifest.spec) != (config.task == _TOKENS):
            raise CompatError(f"native-cuda steps over {found}, {manifest.name} over {expected}; export it again")

    def check(self, status: int, what: str) -> None:
        """See `cuda_library.check`; a failure that loses the GPU is a StateError, and remembered."""
        if status == LOST:
            raise self.loss.mark(f"{what} ({self._reason()})")
        check(self.library, status, what)

    def demand(self, status: int, what: str, remedy: str) -> None:
        """StateError where a call over a stream's state failed; see `check` for a GPU without memory or lost."""
        if status in (LOST, NO_MEMORY):
            self.check(status, f"native-cuda failed {what}")
        if status != 0:
            raise StateError(f"native-cuda failed {what} ({self._reason()}); {remedy}")

    def _reason(self) -> str:
        reason: bytes = self.library.odestream_cuda_last_error()
        return reason.decode()


class NativeCudaBinding:
    """See `odestream.runtime.backends.Binding`. Its graphs are captured when it is made, which runs nothing."""

    def __init__(self, model: NativeCudaModel, spec: StepSpec, steps: Mapping[str, int], batch: int) -> None:
        self.batch = batch
        self._layout = Layout(spec.state, batch)
        self._model = model
        self._library = model.library
        self._steps = steps
        self._pinned = _Pinned(model, batch)
        self._pointer = self._pinned.pointer
        for count in steps.values():
            model.check(self._library.odestream_cuda_prepare(self._pointer, count), "native-cuda cannot start")
        places = self._library.odestream_cuda_buffers_of(self._pointer)
        self.inputs: Mapping[str, NDArray[Any]] = {
            t.name: self._pinned.array(getattr(places, t.name), (batch, *t.shape), t.dtype) for t in spec.inputs
        }
        outputs = Layout(spec.outputs, batch)
        self.flat_outputs: Arena = self._pinned.array(places.outputs, (outputs.size,), "float32")
        self.outputs: Mapping[str, NDArray[np.float32]] = outputs.views(self.flat_outputs)
        self.set_state(initial(spec.state, batch))

    @property
    def arena(self) -> Arena:
        """A copy of the state."""
        return self._copy(0)

    @property
    def next_arena(self) -> Arena:
        """A copy of the new state."""
        return self._copy(1)

    def run(self, label: str) -> None:
        """Run `label` solver steps from inputs and state into outputs and new state."""
        self._model.loss.refuse()
        self._model.demand(
            self._library.odestream_cuda_run(self._pointer, self._steps[label]),
            f"in bucket {label}",
            "the step was discarded, check its inputs",
        )

    def swap(self) -> None:
        """Make the new state the state."""
        self._library.odestream_cuda_swap(self._pointer)

    def set_state(self, arena: Arena) -> None:
        """Copy a state to the device."""
        self._set(0, arena)

    def set_next_state(self, arena: Arena) -> None:
        """Copy a new state to the device, as if a run had left it."""
        self._set(1, arena)

    def finite(self) -> bool:
        """Whether the last run left neither NaN nor infinity; the device has looked at the state."""
        return bool(self._library.odestream_cuda_finite(self._pointer))

    def device_microseconds(self, label: str, repeats: int) -> float:
        """The device's mean time for one run over `repeats` of them, copies included; the new state is overwritten."""
        self._model.loss.refuse()
        found = ctypes.c_float()
        status = self._library.odestream_cuda_time(self._pointer, self._steps[label], repeats, ctypes.byref(found))
        self._model.demand(status, f"in bucket {label}", "check its inputs")
        return found.value

    def _set(self, side: int, arena: Arena) -> None:
        values = np.ascontiguousarray(arena, np.float32)
        if values.size != self._layout.size:
            raise StateError(f"the state has {values.size} values, expected {self._layout.size}; hand in a whole arena")
        self._model.loss.refuse()
        self._model.demand(
            self._library.odestream_cuda_set_state(self._pointer, side, values.ctypes.data),
            "setting a state",
            "restore the stream from a snapshot",
        )

    def _copy(self, side: int) -> Arena:
        values = self._layout.empty()
        self._model.loss.refuse()
        self._model.demand(
            self._library.odestream_cuda_get_state(self._pointer, side, values.ctypes.data),
            "reading a state",
            "restore the stream from a snapshot",
        )
        return values


class _Pinned:
    """Owns an `odestream_cuda_binding`; arrays over its host memory keep it alive, and it keeps the model."""

    def __init__(self, model: NativeCudaModel, batch: int) -> None:
        self.pointer = c_void_p()
        library = model.library
        status = library.odestream_cuda_bind(model.pointer, batch, ctypes.byref(self.pointer))
        model.check(status, f"native-cuda has no room for {batch} streams")
        free = weakref.finalize(self, _release, model, self.pointer)
        free.atexit = False  # a daemon thread may be inside the library then

    def array(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The host memory at `address` as an array."""
        kind = np.dtype(dtype)
        return np.asarray(_Window(self, {"data": (address, False), "shape": shape, "typestr": kind.str, "version": 3}))


class _Window:
    """What numpy asks for an array over memory that `owner` holds."""

    def __init__(self, owner: _Pinned, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def _release(model: NativeCudaModel, pointer: c_void_p) -> None:
    model.library.odestream_cuda_release(pointer)


def _precision(manifest: Manifest) -> int:
    if manifest.dtype not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise CompatError(f"native-cuda runs {known}, {manifest.name} is {manifest.dtype}; export it as one of these")
    return PRECISIONS[manifest.dtype]
