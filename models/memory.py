"""The three memories as pure functions: time passes, then a read, then a write.

    working   wk [B, L, dk], wv [B, L, dv], ws [B, L], wa [B, L]    the last L observations, newest last
    longterm  m [B, H, dk, dv]                                      associative matrix, gated delta rule
    episodic  ek [B, S, dk], ev [B, S, dv], es [B, S], ea [B, S]    S slots, the weakest gives way

`ws` and `es` are strengths; zero marks an empty place. Ages are in model units and stop at a limit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_FLOOR = 1e-6  # an empty slot's relative strength inside the logarithm


def unit(vector: Tensor) -> Tensor:
    """Scale the last axis to length one; a zero vector stays zero."""
    return vector / torch.sqrt(torch.sum(vector * vector, dim=-1, keepdim=True) + 1e-12)


def age(ages: Tensor, dt: Tensor, limit: float) -> Tensor:
    """ages [B, n] grow by dt [B, 1], up to `limit`, below which float32 still counts small steps."""
    return torch.clamp(ages + dt, max=limit)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    strengths: Tensor,
    sharpness: Tensor,
    bias: Tensor | None,
    sink: Tensor | None = None,
) -> Tensor:
    """Read slots: softmax(κ·cos(q, k) + log(s/s_max + ε) + bias) over n slots; zero when all are empty.

    query [B, dk] and keys [B, n, dk] of length one, values [B, n, dv], strengths [B, n]; returns [B, dv]. With a sink
    θ [1], a cosine, the softmax has one more entry, of logit κ·θ and value zero: where no key is as near to the query,
    the read is nearly zero instead of a neighbour's value. It is the attention sink with a key and value of zeros
    (Xiao et al. 2024, "Efficient streaming language models with attention sinks", section 3.3) with its logit learned.
    """
    strongest = torch.amax(strengths, dim=-1, keepdim=True)
    similarity = torch.matmul(keys, query.unsqueeze(-1)).squeeze(-1)
    logits = sharpness * similarity + torch.log(strengths / torch.clamp(strongest, min=1e-20) + LOG_FLOOR)
    if bias is not None:
        logits = logits + bias
    if sink is None:
        shares = torch.softmax(logits, dim=-1)
    else:
        silence = torch.zeros_like(strongest) + sharpness * sink
        shares = torch.softmax(torch.cat([logits, silence], dim=-1), dim=-1).narrow(-1, 0, keys.shape[-2])
    read = torch.matmul(shares.unsqueeze(-2), values).squeeze(-2)
    return torch.where(strongest > 0, read, 0.0)


def shift_in(window: Tensor, entry: Tensor, observed: Tensor) -> Tensor:
    """Append entry [B, …] to window [B, L, …], dropping the oldest, in rows where observed [B, 1] holds."""
    shifted = torch.cat([window.narrow(1, 1, window.shape[1] - 1), entry.unsqueeze(1)], dim=1)
    return torch.where(observed if window.dim() == 2 else observed.unsqueeze(-1), shifted, window)


def matrix_read(m: Tensor, query: Tensor) -> Tensor:
    """qᵀm: m [B, H, dk, dv], query [B, H, dk] of length one -> [B, H·dv]."""
    return torch.flatten(torch.matmul(query.unsqueeze(-2), m).squeeze(-2), -2)


def matrix_write(m: Tensor, key: Tensor, value: Tensor, strength: Tensor, keep: Tensor) -> Tensor:
    """Gated delta rule, m ← keep·m, then m ← m + β·k ⊗ (v − kᵀm) (Yang et al. 2024, gated delta networks).

    key [B, H, dk] of length one, value [B, H, dv], strength β and keep [B, 1] (or [B, H], by head) in 0 … 1.
    """
    kept = keep.unsqueeze(-1).unsqueeze(-1) * m
    error = value - torch.matmul(key.unsqueeze(-2), kept).squeeze(-2)
    return kept + torch.matmul((strength.unsqueeze(-1) * key).unsqueeze(-1), error.unsqueeze(-2))


def weakest_slot(strengths: Tensor, strength: Tensor) -> Tensor:
    """Which slot an event of strength [B, 1] takes, as 0/1 [B, S]: the first weakest, if the event is stronger."""
    places = torch.arange(strengths.shape[-1])
    weakest = places == torch.argmin(strengths, dim=-1, keepdim=True)
    return weakest & (strength > torch.amin(strengths, dim=-1, keepdim=True))


def replace_slot(slots: Tensor, chosen: Tensor, entry: Tensor) -> Tensor:
    """Put entry [B, d] (or [B, 1] for strengths and ages) into the chosen slot of [B, S, d] (or [B, S])."""
    if slots.dim() == 2:
        return torch.where(chosen, entry, slots)
    return torch.where(chosen.unsqueeze(-1), entry.unsqueeze(1), slots)


def matrix_decay(m: Tensor, rate: Tensor, dt: Tensor) -> Tensor:
    """m decayed by exp(−r·dt), rate r [1] per model unit: composes over split gaps."""
    return torch.exp(-rate * dt).unsqueeze(-1).unsqueeze(-1) * m


def age_bias(ages: Tensor, slope: Tensor) -> Tensor:
    """Logit bias of the working memory, −softplus(slope)·log(1 + age)."""
    return -F.softplus(slope) * torch.log(1 + ages)
