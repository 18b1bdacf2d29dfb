"""Forecasts: the next observation, and at random times further ahead, from records thinned at random.

Measured on the weekly CO2 record: normalising inside the step, losses at random horizons, thinning, an absolute
error and averaged weights are what makes it work; short chunks with a carried state reach the same error in about
half the time that long windows take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.models.baselines import Baseline
from odestream.models.cell import State
from odestream.models.checkpoint import Settings
from odestream.models.data import Dataset, Rows
from odestream.models.forecasting import flow_on, gap_inputs, nearest_rows
from odestream.models.losses import absolute_error, normalised, spread_loss
from odestream.models.model import Model, forecast_from
from odestream.models.sequences import Calls, calls_of, longest_call, running_statistics, stiffest
from odestream.models.training.lanes import Chunk, LanePlan
from odestream.models.training.recipe import FEWEST_STEPS, Batch, Loss, Recipe
from odestream.models.training.regularity import Flows, Solving
from odestream.models.unrolled import Unrolled
from odestream.models.validation import ValidationSegments

VIEWS = 16  # thinned copies of a single stream; many streams share them
MOST_DROPPED = 0.6
BURN_IN = 4  # calls without loss where a lane was put into the middle of a record
PAIRS = 6  # random (call, horizon) pairs a lane and chunk
SAMPLED = 2  # of these, of which regularity is asked
SPREAD_WEIGHT = 0.2
OTHER_CHANNELS = 0.25  # weight of inputs that are not targets


class Ahead(NamedTuple):
    """Random flows of every lane [N, P]: from which call of its chunk, to which row of its record, whether usable."""

    call: Rows
    row: Rows
    usable: NDArray[np.bool_]


class ForecastRecipe(Recipe):
    """Lanes through views of the streams: a view is a stream with some of its rows never having come.

    dropped: share of the rows that the thinnest view lacks; 0: all views are whole, and only the record's own gaps are
    seen.
    """

    def __init__(
        self,
        cell: Model,
        data: Dataset,
        settings: Settings,
        lanes: int,
        length: int,
        solving: Solving,
        dropped: float = MOST_DROPPED,
    ) -> None:
        parts = [p for p in data.parts if p.validation > 1]
        copies = max(2, VIEWS // len(parts))
        random = np.random.default_rng([settings.seed, 1])
        longest = longest_call(cell.config, FEWEST_STEPS)
        self.parts = [part for part in parts for _ in range(copies)]
        views = [
            calls_of(
                part.series,
                _thinned(part.validation, dropped * (i % copies) / (copies - 1), random),
                data.time,
                longest,
            )
            for i, part in enumerate(self.parts)
        ]
        plan = LanePlan(lanes, min(length, max(len(v) for v in views)), 1 / 40, anywhere=True)
        super().__init__(cell, views, plan, sum(p.validation for p in parts), solving)
        self.keep = forecast_from(cell)
        self.data, self.horizons, self.stiffest = data, settings.horizons, stiffest(cell.config)
        self.norms = running_statistics(cell, views)
        targets = [data.task.inputs.index(t) for t in data.task.targets]
        importance = np.full(len(data.task.inputs), OTHER_CHANNELS, np.float32)
        importance[targets] = 1.0
        self.targets, self.importance = targets, importance
        self.validation = ValidationSegments(cell, data, settings.seed)

    def start_state(self, cell: Model, chunk: Chunk, mine: Rows) -> State:
        """A new state, but for the running statistics, which are exactly those that the walk would have."""
        state = super().start_state(cell, chunk, mine)
        state["norm"] = torch.stack([self.norms[chunk.sequence[i]][chunk.start[i]] for i in mine])
        return state

    def judge(
        self, cell: Model, batch: Batch, unrolled: Unrolled, random: np.random.Generator
    ) -> tuple[Loss, Flows | None]:
        """One call ahead from every call, and further ahead from random ones; these flows are also the sample."""
        weight = normalised(self._call_weights(batch.chunk, batch.parts))[:, batch.mine]
        near = _both(cell, unrolled.mean, unrolled.log_variance, batch.inputs["x"], weight)
        far, flows = self._far(cell, batch, unrolled, self._draw_ahead(batch.chunk, batch.parts, random))
        return Loss(near.total + far.total, near.main + far.main), flows

    def validate(self, cell: Model) -> float:
        """Mean absolute error in units of the scale, over targets and horizons, whole and with half the rows gone."""
        return self.validation.score(cell, self.targets, self.horizons, self.steps)

    @torch.no_grad()
    def calibrate(self, cell: Model) -> None:
        """Make the stated deviations as large as the errors on validation rows: a model errs more on what is new."""
        factors = self.validation.deviation_factors(cell, self.horizons, self.steps)
        cell.heads.expect.outer.bias[cell.config.channels :] += torch.from_numpy(2.0 * np.log(factors)).float()

    def _call_weights(self, chunk: Chunk, parts: Sequence[Calls]) -> Tensor:
        """[T, N, X]: observed channels that the stream had seen before, after the burn-in."""
        length = self.lanes.plan.length
        weights = np.zeros((length, len(parts), len(self.importance)), np.float32)
        for lane, part in enumerate(parts):
            norm = self.norms[chunk.sequence[lane]][chunk.start[lane] : chunk.start[lane] + length]
            weights[: len(part), lane] = part.inputs["mask"] * norm[..., 2].numpy() * self.importance
        weights[:BURN_IN, chunk.fresh & (chunk.start > 0)] = 0.0
        return torch.from_numpy(weights)

    def _draw_ahead(self, chunk: Chunk, parts: Sequence[Calls], random: np.random.Generator) -> Ahead:
        """Calls at random and horizons log-uniform from under one median gap to past the largest asked for."""
        first = np.where(chunk.fresh & (chunk.start > 0), min(BURN_IN, self.lanes.plan.length - 1), 0)
        lengths = np.array([len(part) for part in parts])
        call = random.integers(first[:, None], lengths[:, None], (len(parts), PAIRS))
        span = (math.log(0.75), math.log(1.1 * max(self.horizons)))
        ahead = np.exp(random.uniform(*span, call.shape)) * self.data.gap
        row, usable = np.zeros_like(call), np.zeros(call.shape, bool)
        for lane, part in enumerate(parts):
            own, start = self.parts[chunk.sequence[lane]], part.ticks[call[lane]]
            row[lane], _ = nearest_rows(own.series, start + ahead[lane], 0.0)
            usable[lane] = (own.series.ticks[row[lane]] > start) & (row[lane] < own.validation)
        return Ahead(call, row, usable)

    def _far(self, cell: Model, batch: Batch, unrolled: Unrolled, ahead: Ahead) -> tuple[Loss, Flows | None]:
        parts, mine = batch.parts, batch.mine
        lanes = [self.parts[s].series for s in batch.chunk.sequence]
        x = np.stack([series.x[row] for series, row in zip(lanes, ahead.row, strict=True)])
        mask = np.stack([series.mask[row] for series, row in zip(lanes, ahead.row, strict=True)])
        weight = normalised(torch.from_numpy(mask * ahead.usable[..., None] * self.importance))[mine].flatten(0, 1)
        start = np.concatenate([parts[i].ticks[ahead.call[i]] for i in mine])
        end = np.concatenate([lanes[i].ticks[ahead.row[i]] for i in mine])
        end = np.where(ahead.usable[mine].ravel(), end, start)
        call, lane = torch.from_numpy(ahead.call[mine].ravel()), torch.arange(len(mine)).repeat_interleave(PAIRS)
        kept = {name: values[call, lane] for name, values in unrolled.kept.items()}
        flow = self.solving.integrator
        expected = flow_on(cell, self.data.time, kept, start, end, self.stiffest, batch.steps, flow)
        loss = _both(cell, expected.mean, expected.log_variance, torch.from_numpy(x[mine]).flatten(0, 1), weight)
        return loss, None if isinstance(cell, Baseline) else self._sample(batch, kept, start, end)

    def _sample(self, batch: Batch, kept: Mapping[str, Tensor], start: Rows, end: Rows) -> Flows:
        """The first `SAMPLED` of each lane's flows ahead."""
        lanes = len(batch.mine)
        some = (np.arange(lanes)[:, None] * PAIRS + np.arange(SAMPLED)).ravel()
        places = (batch.mine[:, None] * SAMPLED + np.arange(SAMPLED)).ravel()
        gaps, picked = gap_inputs(self.data.time, start[some], end[some]), torch.from_numpy(some)
        h, u = (kept[name][picked].detach() for name in ("h", "u"))
        return Flows(h, u, gaps.get("phase"), gaps["dt"], places, SAMPLED * len(batch.parts))


def _thinned(rows: int, share: float, random: np.random.Generator) -> Rows:
    """The rows of a view that lacks a `share` of them, drawn at random."""
    chosen = np.flatnonzero(random.random(rows) >= share)
    return chosen if len(chosen) > 1 else np.arange(rows)


def _both(cell: Model, mean: Tensor, log_variance: Tensor | None, x: Tensor, weight: Tensor) -> Loss:
    if log_variance is None:
        raise RuntimeError("a forecast without a variance; this is a defect of odestream")
    error = absolute_error(mean, x, cell.scale, weight)
    return Loss(error + SPREAD_WEIGHT * spread_loss(mean, log_variance, x, cell.scale, weight), error)
