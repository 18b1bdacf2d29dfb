"""CfC: a closed form in time in place of a differential equation, so no solver at all.

    h⁺ = σ(−f·t) ⊙ g + (1 − σ(−f·t)) ⊙ k,   f, g, k heads of one backbone over [signal, h]

Hasani et al.: Closed-form continuous-time neural networks (2022), equation 10 and section "closed-form continuous-depth
models", with the backbone, the bias of the time gate and the scaled tanh of the authors' library: g and k through
tanh, σ(f·t + f'), t the time since the last observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from odestream.models.baselines.config import BaselineConfig, Sizes
from odestream.models.baselines.frame import Baseline, Told
from odestream.models.cell import State


@dataclass(frozen=True)
class CfcSizes(Sizes):
    """backbone: width of the shared layer."""

    backbone: int = 128


class Cfc(Baseline):
    """One closed-form update an observation; the whole state is h."""

    sizes_type = CfcSizes

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        width, inner = config.sizes.width, cast(CfcSizes, config.sizes).backbone
        self.backbone = nn.Linear(self.signal_width + width, inner)
        self.early, self.late = nn.Linear(inner, width), nn.Linear(inner, width)
        self.rate, self.offset = nn.Linear(inner, width), nn.Linear(inner, width)
        for layer in (self.backbone, self.early, self.late, self.rate, self.offset):
            nn.init.xavier_uniform_(layer.weight)

    def advance(self, told: Told, state: State) -> State:
        """From `early` to `late` as time passes."""
        inner = 1.7159 * torch.tanh(0.666 * self.backbone(torch.cat([told.signal, state["h"]], dim=-1)))
        share = torch.sigmoid(self.rate(inner) * told.elapsed + self.offset(inner))
        early, late = torch.tanh(self.early(inner)), torch.tanh(self.late(inner))
        return {"h": early * (1 - share) + share * late}
