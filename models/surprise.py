"""Surprise: how unexpected an observation is beside this stream's own recent past."""

from __future__ import annotations

import torch
from torch import Tensor

SURPRISE_START = (0.3, 0.3, 0.0)  # mean, variance, whether an observation was seen
SURPRISE_RATE = 1 / 32
SURPRISE_LIMIT = 100.0
RESIDUAL_LIMIT = 4.0


def bounded(residual: Tensor) -> Tensor:
    """4·tanh(r/4): a residual, in units of the scale, held within ±4.

    An outlier then says that something was far off, not how far: it cannot throw the hidden state, and rounding in an
    expectation that was far off is not carried on at full size.
    """
    return RESIDUAL_LIMIT * torch.tanh(residual * (1.0 / RESIDUAL_LIMIT))


def score(amount: Tensor, observed: Tensor, st: Tensor) -> tuple[Tensor, Tensor]:
    """ζ = (surprise − μ)/σ against the old mean and deviation, clamped to ±4, and the statistics after it.

    amount [B, 1]: squared error in units of the scale, averaged over observed channels (negative log-likelihood
    for tokens). st [B, 3]: mean, variance, seen. A stream's first observation has nothing to be expected from: it
    counts as seen and moves nothing.
    """
    mean, variance, seen = (st.narrow(-1, i, 1) for i in range(3))
    amount = torch.clamp(amount, max=SURPRISE_LIMIT)
    counted = observed & (seen > 0)
    distance = amount - mean
    zeta = torch.clamp(distance / torch.sqrt(variance + 1e-3), min=-4.0, max=4.0)
    moved = torch.cat(
        [mean + SURPRISE_RATE * distance, variance + SURPRISE_RATE * (distance * distance - variance), seen], dim=-1
    )
    first = torch.cat([mean, variance, torch.ones_like(seen)], dim=-1)
    after = torch.where(counted, moved, torch.where(observed, first, st))
    return torch.where(counted, zeta, 0.0), after
