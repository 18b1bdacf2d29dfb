"""Softmax attention over a cache of past keys and values, with a fixed set of distances that a query looks back to.

    y_i = W_o · Σ_j softmax_j(q_iᵀ·R(j − i)·k_j / √d) · v_j,   j = i − δ for δ in the distances (0 among them)

R rotates pairs of a key by its distance (rotary embedding, Su et al. 2021, equations 14 to 16): only the distance
matters, so the cache holds unrotated keys and no position counts up for ever. Distances count observations.
The cache shifts: its state is that of the largest distance, and what is older is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odestream.models.baselines.config import FedSizes
from odestream.models.baselines.initial import linear
from odestream.models.baselines.stack import Mixer, Rows, last_rows
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec
from odestream.runtime.errors import InputError

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class AttentionSizes(FedSizes):
    """heads: of attention."""

    heads: int = 2

    @property
    def width_step(self) -> int:
        """A head is rotated by halves."""
        return 2 * self.heads


class Attention(Mixer):
    """Multi-head attention to the observations that lie `distances` back.

    State: k and v [L, D], the last L = max(distances) observations, and n [1], how many of them there are yet.
    """

    distances: Tensor
    angles: Tensor

    def __init__(self, width: int, heads: int, distances: Sequence[int]) -> None:
        super().__init__()
        if width % (2 * heads) or len(distances) < 2 or min(distances) != 0:
            raise InputError(
                f"attention of width {width}, {heads} heads, {len(distances)} distances; give a width that is a "
                "multiple of twice the heads, and a reach of two observations or more"
            )
        self.heads, self.length = heads, max(distances)
        self.everything = len(distances) == self.length + 1
        half = width // heads // 2
        # Oldest first, as the cache lies.
        self.register_buffer("distances", torch.tensor(sorted(distances, reverse=True)), persistent=False)
        self.register_buffer("angles", ROTARY_BASE ** (-torch.arange(half) / half), persistent=False)
        self.project = linear(width, 3 * width, bias=False)
        self.out = linear(width, width, bias=False)

    def members(self) -> tuple[StateSpec, ...]:
        """Keys, values and their number."""
        shape = (self.length, self.out.in_features)
        return StateSpec("k", shape), StateSpec("v", shape), StateSpec("n", (1,))

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Look back over the cache, then shift the new key and value into it."""
        query, key, value = (part.unsqueeze(1) for part in self._projected(x))
        keys, values = torch.cat([state["k"], key], dim=1), torch.cat([state["v"], value], dim=1)
        after = {
            "k": keys.narrow(1, 1, self.length),
            "v": values.narrow(1, 1, self.length),
            "n": torch.clamp(state["n"] + 1, max=float(self.length)),
        }
        if not self.everything:
            places = self.length - self.distances
            keys, values = keys.index_select(1, places), values.index_select(1, places)
        there = (self.distances <= state["n"]).view(-1, 1, 1, len(self.distances))
        keys = self._rotated(self._split(keys), -self.distances)
        return self.attend(self._split(query), keys, self._split(values), there).squeeze(1), after

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All queries at once, under a mask of distances; O(T²)."""
        length, count = rows.x.shape[1], self.length
        query, key, value = self._projected(rows.x)
        keys, values = torch.cat([state["k"], key], dim=1), torch.cat([state["v"], value], dim=1)
        at, of = torch.arange(length), torch.arange(-count, length)
        distance = at.unsqueeze(-1) - of
        wanted = torch.isin(distance, self.distances)
        there = (of >= -state["n"]).view(-1, 1, 1, length + count) & wanted
        rotated = self._rotated(self._split(query), at), self._rotated(self._split(keys), of)
        y = self.attend(*rotated, self._split(values), there)
        held = torch.clamp(state["n"] + rows.lengths.unsqueeze(-1), max=float(count))
        return y, {"k": last_rows(keys, rows.lengths, count), "v": last_rows(values, rows.lengths, count), "n": held}

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both, width = self.project(x), self.out.in_features
        return both.narrow(-1, 0, width), both.narrow(-1, width, width), both.narrow(-1, 2 * width, width)

    def _split(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, H, n, d]."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """Halves of x [B, H, n, d] rotated against each other by position · angles."""
        angle = positions.unsqueeze(-1) * self.angles
        half = x.shape[-1] // 2
        a, b, s, c = x.narrow(-1, 0, half), x.narrow(-1, half, half), torch.sin(angle), torch.cos(angle)
        return torch.cat([a * c - b * s, a * s + b * c], dim=-1)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
        """[B, H, m, d] queries over [B, H, n, d] keys where `there` [B, 1, m, n] holds -> [B, m, D]."""
        logits = torch.matmul(query, keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
        shares = torch.softmax(torch.where(there, logits, -torch.inf), dim=-1)
        return self.out(torch.flatten(torch.matmul(shares, values).transpose(1, 2), -2))  # type: ignore[no-any-return]
