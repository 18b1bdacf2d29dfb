"""The calls that a safety factor is calibrated on: three kinds, from streams that a cell is walked through.

    streams   held-out streams as they came
    gaps      the same states, in the same order, with gaps drawn log-uniform between 0.05 and 5 model units
    bursts    the streams with outbursts (values far off for some calls) and with shorter and longer gaps

A call is what the flow sees of it: where it starts from (h, u, phase) and how long it takes. The states come from a
walk with so many solver steps that its own error does not count, and do not depend on what a rule would choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.export.plan import BATCH, Source, make_plan
from odestream.models.cell import Cell
from odestream.models.config import VOCABULARY
from odestream.models.held_out import SEGMENT, WALKED_STEPS, WARM, HeldOut
from odestream.models.unroll import unroll
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.tableau import calls_needed

Rows = NDArray[np.int64]

STREAMS, GAPS, BURSTS = KINDS = ("streams", "gaps", "bursts")
SHORTEST, LONGEST = 0.05, 5.0  # model units, of the kind `gaps`
STRETCH, STRETCHED = 5.0, 2.0  # gaps of bursts are up to so many times shorter or longer, and at most so many units
BURST_CHANCE, BURST_CALLS = 0.06, 6  # of a burst to begin at a call; how many it lasts on average
BURST_SCALES = (3.0, 10.0, 30.0)  # how far off, in scales of a channel
SYNTHETIC_LANES = 24
FEWEST = 600  # calls that held-out streams must have, half of them on either side; else they are made up


class Samples(NamedTuple):
    """Calls of one kind, those of a chain one after another.

    h, u: [N, D] before the flow. phase: [N, 2K] there, None without time features. gap: [N] ticks. chain: [N], which
    stream a call belongs to. half: [N], 0 to choose on or 1 to measure on.
    """

    kind: str
    h: Tensor
    u: Tensor
    phase: Tensor | None
    gap: Rows
    chain: Rows
    half: Rows


@torch.inference_mode()
def make_samples(cell: Cell, time: TimeSpec, held_out: HeldOut, seed: int, draws: int = 1) -> tuple[Samples, ...]:
    """The three kinds; as many calls of each as the streams count, of the gaps `draws` times as many."""
    random = np.random.default_rng([seed, 11])
    calm = dict(held_out.inputs)
    wild = _outbursts(cell, calm, random)
    whole = {name: torch.cat([calm[name], wild[name]], dim=1) for name in calm}
    width, counts = held_out.counts.shape[1], held_out.counts.numpy()
    counts = np.concatenate([counts, counts], axis=1)
    half = torch.cat([held_out.half, held_out.half]).numpy()
    before = _walk(cell, whole)
    lane, call = np.nonzero(counts.T)  # stream after stream
    phase = whole.get("phase")

    def kind(name: str, picked: Rows, chain: Rows, units: NDArray[np.float64]) -> Samples:
        t, b = call[picked], lane[picked]
        ticks = np.maximum(np.rint(units * time.ticks_per_model_unit), 1).astype(np.int64)
        start = (before["h"][t, b], before["u"][t, b], None if phase is None else phase[t, b])
        return Samples(name, *start, ticks, chain, half[b])

    came = whole["dt"][..., 0].double().numpy()[call, lane]
    first, second = np.flatnonzero(lane < width), np.flatnonzero(lane >= width)
    again = np.tile(first, draws)
    chain = lane[again] + width * (np.arange(len(again)) // len(first))
    drawn = np.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST), len(again)))
    return (
        kind(STREAMS, first, lane[first], came[first]),
        kind(GAPS, again, chain, drawn),
        kind(BURSTS, second, lane[second], came[second]),
    )


def synthetic_streams(of: Source, steps: int, seed: int) -> HeldOut:
    """Irregular streams with holes and queries for a cell that brings no held-out ones; gaps as `steps` steps take."""
    plans = [make_plan(of, [str(steps)] * (WARM + SEGMENT), seed=seed + i) for i in range(SYNTHETIC_LANES // BATCH)]
    inputs = {
        name: torch.from_numpy(np.concatenate([plan.inputs[name] for plan in plans], axis=1))
        for name in plans[0].inputs
    }
    counts = inputs["dt"][..., 0] > 0
    counts[:WARM] = False
    return HeldOut(inputs, counts, torch.arange(counts.shape[1]) % 2)


def plentiful(held_out: HeldOut | None) -> bool:
    """Whether there are streams, with calls enough on both sides to say anything of one in a hundred."""
    if held_out is None:
        return False
    sides = [int(held_out.counts[:, held_out.half == side].sum()) for side in (0, 1)]
    return min(sides) >= FEWEST // 2


def _walk(cell: Cell, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """h and u [T, B, D] before each call."""
    config = cell.config
    longest = float(inputs["dt"].max())
    steps = max(WALKED_STEPS, calls_needed(longest, 1, cell.field.stiffness(), config.method))
    start = cell.initial_state(inputs["dt"].shape[1])
    kept = unroll(cell, inputs, start, steps=steps, keep=("h", "u")).kept
    return {name: torch.cat([start[name].unsqueeze(0), values[:-1]]) for name, values in kept.items()}


def _outbursts(cell: Cell, inputs: Mapping[str, Tensor], random: np.random.Generator) -> dict[str, Tensor]:
    """The streams with values far off in runs of calls, and gaps stretched or shrunk call by call."""
    config, dt = cell.config, inputs["dt"].double().numpy()
    burst = _runs(dt.shape[:2], random)
    stretch = np.exp(random.uniform(-math.log(STRETCH), math.log(STRETCH), dt.shape))
    stretched = np.minimum(dt * stretch, np.maximum(dt, STRETCHED)).astype(np.float32)
    wild = {**inputs, "dt": torch.from_numpy(stretched)}
    if config.task == "tokens":
        noise = random.integers(0, VOCABULARY, dt.shape[:2])
        wild["x"] = torch.from_numpy(np.where(burst, noise, inputs["x"].numpy()))
    else:
        shape = inputs["x"].shape
        far = random.choice(BURST_SCALES, dt.shape) * random.standard_normal(shape) * np.asarray(config.scale)
        wild["x"] = torch.from_numpy((inputs["x"].numpy() + burst[..., None] * far).astype(np.float32))
    if "phase" in inputs:
        elapsed = np.cumsum(stretched.astype(np.float64), axis=0) - stretched
        wild["phase"] = rotated(inputs["phase"][:1], elapsed, config.frequencies)
    return wild


def _runs(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.bool_]:
    """Where it bursts, [T, B]: runs of calls, with a pause of several between them."""
    begins, ends = random.random(shape) < BURST_CHANCE, random.random(shape) < 1 / BURST_CALLS
    burst, on = np.zeros(shape, np.bool_), np.zeros(shape[1:], np.bool_)
    for t in range(shape[0]):
        on = np.where(on, ~ends[t], begins[t])
        burst[t] = on
    return burst


def rotated(phase: Tensor, units: NDArray[np.float64], frequencies: tuple[float, ...]) -> Tensor:
    """sin and cos [..., 2K] moved on by `units` [..., 1] model units, worked out in float64 as a host does."""
    angle = units * np.asarray(frequencies)
    s, c = np.sin(angle), np.cos(angle)
    sine, cosine = np.split(phase.double().numpy(), 2, axis=-1)
    moved = np.concatenate([sine * c + cosine * s, cosine * c - sine * s], axis=-1)
    return torch.from_numpy(moved.astype(np.float32))
