"""First weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights of variance 1/inputs (LeCun et al. 1998), which keeps a normal input's variance."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=1.0 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def log_uniform(count: int, least: float, most: float) -> Tensor:
    """Numbers drawn uniformly in their logarithm."""
    return torch.exp(torch.empty(count).uniform_(math.log(least), math.log(most)))


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y, for y > 0."""
    return y + torch.log(-torch.expm1(-y))
