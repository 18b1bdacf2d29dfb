"""Write, read and forget gates.

What decides a write, and every key and value, comes from the content alone: a gate that sees h learns elapsed time
instead of content, and recall then fails at gaps longer than the training's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.config import CellConfig

LOG_STRETCH = math.log(1.1 / 0.1)  # −LOG_STRETCH is the logit at which `hard_sigmoid` reaches zero


class GateWeights(NamedTuple):
    """Weights of the gates; n stores, f features, D hidden, W gate width.

    inner [W, 2f], inner_bias [W], write [1+n, W], write_bias [1+n]: two layers from [f, f²] to strength and shares.
    read [n, f], read_state [n, D], read_bias [n]. forget [1, f], forget_bias [1]; surprise [2] (slope a, offset γ).
    """

    inner: Tensor
    inner_bias: Tensor
    write: Tensor
    write_bias: Tensor
    read: Tensor
    read_state: Tensor
    read_bias: Tensor
    forget: Tensor
    forget_bias: Tensor
    surprise: Tensor


class WriteGate(NamedTuple):
    """write [..., n]: strength at which each store takes the content, 0 to 1. keep [..., 1]: forget factor.

    logit [..., 1]: of the strength, for `openness`.
    """

    write: Tensor
    keep: Tensor
    logit: Tensor


def hard_sigmoid(logit: Tensor) -> Tensor:
    """clip(1.2·σ(a) − 0.1, 0, 1): exactly zero and exactly one are within reach (Louizos et al. 2018, stretch)."""
    return torch.clamp(1.2 * torch.sigmoid(logit) - 0.1, min=0.0, max=1.0)


def write_gate(
    features: Tensor, w: GateWeights, explore: Tensor | None = None, jitter: Tensor | None = None
) -> WriteGate:
    """Gate of features [..., f]; the favoured store gets the whole strength, the others their share of it.

    explore [..., 1]: training only; where it is 1 the strength is at least one half, since a value that is never
    written gets no gradient. jitter [..., 1]: training only; it is added to the logit of the strength, so that a gate
    that is half open for what matters loses half of it, and learns to decide (logistic noise, Louizos et al. 2018).
    """
    inner = F.silu(F.linear(torch.cat([features, features * features], dim=-1), w.inner, w.inner_bias))
    logits = F.linear(inner, w.write, w.write_bias)
    logit = logits.narrow(-1, 0, 1)
    strength = hard_sigmoid(logit if jitter is None else logit + jitter)
    if explore is not None:
        strength = torch.maximum(strength, 0.5 * explore)
    shares = torch.softmax(logits.narrow(-1, 1, logits.shape[-1] - 1), dim=-1)
    write = strength * shares / torch.amax(shares, dim=-1, keepdim=True)
    return WriteGate(write, forget_factor(F.linear(features, w.forget, w.forget_bias)), logit)


def forget_factor(logit: Tensor) -> Tensor:
    """`hard_sigmoid`, with the gradient of the unclipped value (straight-through, Bengio et al. 2013).

    The gate starts where nothing is forgotten, in the clipped range, whose own gradient is zero: it would never learn
    to forget. The value is the same to the bit, since 1 − s is exact for the s that are clipped to one.
    """
    if not (isinstance(logit, Tensor) and logit.requires_grad):
        return hard_sigmoid(logit)
    soft = 1.2 * torch.sigmoid(logit) - 0.1
    return soft + (hard_sigmoid(logit) - soft).detach()


def openness(logit: Tensor) -> Tensor:
    """How close a hard sigmoid is to exactly zero, 0 to 1: what a budget on writes should press on.

    It is the chance that the stretched sigmoid is above zero if logistic noise is added (Louizos et al. 2018, equation
    12). A penalty on the strength itself also weakens the writes that are wanted, and stops at zero without a margin.
    """
    return torch.sigmoid(logit + LOG_STRETCH)


def read_gate(features: Tensor, h: Tensor, w: GateWeights) -> Tensor:
    """σ gate on what each store returns, [B, n], from content and state."""
    return torch.sigmoid(F.linear(features, w.read, w.read_bias) + F.linear(h, w.read_state))


class Gates(nn.Module):
    """Holds the gates' parameters."""

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        features, stores, sizes = config.feature_width, len(config.stores), config.sizes
        self.inner = nn.Linear(2 * features, sizes.gate)
        self.write = nn.Linear(sizes.gate, 1 + stores)
        self.read = nn.Linear(features, stores)
        self.read_state = nn.Parameter(torch.zeros(stores, sizes.hidden))
        self.forget = nn.Linear(features, 1)
        self.surprise = nn.Parameter(torch.tensor([1.0, 0.0]))
        with torch.no_grad():
            self.inner.weight.mul_(4.0)  # into the curved part of SiLU: thresholds are what tells an event from noise
            self.write.weight.mul_(0.1)
            self.read.bias.fill_(2.0)
            self.forget.weight.zero_()
            self.forget.bias.fill_(4.0)  # the hard sigmoid is then exactly one: nothing is forgotten at first

    def weights(self) -> GateWeights:
        """The parameters as the pure functions take them."""
        return GateWeights(
            self.inner.weight,
            self.inner.bias,
            self.write.weight,
            self.write.bias,
            self.read.weight,
            self.read_state,
            self.read.bias,
            self.forget.weight,
            self.forget.bias,
            self.surprise,
        )
