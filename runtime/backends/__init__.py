"""The engines that can run a bundle's graphs, each in a file of its own and imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Arena
from odestream.runtime.bundle import Bundle
from odestream.runtime.errors import CompatError, OdestreamError
from odestream.runtime.records import Counters, Output, StreamState

BACKENDS = MappingProxyType(
    {
        "onnxruntime": "odestream.runtime.backends.onnxruntime",
        "native": "odestream.runtime.backends.native",
        "native-cuda": "odestream.runtime.backends.native_cuda",
        "tensorrt": "odestream.runtime.backends.tensorrt",
        "onnxruntime-cuda": "odestream.runtime.backends.onnxruntime_cuda",
    }
)
"""Name → module of every backend. Each module has `open_engine(bundle, threads) -> Engine`."""

AUTOMATIC = ("native", "onnxruntime")
"""What `auto` tries, in this order: our own kernels where they are built and run the bundle's cell, as they are faster.
"""


Rows = Sequence[Any] | NDArray[Any]
"""One value for each stream."""


class Binding(Protocol):
    """Buffers for `batch` streams, tied to the graphs; not for use by two threads at once.

    inputs: name → `[B, …]`, filled by the caller before `run`. outputs: name → `[B, …]`, and flat_outputs the
    array that holds them all one after another. arena: the state, next_arena: the new state that `run` left, both for
    reading in host memory: where the state lives on a device, each access brings a copy of its own. They are written
    by `set_state` and `set_next_state`, where an array that `arena` gave may be filled and handed back.
    A result is accepted by `swap` and rejected by not swapping, at no cost.
    """

    batch: int
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[np.float32]]
    flat_outputs: Arena

    @property
    def arena(self) -> Arena:
        """The state."""

    @property
    def next_arena(self) -> Arena:
        """The new state."""

    def run(self, label: str) -> None:
        """Run the graph of bucket `label` from inputs and state; StateError if the engine fails."""

    def swap(self) -> None:
        """Make the new state the state."""

    def set_state(self, arena: Arena) -> None:
        """Take over a state."""

    def set_next_state(self, arena: Arena) -> None:
        """Take over a new state, as if a run had left it; the outputs are written in place."""

    def finite(self) -> bool:
        """Whether the last run's outputs and new state hold neither NaN nor infinity."""


class StreamCore(Protocol):
    """State, clock and counters of one stream; not for two threads at once. After any error it is as it was."""

    @property
    def last(self) -> int | None:
        """Tick of the last accepted call, None before the first."""

    @property
    def counters(self) -> Counters:
        """A copy of the counters."""

    def observe(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Output:
        """See `Stream.step`."""

    def foresee(self, t: object) -> Output:
        """See `Stream.predict`, for one time."""

    def save(self) -> StreamState:
        """A copy of everything that the stream is."""

    def load(self, state: StreamState) -> None:
        """Become what was saved."""


class StreamBatch(Protocol):
    """Steps streams of one engine together; not for two threads at once."""

    def step(self, cores: Sequence[Any], x: Rows, t: Rows, mask: Rows) -> list[Output | OdestreamError]:
        """One observation for each core, as its own `observe` would take it; a row that fails has its error."""


class Engine(Protocol):
    """A bundle loaded by one engine; may be shared by threads, each with its own bindings."""

    name: str

    def bind(self, batch: int) -> Binding:
        """Buffers for `batch` streams, the state at its initial values."""

    def close(self) -> None:
        """Free the engine; its bindings must not run any more."""


@runtime_checkable
class Streamer(Protocol):
    """An engine that steps streams by itself, not through bindings."""

    def core(self, buckets: Sequence[int] | None = None) -> StreamCore:
        """A new stream over `buckets`, see `Model.stream`."""

    def batch(self) -> StreamBatch:
        """What steps many of its streams together."""


def open_engine(name: str, bundle: Bundle, threads: int) -> Engine:
    """Load `bundle` on the backend called `name`.

    Raises CompatError where the backend is unknown or not installed, BundleError where it refuses the graphs.
    """
    if name not in BACKENDS:
        raise CompatError(f"unknown backend {name!r}; choose auto or one of {', '.join(BACKENDS)}")
    opener: Callable[[Bundle, int], Engine] = import_module(BACKENDS[name]).open_engine
    return opener(bundle, threads)
