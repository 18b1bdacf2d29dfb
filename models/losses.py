"""Losses, as weighted sums: the weights of a whole batch add up to one, so that shares of it can be summed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def absolute_error(mean: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Σ weight·|x − mean|/scale; mean, x and weight [..., X], scale [X]."""
    return torch.sum(weight * torch.abs((x - mean) / scale))


def spread_loss(mean: Tensor, log_variance: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Gaussian negative log-likelihood (without ½·log 2π) of the stated variance, in units of the scale.

    The residual is held constant: this loss teaches the deviation and leaves the mean to `absolute_error`.
    """
    residual = ((x - mean) / scale).detach()
    spread = log_variance - 2.0 * torch.log(scale)
    return torch.sum(weight * 0.5 * (spread + residual * residual * torch.exp(-spread)))


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Σ weight·−log p(label), in nats; logits [..., Y], labels and weight [...]; −1 is no label, of weight 0."""
    costs = F.cross_entropy(logits.flatten(0, -2), labels.clamp(min=0).flatten(), reduction="none")
    return torch.sum(weight.flatten() * costs)


def normalised(weight: Tensor) -> Tensor:
    """Weights that add up to one; all zero stays zero."""
    return weight / torch.clamp(weight.sum(), min=1e-12)
