"""How a full cell learns event recall in about two minutes on one core.

First the memory path alone (`recall_path`): gates, keys and values come from the content, so they carry over to the
full cell as they are. Then the full cell, with flow, surprise and hidden state, learns around the memories, whose
write side is held still. In both a part of the sequences sees only some of the reads, so that each memory learns to
answer alone. No row is labelled as an event: only answers and a budget on writes teach what to keep.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odestream.models.cell import Cell
from odestream.models.config import PRESETS, CellConfig
from odestream.models.gates import WriteGate, openness
from odestream.models.memory_path import recall_path
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from recall_task import CHANNELS, VALUES, Sequence, sequences

ROWS: dict[str, tuple[float, float, float]] = {
    "all memories": (1, 1, 1),
    "matrix alone": (0, 1, 0),
    "episodes alone": (0, 0, 1),
    "window alone": (1, 0, 0),
    "hidden state alone": (0, 0, 0),
}
"""Which reads are open, in the order of the configuration's stores: working, longterm, episodic."""
LONGEST_TRAINED_GAP = 64
TRAINED_SLOTS = 12
SOLVER_STEPS = 2  # enough for the longest dt by the stability bound; more change nothing but the cost


@dataclass(frozen=True)
class Recipe:
    """memory_steps, cell_steps: updates of the two stages. batch: sequences of an update in each.

    rate, gate_rate, cell_rate: learning rates, of everything else, of the write gate, and in the second stage.
    shares, cell_shares: how often a sequence sees each of ROWS, in the two stages. explored: share of rows that are
    written at half strength at least, in the first half. budget: weight of the pressure on writes, raised over
    `budget_rise` updates at an accuracy above `learnt`. pull: its part that also moves a saturated gate. balance:
    weight against one store taking what the others then lack. expected: weight of the expectation's likelihood.
    """

    memory_steps: int = 2000
    cell_steps: int = 150
    batch: int = 64
    cell_batch: int = 32
    rate: float = 3e-3
    gate_rate: float = 1e-2
    cell_rate: float = 1e-3
    shares: tuple[float, ...] = (0.3, 0.3, 0.3, 0.1, 0.0)
    cell_shares: tuple[float, ...] = (0.4, 0.15, 0.15, 0.15, 0.15)
    explored: float = 0.05
    budget: float = 0.3
    budget_rise: int = 200
    learnt: float = 0.9
    pull: float = 0.02
    balance: float = 0.02
    expected: float = 0.1


def train(seed: int, recipe: Recipe) -> Cell:
    """A full nano cell with the preset's own number of slots, trained by both stages."""
    torch.manual_seed(seed)
    make = torch.Generator().manual_seed(seed)
    cell = Cell(configuration(TRAINED_SLOTS))
    train_memory_path(cell, recipe, make)
    train_cell(cell, recipe, make)
    deployed = Cell(configuration(PRESETS["nano"].slots))
    deployed.load_state_dict(cell.state_dict())
    return deployed.eval()


def configuration(slots: int) -> CellConfig:
    """The nano preset for this task, with fixed normalisation and no time features."""
    sizes = dataclasses.replace(PRESETS["nano"], slots=slots)
    scale, centre = (1.0,) * CHANNELS, (0.0,) * CHANNELS
    return CellConfig("classify", CHANNELS, sizes, scale, centre, outputs=VALUES, steps=SOLVER_STEPS)


def train_memory_path(cell: Cell, recipe: Recipe, make: torch.Generator) -> None:
    """First stage: reads and writes, without flow and hidden state."""
    gate = [*cell.memory.gates.inner.parameters(), *cell.memory.gates.write.parameters()]
    others = [p for p in cell.parameters() if all(p is not g for g in gate)]
    groups = [{"params": others, "lr": recipe.rate}, {"params": gate, "lr": recipe.gate_rate}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, recipe.memory_steps)
    accuracy, budget = 0.0, 0.0
    for step in range(recipe.memory_steps):
        done = step / recipe.memory_steps
        drawn = _draw(recipe.batch, 16 if done < 0.3 else LONGEST_TRAINED_GAP, 32, 16, make)
        opened = _opened(recipe.batch, recipe.shares, make)
        explore = _explore(drawn, recipe.explored, make) if done < 0.5 else None
        got = recall_path(cell, drawn.rows.inputs(), drawn.asked, explore=explore, opened=opened)
        accuracy += 0.05 * (_accuracy(got.y, drawn.labels, opened) - accuracy)
        if accuracy > recipe.learnt:
            budget = min(budget + recipe.budget / recipe.budget_rise, recipe.budget)
        loss = _answers(got.y, drawn.labels) + recipe.balance * _imbalance(got.gate)
        _update(optimizer, loss + budget * _pressure(got.gate, recipe.pull))
        schedule.step()


