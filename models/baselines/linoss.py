"""Linear oscillatory state-space model (LinOSS): forced harmonic oscillators, solved implicitly.

    y″ = −A·y + B·x,   z = y′;   with S = 1/(1 + Δ²A):
    z_t = S·(z − ΔA·y) + S·δ·Bx,   y_t = S·(Δ·z + y) + S·δ²·Bx

Rusch, Rus: Oscillatory state-space models (2024), LinOSS-IM, section 2.2: the implicit Euler step, stable for every Δ
and A ≥ 0, with A = ReLU(Â) and Δ = σ(Δ̂). As in the diagonal model, the state moves on over the true gap (Δ·τ in place
of Δ), and an observation weighs as over one typical gap (δ = Δ and its own S), so that a stream's first one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.baselines.config import StackSizes
from odestream.models.baselines.initial import linear
from odestream.models.baselines.scan import pair, prefixes
from odestream.models.baselines.stack import Mixer, Rows, Stacked, at_count
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


@dataclass(frozen=True)
class LinossSizes(StackSizes):
    """states: N oscillators."""

    states: int = 64


class Linoss(Stacked):
    """Blocks of oscillators; the gated output stands in for a feed-forward part."""

    sizes_type = LinossSizes

    def mixer(self, sizes: LinossSizes) -> Mixer:
        """Oscillators."""
        return OscillatorMixer(sizes)


class OscillatorMixer(Mixer):
    """State: velocity z and position y, [N] each."""

    def __init__(self, sizes: LinossSizes) -> None:
        super().__init__()
        n, width = sizes.states, sizes.width
        self.stiffness, self.log_step = nn.Parameter(torch.rand(n)), nn.Parameter(torch.rand(n))
        self.drive, self.read = linear(width, n, bias=False), linear(n, width, bias=False)
        self.skip = nn.Parameter(torch.randn(width))
        self.value, self.gate = linear(width, width), linear(width, width)

    def members(self) -> tuple[StateSpec, ...]:
        """Velocities and positions."""
        return tuple(StateSpec(name, self.stiffness.shape) for name in ("z", "y"))

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Swing over the gap, then take in x."""
        a, b, c, d = self._over(gap)
        f, g = self._driven(x)
        z, y = a * state["z"] + b * state["y"] + f, c * state["z"] + d * state["y"] + g
        return self._ended(y, x), {"z": z, "y": y}

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All rows by a scan over 2 × 2 maps."""
        a, b, c, d, f, g = prefixes((*self._over(rows.gap), *self._driven(rows.x)), pair)
        past_z, past_y = state["z"].unsqueeze(1), state["y"].unsqueeze(1)
        z, y = a * past_z + b * past_y + f, c * past_z + d * past_y + g
        after = {name: at_count(path, state[name], rows.lengths) for name, path in (("z", z), ("y", y))}
        return self._ended(y, rows.x), after

    def _over(self, gap: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The map of (z, y) over a gap [..., 1], row by row, [..., N] each."""
        a, step = F.relu(self.stiffness), torch.sigmoid(self.log_step) * gap
        shrink = 1 / (1 + step * step * a)
        return shrink, -shrink * step * a, shrink * step, shrink

    def _driven(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What x adds to z and to y, [..., N] each."""
        a, step = F.relu(self.stiffness), torch.sigmoid(self.log_step)
        force = step / (1 + step * step * a) * self.drive(x)
        return force, step * force

    def _ended(self, y: Tensor, x: Tensor) -> Tensor:
        """C·y + D·x, then GELU and a gated linear unit, as in the paper's block."""
        u = F.gelu(self.read(y) + self.skip * x)
        return self.value(u) * torch.sigmoid(self.gate(u))  # type: ignore[no-any-return]
