"""Sliding-window Transformer: every observation attends to itself and to the window − 1 before it.

Beltagy, Peters, Cohan: Longformer, the long-document transformer (2020), section 3.1, with the window behind the query
alone, as Jiang et al.: Mistral 7B (2023), section 2. Through L layers information travels L·(window − 1) back.
"""

from __future__ import annotations

from dataclasses import dataclass

from odestream.models.baselines.attention import Attention, AttentionSizes
from odestream.models.baselines.stack import Mixer, Stacked


@dataclass(frozen=True)
class SlidingWindowSizes(AttentionSizes):
    """window: observations that a layer sees, two at least."""

    window: int = 32


class SlidingWindow(Stacked):
    """Attention to the last `window` observations."""

    sizes_type = SlidingWindowSizes

    def mixer(self, sizes: SlidingWindowSizes) -> Mixer:
        """Every distance below the window."""
        return Attention(sizes.width, sizes.heads, range(sizes.window))
