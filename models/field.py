"""The vector field of the flow, `f(s, h) = −λ ⊙ h + tanh(B·SiLU(A·[h, u, φ]))`, per model time unit.

Leak plus bounded drive keeps every trajectory bounded. Its Jacobian's spectral radius is at most
`λ_max + 1.1·‖A_h‖·‖B‖` (1.1 bounds the slope of SiLU), which is what the solver's stability guard needs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.config import CellConfig

SILU_SLOPE = 1.1


class FieldWeights(NamedTuple):
    """The field's weights with everything foldable folded: decay λ [D], A split by what it multiplies.

    hidden [F, D], drive [F, D], bias [F], output [D, F] (B), time [F, 2K] and frequencies [K] or None.
    """

    decay: Tensor
    hidden: Tensor
    drive: Tensor
    bias: Tensor
    output: Tensor
    time: Tensor | None
    frequencies: Tensor | None


def derivative(h: Tensor, fixed: Tensor, w: FieldWeights) -> Tensor:
    """f at h [B, D], with `fixed` [B, F] the part of A·[h, u, φ] that does not depend on h."""
    return torch.tanh(F.linear(F.silu(F.linear(h, w.hidden) + fixed), w.output)) - w.decay * h


def drive(u: Tensor, w: FieldWeights) -> Tensor:
    """The part of A·[h, u, φ] that stays constant over a flow: u [B, D] -> [B, F]."""
    return F.linear(u, w.drive, w.bias)


def rotate(phase: Tensor, angle: Tensor) -> Tensor:
    """Move sines and cosines [..., 2K] (all sines first) on by `angle` [..., K], by the angle sum.

    The large absolute angle stays on the host, in float64; only differences meet float32.
    """
    k = angle.shape[-1]
    sine, cosine = phase.narrow(-1, 0, k), phase.narrow(-1, k, k)
    s, c = torch.sin(angle), torch.cos(angle)
    return torch.cat([sine * c + cosine * s, cosine * c - sine * s], dim=-1)


class Field(nn.Module):
    """Holds the field's parameters; `weights()` gives them folded."""

    log_decay: Tensor

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        sizes, features = config.sizes, 2 * len(config.frequencies)
        self.decay_limit, self.norm_limit = config.decay_limit, config.norm_limit
        # Leaks spread evenly over the logarithm of time scales, from 50 units to a quarter of one.
        start = torch.logspace(math.log10(0.02), math.log10(min(4.0, config.decay_limit) * 0.9), sizes.hidden)
        self.log_decay = nn.Parameter(torch.log(torch.expm1(start)))
        self.hidden = nn.Parameter(nn.init.orthogonal_(torch.empty(sizes.field, sizes.hidden)))
        self.drive = nn.Linear(sizes.hidden, sizes.field)
        self.time = nn.Parameter(torch.randn(sizes.field, features) / math.sqrt(features)) if features else None
        self.output = nn.Parameter(torch.zeros(sizes.hidden, sizes.field))
        self.register_buffer("frequencies", torch.tensor(config.frequencies) if features else None, persistent=False)

    def weights(self) -> FieldWeights:
        """Folded weights, differentiable in the parameters."""
        decay = F.softplus(self.log_decay).clamp(max=self.decay_limit)
        frequencies = self.get_buffer("frequencies") if self.time is not None else None
        return FieldWeights(decay, self.hidden, self.drive.weight, self.drive.bias, self.output, self.time, frequencies)

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale A_h and B back to the spectral norm limit: call it after every optimiser step.

        A projection keeps the weights that are stored the weights that are used; nothing is left to fold.
        """
        for matrix in (self.hidden, self.output):
            norm = torch.linalg.matrix_norm(matrix, ord=2)
            matrix.mul_(torch.clamp(self.norm_limit / norm.clamp(min=1e-12), max=1.0))

    @torch.no_grad()
    def stiffness(self) -> float:
        """λ_max + 1.1·‖A_h‖·‖B‖, an upper bound of the Jacobian's spectral radius, per model unit."""
        w = self.weights()
        norms = [float(torch.linalg.matrix_norm(m.double(), ord=2)) for m in (w.hidden, w.output)]
        return float(w.decay.max()) + SILU_SLOPE * norms[0] * norms[1]
