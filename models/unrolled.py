"""What comes of running a model over a whole sequence, whichever model it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Unrolled(NamedTuple):
    """y [T, B, Y], gates [T, B, G], expected mean (and log-variance) [T, B, …], the kept state members
    after each time [T, B, …], and the state after the last time."""

    y: Tensor
    gates: Tensor
    mean: Tensor
    log_variance: Tensor | None
    kept: dict[str, Tensor]
    state: dict[str, Tensor]
