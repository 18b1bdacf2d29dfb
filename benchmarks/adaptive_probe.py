"""What a gap did to the hidden state, exactly as deployed, and what it should have done.

A probe is a stream restored from what another stream was before a step; stepped with mask 0 to the same time, its h
is h after the flow, with the same calls, buckets and splits. The reference is torchdiffeq's dopri5 in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.models.field import FieldWeights
from odestream.models.flow import integrate
from odestream.runtime import Model
from odestream.runtime.arena import Layout
from odestream.runtime.clock import Clock
from odestream.runtime.records import Output, StreamState
from odestream.runtime.session import Stream

Floats = NDArray[np.float64]

REFERENCE = "torchdiffeq dopri5, rtol 1e-9, atol 1e-11, float64"
RTOL, ATOL = 1e-9, 1e-11
LARGEST_BATCH = 128  # rows that share a step size: gaps are sorted first, so that they are alike


@dataclass(frozen=True)
class Flow:
    """One crossed gap: from h [D] with drive u [D] and phase [2K] over gap (model units) to after [D]."""

    h: Floats
    u: Floats
    phase: Floats
    gap: float
    after: Floats
    output: Output


class Probe:
    """Crosses gaps from saved states, for one model; buckets: see `Model.stream`."""

    def __init__(self, model: Model, buckets: Sequence[int] | None = None) -> None:
        self._model, self._buckets = model, buckets
        self._clock = Clock(model.manifest.time)
        self._layout = Layout(model.manifest.spec.state, 1)
        x = next(tensor for tensor in model.manifest.spec.inputs if tensor.name == "x")
        self._nothing = np.zeros(x.shape, np.int64 if x.dtype == "int64" else np.float32)
        mask = next(tensor for tensor in model.manifest.spec.inputs if tensor.name == "mask")
        self._closed = np.zeros(mask.shape, np.float32)

    def cross(self, before: StreamState, tick: int) -> Flow:
        """What crossing from `before`, which has had a call, to `tick` does to h."""
        if before.tick is None:
            raise ValueError("a stream before its first call has no gap to cross")
        stream = Stream(self._model, before, self._buckets)
        output = stream.step(self._nothing, t=tick, mask=self._closed)
        after = stream.state()["h"].astype(np.float64)
        views = {name: view[0].astype(np.float64) for name, view in self._layout.views(before.arena).items()}
        phase = self._clock.phase(before.tick).astype(np.float64)
        return Flow(views["h"], views["u"], phase, self._clock.units(tick - before.tick), after, output)


def references(flows: Sequence[Flow], weights: FieldWeights) -> Floats:
    """h after each gap `[T, D]` by the reference method; weights: the field's, of any precision."""
    return _solved(flows, weights, torch.float64, np.argsort([f.gap for f in flows], kind="stable"), RTOL, ATOL)


def batch_coupled(flows: Sequence[Flow], weights: FieldWeights, rtol: float, atol: float) -> Floats:
    """h after each gap `[T, D]` by torchdiffeq's dopri5 in float32, rows in order, a batch sharing its step size."""
    return _solved(flows, weights, torch.float32, np.arange(len(flows)), rtol, atol)


def true_errors(flows: Sequence[Flow], after: Floats, expected: Floats, rtol: float, atol: float) -> Floats:
    """RMS_i((after − expected)_i / (atol + rtol·max(|h|, |expected|)_i)) of each flow `[T]`."""
    start = np.stack([f.h for f in flows])
    allowed = atol + rtol * np.maximum(np.abs(start), np.abs(expected))
    errors: Floats = np.sqrt(np.mean(((after - expected) / allowed) ** 2, axis=1))
    return errors


def reached(flows: Sequence[Flow]) -> Floats:
    """h after each gap `[T, D]` as deployed."""
    return np.stack([f.after for f in flows])


def _solved(
    flows: Sequence[Flow], weights: FieldWeights, dtype: torch.dtype, order: NDArray[np.intp], rtol: float, atol: float
) -> Floats:
    cast = FieldWeights(*(None if w is None else w.detach().to(dtype) for w in weights))  # type: ignore[arg-type]
    solved = np.empty((len(flows), len(flows[0].h)))
    with torch.no_grad():
        for places in _batches(order):
            chosen = [flows[place] for place in places]
            h, u, phase = (
                torch.tensor(np.stack([getattr(f, name) for f in chosen]), dtype=dtype) for name in ("h", "u", "phase")
            )
            dt = torch.tensor([[f.gap] for f in chosen], dtype=dtype)
            times: Tensor | None = phase if cast.time is not None else None
            solved[places] = integrate(h, u, times, dt, cast, rtol=rtol, atol=atol).double().numpy()
    return solved


def _batches(order: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(order), LARGEST_BATCH):
        yield order[start : start + LARGEST_BATCH]
