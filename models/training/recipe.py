"""What a task adds to the loop: where its sequences come from, what is lost on a chunk, how validation judges."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odestream.models.cell import Cell, State
from odestream.models.distributed import World
from odestream.models.model import Model
from odestream.models.sequences import Calls, longest_call, stack, steps_across
from odestream.models.training.coarsening import draw_bucket, stable_buckets
from odestream.models.training.lanes import Chunk, LanePlan, Lanes, Rows
from odestream.models.training.regularity import Flows, Solving
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from odestream.runtime.errors import InputError

FEWEST_STEPS = 1  # solver steps that must suffice where gaps can be cut into pieces as short as `longest_call`


class Loss(NamedTuple):
    """total: what is minimised; of one process's share, it adds up over processes. main: the part to show."""

    total: Tensor
    main: Tensor


class Batch(NamedTuple):
    """A chunk of every lane: its calls (`parts`), the lanes of this process (`mine`), their inputs [T, B, …], and the
    solver steps of a call."""

    chunk: Chunk
    parts: Sequence[Calls]
    mine: Rows
    inputs: Mapping[str, Tensor]
    steps: int


class Recipe(ABC):
    """Lanes through `sequences`, and the state that they carry.

    learning_rate: the highest, after warm-up. epoch: chunks in one pass over the rows. steps: fewest solver steps of a
    call; InputError for a call that so many do not cross stably. buckets: the numbers of steps that are trained with.
    """

    learning_rate = 3e-3

    def __init__(
        self,
        cell: Model,
        sequences: Sequence[Calls],
        plan: LanePlan,
        rows: int,
        solving: Solving,
        steps: int = FEWEST_STEPS,
    ) -> None:
        _check_gaps(cell, sequences, steps)
        self.sequences, self.steps, self.buckets = sequences, steps, stable_buckets(steps)
        self.lanes = Lanes(plan, [len(s) for s in sequences])
        self.epoch = max(1, math.ceil(rows / (plan.count * plan.length)))
        self.solving = solving
        self.carried: State | None = None

    def loss(self, cell: Model, world: World, random: np.random.Generator, progress: float) -> Loss:
        """Loss of this process's lanes on the next chunk; every process must call it with the same `random`.

        progress: 0 … 1 of the training.
        """
        chunk, steps = self.lanes.draw(random), draw_bucket(self.buckets, progress, random)
        parts = [
            self.sequences[s].part(start, start + self.lanes.plan.length)
            for s, start in zip(chunk.sequence, chunk.start, strict=True)
        ]
        mine = np.asarray(world.share(len(parts)))
        inputs = stack([parts[i] for i in mine], self.lanes.plan.length)
        unrolled = unroll(
            cell,
            inputs,
            self._state(cell, chunk, mine),
            steps=steps,
            integrator=self.solving.integrator,
            explore=self.explore(random, mine, progress),
            keep=self.keep,
        )
        self.carried = {name: value.detach() for name, value in unrolled.state.items()}
        loss, flows = self.judge(cell, Batch(chunk, parts, mine, inputs, steps), unrolled, random)
        if flows is None or not isinstance(cell, Cell):
            return loss
        return Loss(loss.total + self.solving.penalty(cell, flows, steps, random), loss.main)

    keep: Sequence[str] = ()

    @abstractmethod
    def judge(
        self, cell: Model, batch: Batch, unrolled: Unrolled, random: np.random.Generator
    ) -> tuple[Loss, Flows | None]:
        """The task's loss, and the flows of which regularity is asked, None for a model without a field.

        unrolled: of this process's lanes alone.
        """

    @abstractmethod
    def validate(self, cell: Model) -> float:
        """How good `cell` is on validation rows; less is better."""

    def explore(self, random: np.random.Generator, mine: Rows, progress: float) -> Tensor | None:
        """Where writes to memory are forced, [T, B, 1]; nowhere unless a recipe says so."""
        del random, mine, progress
        return None

    def start_state(self, cell: Model, chunk: Chunk, mine: Rows) -> State:
        """State of lanes that have just been put somewhere."""
        del chunk
        return cell.initial_state(len(mine))

    def _state(self, cell: Model, chunk: Chunk, mine: Rows) -> State:
        start = self.start_state(cell, chunk, mine)
        if self.carried is None:
            return start
        fresh = torch.from_numpy(chunk.fresh[mine])
        return {
            name: torch.where(fresh.view(-1, *[1] * (value.dim() - 1)), value, self.carried[name])
            for name, value in start.items()
        }


def _check_gaps(cell: Model, sequences: Sequence[Calls], steps: int) -> None:
    """InputError for a call beyond the solver's stability bound: its error would grow from call to call."""
    largest = max(float(np.max(s.inputs["dt"], initial=0.0)) for s in sequences)
    longest = longest_call(cell.config, steps)
    if largest > longest * (1 + 1e-6):  # dt is float32
        raise InputError(
            f"a call of {largest:.3g} model units; {steps} solver steps are stable up to {longest:.3g}: "
            f"train with {steps_across(cell.config, largest)} steps or cut the gap"
        )
