"""GRU-D: missing values decay from the last one to the mean, and the hidden state decays with them.

    γ = exp(−max(0, W·δ + b)),   x̂ = m ⊙ x + (1 − m) ⊙ (γ_x ⊙ x' + (1 − γ_x) ⊙ x̄),   h⁺ = GRU([x̂, signal], γ_h ⊙ h)

Che, Purushotham, Cho, Sontag, Liu: Recurrent neural networks for multivariate time series with missing values (2018),
equations 10 to 16: δ is each channel's time since it was observed, W of γ_x diagonal, x' the last value and x̄ = 0 the
mean, both of standardised values. The mask, which the paper adds to every gate, is part of the signal. A forecast reads
γ_h ⊙ h at its own time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from odestream.models.baselines.config import BaselineConfig
from odestream.models.baselines.frame import Baseline, Told
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


class GruD(Baseline):
    """State beside h: xv [V], each channel's last value, and xa [V], its age at the last call."""

    starts_from = ("xa",)

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        values, width = self.value_width, config.sizes.width
        self.cell = nn.GRUCell(values + self.signal_width, width)
        self.value_rate, self.value_offset = nn.Parameter(torch.zeros(values)), nn.Parameter(torch.zeros(values))
        self.hidden_decay = nn.Linear(values, width)

    def members(self) -> tuple[StateSpec, ...]:
        """Last values and their ages."""
        return StateSpec("xv", (self.value_width,)), StateSpec("xa", (self.value_width,))

    def elapse(self, state: State, dt: Tensor) -> State:
        """Ages grow."""
        return {"xv": state["xv"], "xa": self._since(state["xa"], dt)}

    def advance(self, told: Told, state: State) -> State:
        """Fill in, decay, update. The ages in `state` are those before the call's own gap, which `told` has."""
        ages = self._since(state["xa"], told.gap)
        decay = torch.exp(-torch.relu(self.value_rate * ages + self.value_offset))
        given = told.mask > 0
        filled = torch.where(given, told.value, decay * state["xv"])
        h = self.cell(torch.cat([filled, told.signal], dim=-1), self._decayed(state["h"], ages))
        return {
            "h": h,
            "xv": torch.where(given, told.value, state["xv"]),
            "xa": torch.where(given, 0.0, ages),
        }

    def evolve(self, state: Mapping[str, Tensor], elapsed: Tensor, dt: Tensor) -> Tensor:
        """γ_h ⊙ h at the time asked for."""
        del elapsed
        return self._decayed(state["h"], self._since(state["xa"], dt))

    def _decayed(self, h: Tensor, ages: Tensor) -> Tensor:
        return torch.exp(-torch.relu(self.hidden_decay(ages))) * h
