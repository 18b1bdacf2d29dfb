"""Linear recurrences for all times at once, by recursive doubling (Hillis & Steele 1986; Blelloch 1990).

A recurrence s_t = M_t·s_{t−1} + b_t is a chain of affine maps, whose composition is associative, so log₂ T rounds over
the whole sequence give every prefix. Maps are tuples of tensors with time as the second axis, [B, T, …].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = tuple[Tensor, ...]
Combine = Callable[[Map, Map], Map]
"""(earlier, later) -> the map that does the one, then the other."""


def prefixes(maps: Map, combine: Combine) -> Map:
    """The composition of the maps 0 … t, for every t."""
    length, stride = maps[0].shape[1], 1
    while stride < length:
        earlier = tuple(part[:, :-stride] for part in maps)
        later = tuple(part[:, stride:] for part in maps)
        joined = combine(earlier, later)
        maps = tuple(torch.cat([part[:, :stride], new], dim=1) for part, new in zip(maps, joined, strict=True))
        stride *= 2
    return maps


def diagonal(earlier: Map, later: Map) -> Map:
    """Maps (a, b): s -> a·s + b."""
    (a, b), (c, d) = earlier, later
    return c * a, c * b + d


def rotation(earlier: Map, later: Map) -> Map:
    """Maps (a, a', b, b') of complex s: s -> (a + ia')·s + (b + ib')."""
    (a, ai, b, bi), (c, ci, d, di) = earlier, later
    return c * a - ci * ai, c * ai + ci * a, c * b - ci * bi + d, c * bi + ci * b + di


def pair(earlier: Map, later: Map) -> Map:
    """Maps of s = (z, y): s -> [[m₁₁, m₁₂], [m₂₁, m₂₂]]·s + (f₁, f₂), given row by row, then f."""
    a, b, c, d, f, g = earlier
    p, q, r, s, u, v = later
    return p * a + q * c, p * b + q * d, r * a + s * c, r * b + s * d, p * f + q * g + u, r * f + s * g + v
