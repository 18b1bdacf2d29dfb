"""Who is compared: our cell, and rivals of as many parameters whose state is as large as the same bytes allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from capacity_task import VALUES
from odestream.models.baselines import Baseline, Frame, Sizes, footprint, matched
from odestream.models.baselines.attention import Attention
from odestream.models.baselines.cfc import CfcSizes
from odestream.models.baselines.diagonal_ssm import DiagonalSsmSizes
from odestream.models.baselines.full_attention import FullAttentionSizes
from odestream.models.baselines.gated_deltanet import DeltaMixer, GatedDeltaNetSizes
from odestream.models.baselines.linear_attention import LinearAttentionSizes, LinearMixer
from odestream.models.baselines.linoss import LinossSizes
from odestream.models.baselines.selective_ssm import SelectiveMixer, SelectiveSsmSizes
from odestream.models.baselines.sliding_window import SlidingWindowSizes
from odestream.models.baselines.strided_sparse import StridedSparseSizes
from odestream.models.cell import Cell
from odestream.models.config import CellConfig
from odestream.models.config import Sizes as CellSizes
from odestream.models.model import OURS, Model
from recall_task import CHANNELS

SQUARE, WIDE = "gated-deltanet", "gated-deltanet-wide"
WINDOW, CEILING = "sliding-window", "full-attention"
SLOWEST = 1e-3  # share of its matrix that a gated DeltaNet forgets at a row, at first
NARROWEST = 16  # a rival's width: below it, a larger state would be paid for with a network that can do nothing

Grown = Callable[[int], Sizes]


@dataclass(frozen=True)
class Contender:
    """label: in tables and figures. kind: of rival. sizes: fixed, or by a whole number that the state grows with."""

    label: str
    kind: str
    sizes: Sizes | Grown | None = None


def _square(n: int) -> Sizes:
    return GatedDeltaNetSizes(layers=1, keys=n, values=n, taps=1)


def _wide(n: int) -> Sizes:
    return GatedDeltaNetSizes(layers=1, keys=n, values=8, taps=1)


def _linear(n: int) -> Sizes:
    return LinearAttentionSizes(layers=1, keys=n, values=n)


def _diagonal(n: int) -> Sizes:
    return DiagonalSsmSizes(layers=1, states=n)


def _selective(n: int) -> Sizes:
    return SelectiveSsmSizes(layers=1, states=n, taps=1)


def _oscillators(n: int) -> Sizes:
    return LinossSizes(layers=1, states=n)


def _window(n: int) -> Sizes:
    return SlidingWindowSizes(layers=1, heads=1, window=n + 1)


def _strided(n: int) -> Sizes:
    return StridedSparseSizes(layers=1, heads=1, stride=2, reach=n)


CONTENDERS: dict[str, Contender] = {
    OURS: Contender("hybrid memory (ours)", OURS),
    SQUARE: Contender("gated DeltaNet", "gated-deltanet", _square),
    WIDE: Contender("gated DeltaNet, wide keys", "gated-deltanet", _wide),
    "linear-attention": Contender("linear attention", "linear-attention", _linear),
    "selective-ssm": Contender("selective SSM", "selective-ssm", _selective),
    "diagonal-ssm": Contender("diagonal SSM", "diagonal-ssm", _diagonal),
    "linoss": Contender("LinOSS", "linoss", _oscillators),
    WINDOW: Contender("sliding window", "sliding-window", _window),
    "strided-sparse": Contender("strided window", "strided-sparse", _strided),
    "gru": Contender("GRU", "gru"),
    "cfc": Contender("CfC", "cfc", CfcSizes(backbone=48)),
    CEILING: Contender("full attention", "full-attention", FullAttentionSizes(layers=1, heads=1, length=256)),
}
"""By the names under which the command line knows them."""


SIZES = CellSizes(16, 16, 16, 32, 16, window=2, slots=1, heads=1, keys=6, values=VALUES)
"""Of our cell, but for the episodic slots: as many as fit."""


def build(name: str, budget: int) -> Model:
    """A new model with random weights; its state takes up to `budget` bytes where its parameters allow that."""
    cell = Cell(configuration(budget))
    if name == OURS:
        return cell
    it, frame, parameters = CONTENDERS[name], Frame.of(cell.config), footprint(cell).parameters
    if not callable(it.sizes):
        return _given_a_start(matched(it.kind, frame, parameters, it.sizes))
    grown = it.sizes
    return _given_a_start(_largest(lambda n: matched(it.kind, frame, parameters, grown(n)), budget))


def configuration(budget: int) -> CellConfig:
    """Our cell's. Its answers are numbers, not logits: of the tasks only `classify` asks for what is no input."""
    scale, centre = (1.0,) * CHANNELS, (0.0,) * CHANNELS
    one = CellConfig(
        "classify", CHANNELS, SIZES, scale, centre, outputs=VALUES, episodic_sink=True, method="heun", steps=1
    )
    slot = 4 * (SIZES.keys + SIZES.values + 2)
    slots = 1 + (budget - Cell(one).spec().state_bytes) // slot
    return replace(one, sizes=replace(SIZES, slots=slots))


@cache
def matrix_width(budget: int) -> int:
    """d of the gated DeltaNet whose matrix is d × d."""
    sizes = build(SQUARE, budget).config.sizes
    if not isinstance(sizes, GatedDeltaNetSizes):
        raise TypeError(type(sizes).__name__)
    return sizes.keys


def _largest(made: Callable[[int], Baseline], budget: int) -> Baseline:
    """The last of made(1), made(2), … that is within the budget and no narrower than NARROWEST; at least the first."""

    def fits(n: int) -> bool:
        model = made(n)
        return footprint(model).state_bytes <= budget and model.config.sizes.width >= NARROWEST

    below, above = 1, 2
    while fits(above):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return made(below)


@torch.no_grad()
def _given_a_start(model: Baseline) -> Baseline:
    """Queries equal to keys, as ours begin, and a gated DeltaNet that forgets slowly at first.

    Without the one, recall is found late or never in the steps that there are. The published first decays suit many
    heads of different patience: a single one may start by losing a fifth of its matrix at every row.
    """
    for part in model.modules():
        if isinstance(part, DeltaMixer):
            part.project.weight[: part.widths[0]] = part.project.weight[part.widths[0] : 2 * part.widths[0]]
            part.log_rate.zero_()
            part.offset.fill_(math.log(math.expm1(SLOWEST)))
        elif isinstance(part, LinearMixer):
            part.query.weight.copy_(part.key.weight)
        elif isinstance(part, SelectiveMixer):
            write, read = part.select.weight[part.rank :].chunk(2)
            read.copy_(write)
        elif isinstance(part, Attention):
            query, key, _ = part.project.weight.chunk(3)
            query.copy_(key)
    return model
