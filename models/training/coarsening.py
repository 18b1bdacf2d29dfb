"""How many solver steps a chunk is trained with: drawn from the deployed buckets, from fine to coarse.

A field that was only ever solved coarsely learns the solver's error as part of its answer, and a better solver then
makes it worse. So finer buckets are drawn now and then, mostly early, when the field takes its shape; towards the end
the coarsest stable bucket, which is also the cheapest, is drawn almost always.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odestream.models.config import BUCKETS

FALL = 0.4  # at the start, each bucket is drawn this much as often as the next coarser one; 0 at the end


def stable_buckets(steps: int) -> tuple[int, ...]:
    """The buckets of at least `steps` solver steps, which a chunk needs for stability; `steps` where there is none."""
    return tuple(n for n in BUCKETS if n >= steps) or (steps,)


def chances(count: int, progress: float) -> NDArray[np.float64]:
    """With which probability each of `count` buckets, coarse to fine, is drawn at `progress` 0 … 1 of the training.

    p_k ∝ q^k with q = FALL·(1 − progress): the mean over a training is 1.4 solver steps for buckets 1 to 16.
    """
    weights = np.power(FALL * (1.0 - progress), np.arange(count))
    return np.asarray(weights / weights.sum(), np.float64)


def draw_bucket(buckets: Sequence[int], progress: float, random: np.random.Generator) -> int:
    """A bucket at random, see `chances`."""
    return int(random.choice(np.asarray(buckets), p=chances(len(buckets), progress)))
