"""How a full cell learns event recall in about two minutes on one core.

First the memory path alone (`recall_path`): gates, keys and values come from the content, so they carry over to the
full cell as they are. Then the write gate alone, whose decisions by then are right but have no margin. Then the full
cell, with flow, surprise and hidden state, learns around the memories, whose write side is held still. A part of the
sequences sees only some of the reads, so that each memory learns to answer alone. No row is labelled as an event or as
noise: only answers and a budget on writes teach what to keep.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from odestream.models.cell import Cell
from odestream.models.config import PRESETS, CellConfig, Part
from odestream.models.gates import LOG_STRETCH, WriteGate, write_gate
from odestream.models.memory_path import recall_path
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from recall_task import CHANNELS, EVENTS, VALUES, Sequence, sequences

ROWS: dict[str, tuple[float, float, float]] = {
    "all memories": (1, 1, 1),
    "matrix alone": (0, 1, 0),
    "episodes alone": (0, 0, 1),
    "window alone": (1, 0, 0),
    "hidden state alone": (0, 0, 0),
}
"""Which reads are open, in the order of the configuration's stores: working, longterm, episodic."""
EPISODES = list(ROWS).index("episodes alone")
LONGEST_TRAINED_GAP = 64
TRAINED_SLOTS = 2 * EVENTS  # as many as events at most
SOLVER_STEPS = 2  # enough for the longest dt by the stability bound; more change nothing but the cost
WARM = 50  # updates
REACH = 4.0  # logit
TAKEN, KEPT = -1.0, 3.0  # logits above which the gate has decided to write, as its own stage begins and later


@dataclass(frozen=True)
class Recipe:
    """memory_steps, gate_steps, cell_steps: updates of the three stages. batch, cell_batch: sequences of an update, in
    the first two and in the last. rate, gate_rate, cell_rate: learning rates, of everything else, of the write gate,
    and in the last stage. shares, cell_shares: how often a sequence sees each of ROWS, in the first and last stage.

    rewritten, near_misses: in what part of the batches some keys are rewritten, and some noise rows are near-misses.
    densest: largest share of near-misses. jittered: part of the first stage in which the gate's logit is jittered.

    budget: weight of the pressure on writes, raised over `budget_rise` updates at an accuracy above `learnt`. reach:
    weight that keeps an open gate from saturating. balance: weight against one store taking what the others then lack.
    margin: logits that the gate alone should keep clear of zero and of full strength. expected: weight of the
    expectation's likelihood.
    """

    memory_steps: int = 1500
    gate_steps: int = 1200
    cell_steps: int = 80
    batch: int = 48
    cell_batch: int = 32
    rate: float = 3e-3
    gate_rate: float = 1e-2
    cell_rate: float = 1e-3
    shares: tuple[float, ...] = (0.3, 0.3, 0.3, 0.1, 0.0)
    cell_shares: tuple[float, ...] = (0.4, 0.15, 0.15, 0.15, 0.15)
    rewritten: float = 0.5
    near_misses: float = 0.5
    densest: float = 0.8
    jittered: float = 0.85
    budget: float = 0.15
    budget_rise: int = 200
    learnt: float = 0.9
    reach: float = 0.2
    balance: float = 0.02
    margin: float = 6.0
    expected: float = 0.1


def train(seed: int, recipe: Recipe, without: tuple[Part, ...] = ()) -> Cell:
    """A full nano cell with the preset's own number of slots, or one without some parts, trained by all stages."""
    torch.manual_seed(seed)
    make = torch.Generator().manual_seed(seed)
    memories = Cell(configuration(TRAINED_SLOTS, without))
    see_values_only(memories)
    train_memory_path(memories, recipe, make)
    sharpen_gate(memories, recipe, make)
    cell = Cell(configuration(without=without))
    cell.load_state_dict(memories.state_dict())
    train_cell(cell, recipe, make)
    return cell.eval()


def configuration(slots: int = PRESETS["nano"].slots, without: tuple[Part, ...] = ()) -> CellConfig:
    """The nano preset for this task, with fixed normalisation and no time features."""
    sizes = dataclasses.replace(PRESETS["nano"], slots=slots)
    scale, centre = (1.0,) * CHANNELS, (0.0,) * CHANNELS
    return CellConfig("classify", CHANNELS, sizes, scale, centre, outputs=VALUES, without=without, steps=SOLVER_STEPS)


