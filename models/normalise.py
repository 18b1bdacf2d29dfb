"""Normalisation inside the step: running statistics of each channel, without parameters.

`norm` is `[B, X, J+3]`: last observed value, time since it was observed, whether it ever was, and J moving averages
for irregular gaps, all values centred by a training constant before they are stored, so that float32 keeps its
digits (at 350 ppm a record stalls otherwise).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scaling(NamedTuple):
    """Constants from the training part: centre [X], scale [X], and time constants [J] of the averages."""

    centre: Tensor
    scale: Tensor
    averages: Tensor


class Running(NamedTuple):
    """The parts of `norm`: last, elapsed, seen [B, X] and averages [B, X, J]."""

    last: Tensor
    elapsed: Tensor
    seen: Tensor
    averages: Tensor


def start(averages: int, stationary: bool) -> tuple[float, ...]:
    """A new stream's `norm`, each channel alike: nothing was seen yet; or, of a stationary record, its centre just now.

    Averages then set out from the centre, and the longest of them stays about there: what is normalised by it tells how
    far a value is from where the record comes back to.
    """
    return (0.0, 0.0, 1.0, *[0.0] * averages) if stationary else (0.0,)


def unpack(norm: Tensor) -> Running:
    """Split `norm` [B, X, J+3]."""
    parts = [norm.narrow(-1, i, 1).squeeze(-1) for i in range(3)]
    return Running(parts[0], parts[1], parts[2], norm.narrow(-1, 3, norm.shape[-1] - 3))


def pack(running: Running) -> Tensor:
    """Inverse of `unpack`."""
    columns = [part.unsqueeze(-1) for part in (running.last, running.elapsed, running.seen)]
    return torch.cat([*columns, running.averages], dim=-1)


def elapse(running: Running, dt: Tensor, limit: float) -> Running:
    """Let dt [B, 1] pass: only the time since each observation grows, up to `limit`."""
    return running._replace(elapsed=torch.clamp(running.elapsed + dt, max=limit))


def observe(running: Running, x: Tensor, mask: Tensor, scaling: Scaling) -> Running:
    """Take in x [B, X] where mask is 1; `running` has already elapsed to now."""
    observed, first = mask > 0, running.seen == 0
    value = x - scaling.centre
    share = decayed(running.elapsed.unsqueeze(-1) * (1.0 / scaling.averages))
    moved = running.averages + share * (value.unsqueeze(-1) - running.averages)
    averages = torch.where(first.unsqueeze(-1), value.unsqueeze(-1), moved)
    return Running(
        torch.where(observed, value, running.last),
        torch.where(observed, 0.0, running.elapsed),
        torch.where(observed, 1.0, running.seen),
        torch.where(observed.unsqueeze(-1), averages, running.averages),
    )


def decayed(z: Tensor) -> Tensor:
    """1 − exp(−z) for z ≥ 0, with a polynomial below 0.1 where the difference would lose its digits."""
    series = z * (1 - z * (1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120)))))
    return torch.where(z < 0.1, series, 1 - torch.exp(-z))


def running_features(running: Running, x: Tensor, mask: Tensor, scaling: Scaling) -> Tensor:
    """What the content encoder sees of x: (x − last)/s, (x − avg_j)/s, mask: [B, X·(J+2)]; zero where missing.

    A channel's first observation has nothing to be compared with, so its differences are zero.
    """
    value, usable = x - scaling.centre, (mask * running.seen) > 0
    last = torch.where(usable, (value - running.last) / scaling.scale, 0.0)
    averages = (value.unsqueeze(-1) - running.averages) / scaling.scale.unsqueeze(-1)
    averages = torch.where(usable.unsqueeze(-1), averages, 0.0)
    return torch.cat([last, torch.flatten(averages, -2), mask], dim=-1)


def fixed_features(x: Tensor, mask: Tensor, scaling: Scaling) -> Tensor:
    """(x − centre)/s and the mask, [B, 2X]; zero where missing."""
    return torch.cat([torch.where(mask > 0, (x - scaling.centre) / scaling.scale, 0.0), mask], dim=-1)


def head_features(running: Running, scaling: Scaling) -> Tensor:
    """What the forecast head sees of `norm`: (last − avg_j)/s, log(1 + elapsed), seen: [B, X·(J+2)]."""
    distance = (running.last.unsqueeze(-1) - running.averages) / scaling.scale.unsqueeze(-1)
    return torch.cat([torch.flatten(distance, -2), torch.log(1 + running.elapsed), running.seen], dim=-1)
