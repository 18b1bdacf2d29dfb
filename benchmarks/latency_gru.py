"""What a user would otherwise ship: a GRU that knows the time between rows, trained on the weekly CO2 record.

Every input that helps it is given: the change since the last value, whether there was one, the gap, and the season's
phases (the record's level leaves the training range in the test part, so raw values would not do). It has a head for
each horizon, which our cell does not need. Hidden size and learning rate are chosen on the validation rows by a sweep.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.export import export_bundle
from odestream.models.data import GAPS_PER_UNIT, VALIDATION_FRACTION, complete_time, phases
from odestream.models.rivals import horizon_pairs
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.spec import StepSpec, step_spec
from odestream.runtime.table import read_table
from walk_forward import DATA, HORIZON_WEEKS, PERIOD_DAYS, TASK, Floats, Record, Rows, load_record, score

WARM_UP = 52  # rows of a training window that are not scored
WINDOW = 208
BATCH = 32


@dataclass(frozen=True)
class Sweep:
    """What is tried: hidden sizes × learning rates for `updates` each, then the best for twice as many with `seeds`."""

    hidden: tuple[int, ...] = (16, 32, 64, 128)
    rates: tuple[float, ...] = (3e-3, 1e-2)
    updates: int = 300
    seeds: int = 3


class Gru(nn.Module):
    """GRU over [(x − last)/s, mask, dt, phases]; y: what is expected at each of the horizons, in ppm less the centre.

    The state holds the last value beside the hidden state.
    """

    def __init__(self, hidden: int, frequencies: int, centre: float, scale: float) -> None:
        super().__init__()
        self.cell = nn.GRU(3 + 2 * frequencies, hidden)
        self.head = nn.Linear(hidden + 2 * frequencies, len(HORIZON_WEEKS))
        self.centre, self.scale, self.frequencies = centre, scale, frequencies
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def spec(self) -> StepSpec:
        """x, mask, dt and the phases at the previous call, as the runtime gives them."""
        return step_spec(
            inputs={"x": (1,), "mask": (1,), "dt": (1,), "phase": (2 * self.frequencies,)},
            outputs={"y": (len(HORIZON_WEEKS),)},
            state={"h": (self.cell.hidden_size,), "last": (1,)},
        )

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One row."""
        value = torch.where(inputs["mask"] > 0, inputs["x"] - self.centre, state["last"])
        change = (value - state["last"]) / self.scale
        features = torch.cat([change, inputs["mask"], inputs["dt"], inputs["phase"]], dim=-1)
        of_input, of_state, input_bias, state_bias = self.cell.all_weights[0]
        gates, recurrent = F.linear(features, of_input, input_bias), F.linear(state["h"], of_state, state_bias)
        size = self.cell.hidden_size
        reset = torch.sigmoid(gates.narrow(-1, 0, size) + recurrent.narrow(-1, 0, size))
        update = torch.sigmoid(gates.narrow(-1, size, size) + recurrent.narrow(-1, size, size))
        new = torch.tanh(gates.narrow(-1, 2 * size, size) + reset * recurrent.narrow(-1, 2 * size, size))
        h = new + update * (state["h"] - new)
        ahead = self.head(torch.cat([h, inputs["phase"]], dim=-1))
        return {"y": value + self.scale * ahead + self.centre}, {"h": h, "last": value}

    def unroll(self, features: Tensor, phase: Tensor) -> Tensor:
        """Changes expected at the horizons, in scales, after each row: features [T, B, f] -> [T, B, horizons]."""
        hidden, _ = self.cell(features)
        ahead: Tensor = self.head(torch.cat([hidden, phase], dim=-1))
        return ahead


@dataclass(frozen=True)
class Rehearsal:
    """The record as tensors: features [T, f], phases [T, 2K], value [T, 1] less the centre; targets [T, horizons].

    known: where a target exists. fit, test: rows at which the validation part and the test part begin.
    """

    features: Tensor
    phase: Tensor
    value: Tensor
    targets: Tensor
    known: Tensor
    fit: int
    test: int


def gru_on_co2(folder: Path, sweep: Sweep) -> dict[str, Any]:
    """Train, score and export to `folder`/gru; the figures, which are kept there and read where they exist."""
    kept = folder / "gru.json"
    if kept.exists() and (folder / "gru").exists():
        return msgspec.json.decode(kept.read_bytes())  # type: ignore[no-any-return]
    begin = time.perf_counter()
    record, clock = load_record(), _clock()
    trials = [
        (*_train(record, clock, hidden, rate, 0, sweep.updates), hidden, rate)
        for hidden, rate in itertools.product(sweep.hidden, sweep.rates)
    ]
    _, _, hidden, rate = min(trials, key=lambda trial: trial[1])
    models = [_train(record, clock, hidden, rate, seed, 2 * sweep.updates)[0] for seed in range(sweep.seeds)]
    errors = [_test_errors(model, record, clock) for model in models]
    export_bundle(models[0], folder / "gru", time=clock, verify_steps=100, force=True)
    result = {
        "hidden": hidden,
        "rate": rate,
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "sweep": [{"hidden": h, "rate": r, "validation": loss} for _, loss, h, r in trials],
        "errors_ppm": [statistics.median(column) for column in zip(*errors, strict=True)],
        "errors_ppm_by_seed": errors,
        "seconds": time.perf_counter() - begin,
    }
    kept.write_bytes(msgspec.json.encode(result))
    return result


