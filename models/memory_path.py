"""The memory path alone, for a whole sequence at once: what makes recall learnable in a minute on one core.

Gates, keys and values come from the content, so everything that will be written is known before the first step. The
matrix then has a closed form, one triangular system (the delta rule as a chain of rank-one updates, Yang et al. 2024,
"Parallelizing linear transformers with the delta rule"), and the slots need only an account of which row stands where.
The reads equal those of the steps one by one, from empty memories and without flow and jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from odestream.models import memory
from odestream.models.cell import Cell, Expected
from odestream.models.config import CellConfig, Store
from odestream.models.gates import WriteGate, read_gate
from odestream.models.hybrid import Address, Content, HybridWeights, content, query_of, surprised
from odestream.models.observing import Inputs, look

LEAST_FACTOR = 1e-6  # a keep factor below it counts as it, inside a logarithm
Places = NDArray[np.int64]


class Recalled(NamedTuple):
    """y [A, B, Y]: answers at the asked times. gate: what the write gate made of each row, [T, B, …]."""

    y: Tensor
    gate: WriteGate


class _Story(NamedTuple):
    """What happened to the memories; all but `gate` batch first.

    observed [B, T]; write [B, T, n]; slots and matrix: addresses [B, T, …]; time [B, T] since the start; before and
    after [B, T]: logarithm of everything that has faded the matrix since the start, up to the read and after the write.
    """

    gate: WriteGate
    observed: Tensor
    write: Tensor
    slots: Address | None
    matrix: Address | None
    time: Tensor
    before: Tensor
    after: Tensor


def recall_path(
    cell: Cell,
    inputs: Inputs,
    asked: Sequence[int],
    *,
    hidden: Tensor | None = None,
    explore: Tensor | None = None,
    opened: Tensor | None = None,
    jitter: Tensor | None = None,
) -> Recalled:
    """Answers at the times `asked` of inputs [T, B, …], from memories that were empty at the start.

    hidden [A, B, D] stands in for the hidden state at those times; zero unless given. explore, jitter [T, B, 1] and
    opened [B, n]: see `content`. Surprise counts as average. For `classify` and `tokens`, and up to a few
    hundred times: the cost grows with T².
    """
    w, config, at = cell.weights().memory, cell.config, torch.as_tensor(asked)
    batch = inputs["dt"].shape[1]
    seen = look(cell, inputs, cell.initial_state(batch))
    h = torch.zeros(len(at), batch, config.sizes.hidden) if hidden is None else hidden
    gate = read_gate(seen.features[at], h, w.gates)
    gate = gate if opened is None else gate * opened
    said = content(seen.features, w, config, explore, jitter=jitter)
    story = _story(said, seen.observed, inputs["dt"], w, config)
    by_store = _reads(story, _by_row(h), at, w, config)
    reads = torch.cat([_by_row(by_store[s]) * gate.narrow(-1, i, 1) for i, s in enumerate(config.stores)], -1)
    return Recalled(cell.answer(Expected(h, h, h, None), h, reads), story.gate)


def _story(said: Content, observed: Tensor, dt: Tensor, w: HybridWeights, config: CellConfig) -> _Story:
    """Everything that the content decides; arguments are [T, B, …]."""
    write = torch.where(observed, surprised(said.gate.write, torch.zeros_like(dt), w, config), 0.0)
    keep = torch.where(observed, torch.log(torch.clamp(said.gate.keep, min=LEAST_FACTOR)), 0.0)
    after = torch.cumsum(keep - w.decay_rate * dt, dim=0)
    return _Story(
        said.gate,
        _by_row(observed).squeeze(-1),
        _by_row(write),
        None if said.slots is None else Address(*map(_by_row, said.slots)),
        None if said.matrix is None else Address(*map(_by_row, said.matrix)),
        _by_row(torch.cumsum(dt, dim=0)).squeeze(-1),
        _by_row(after - keep).squeeze(-1),
        _by_row(after).squeeze(-1),
    )


def _by_row(part: Tensor) -> Tensor:
    """[T, B, …] -> [B, T, …]."""
    return part.transpose(0, 1)


def _reads(story: _Story, h: Tensor, at: Tensor, w: HybridWeights, config: CellConfig) -> dict[Store, Tensor]:
    """What each store returns at the asked times, [B, A, …], before the read gate."""
    reads: dict[Store, Tensor] = {}
    strength = {store: story.write[..., i] for i, store in enumerate(config.stores)}
    if "longterm" in strength and story.matrix is not None and w.matrix is not None:
        query = query_of(_at(story.matrix, at), h, w.matrix, config.sizes.heads)
        reads["longterm"] = _matrix_reads(story, story.matrix, query, strength["longterm"], at)
    if story.slots is not None and w.slots is not None:
        query = query_of(_at(story.slots, at), h, w.slots, None)
        if "episodic" in strength:
            places = _episodes(strength["episodic"], config.sizes.slots, at)
            sharpness = w.sharpness[:1]
            reads["episodic"] = _attend(query, story.slots, strength["episodic"], places, sharpness, None, w.sink)
        if "working" in strength:
            places = _windows(story.observed, config.sizes.window, at)
            ages = torch.clamp(story.time[:, at].unsqueeze(-1) - _gather(story.time, places), max=config.age_limit)
            bias = memory.age_bias(ages, w.age_slope)
            reads["working"] = _attend(query, story.slots, strength["working"], places, w.sharpness[1:], bias)
    return reads


def _attend(
    query: Tensor,
    said: Address,
    strength: Tensor,
    places: Tensor,
    sharpness: Tensor,
    bias: Tensor | None,
    sink: Tensor | None = None,
) -> Tensor:
    """`memory.attend` over the rows [B, A, n] that stand in the slots at the asked times."""
    keys, values, strengths = (_gather(part, places) for part in (said.key, said.value, strength))
    return memory.attend(query, keys, values, strengths, sharpness, bias, sink)


def _at(address: Address, at: Tensor) -> Address:
    return Address(*(part[:, at] for part in address))


def _matrix_reads(story: _Story, said: Address, query: Tensor, strength: Tensor, at: Tensor) -> Tensor:
    """qᵀm at the asked times [B, A, H·dv], from the writes m_t = Σ_j (fading from j to t)·k_j ⊗ u_j.

    What a write adds beside its key is u_t = β_t·(v_t − k_tᵀm), which is linear in the u before it: one unit lower
    triangular system gives them all. key [B, T, H, dk], value [B, T, H, dv], query [B, A, H, dk], strength [B, T].
    """
    key, value, query = (part.transpose(1, 2) for part in (said.key, said.value, query))
    rows = torch.arange(story.after.shape[1])
    past = strength[:, None, :, None] * torch.matmul(key, key.transpose(-1, -2))
    past = past * _fading(story.after, story.after, rows[:, None] > rows)
    added = torch.linalg.solve_triangular(past, strength[:, None, :, None] * value, upper=False, unitriangular=True)
    weight = torch.matmul(query, key.transpose(-1, -2)) * _fading(story.before[:, at], story.after, at[:, None] > rows)
    return torch.flatten(torch.matmul(weight, added).transpose(1, 2), -2)


def _fading(now: Tensor, then: Tensor, earlier: Tensor) -> Tensor:
    """exp(now_t − then_j) where j is earlier than t, else 0: [B, 1, T', T]."""
    between = now.unsqueeze(-1) - then.unsqueeze(-2)
    return torch.exp(between.masked_fill(~earlier, -torch.inf)).unsqueeze(1)


def _episodes(strength: Tensor, slots: int, at: Tensor) -> Tensor:
    """Which row stands in each slot at the asked times [B, A, S]; T where none does. The rule is `weakest_slot`'s."""
    events = strength.detach().numpy()
    batch, length = events.shape
    held, places = np.zeros((batch, slots), np.float32), np.full((batch, slots), length)
    rows, history = np.arange(batch), np.empty((length, batch, slots), np.int64)
    for t in range(length):
        history[t] = places
        weakest = held.argmin(axis=1)
        taken = events[:, t] > held[rows, weakest]
        held[rows[taken], weakest[taken]] = events[taken, t]
        places[rows[taken], weakest[taken]] = t
    return torch.from_numpy(history)[at].transpose(0, 1)


def _windows(observed: Tensor, length: int, at: Tensor) -> Tensor:
    """The last L observed rows before each asked time [B, A, L], oldest first; T where there were fewer."""
    rows = observed.shape[1]
    count = torch.cumsum(observed.long(), dim=1)
    ordered = torch.full((observed.shape[0], rows + 1), rows)
    ordered.scatter_(1, torch.where(observed, count - 1, rows), torch.arange(rows).expand_as(count))
    ordered[:, rows] = rows
    before = (count - observed.long())[:, at]
    rank = before.unsqueeze(-1) - length + torch.arange(length)
    return _gather(ordered, torch.where(rank < 0, rows, rank))


def _gather(part: Tensor, places: Tensor) -> Tensor:
    """Entries of part [B, T, …] at places [B, A, n], zero where the place is T."""
    if not part.dtype.is_floating_point:
        return part.gather(1, places.flatten(1)).view(places.shape)
    width = [0, 0] * (part.dim() - 2)
    padded = F.pad(part, [*width, 0, 1])
    return padded[torch.arange(len(part))[:, None, None], places]