def train_cell(cell: Cell, recipe: Recipe, make: torch.Generator) -> None:
    """Second stage: everything but what decides and forms a write."""
    learning = [p for name, p in cell.named_parameters() if not _forms_writes(name)]
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(not _forms_writes(name))
    optimizer = torch.optim.Adam(learning, lr=recipe.cell_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, recipe.cell_steps)
    for _ in range(recipe.cell_steps):
        drawn = _draw(recipe.cell_batch, LONGEST_TRAINED_GAP, 16, 8, make)
        opened = _opened(recipe.cell_batch, recipe.cell_shares, make)
        inputs = drawn.rows.inputs()
        got = unroll(cell, inputs, cell.initial_state(recipe.cell_batch), opened=opened)
        answers = got.y[drawn.asked.start :]
        _update(optimizer, _answers(answers, drawn.labels) + recipe.expected * _surprisal(got, inputs))
        cell.field.constrain()
        schedule.step()


def _draw(batch: int, gap: int, before: int, between: int, make: torch.Generator) -> Sequence:
    """Sequences with random lengths up to those given."""
    before, between, gap = (int(torch.randint(0, most + 1, (), generator=make)) for most in (before, between, gap))
    return sequences(batch, before, between, gap, make)


def _opened(batch: int, shares: tuple[float, ...], make: torch.Generator) -> Tensor:
    """A row of ROWS for each sequence, [B, 3]."""
    which = torch.multinomial(torch.tensor(shares), batch, replacement=True, generator=make)
    return torch.tensor(list(ROWS.values()), dtype=torch.float32)[which]


def _explore(drawn: Sequence, share: float, make: torch.Generator) -> Tensor:
    return (torch.rand(drawn.rows.dt.shape, generator=make) < share).float()


def _answers(y: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(y.flatten(0, 1), labels.flatten())


def _accuracy(y: Tensor, labels: Tensor, opened: Tensor) -> float:
    """Share of right answers, over sequences that see the matrix.

    It learns first, and through it the gate; the episodes often only once the budget has closed the gate to noise.
    """
    right = (y.argmax(dim=-1) == labels).float().mean(dim=0)
    return float(right[opened[:, 1] > 0].mean())


def _pressure(gate: WriteGate, pull: float) -> Tensor:
    """What the budget weighs: how far the gate is from exactly zero, over all rows alike."""
    return torch.mean(openness(gate.logit) + pull * F.softplus(gate.logit))


def _imbalance(gate: WriteGate) -> Tensor:
    """−log of the stores' shares, averaged over what is written.

    Reads by relative strength leave a store's own scale free, and the shares then drift apart.
    """
    strength = gate.write.detach().amax(dim=-1, keepdim=True)
    shares = gate.write / torch.clamp(strength, min=1e-3)
    return -torch.sum(strength * torch.log(shares + 1e-6)) / (torch.sum(strength) * shares.shape[-1])


def _surprisal(got: Unrolled, inputs: dict[str, Tensor]) -> Tensor:
    """Gaussian negative log-likelihood of the observed channels under the expectation, without its constant."""
    if got.log_variance is None:
        raise TypeError("the cell expects no real channels; configure it for them")
    loss = 0.5 * (got.log_variance + (inputs["x"] - got.mean) ** 2 * torch.exp(-got.log_variance))
    return torch.sum(loss * inputs["mask"]) / torch.sum(inputs["mask"])


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def _forms_writes(name: str) -> bool:
    """Whether the parameter decides a write, or forms a key, a value or the content's part of a query."""
    return name.startswith("memory.") and not name.startswith("memory.gates.read") and "query_state" not in name
