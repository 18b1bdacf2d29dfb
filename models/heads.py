"""Heads: what the cell expects of an observation before it sees it, and what it answers after."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.config import VOCABULARY, CellConfig

LOG_VARIANCE_LIMIT = 12.0


class MlpWeights(NamedTuple):
    """Two layers: inner [W, n], inner_bias [W], outer [m, W], outer_bias [m]."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor


def mlp(x: Tensor, w: MlpWeights) -> Tensor:
    """outer·SiLU(inner·x + b) + b'."""
    return F.linear(F.silu(F.linear(x, w.inner, w.inner_bias)), w.outer, w.outer_bias)


class Mlp(nn.Module):
    """Holds two layers; the last starts at zero where `silent`, so that the head starts as its own baseline."""

    def __init__(self, inputs: int, width: int, outputs: int, silent: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, width), nn.Linear(width, outputs)
        if silent:
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

    def weights(self) -> MlpWeights:
        """The parameters as `mlp` takes them."""
        return MlpWeights(self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias)


class Heads(nn.Module):
    """expect: x̂ from h⁻, φ(t) and norm; answer: labels or next byte from h⁺ and the memory reads.

    The answer has a linear way from the reads besides two layers from both: what a memory returns is often the
    answer already.
    """

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        z, times = config.sizes, 2 * len(config.frequencies)
        norm = config.channels * (2 + len(config.averages)) if config.averages else 0
        expected = VOCABULARY if config.task == "tokens" else 2 * config.channels
        self.expect = Mlp(z.hidden + times + norm, z.head, expected, silent=True)
        answers = config.task != "forecast"
        self.answer = Mlp(z.hidden + config.read_width, z.head, config.output_width, silent=True) if answers else None
        self.recall = (
            nn.Linear(config.read_width, config.output_width, bias=False) if answers and config.stores else None
        )


def expectation(parts: Tensor, base: Tensor, scale: Tensor, w: MlpWeights) -> tuple[Tensor, Tensor]:
    """Mean base + s·o₁ and log-variance o₂ + 2·log s of x, each [B, X], in raw units."""
    out, channels = mlp(parts, w), base.shape[-1]
    mean = base + scale * out.narrow(-1, 0, channels)
    spread = torch.clamp(out.narrow(-1, channels, channels), min=-LOG_VARIANCE_LIMIT, max=LOG_VARIANCE_LIMIT)
    return mean, spread + 2.0 * torch.log(scale)
