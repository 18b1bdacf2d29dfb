"""What an observation says before any state but the running statistics is asked: the same for every model.

Features are the normalised values with their mask (an embedding for tokens); the running statistics have no
parameters, so a whole sequence can be looked at before a recurrence begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from odestream.models import normalise

Inputs = Mapping[str, Tensor]


class Seen(NamedTuple):
    """What is known of an observation before the state is touched by it: features [B, f], observed [B, 1], norm."""

    features: Tensor
    observed: Tensor
    norm: normalise.Running | None


class Observer(Protocol):
    """A model that can say what it sees."""

    def observe(self, inputs: Inputs, state: Mapping[str, Tensor]) -> Seen:
        """What is seen of one observation, or of many where there are no running statistics."""


def observe(
    inputs: Inputs,
    state: Mapping[str, Tensor],
    scaling: normalise.Scaling,
    embedding: nn.Embedding | None,
    age_limit: float,
) -> Seen:
    """Features of x, and the running statistics after it; needs only `norm` of the state, and only where it exists."""
    x, mask = inputs["x"], inputs["mask"]
    observed = torch.amax(mask, dim=-1, keepdim=True) > 0
    if embedding is not None:
        return Seen(torch.where(observed, embedding(x), 0.0), observed, None)
    if len(scaling.averages) == 0:
        return Seen(normalise.fixed_features(x, mask, scaling), observed, None)
    before = normalise.elapse(normalise.unpack(state["norm"]), inputs["dt"], age_limit)
    features = normalise.running_features(before, x, mask, scaling)
    return Seen(features, observed, normalise.observe(before, x, mask, scaling))


def look(model: Observer, inputs: Inputs, state: Mapping[str, Tensor]) -> Seen:
    """What is known of the observations [T, B, …] before the state is touched by them; needs `norm` of the state."""
    if "norm" not in state:
        return model.observe(inputs, state)
    rows = _scan_norm(model, inputs, state["norm"])
    leaves = [torch.stack(column) for column in zip(*(tree_leaves(row) for row in rows), strict=True)]
    return tree_unflatten(leaves, tree_structure(rows[0]))  # type: ignore[no-any-return]


def times(inputs: Inputs) -> list[dict[str, Tensor]]:
    """Inputs [T, B, …] as T inputs [B, …]."""
    columns = {name: torch.unbind(value) for name, value in inputs.items()}
    return [{name: column[t] for name, column in columns.items()} for t in range(len(columns["x"]))]


def _scan_norm(model: Observer, inputs: Inputs, norm: Tensor) -> list[Seen]:
    """The running statistics have no parameters, but each needs the one before."""
    seen: list[Seen] = []
    with torch.no_grad():
        for now in times(inputs):
            seen.append(model.observe(now, {"norm": norm}))
            last = seen[-1].norm
            norm = norm if last is None else normalise.pack(last)
    return seen