def _clock() -> TimeSpec:
    table = read_table(DATA, TASK)
    ticks = table.series[0].ticks
    return complete_time(table.time, float(np.median(np.diff(ticks))), int(ticks[0]), PERIOD_DAYS)


def _train(record: Record, clock: TimeSpec, hidden: int, rate: float, seed: int, updates: int) -> tuple[Gru, float]:
    """A model with the weights of its least validation error, and that error: mean over horizons, in scales."""
    torch.manual_seed(seed)
    data, centre, scale = _rehearse(record, clock)
    model = Gru(hidden, len(clock.frequencies), centre, scale)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=updates)
    best, kept = float("inf"), model.state_dict()
    for update, starts in enumerate(_windows(data, seed, updates)):
        rows = starts[None, :] + torch.arange(WINDOW)[:, None]
        made = model.unroll(data.features[rows], data.phase[rows])[WARM_UP:]
        off = (made - data.targets[rows][WARM_UP:]).abs() * data.known[rows][WARM_UP:]
        optimiser.zero_grad()
        (off.sum() / data.known[rows][WARM_UP:].sum()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if update % 25 == 24:
            error = _validation(model, data)
            if error < best:
                best, kept = error, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval(), best


def _windows(data: Rehearsal, seed: int, updates: int) -> Iterator[Tensor]:
    make = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        yield torch.randint(0, data.fit - WINDOW, (BATCH,), generator=make)


@torch.no_grad()
def _validation(model: Gru, data: Rehearsal) -> float:
    """Mean absolute error over horizons on the validation rows, targets before the test part only."""
    made = model.unroll(data.features[: data.test, None], data.phase[: data.test, None])[data.fit :, 0]
    known = data.known[data.fit : data.test]
    off = (made - data.targets[data.fit : data.test]).abs() * known
    return float((off.sum(dim=0) / known.sum(dim=0)).mean())


def _rehearse(record: Record, clock: TimeSpec) -> tuple[Rehearsal, float, float]:
    """The record as the step sees it, row by row, with the targets of every row that lie in its own part."""
    series, test = record.series, record.first
    fit, seen = int((1 - VALIDATION_FRACTION) * test), series.mask[:, 0] > 0
    centre = float(series.x[:fit][seen[:fit], 0].mean())
    newest = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), 0))
    value = torch.from_numpy(series.x[newest] - np.float32(centre))
    scale = float((value[GAPS_PER_UNIT:fit] - value[: fit - GAPS_PER_UNIT]).abs().mean()) / 0.8
    before = np.concatenate([series.ticks[:1], series.ticks[:-1]])
    dt = torch.from_numpy(((series.ticks - before) / clock.ticks_per_model_unit).astype(np.float32)[:, None])
    phase = torch.from_numpy(phases(before, clock))
    last = torch.cat([torch.zeros(1, 1), value[:-1]])
    features = torch.cat([(value - last) / scale, torch.from_numpy(series.mask), dt, phase], dim=-1)
    targets, known = torch.zeros(len(value), len(HORIZON_WEEKS)), torch.zeros(len(value), len(HORIZON_WEEKS))
    for place, horizon in enumerate(record.horizons):
        origins, ends = horizon_pairs(series.ticks, series.ticks, horizon)
        own = (ends < fit) | ((origins >= fit) & (ends < test))
        own &= seen[origins] & seen[ends]
        origins, ends = origins[own], ends[own]
        targets[origins, place] = ((value[ends] - value[origins]) / scale)[:, 0]
        known[origins, place] = 1.0
    return Rehearsal(features, phase, value, targets, known, fit, test), centre, scale


@torch.no_grad()
def _test_errors(model: Gru, record: Record, clock: TimeSpec) -> list[float]:
    """Mean absolute error in ppm at each horizon, walking forward, at the origins that every rival is scored at."""
    data, centre, scale = _rehearse(record, clock)
    made = (data.value + scale * model.unroll(data.features[:, None], data.phase[:, None])[:, 0] + centre).numpy()

    def forecast(shown: Any, origins: Rows, target_ticks: Rows) -> Floats:
        (horizon,) = set((target_ticks - shown.ticks[origins]).tolist())
        ahead: Floats = made[origins, record.horizons.index(horizon)].astype(np.float64)[:, None]
        return ahead

    return score({"gru": forecast}, record, record.series)["gru"]
