"""Run a cell over a whole sequence: what training and offline evaluation use.

Equal to calling `step` once a time, with one saving: the running statistics and everything that depends on the
content alone (gates, keys, values) are computed for all times at once, before the recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from odestream.models.baselines import Baseline
from odestream.models.cell import Expected, State
from odestream.models.flow import Integrator
from odestream.models.hybrid import content
from odestream.models.model import Model
from odestream.models.observing import Inputs, look, times
from odestream.models.unrolled import Unrolled


def unroll(
    cell: Model,
    inputs: Inputs,
    state: State,
    *,
    steps: int | None = None,
    integrator: Integrator | None = None,
    explore: Tensor | None = None,
    opened: Tensor | None = None,
    keep: Sequence[str] = (),
) -> Unrolled:
    """Run `cell` over inputs with a leading time axis [T, B, …].

    steps, integrator: of the flow, as in `Cell.expect`. explore [T, B, 1] and opened [B, n]: see `content`.
    keep: state members to return for every time. A rival runs as it does by itself: these options are not for it, and
    it keeps what a forecast starts from.
    """
    if isinstance(cell, Baseline):
        return cell(inputs, state)  # type: ignore[no-any-return]
    w = cell.weights()
    whole = look(cell, inputs, state)
    length = len(inputs["x"])
    ajar = None if opened is None else opened.expand(length, *opened.shape)
    everything = content(whole.features, w.memory, cell.config, explore, ajar)
    seen, said = _split(whole, length), _split(everything, length)
    ys, gates, expectations = [], [], []
    kept: dict[str, list[Tensor]] = {name: [] for name in keep}
    for now, seen_now, said_now in zip(times(inputs), seen, said, strict=True):
        outputs, state, expected = cell.step_with(now, state, seen_now, said_now, w, steps, integrator)
        ys.append(outputs["y"])
        gates.append(outputs["gates"])
        expectations.append(expected)
        for name in keep:
            kept[name].append(state[name])
    stacked = {name: torch.stack(values) for name, values in kept.items()}
    mean, log_variance = _stack_expected(expectations)
    return Unrolled(torch.stack(ys), torch.stack(gates), mean, log_variance, stacked, state)


def _split(whole: object, length: int) -> list:  # type: ignore[type-arg]
    """A tree of [T, …] tensors as T trees of […] tensors."""
    leaves, form = tree_flatten(whole)
    columns = [[None] * length if leaf is None else torch.unbind(leaf) for leaf in leaves]
    return [tree_unflatten([column[t] for column in columns], form) for t in range(length)]


def _stack_expected(expectations: list[Expected]) -> tuple[Tensor, Tensor | None]:
    variances = [e.log_variance for e in expectations if e.log_variance is not None]
    return torch.stack([e.mean for e in expectations]), torch.stack(variances) if variances else None
