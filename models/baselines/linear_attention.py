"""Linear attention: the sum of key-value products as the state.

    S_t = S_{t−1} + φ(k_t)·v_tᵀ,   z_t = z_{t−1} + φ(k_t),   y_t = φ(q_t)ᵀS_t / φ(q_t)ᵀz_t,   φ(x) = elu(x) + 1

Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs (2020), equations 7 and 16 to 20. Nothing is forgotten: in
float32 the sums stop taking in new terms after some 10⁷ observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odestream.models.baselines.config import FedSizes
from odestream.models.baselines.initial import linear
from odestream.models.baselines.stack import Mixer, Rows, Stacked
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


@dataclass(frozen=True)
class LinearAttentionSizes(FedSizes):
    """heads: H. keys, values: dk and dv of each."""

    heads: int = 1
    keys: int = 32
    values: int = 32


class LinearAttention(Stacked):
    """Blocks of linear attention."""

    sizes_type = LinearAttentionSizes

    def mixer(self, sizes: LinearAttentionSizes) -> Mixer:
        """Linear attention."""
        return LinearMixer(sizes)


class LinearMixer(Mixer):
    """State: s [H, dk, dv] and z [H, dk]."""

    def __init__(self, sizes: LinearAttentionSizes) -> None:
        super().__init__()
        self.heads, self.keys, self.values = sizes.heads, sizes.keys, sizes.values
        self.query = linear(sizes.width, sizes.heads * sizes.keys, bias=False)
        self.key = linear(sizes.width, sizes.heads * sizes.keys, bias=False)
        self.value = linear(sizes.width, sizes.heads * sizes.values, bias=False)
        self.out = linear(sizes.heads * sizes.values, sizes.width, bias=False)

    def members(self) -> tuple[StateSpec, ...]:
        """The sums."""
        return StateSpec("s", (self.heads, self.keys, self.values)), StateSpec("z", (self.heads, self.keys))

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Add, then read."""
        query, key, value = self._heads(x)
        s = state["s"] + key.unsqueeze(-1) * value.unsqueeze(-2)
        z = state["z"] + key
        above = torch.matmul(query.unsqueeze(-2), s).squeeze(-2)
        below = torch.sum(query * z, dim=-1, keepdim=True)
        return self.out(torch.flatten(above / below, -2)), {"s": s, "z": z}

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All queries against all keys under a causal mask; O(T²)."""
        query, key, value = (part.transpose(1, 2) for part in self._heads(rows.x))
        key = torch.where(rows.valid.unsqueeze(1), key, 0.0)
        likeness = torch.tril(torch.matmul(query, key.transpose(-1, -2)))
        above = torch.matmul(likeness, value) + torch.matmul(query, state["s"])
        below = torch.sum(likeness, dim=-1, keepdim=True) + torch.matmul(query, state["z"].unsqueeze(-1))
        s = state["s"] + torch.matmul(key.transpose(-1, -2), value)
        y = torch.flatten((above / below).transpose(1, 2), -2)
        return self.out(y), {"s": s, "z": state["z"] + torch.sum(key, dim=-2)}

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ(q), φ(k) and v, [..., H, d] each."""
        parts = (torch.unflatten(part(x), -1, (self.heads, -1)) for part in (self.query, self.key, self.value))
        query, key, value = parts
        return F.elu(query) + 1, F.elu(key) + 1, value
