"""Rows of a stream as the calls that a cell sees, and batches of them.

A runtime crosses a gap that is too long for one call in several, the last of which brings the observation; the
trainer sees the same calls, so that a record with long gaps does not drive the solver out of its stable region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.models import normalise
from odestream.models.baselines.config import BaselineConfig
from odestream.models.config import CellConfig
from odestream.models.data import Rows, phases
from odestream.models.field import SILU_SLOPE
from odestream.models.model import Model
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.tableau import calls_needed, longest_gap
from odestream.runtime.table import Series

MAX_PIECES = 64  # of one gap in training; what a longer one adds, a settled state hardly notices
MAX_CALLS = 1024  # of one gap in evaluation, as many as a runtime makes


@dataclass(frozen=True)
class Calls:
    """The calls that some rows of a stream make.

    rows [n]: the series' row that a call brings, −1 where it only lets time pass. ticks [n]: when.
    inputs: x, mask, dt, and phase where there are frequencies, [n, …] each. labels [n]: class (or next byte) after
    the call, −1 where unknown.
    """

    rows: Rows
    ticks: Rows
    inputs: dict[str, NDArray[np.generic]]
    labels: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Calls:
        """Calls `start` to `stop`; the first of them keeps its gap to the call before it."""
        inputs = {name: array[start:stop] for name, array in self.inputs.items()}
        return Calls(self.rows[start:stop], self.ticks[start:stop], inputs, self.labels[start:stop])


def calls_of(series: Series, rows: Rows, time: TimeSpec, longest: float, most: int = MAX_PIECES) -> Calls:
    """Calls for `rows` (increasing) of a new stream, none of which crosses more than `longest` model units.

    The first call has dt 0 and the phase of its own time; every other has the phase of the call before it.
    most: calls that a gap may take. Time beyond them is lost to the cell: its ages and averages then run behind those
    of a runtime, which makes up to `MAX_CALLS`. Training bears that to stay fast; evaluation must ask for all.
    """
    ticks, ends = _split_gaps(series.ticks[rows], longest * time.ticks_per_model_unit, most)
    brought = np.full(len(ticks), -1, np.int64)
    brought[ends] = rows
    seen = (brought >= 0)[:, None]
    before = np.concatenate([ticks[:1], ticks[:-1]])
    units = np.minimum((ticks - before) / time.ticks_per_model_unit, longest)
    inputs: dict[str, NDArray[np.generic]] = {
        "x": np.where(seen, series.x[brought], 0.0).astype(np.float32),
        "mask": np.where(seen, series.mask[brought], 0.0).astype(np.float32),
        "dt": units.astype(np.float32)[:, None],
    }
    if time.frequencies:
        inputs["phase"] = phases(before, time)
    return Calls(brought, ticks, inputs, np.where(brought >= 0, series.labels[brought], -1))


def calls_of_bytes(text: bytes) -> Calls:
    """A text as calls one unit apart; the label of a byte is the next one."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64)
    count = len(codes)
    dt = np.ones((count, 1), np.float32)
    dt[:1] = 0.0
    inputs: dict[str, NDArray[np.generic]] = {"x": codes, "mask": np.ones((count, 1), np.float32), "dt": dt}
    return Calls(np.arange(count), np.arange(count), inputs, np.append(codes[1:], -1)[:count])


def stack(sequences: Sequence[Calls], length: int = 0) -> dict[str, Tensor]:
    """Inputs of several sequences as one batch [T, B, …], T at least `length`.

    Shorter ones end in calls of dt 0 and mask 0, which change nothing.
    """
    length = max(length, *(len(s) for s in sequences))
    names = sequences[0].inputs
    return {
        name: torch.from_numpy(np.stack([_padded(s.inputs[name], length, 0) for s in sequences], axis=1))
        for name in names
    }


def stack_labels(sequences: Sequence[Calls], length: int = 0) -> Tensor:
    """Labels [T, B] beside `stack`, −1 in the padding."""
    length = max(length, *(len(s) for s in sequences))
    return torch.from_numpy(np.stack([_padded(s.labels, length, -1) for s in sequences], axis=1))


def longest_call(config: CellConfig | BaselineConfig, steps: int) -> float:
    """Most model units that `steps` solver steps cross stably, whatever weights training finds; ∞ without a solver."""
    return longest_gap(steps, stiffest(config), config.method) if isinstance(config, CellConfig) else math.inf


def steps_across(config: CellConfig | BaselineConfig, units: float) -> int:
    """Fewest solver steps that cross `units` model units in one call stably, whatever weights training finds."""
    return calls_needed(units, 1, stiffest(config), config.method) if isinstance(config, CellConfig) else 1


def stiffest(config: CellConfig | BaselineConfig) -> float:
    """The largest bound that `Field.stiffness` can give within the configuration's limits, per model unit."""
    return config.decay_limit + SILU_SLOPE * config.norm_limit**2 if isinstance(config, CellConfig) else 0.0


@torch.no_grad()
def running_statistics(cell: Model, sequences: Sequence[Calls]) -> list[Tensor]:
    """`norm` before every call of each sequence [n, X, J+3]; it has no parameters, so one scan serves all training."""
    inputs, scaling = stack(sequences), normalise.Scaling(cell.centre, cell.scale, cell.averages)
    norm, limit, path = cell.initial_state(len(sequences))["norm"], cell.config.age_limit, []
    for x, mask, dt in zip(inputs["x"], inputs["mask"], inputs["dt"], strict=True):
        path.append(norm)
        elapsed = normalise.elapse(normalise.unpack(norm), dt, limit)
        norm = normalise.pack(normalise.observe(elapsed, x, mask, scaling))
    whole = torch.stack(path, dim=1)
    return [whole[i, : len(s)] for i, s in enumerate(sequences)]


def _split_gaps(ticks: Rows, longest: float, most: int) -> tuple[Rows, Rows]:
    """The ticks with those between them at which long gaps are cut, and the places of the given ones."""
    gaps = np.diff(ticks)
    pieces = np.clip(np.ceil(gaps / longest - 1e-9), 1, most).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(pieces)])[: len(ticks)]
    owner = np.repeat(np.arange(len(gaps)), pieces)
    number = np.arange(len(owner)) - ends[owner] + 1
    inner = ticks[owner] + (gaps[owner] / pieces[owner] * number).astype(np.int64)
    return np.concatenate([ticks[:1], np.where(number == pieces[owner], ticks[owner + 1], inner)]), ends


def _padded(array: NDArray[np.generic], length: int, value: int) -> NDArray[np.generic]:
    if len(array) == length:  # most are, and padding by nothing is half of what stacking them costs
        return array
    after = [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, after, constant_values=value)
