"""Run a cell over a whole sequence: what training and offline evaluation use.

Equal to calling `step` once a time, with one saving: the running statistics and everything that depends on the
content alone (gates, keys, values) are computed for all times at once, before the recurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from odestream.models import normalise
from odestream.models.cell import Cell, Expected, Inputs, Seen, State, Weights
from odestream.models.hybrid import Content, access, content


class Unrolled(NamedTuple):
    """y [T, B, Y], gates [T, B, G], expected mean (and log-variance) [T, B, …], the kept state members after each
    time [T, B, …], and the state after the last time."""

    y: Tensor
    gates: Tensor
    mean: Tensor
    log_variance: Tensor | None
    kept: dict[str, Tensor]
    state: State


def unroll(
    cell: Cell,
    inputs: Inputs,
    state: State,
    *,
    steps: int | None = None,
    explore: Tensor | None = None,
    keep: Sequence[str] = (),
) -> Unrolled:
    """Run `cell` over inputs with a leading time axis [T, B, …].

    steps: solver steps, the deployed number unless given. explore [T, B, 1]: see `write_gate`. keep: state members
    to return for every time.
    """
    w = cell.weights()
    seen, said = _prepare(cell, inputs, state, w, explore)
    ys, gates, expectations = [], [], []
    kept: dict[str, list[Tensor]] = {name: [] for name in keep}
    for now, seen_now, said_now in zip(_times(inputs), seen, said, strict=True):
        outputs, state, expected = cell.step_with(now, state, seen_now, said_now, w, steps)
        ys.append(outputs["y"])
        gates.append(outputs["gates"])
        expectations.append(expected)
        for name in keep:
            kept[name].append(state[name])
    stacked = {name: torch.stack(values) for name, values in kept.items()}
    mean, log_variance = _stack_expected(expectations)
    return Unrolled(torch.stack(ys), torch.stack(gates), mean, log_variance, stacked, state)


def unroll_memory(
    cell: Cell, inputs: Inputs, state: State, *, explore: Tensor | None = None
) -> tuple[Tensor, Tensor, State]:
    """The memory path alone: reads and writes with the hidden state as it stands in `state`, no flow and no jump.

    A cell whose answers come from its memories learns them many times faster this way, and then learns the rest.
    Returns y [T, B, Y], gates [T, B, G] and the state with new memories. For `classify` and `tokens`.
    """
    w = cell.weights()
    h, calm = state["h"], torch.zeros_like(state["ua"])
    seen, said = _prepare(cell, inputs, state, w, explore)
    ys, gates = [], []
    nothing = Expected(h, calm, h, None)
    for now, seen_now, said_now in zip(_times(inputs), seen, said, strict=True):
        got = access(said_now, h, seen_now.observed, calm, now["dt"], state, w.memory, cell.config)
        state = got.memories
        ys.append(cell.answer(nothing, h, got.reads))
        gates.append(got.gates)
    return torch.stack(ys), torch.stack(gates), state


def _times(inputs: Inputs) -> list[dict[str, Tensor]]:
    columns = {name: torch.unbind(value) for name, value in inputs.items()}
    length = len(columns["x"])
    return [{name: column[t] for name, column in columns.items()} for t in range(length)]


def _prepare(
    cell: Cell, inputs: Inputs, state: Mapping[str, Tensor], w: Weights, explore: Tensor | None
) -> tuple[list[Seen], list[Content]]:
    """Seen and Content of every time."""
    if cell.config.averages:
        seen = _scan_norm(cell, inputs, state)
    else:
        seen = _split(cell.observe(inputs, state), len(inputs["x"]))
    features = torch.stack([s.features for s in seen])
    return seen, _split(content(features, w.memory, cell.config, explore), len(seen))


def _scan_norm(cell: Cell, inputs: Inputs, state: Mapping[str, Tensor]) -> list[Seen]:
    """The running statistics have no parameters, but each needs the one before."""
    norm, seen = state["norm"], []
    with torch.no_grad():
        for now in _times(inputs):
            seen.append(cell.observe(now, {"norm": norm}))
            last = seen[-1].norm
            norm = norm if last is None else normalise.pack(last)
    return seen


def _split(whole: object, length: int) -> list:  # type: ignore[type-arg]
    """A tree of [T, …] tensors as T trees of […] tensors."""
    leaves, form = tree_flatten(whole)
    columns = [[None] * length if leaf is None else torch.unbind(leaf) for leaf in leaves]
    return [tree_unflatten([column[t] for column in columns], form) for t in range(length)]


def _stack_expected(expectations: list[Expected]) -> tuple[Tensor, Tensor | None]:
    variances = [e.log_variance for e in expectations if e.log_variance is not None]
    return torch.stack([e.mean for e in expectations]), torch.stack(variances) if variances else None
