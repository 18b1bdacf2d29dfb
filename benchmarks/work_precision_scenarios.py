"""The fields and streams that solvers are compared on, all made from one run on the weekly CO₂ record.

trained   the field as trained; gaps log-uniform from 1 to 50 weeks (0.1 to 5 model units)
times 4   the same gaps; the field's two matrices that multiply the state, A_h and B, are 4 times larger
stiff     the faster half of the leaks at their clamp, 4 per model unit; gaps from 10 to 100 weeks
bursty    the field as trained; a heartbeat every 4 weeks, and rare bursts of rows every 1.4 days that jump about
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_models import stronger
from odestream.models.cell import Cell
from walk_forward import load_record

BURST_EVERY, BURST_ROWS, BURST_WEEKS, HEARTBEAT_WEEKS, BURST_SCALES = 40, 25, 0.2, 4.0, 3.0


@dataclass(frozen=True)
class Row:
    """One observation: its tick, its value, and whether it begins a stream."""

    tick: int
    x: float
    first: bool


@dataclass(frozen=True)
class Scenario:
    """A cell, by the name of its field, and the rows that its streams are fed."""

    name: str
    about: str
    field: str
    cell: Cell
    rows: tuple[Row, ...]


def scenarios(cell: Cell, gaps: int, seed: int = 0) -> list[Scenario]:
    """The four scenarios with about `gaps` gaps each."""
    usual = _sampled(1, 50, gaps, seed)
    stiff = with_leaks(cell, cell.config.decay_limit)
    return [
        Scenario("trained field", "gaps of 1 to 50 weeks, log-uniform", "trained", cell, usual),
        Scenario("weights × 4", "A_h and B four times larger, the same gaps", "stronger", stronger(cell), usual),
        Scenario(
            "stiff stream",
            "half of the leaks at the clamp of 4, gaps of 10 to 100 weeks",
            "stiff",
            stiff,
            _sampled(10, 100, gaps, seed),
        ),
        Scenario(
            "bursty stream",
            "a row every 4 weeks, bursts of rows every 1.4 days",
            "trained",
            cell,
            _bursty(cell, gaps, seed),
        ),
    ]


def with_leaks(cell: Cell, fastest: float) -> Cell:
    """A copy in which the faster half of the leaks λ is `fastest`, per model unit; its clamp is raised to that."""
    limit = max(cell.config.decay_limit, fastest)
    changed = Cell(dataclasses.replace(cell.config, decay_limit=limit)).eval()
    changed.load_state_dict(cell.state_dict())
    with torch.no_grad():
        decay = changed.field.weights().decay.double()
        decay[decay >= decay.median()] = fastest
        changed.field.log_decay.copy_(decay + torch.log(-torch.expm1(-decay)))  # softplus' inverse
    return changed


def _sampled(least: int, most: int, gaps: int, seed: int) -> tuple[Row, ...]:
    """Streams through the record that keep a row after `least` to `most` weeks, log-uniform."""
    random = np.random.default_rng(seed)

    def gap() -> int:
        return round(float(np.exp(random.uniform(np.log(least), np.log(most)))))

    return _streams(gap, gaps)


def _streams(gap: Callable[[], int], gaps: int) -> tuple[Row, ...]:
    series = load_record().series
    rows: list[Row] = []
    while len(rows) < gaps:
        place, first = gap() - 1, True
        while place < len(series.ticks) and len(rows) <= gaps:
            if series.mask[place, 0] > 0:
                rows.append(Row(int(series.ticks[place]), float(series.x[place, 0]), first))
                first = False
            place += gap()
    return tuple(rows)


def _bursty(cell: Cell, gaps: int, seed: int) -> tuple[Row, ...]:
    """One stream around the record's mean: quiet rows with little noise, bursts of jumps of several scales."""
    random, record = np.random.default_rng(seed), load_record()
    scale, centre = cell.config.scale[0], cell.config.centre[0]
    rows, now = [Row(int(record.series.ticks[0]), centre, True)], float(record.series.ticks[0])
    left = 0
    while len(rows) <= gaps:
        if left == 0 and random.random() < 1 / BURST_EVERY:
            left = BURST_ROWS
        weeks, spread = (BURST_WEEKS, BURST_SCALES) if left else (HEARTBEAT_WEEKS, 0.1)
        left = max(left - 1, 0)
        now += weeks * record.week * random.uniform(0.8, 1.2)
        rows.append(Row(int(now), centre + scale * spread * float(random.standard_normal()), False))
    return tuple(rows)
