"""Rival architectures, one file each, behind the cell's own step protocol: they train, export and stream like it.

Streams' states are static for all of them; full attention's is, too, up to the length that its sizes state.
"""

from __future__ import annotations

import dataclasses

from odestream.models.baselines.cfc import Cfc
from odestream.models.baselines.config import BaselineConfig, Frame, Sizes
from odestream.models.baselines.diagonal_ssm import DiagonalSsm
from odestream.models.baselines.frame import Baseline, Footprint, footprint
from odestream.models.baselines.full_attention import FullAttention
from odestream.models.baselines.gated_deltanet import GatedDeltaNet
from odestream.models.baselines.gru import Gru
from odestream.models.baselines.gru_d import GruD
from odestream.models.baselines.gru_dt import GruDt
from odestream.models.baselines.linear_attention import LinearAttention
from odestream.models.baselines.linoss import Linoss
from odestream.models.baselines.ode_rnn import OdeRnn
from odestream.models.baselines.selective_ssm import SelectiveSsm
from odestream.models.baselines.sliding_window import SlidingWindow
from odestream.models.baselines.strided_sparse import StridedSparse

__all__ = ["BASELINES", "Baseline", "Footprint", "Frame", "Sizes", "footprint", "make", "matched", "name_of"]

BASELINES: dict[str, type[Baseline]] = {
    "sliding-window": SlidingWindow,
    "strided-sparse": StridedSparse,
    "full-attention": FullAttention,
    "linear-attention": LinearAttention,
    "gated-deltanet": GatedDeltaNet,
    "selective-ssm": SelectiveSsm,
    "diagonal-ssm": DiagonalSsm,
    "linoss": Linoss,
    "gru": Gru,
    "gru-dt": GruDt,
    "gru-d": GruD,
    "ode-rnn": OdeRnn,
    "cfc": Cfc,
}


def make(name: str, frame: Frame, sizes: Sizes | None = None) -> Baseline:
    """A new rival with random weights; sizes of its own type, the default ones unless given."""
    kind = BASELINES[name]
    return kind(BaselineConfig(frame, kind.sizes_type() if sizes is None else sizes))


def matched(name: str, frame: Frame, parameters: int, sizes: Sizes | None = None) -> Baseline:
    """The rival whose number of parameters is nearest to `parameters`; its width is what is chosen.

    sizes: everything but the width; the default ones unless given.
    """
    rest = BASELINES[name].sizes_type() if sizes is None else sizes
    unit = rest.width_step

    def count(steps: int) -> int:
        return footprint(make(name, frame, dataclasses.replace(rest, width=steps * unit))).parameters

    below, above = 1, 2
    while count(above) < parameters:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) < parameters else (below, middle)
    nearest = min((below, above), key=lambda steps: abs(count(steps) - parameters))
    return make(name, frame, dataclasses.replace(rest, width=nearest * unit))


def name_of(model: Baseline) -> str:
    """The name under which a rival is known."""
    return next(name for name, kind in BASELINES.items() if kind is type(model))
