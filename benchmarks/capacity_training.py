"""How everybody learns: the same data, the same number of steps, Adam with a warm-up and a linear decay.

Ours learns by its own recipe: the memory path alone first, from what the content says, then for the last steps the
whole cell, on short sequences. Rivals learn whole from the first step to the last. In event recall they start from the
state that a stretch of noise left, which is passed on without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from capacity_task import Drawn, Task, pieces
from odestream.models.baselines import Baseline
from odestream.models.cell import Cell, State
from odestream.models.gates import WriteGate, openness
from odestream.models.memory_path import recall_path
from odestream.models.model import Model
from odestream.models.unroll import unroll
from recall_task import noise

CELL_RATE = 1e-3
SHORT = 0.2  # ease of the sequences that the whole cell learns from
SHARPNESS_RATE = 100.0  # × the learning rate: it starts at 8, and near keys take some 50 to be told apart
LEARNT = 0.35  # error below which the pressure on writes is raised
BUDGET, BUDGET_RISE = 0.03, 200  # what it is raised to, over so many steps
PULL = 0.02
EXPLORED = 0.05  # share of rows that are written at half strength at least, in the first half
GROWN = 0.4  # share of the training after which sequences have their full length
WARM = 0.1
PASSED = 32  # noise rows whose state is passed on, at most
PIECE = 128  # rows of a sequence that are tried at once


@dataclass(frozen=True)
class Schedule:
    """steps: updates in all, of which ours spends the last `cell_steps` on the whole cell. batch: sequences of one."""

    steps: int
    cell_steps: int
    batch: int


def train(model: Model, task: Task, schedule: Schedule, rate: float, seed: int) -> Model:
    """Train a model in place."""
    make = torch.Generator().manual_seed(seed)
    if isinstance(model, Baseline):
        _train_rival(model, task, schedule, rate, make)
    else:
        _train_memory_path(model, task, schedule, rate, make)
        _train_cell(model, task, schedule, make)
    return model.eval()


@torch.no_grad()
def scores(model: Model, task: Task, sequences: int, seed: int) -> list[float]:
    """Mean squared error in `sequences` new sequences at every point of the task, streamed from new states."""
    make = torch.Generator().manual_seed(1_000_000 + seed)
    found = []
    for point in task.points:
        drawn = task.trial(point, sequences, make)
        state, answers = model.initial_state(sequences), []
        for piece in pieces(drawn.rows, PIECE):
            got = unroll(model, piece.inputs(), state)
            state = got.state
            answers.append(got.y)
        found.append(float(F.mse_loss(torch.cat(answers)[drawn.asked.start :], drawn.wanted)))
    return found


def _train_rival(model: Baseline, task: Task, schedule: Schedule, rate: float, make: torch.Generator) -> None:
    def loss(drawn: Drawn, _: float) -> Tensor:
        state = _passed(model, schedule.batch, make) if task.noisy else None
        return F.mse_loss(model(drawn.rows.inputs(), state).y[drawn.asked.start :], drawn.wanted)

    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    _descend(optimizer, _drawn(task, schedule.steps, schedule.batch, make), schedule.steps, loss)


def _train_memory_path(model: Cell, task: Task, schedule: Schedule, rate: float, make: torch.Generator) -> None:
    """Reads and writes, without flow and hidden state."""
    steps, budget = schedule.steps - schedule.cell_steps, _Budget()

    def loss(drawn: Drawn, done: float) -> Tensor:
        explore = (torch.rand(drawn.rows.dt.shape, generator=make) < EXPLORED).float() if done < 0.5 else None
        got = recall_path(model, drawn.rows.inputs(), drawn.asked, explore=explore)
        error = F.mse_loss(got.y, drawn.wanted)
        return error + budget.after(float(error.detach())) * _pressure(got.gate) if task.noisy else error

    sharpness = [model.memory.sharpness]
    others = [p for p in model.parameters() if p is not sharpness[0]]
    rates = ((others, 1.0), (sharpness, SHARPNESS_RATE))
    optimizer = torch.optim.Adam([{"params": group, "lr": factor * rate} for group, factor in rates], fused=True)
    _descend(optimizer, _drawn(task, steps, schedule.batch, make), steps, loss)


def _train_cell(model: Cell, task: Task, schedule: Schedule, make: torch.Generator) -> None:
    """Everything around the memories, which are held still."""
    model.memory.requires_grad_(False)

    def loss(drawn: Drawn, _: float) -> Tensor:
        got = unroll(model, drawn.rows.inputs(), model.initial_state(schedule.batch))
        return F.mse_loss(got.y[drawn.asked.start :], drawn.wanted)

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=CELL_RATE, fused=True)
    short = (task.draw(schedule.batch, SHORT, make) for _ in range(schedule.cell_steps))
    _descend(optimizer, short, schedule.cell_steps, loss, model.constrain)


class _Budget:
    """Weight of the pressure on writes: raised while answers are good, and taken away at once where they are not.

    A gate that is shut gets no gradient from the answers and would never open again.
    """

    def __init__(self) -> None:
        self._error, self._weight = 1.0, 0.0

    def after(self, error: float) -> float:
        """The weight after a batch with this error."""
        self._error += 0.2 * (error - self._error)
        self._weight = min(self._weight + BUDGET / BUDGET_RISE, BUDGET) if self._error < LEARNT else 0.0
        return self._weight


def _pressure(gate: WriteGate) -> Tensor:
    """How far the gate is from exactly zero, over all rows alike; the second part also moves a saturated gate."""
    return torch.mean(openness(gate.logit) + PULL * F.softplus(gate.logit))


def _drawn(task: Task, steps: int, batch: int, make: torch.Generator) -> Iterator[Drawn]:
    """The length curriculum."""
    for step in range(steps):
        yield task.draw(batch, min(1.0, step / (GROWN * steps)), make)


def _descend(
    optimizer: torch.optim.Optimizer,
    sequences: Iterator[Drawn],
    steps: int,
    loss: Callable[[Drawn, float], Tensor],
    constrain: Callable[[], None] = lambda: None,
) -> None:
    """loss: of a sequence, and of the share of the steps that are done."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step / steps))
    for step, drawn in enumerate(sequences):
        optimizer.zero_grad()
        loss(drawn, step / steps).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        constrain()


def _share_of_rate(done: float) -> float:
    return min((done + 1e-3) / WARM, 1.0) * max(1.0 - done, 0.02)


@torch.no_grad()
def _passed(model: Baseline, batch: int, make: torch.Generator) -> State:
    """A state that some noise rows left."""
    length = int(torch.randint(1, PASSED + 1, (), generator=make))
    return model(noise(length, batch, make).inputs()).state  # type: ignore[no-any-return]
