"""A user's own model in five lines: a plain GRU cell that follows the step protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from odestream.runtime.contract.spec import StepSpec, step_spec

Tensors = dict[str, Tensor]


class Gru(torch.nn.GRUCell):
    """y = h, of width 64, over three channels."""

    def __init__(self) -> None:
        super().__init__(3, 64)

    def spec(self) -> StepSpec:
        """One input, one output, one state member."""
        return step_spec({"x": (3,)}, {"y": (64,)}, {"h": (64,)})

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """One update of the hidden state."""
        h = super().forward(inputs["x"], state["h"])
        return {"y": h}, {"h": h}
