"""A model of several buckets, and streams whose next step is accepted, run again, split or flagged."""

from typing import Any

from odestream.runtime import Model, Output, Stream
from tests.helpers.streams import SECOND, irregular
from tests.helpers.tiny_bundle import Tiny

FACTOR = 0.5
ADAPTIVE = Tiny(buckets=(1, 2, 4, 8), default_bucket=2, err_scale=1.0, safety_factor=FACTOR)
QUIET, BURST, OUTBURST, BEYOND = 1.0, 100.0, 1e4, 1e8
"""Observations after which half a second needs no re-run, one, a split, and more than the rule will try."""


def bursts(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Irregular rows of which some are large: re-runs, splits and flags all occur."""
    x, t, mask = irregular(count, seed=seed)
    x[10::15] *= BURST
    x[20::45] *= OUTBURST
    x[30::95] *= BEYOND
    return x, t, mask


def after(model: Model, size: float) -> Stream:
    """A stream that has seen quiet steps and then one observation of `size`, half a second ago at 5 s."""
    stream = model.stream()
    for i in range(10):
        stream.step([1, 1, 1], i * SECOND // 2)
    stream.step([size, 1, 1], 5 * SECOND)
    return stream


def half_a_second_later(stream: Stream) -> Output:
    return stream.step([1, 2, 3], 5 * SECOND + SECOND // 2)
