"""Strided-sparse Transformer: every observation attends to the last l, and to every l-th before these.

Child, Gray, Radford, Sutskever: Generating long sequences with sparse transformers (2019), section 4.2, strided
attention with stride l, both patterns merged into one head (their equation 9). What it saves is work: l + r instead of
l·r products a query. Which past observations are asked for moves on with every query, so that a stream must keep them
all: the state is that of a window of l·r observations, after which the oldest is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from odestream.models.baselines.attention import Attention, AttentionSizes
from odestream.models.baselines.stack import Mixer, Stacked


@dataclass(frozen=True)
class StridedSparseSizes(AttentionSizes):
    """stride: l. reach: r, how many strides a layer looks back."""

    stride: int = 8
    reach: int = 8


class StridedSparse(Stacked):
    """Attention to the last `stride` observations and to `reach` further ones, `stride` apart."""

    sizes_type = StridedSparseSizes

    def mixer(self, sizes: StridedSparseSizes) -> Mixer:
        """Distances 0 … l − 1, then l, 2l, … r·l."""
        strides = range(sizes.stride, sizes.stride * sizes.reach + 1, sizes.stride)
        return Attention(sizes.width, sizes.heads, [*range(sizes.stride), *strides])
