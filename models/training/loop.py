"""The loop that all tasks share: AdamW with warm-up and cosine, weight averaging, selection by validation, resuming.

What is judged and kept is the running average of the weights, at the validation where it was best (at the last one
where no score was finite). Everything that decides the next step (weights, averages, optimiser, lanes, carried state,
random numbers) can be stored and read back, so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from odestream.models.distributed import World
from odestream.models.model import Model
from odestream.models.training.recipe import Recipe
from odestream.runtime.errors import InputError

WARM_UP = 0.05  # of the training
FINAL_RATE = 0.02  # of the highest learning rate
AVERAGE = 0.99
WEIGHT_DECAY = 0.01
CLIP = 1.0
VALIDATIONS = 10
MAX_FAILURES = 20


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, or by passes over the rows (then it repeats exactly)."""

    seconds: float | None
    steps: int | None

    def progress(self, step: int, seconds: float) -> float:
        """0 … 1."""
        done = step / self.steps if self.steps is not None else seconds / max(1e-9, self.seconds or 0.0)
        return min(1.0, done)


@dataclass
class Curve:
    """What the training curve shows: loss by step, and validation scores."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation_step: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Progress for whoever watches: 0 … 1, steps so far, smoothed loss, best validation score so far."""

    progress: float
    step: int
    loss: float
    best: float


class Trainer:
    """Trains `cell` by `recipe` within `budget`; the outcome is in `best`, the cell with the best averaged weights."""

    def __init__(self, cell: Model, recipe: Recipe, budget: Budget, seed: int, world: World) -> None:
        self.cell, self.recipe, self.budget, self.world = cell, recipe, budget, world
        self.average, self.best = copy.deepcopy(cell), copy.deepcopy(cell)
        self.optimiser = torch.optim.AdamW(
            cell.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY
        )
        self.random = np.random.default_rng(seed)
        self.step, self.seconds, self.smoothed = 0, 0.0, math.nan
        self.best_score, self.validated, self.failures = math.inf, 0, 0
        self.curve = Curve()

    def run(self, watch: Callable[[Report], None], stop: Callable[[], bool], save: Callable[[], None]) -> bool:
        """Train to the end of the budget; False if `stop` said so before. `save` is called at every validation.

        A step is never left half done: `stop` is asked between steps.
        """
        started = time.monotonic() - self.seconds
        while True:
            self.seconds = time.monotonic() - started
            progress, stopped = self.world.agree(self.budget.progress(self.step, self.seconds), float(stop()))
            if stopped:
                return False
            if progress >= (self.validated + 1) / VALIDATIONS:
                self._validate(progress)
                save()
            if progress >= 1.0:
                return True
            self._advance(progress)
            watch(Report(progress, self.step, self.smoothed, self.best_score))

    def _advance(self, progress: float) -> None:
        """One optimiser step."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * rate(progress)
        loss = self.recipe.loss(self.cell, self.world, self.random, progress)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss.total)
        self.world.sum_gradients(self.cell.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(self.cell.parameters(), CLIP))
        self.step += 1
        if math.isfinite(norm):
            self.optimiser.step()
            self.cell.constrain()
            self._follow()
        self._note(float(loss.main.detach()), math.isfinite(norm))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights; it forgets its start quickly."""
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        for held, now in zip(self.average.parameters(), self.cell.parameters(), strict=True):
            held.lerp_(now, 1 - decay)

    def _note(self, loss: float, finite: bool) -> None:
        """Keep the loss for the curve; a step without a finite gradient was left out, and many of them end it."""
        self.failures = 0 if finite else self.failures + 1
        if self.failures > MAX_FAILURES:
            raise InputError(
                f"the loss is not finite since step {self.step - MAX_FAILURES}; "
                "look for outliers in the inputs, or train with another --seed"
            )
        if not math.isfinite(loss):
            return
        loss *= self.world.size
        self.smoothed = loss if math.isnan(self.smoothed) else 0.95 * self.smoothed + 0.05 * loss
        self.curve.step.append(self.step)
        self.curve.loss.append(loss)

    def _validate(self, progress: float) -> None:
        """Keep the averaged weights if they are the best so far or nothing could be judged; the leader alone judges."""
        self.validated = math.floor(progress * VALIDATIONS + 1e-9)
        if not self.world.leads:
            return
        score = self.recipe.validate(self.average)
        self.curve.validation_step.append(self.step)
        self.curve.validation.append(score)
        if score < self.best_score or self.best_score == math.inf:
            self.best_score = score if math.isfinite(score) else math.inf
            self.best.load_state_dict(self.average.state_dict())


def rate(progress: float) -> float:
    """Learning rate as a share of the highest: a linear warm-up, then a cosine to `FINAL_RATE`."""
    warm = min(1.0, progress / WARM_UP + 1e-3)
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))
