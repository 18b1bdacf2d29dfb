"""Gated recurrent unit that knows nothing of time: an observation is the next one, however long it took.

Cho et al.: Learning phrase representations using RNN encoder-decoder (2014), equations 5 to 8, in the variant of torch
(the reset gate after the product, so that one matrix serves).
"""

from __future__ import annotations

from torch import nn

from odestream.models.baselines.config import BaselineConfig
from odestream.models.baselines.frame import Baseline, Told
from odestream.models.cell import State


class Gru(Baseline):
    """h' = GRU(signal, h), the signal without elapsed time."""

    knows_time = False

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.cell = nn.GRUCell(self.signal_width, config.sizes.width)

    def advance(self, told: Told, state: State) -> State:
        """The updated h."""
        return {"h": self.cell(told.signal, state["h"])}
