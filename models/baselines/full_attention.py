"""Full causal attention with a cache of keys and values: the ceiling, whose state grows with what it may remember.

Vaswani et al.: Attention is all you need (2017), section 3.2. A graph has no state that grows, so the cache has a
stated maximum, `length` observations: up to it this is full attention, beyond it the oldest observation is forgotten.
The state is that of the whole cache from the first call on; `cache_bytes` says what of it is filled.
"""

from __future__ import annotations

from dataclasses import dataclass

from odestream.models.baselines.attention import Attention, AttentionSizes
from odestream.models.baselines.stack import Mixer, Stacked


@dataclass(frozen=True)
class FullAttentionSizes(AttentionSizes):
    """length: observations that the cache holds, with the one that asks."""

    length: int = 1024


class FullAttention(Stacked):
    """Attention to everything that was observed, up to `length` observations."""

    sizes_type = FullAttentionSizes

    def mixer(self, sizes: FullAttentionSizes) -> Mixer:
        """Every distance below the cache's length."""
        return Attention(sizes.width, sizes.heads, range(sizes.length))


def cache_bytes(sizes: FullAttentionSizes, observations: int) -> int:
    """Bytes of keys and values after so many observations: what a cache that grows would hold."""
    return 4 * 2 * sizes.width * sizes.layers * min(observations, sizes.length)
