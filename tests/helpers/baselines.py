"""Rival architectures with random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from odestream.models.baselines import BASELINES, Baseline, Frame, make
from odestream.models.baselines.stack import Mixer
from odestream.models.config import CellConfig


def random_baseline(name: str, config: CellConfig, seed: int = 0) -> Baseline:
    """A small rival in which every weight, zero-initialised ones too, is random."""
    torch.manual_seed(seed)
    model = make(name, Frame.of(config), BASELINES[name].sizes_type(width=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating inputs in float64."""
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


@torch.no_grad()
def stepped_mixer(mixer: Mixer, x: Tensor, gaps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """y [T, D] of rows x [T, D], gaps [T, 1] apart, one by one from the initial state; and the state after them."""
    state = {m.name: torch.from_numpy(m.initial_row().copy()).to(x).unsqueeze(0) for m in mixer.members()}
    found = []
    for row, gap in zip(x, gaps.to(x), strict=True):
        y, state = mixer.step(row.unsqueeze(0), gap.unsqueeze(0), state)
        found.append(y.squeeze(0))
    return torch.stack(found), state