def see_values_only(cell: Cell) -> None:
    """Let the write gate's first layer see values, not the mask, now and in training.

    The mask is one nearly always. Its 32 columns and their squares are so many more thresholds of each unit, which all
    move together: at the learning rate that the weights need, nine units in ten are soon off for good, and what is left
    cannot tell an event from a near-miss.
    """
    weight = cell.memory.gates.inner.weight
    seen = torch.ones(2, 2, CHANNELS)  # of the features and their squares: values, mask
    seen[:, 1] = 0.0
    with torch.no_grad():
        weight.mul_(seen.flatten())
    weight.register_hook(lambda slope: slope * seen.flatten())  # type: ignore[no-untyped-call]


def train_memory_path(cell: Cell, recipe: Recipe, make: torch.Generator) -> None:
    """First stage: reads and writes, without flow and hidden state."""
    gate = _gate(cell)
    others = [p for p in cell.parameters() if all(p is not g for g in gate)]
    groups = [{"params": others, "lr": recipe.rate}, {"params": gate, "lr": recipe.gate_rate}]
    optimizer, schedule = _adam(groups, recipe.memory_steps)
    accuracy, budget = 0.0, 0.0
    for step in range(recipe.memory_steps):
        done = step / recipe.memory_steps
        drawn, opened = _draw(recipe, recipe.batch, recipe.shares, 16 if done < 0.3 else LONGEST_TRAINED_GAP, make)
        jitter = _logistic(drawn.rows.dt.shape, make) if done < recipe.jittered else None
        got = recall_path(cell, drawn.rows.inputs(), drawn.asked, opened=opened, jitter=jitter)
        accuracy += 0.05 * (_accuracy(got.y, drawn.labels, opened) - accuracy)
        if accuracy > recipe.learnt:
            budget = min(budget + recipe.budget / recipe.budget_rise, recipe.budget)
        loss = _answers(got.y, drawn.labels) + recipe.balance * _imbalance(got.gate)
        loss = loss + budget * _pressure(got.gate) + recipe.reach * _beyond_reach(got.gate)
        _update(optimizer, loss)
        schedule.step()


