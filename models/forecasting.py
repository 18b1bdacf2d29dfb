"""Forecasts at any horizon from any moment of a record, and pairing them with what was observed there.

The record is walked once, call by call, keeping what the flow starts from; all forecasts are then flowed together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.models.baselines import Baseline
from odestream.models.cell import Expected
from odestream.models.data import Rows, phases
from odestream.models.flow import Integrator
from odestream.models.model import Model, forecast_from, stiffness
from odestream.models.sequences import Calls, stack
from odestream.models.unroll import unroll
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.tableau import calls_needed
from odestream.runtime.table import Series

STREAMS_AT_ONCE = 32


@dataclass(frozen=True)
class Walk:
    """A stream walked call by call: what a forecast starts from after each of `calls`, [n, …]; `series`: the record."""

    series: Series
    calls: Calls
    kept: dict[str, Tensor]


@torch.no_grad()
def walk(
    cell: Model,
    series: Sequence[Series],
    calls: Sequence[Calls],
    steps: int | None = None,
    norms: Sequence[Tensor] | None = None,
    integrator: Integrator | None = None,
) -> list[Walk]:
    """Walk each stream through its calls with `steps` solver steps, by default the deployed number.

    norms: the running statistics [X, J+3] that each stream starts from; a new stream's unless given. integrator:
    replaces the unrolled solver.
    """
    walks: list[Walk] = []
    for start in range(0, len(calls), STREAMS_AT_ONCE):
        some = calls[start : start + STREAMS_AT_ONCE]
        state = cell.initial_state(len(some))
        if norms is not None:
            state["norm"] = torch.stack(list(norms[start : start + STREAMS_AT_ONCE]))
        kept = unroll(cell, stack(some), state, steps=steps, integrator=integrator, keep=forecast_from(cell)).kept
        for i, own in enumerate(some):
            walks.append(Walk(series[start + i], own, {k: v[: len(own), i] for k, v in kept.items()}))
    return walks


@torch.no_grad()
def forecast(
    cell: Model,
    time: TimeSpec,
    walked: Walk,
    origins: Rows,
    ticks: Rows,
    steps: int | None = None,
    integrator: Integrator | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [Q, X] of x at `ticks` [Q], forecast after the calls `origins` [Q]."""
    kept = {name: values[torch.from_numpy(origins)] for name, values in walked.kept.items()}
    start = walked.calls.ticks[origins]
    expected = flow_on(cell, time, kept, start, ticks, stiffness(cell), steps, integrator)
    if expected.log_variance is None:
        raise RuntimeError("a forecast without a variance; this is a defect of odestream")
    return expected.mean.double().numpy(), torch.exp(0.5 * expected.log_variance.double()).numpy()


def flow_on(
    cell: Model,
    time: TimeSpec,
    kept: Mapping[str, Tensor],
    start: Rows,
    end: Rows,
    stiffest: float,
    steps: int | None = None,
    integrator: Integrator | None = None,
) -> Expected:
    """What the cell expects at ticks `end` [Q] from the states `kept` [Q, …] at ticks `start`: Q flows in one call.

    A gap beyond the stability bound is split as a runtime splits it; where the farthest of these needs n calls, all
    take n times the solver steps. stiffest: bound on the field's stiffness.
    """
    inputs, each = gap_inputs(time, start, end), steps or cell.config.steps
    if isinstance(cell, Baseline):
        return cell.expect(inputs, kept)
    longest = float((end - start).max(initial=0)) / time.ticks_per_model_unit
    calls = calls_needed(longest, each, stiffest, cell.config.method)
    return cell.expect(inputs, kept, cell.weights(), each * calls, integrator)


def gap_inputs(time: TimeSpec, start: Rows, end: Rows) -> dict[str, Tensor]:
    """dt [Q, 1], and phase [Q, 2K] where there are frequencies, of flows from ticks `start` to ticks `end`."""
    gaps = (end - start) / time.ticks_per_model_unit
    inputs = {"dt": torch.from_numpy(gaps.astype(np.float32)[:, None])}
    if time.frequencies:
        inputs["phase"] = torch.from_numpy(phases(start, time))
    return inputs


def pairs_at(walked: Walk, horizon: float, tolerance: float, first: int, last: int) -> tuple[Rows, Rows]:
    """Calls, and rows of the record that lie `horizon` ticks after them (to `tolerance`): both among rows first … last.

    Only calls that bring an observation count as origins.
    """
    rows = walked.calls.rows
    origins = np.flatnonzero((rows >= first) & (rows < last) & walked.calls.inputs["mask"].any(axis=1))
    start = walked.calls.ticks[origins]
    targets, found = nearest_rows(walked.series, start + horizon, tolerance)
    found &= (targets < last) & (walked.series.ticks[targets] > start)
    return origins[found], targets[found]


def nearest_rows(series: Series, wanted: NDArray[np.floating], tolerance: float) -> tuple[Rows, NDArray[np.bool_]]:
    """The row [Q] nearest to each of the ticks `wanted` [Q], and whether it is within `tolerance` ticks of it."""
    right = np.minimum(np.searchsorted(series.ticks, wanted), len(series.ticks) - 1)
    left = np.maximum(right - 1, 0)
    nearer = (wanted - series.ticks[left]) <= (series.ticks[right] - wanted)
    rows = np.where(nearer, left, right).astype(np.int64)
    return rows, np.abs(series.ticks[rows] - wanted) <= tolerance
