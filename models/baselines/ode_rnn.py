"""ODE-RNN: the hidden state follows an ordinary differential equation between observations, and a GRU at each.

    h⁻ = ODESolve(f, h, elapsed),   h⁺ = GRU(signal, h⁻),   f = W₂·tanh(W₁·h + b₁) + b₂, bounded since tanh is

Rubanova, Chen, Duvenaud: Latent ODEs for irregularly-sampled time series (2019), algorithm 1. The solver is the
classical Runge-Kutta method with a fixed number of steps over each gap, so that the step is a static graph; a forecast
reads h⁻ at its own time. h in the state is that after the last observation, and flows from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from odestream.models.baselines.config import BaselineConfig, Sizes
from odestream.models.baselines.frame import Baseline, Told
from odestream.models.cell import State


@dataclass(frozen=True)
class OdeRnnSizes(Sizes):
    """steps: of the solver, over each gap."""

    steps: int = 4


class OdeRnn(Baseline):
    """Flow, then jump; the whole state is h."""

    sizes_type = OdeRnnSizes

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        width, sizes = config.sizes.width, cast(OdeRnnSizes, config.sizes)
        self.steps = sizes.steps
        self.field = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.cell = nn.GRUCell(self.signal_width, width)

    def advance(self, told: Told, state: State) -> State:
        """The GRU at the end of the flow."""
        return {"h": self.cell(told.signal, self._flow(state["h"], told.elapsed))}

    def evolve(self, state: Mapping[str, Tensor], elapsed: Tensor, dt: Tensor) -> Tensor:
        """h⁻."""
        del dt
        return self._flow(state["h"], elapsed)

    def _flow(self, h: Tensor, elapsed: Tensor) -> Tensor:
        """RK4 over `elapsed` [..., 1] model units."""
        size = elapsed / self.steps
        for _ in range(self.steps):
            k1 = self.field(h)
            k2 = self.field(h + 0.5 * size * k1)
            k3 = self.field(h + 0.5 * size * k2)
            k4 = self.field(h + size * k3)
            h = h + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return h