def sharpen_gate(cell: Cell, recipe: Recipe, make: torch.Generator) -> None:
    """Second stage: the gate alone learns its own decisions, with a margin.

    Nothing tells it which ones are right. A row on the wrong side resembles many on the right one, which take it along
    (pseudo-labels, Lee 2013). To be written, a row must have been taken before this stage, and must stay above a
    threshold that rises as what is written gets its margin, in the first quarter. One noise row in a hundred is let
    through before it, one to three in 100,000 after it.
    """
    optimizer, schedule = _adam([{"params": _gate(cell), "lr": recipe.rate}], recipe.gate_steps, WARM)
    gates, before = cell.memory.gates, copy.deepcopy(cell.memory.gates)
    for step in range(recipe.gate_steps):
        drawn = sequences(recipe.batch, 8, 8, LONGEST_TRAINED_GAP, make, rewritten=EVENTS // 2, near_misses=0.2)
        features = cell.observe(drawn.rows.inputs(), {}).features[: drawn.asked.start]
        gate = write_gate(features, gates.weights())
        with torch.no_grad():
            taken = write_gate(features, before.weights()).logit > TAKEN
            taken &= gate.logit > TAKEN + (KEPT - TAKEN) * min(1.0, 4 * step / recipe.gate_steps)
        _update(optimizer, _short_of_margin(gate, taken, recipe.margin) + recipe.balance * _imbalance(gate))
        schedule.step()


def train_cell(cell: Cell, recipe: Recipe, make: torch.Generator) -> None:
    """Last stage: everything but what decides and forms a write."""
    learning = [p for name, p in cell.named_parameters() if not _forms_writes(name)]
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(not _forms_writes(name))
    optimizer, schedule = _adam([{"params": learning, "lr": recipe.cell_rate}], recipe.cell_steps)
    for _ in range(recipe.cell_steps):
        drawn, opened = _draw(recipe, recipe.cell_batch, recipe.cell_shares, LONGEST_TRAINED_GAP, make)
        inputs = drawn.rows.inputs()
        got = unroll(cell, inputs, cell.initial_state(recipe.cell_batch), opened=opened)
        answers = got.y[drawn.asked.start :]
        _update(optimizer, _answers(answers, drawn.labels) + recipe.expected * _surprisal(got, inputs))
        cell.constrain()
        schedule.step()


def _gate(cell: Cell) -> list[torch.nn.Parameter]:
    """What decides how much of a row is written, and where."""
    return [*cell.memory.gates.inner.parameters(), *cell.memory.gates.write.parameters()]


def _adam(
    groups: list[dict[str, Any]], steps: int, warm: int = 1
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam whose rates rise over `warm` updates and fall to zero over `steps`, both linearly."""
    optimizer = torch.optim.Adam(groups)
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, 1 - step / steps))
    return optimizer, rise


def _draw(
    recipe: Recipe, batch: int, shares: tuple[float, ...], longest: int, make: torch.Generator
) -> tuple[Sequence, Tensor]:
    """Sequences with random lengths, and which reads each of them sees [B, 3].

    The episodes hold both values of a rewritten key and cannot tell which is the later: they do not answer alone then.
    """
    before, between, gap = (int(torch.randint(0, most + 1, (), generator=make)) for most in (8, 8, longest))
    rewrites, misses, density = torch.rand(3, generator=make).tolist()
    rewritten = int(torch.randint(1, EVENTS + 1, (), generator=make)) if rewrites < recipe.rewritten else 0
    near_misses = recipe.densest * density if misses < recipe.near_misses else 0.0
    drawn = sequences(batch, before, between, gap, make, rewritten=rewritten, near_misses=near_misses)
    chances = torch.tensor([0.0 if rewritten and row == EPISODES else share for row, share in enumerate(shares)])
    which = torch.multinomial(chances, batch, replacement=True, generator=make)
    return drawn, torch.tensor(list(ROWS.values()), dtype=torch.float32)[which]


def _logistic(shape: torch.Size, make: torch.Generator) -> Tensor:
    """Standard logistic noise."""
    return torch.logit(torch.rand(shape, generator=make), eps=1e-6)


def _answers(y: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(y.flatten(0, 1), labels.flatten())


def _accuracy(y: Tensor, labels: Tensor, opened: Tensor) -> float:
    """Share of right answers, over sequences that see the matrix.

    It learns first, and through it the gate; the episodes often only once the budget has closed the gate to noise.
    """
    right = (y.argmax(dim=-1) == labels).float().mean(dim=0)
    return float(right[opened[:, 1] > 0].mean())


def _pressure(gate: WriteGate) -> Tensor:
    """What the budget weighs: how far the gate is from zero with some margin, over all rows alike."""
    return torch.mean(F.softplus(gate.logit + LOG_STRETCH + 1.0))


def _beyond_reach(gate: WriteGate) -> Tensor:
    """How far the logit is beyond where jitter still closes the gate at times: nothing moves it from there."""
    return torch.mean(F.relu(gate.logit - REACH) ** 2)


def _short_of_margin(gate: WriteGate, taken: Tensor, margin: float) -> Tensor:
    """What the logits lack of a clear decision, squared: the worst rows count most. In doubt, nothing is written."""
    short = F.relu(margin - torch.where(taken, gate.logit, -gate.logit)) ** 2
    return torch.mean(short + 0.3 * F.relu(margin + gate.logit))


def _imbalance(gate: WriteGate) -> Tensor:
    """−log of the stores' shares of the strength, averaged over what is written; it moves no strength.

    Reads by relative strength leave a store's own scale free, and the shares then drift apart.
    """
    strength = gate.write.amax(dim=-1, keepdim=True)
    shares, weight = gate.write / torch.clamp(strength, min=1e-3), strength.detach()
    return -torch.sum(weight * torch.log(shares + 1e-6)) / (torch.sum(weight) * shares.shape[-1])


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
