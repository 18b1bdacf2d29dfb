"""Hybrid memory: the gates with the reads and writes of the three memories, as one function of a step.

`hybrid_memory` is what an exporter keeps as one node; `content` and `access` are its two halves. A training unroll
computes `content`, which does not depend on the state, for all times at once, and only `access` step by step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves

from odestream.models import memory
from odestream.models.config import CellConfig, Store
from odestream.models.gates import Gates, GateWeights, WriteGate, read_gate, write_gate
from odestream.runtime.contract.spec import StateSpec

Memories = dict[str, Tensor]


class AddressWeights(NamedTuple):
    """Projections of content (and, for queries, of h) to keys, values and queries of one kind of store.

    key [k, f], value [v, f], query [k, f], query_state [k, D]; k and v are dk and dv, or H·dk and H·dv.
    """

    key: Tensor
    value: Tensor
    query: Tensor
    query_state: Tensor


class HybridWeights(NamedTuple):
    """Weights of `hybrid_memory`; parts of absent stores are None.

    slots: shared by working and episodic memory; matrix: of the long-term memory. sharpness [2]: κ of the episodic
    and of the working read. age_slope [1]; decay_rate [1], of the matrix per model unit. sink [1]: the cosine θ of the
    episodic read's sink, None without one.
    """

    gates: GateWeights
    slots: AddressWeights | None
    matrix: AddressWeights | None
    sharpness: Tensor
    age_slope: Tensor
    decay_rate: Tensor
    sink: Tensor | None


class Address(NamedTuple):
    """Content-only key, value and query of one kind of store."""

    key: Tensor
    value: Tensor
    query: Tensor


class Content(NamedTuple):
    """What an observation says to the memories, whoever sees it; opened: see `content`."""

    features: Tensor
    gate: WriteGate
    slots: Address | None
    matrix: Address | None
    opened: Tensor | None


class Access(NamedTuple):
    """reads [B, R] after the read gate, the memories' new state, gates [B, G] in the order of `gate_names`."""

    reads: Tensor
    memories: Memories
    gates: Tensor


def hybrid_memory(
    features: Tensor,
    h: Tensor,
    observed: Tensor,
    surprise: Tensor,
    dt: Tensor,
    memories: Memories,
    w: HybridWeights,
    *,
    config: CellConfig,
) -> Access:
    """Read all stores, then write the content [B, f] into them in rows where observed [B, 1] holds.

    h [B, D]: the flowed state; surprise [B, 1]: ζ; dt [B, 1]: time since the last call, which ages the slots and
    decays the matrix before the read. It is torch-overridable, like `ode_flow`.
    """
    arguments = (features, h, observed, surprise, dt, memories, w)
    tensors = tuple(leaf for leaf in tree_leaves(arguments) if leaf is not None)
    if has_torch_function(tensors):
        return handle_torch_function(hybrid_memory, tensors, *arguments, config=config)
    return access(content(features, w, config), h, observed, surprise, dt, memories, w, config)


def content(
    features: Tensor,
    w: HybridWeights,
    config: CellConfig,
    explore: Tensor | None = None,
    opened: Tensor | None = None,
    jitter: Tensor | None = None,
) -> Content:
    """Gates, keys, values and content queries of features [..., f], for any leading axes.

    explore, jitter [..., 1]: see `write_gate`. opened [..., n]: a factor on the read gates of the n stores; 0 closes
    one, which tells the memories apart in training and in a comparison.
    """
    gate = write_gate(features, w.gates, explore, jitter)
    slots = None if w.slots is None else _address(features, w.slots, None)
    matrix = None if w.matrix is None else _address(features, w.matrix, config.sizes.heads)
    return Content(features, gate, slots, matrix, opened)


def access(
    said: Content,
    h: Tensor,
    observed: Tensor,
    surprise: Tensor,
    dt: Tensor,
    memories: Memories,
    w: HybridWeights,
    config: CellConfig,
) -> Access:
    """Let dt pass, read, then write; memories are read before they are written."""
    old = _elapse(memories, dt, w, config)
    write = surprised(said.gate.write, surprise, w, config)
    opened = read_gate(said.features, h, w.gates)
    if said.opened is not None:
        opened = opened * said.opened
    reads = torch.cat(_reads(said, h, old, opened, w, config), dim=-1)
    new = _write(said, write, observed, old, config)
    return Access(reads, new, torch.cat([write, opened, said.gate.keep, surprise], dim=-1))


def gate_names(config: CellConfig) -> tuple[str, ...]:
    """Names of the columns of `gates`."""
    writes, reads = [f"write_{s}" for s in config.stores], [f"read_{s}" for s in config.stores]
    return (*writes, *reads, "keep", "surprise")


def memory_spec(config: CellConfig) -> tuple[StateSpec, ...]:
    """State members of the stores that exist."""
    z = config.sizes
    members: dict[Store, tuple[StateSpec, ...]] = {
        "working": (
            StateSpec("wk", (z.window, z.keys)),
            StateSpec("wv", (z.window, z.values)),
            StateSpec("ws", (z.window,)),
            StateSpec("wa", (z.window,)),
        ),
        "longterm": (StateSpec("m", (z.heads, z.keys, z.values)),),
        "episodic": (
            StateSpec("ek", (z.slots, z.keys)),
            StateSpec("ev", (z.slots, z.values)),
            StateSpec("es", (z.slots,)),
            StateSpec("ea", (z.slots,)),
        ),
    }
    return tuple(member for store in config.stores for member in members[store])


class HybridMemory(nn.Module):
    """Holds the parameters of `hybrid_memory`."""

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        z = config.sizes
        self.gates = Gates(config)
        has_slots = bool({"working", "episodic"} & set(config.stores))
        self.slots = _Projections(config, 1) if has_slots else None
        self.matrix = _Projections(config, z.heads) if "longterm" in config.stores else None
        self.sharpness = nn.Parameter(torch.tensor([8.0, 8.0]))
        self.age_slope = nn.Parameter(torch.tensor([-4.0]))
        self.log_decay_rate = nn.Parameter(torch.tensor([-16.0]))
        self.sink = nn.Parameter(torch.tensor([0.7])) if config.episodic_sink else None

    def weights(self) -> HybridWeights:
        """Folded weights, differentiable in the parameters."""
        return HybridWeights(
            self.gates.weights(),
            None if self.slots is None else self.slots.weights(),
            None if self.matrix is None else self.matrix.weights(),
            self.sharpness,
            self.age_slope,
            F.softplus(self.log_decay_rate),
            self.sink,
        )


class _Projections(nn.Module):
    def __init__(self, config: CellConfig, heads: int) -> None:
        super().__init__()
        z, features = config.sizes, config.feature_width
        self.key = nn.Linear(features, heads * z.keys, bias=False)
        self.value = nn.Linear(features, heads * z.values, bias=False)
        self.query = nn.Linear(features, heads * z.keys, bias=False)
        self.query_state = nn.Parameter(torch.zeros(heads * z.keys, z.hidden))
        with torch.no_grad():
            if config.task != "tokens":  # the mask, alike in most rows, would make all keys alike: it starts silent
                for part in (self.key, self.value):
                    part.weight[:, -config.channels :] = 0.0
            self.query.weight.copy_(self.key.weight)  # what resembles a stored event finds it from the first step on

    def weights(self) -> AddressWeights:
        return AddressWeights(self.key.weight, self.value.weight, self.query.weight, self.query_state)


def _address(features: Tensor, w: AddressWeights, heads: int | None) -> Address:
    """Linear in the features alone; keys of length one, in each head."""
    key, value, query = (F.linear(features, part) for part in (w.key, w.value, w.query))
    if heads is not None:
        key, value = torch.unflatten(key, -1, (heads, -1)), torch.unflatten(value, -1, (heads, -1))
    return Address(memory.unit(key), value, query)


def query_of(said: Address, h: Tensor, w: AddressWeights, heads: int | None) -> Tensor:
    """Query of length one from content and state, in each head where heads are given."""
    query = said.query + F.linear(h, w.query_state)
    return memory.unit(query if heads is None else torch.unflatten(query, -1, (heads, -1)))


def _elapse(memories: Memories, dt: Tensor, w: HybridWeights, config: CellConfig) -> Memories:
    aged: Memories = {k: memory.age(memories[k], dt, config.age_limit) for k in ("wa", "ea") if k in memories}
    decayed: Memories = {"m": memory.matrix_decay(memories["m"], w.decay_rate, dt)} if "m" in memories else {}
    return {**memories, **aged, **decayed}


def surprised(write: Tensor, surprise: Tensor, w: HybridWeights, config: CellConfig) -> Tensor:
    """Where the configuration asks for it, an event is also what was not expected: w_E·σ(a·(ζ − γ))."""
    if not config.surprise_gate or "episodic" not in config.stores:
        return write
    slope, offset = w.gates.surprise.narrow(0, 0, 1), w.gates.surprise.narrow(0, 1, 1)
    factor = torch.sigmoid(slope * (surprise - offset))
    place = config.stores.index("episodic")
    columns = [write.narrow(-1, i, 1) for i in range(len(config.stores))]
    columns[place] = columns[place] * factor
    return torch.cat(columns, dim=-1)


def _reads(
    said: Content, h: Tensor, old: Memories, opened: Tensor, w: HybridWeights, config: CellConfig
) -> list[Tensor]:
    reads: dict[str, Tensor] = {}
    if said.slots is not None and w.slots is not None:
        query = query_of(said.slots, h, w.slots, None)
        if "ek" in old:
            sharpness = w.sharpness.narrow(0, 0, 1)
            reads["episodic"] = memory.attend(query, old["ek"], old["ev"], old["es"], sharpness, None, w.sink)
        if "wk" in old:
            bias, sharpness = memory.age_bias(old["wa"], w.age_slope), w.sharpness.narrow(0, 1, 1)
            reads["working"] = memory.attend(query, old["wk"], old["wv"], old["ws"], sharpness, bias)
    if said.matrix is not None and w.matrix is not None:
        reads["longterm"] = memory.matrix_read(old["m"], query_of(said.matrix, h, w.matrix, config.sizes.heads))
    return [reads[store] * opened.narrow(-1, i, 1) for i, store in enumerate(config.stores)]


def _write(said: Content, write: Tensor, observed: Tensor, old: Memories, config: CellConfig) -> Memories:
    strength = {store: write.narrow(-1, i, 1) for i, store in enumerate(config.stores)}
    new = dict(old)
    if "wk" in old and said.slots is not None:
        entries = {"wk": said.slots.key, "wv": said.slots.value, "ws": strength["working"].squeeze(-1)}
        entries["wa"] = torch.zeros_like(entries["ws"])
        new.update({name: memory.shift_in(old[name], entry, observed) for name, entry in entries.items()})
    if "m" in old and said.matrix is not None:
        written = memory.matrix_write(
            old["m"], said.matrix.key, said.matrix.value, strength["longterm"], said.gate.keep
        )
        new["m"] = torch.where(observed.unsqueeze(-1).unsqueeze(-1), written, old["m"])
    if "ek" in old and said.slots is not None:
        chosen = memory.weakest_slot(old["es"], strength["episodic"]) & observed
        entries = {"ek": said.slots.key, "ev": said.slots.value, "es": strength["episodic"]}
        entries["ea"] = torch.zeros_like(entries["es"])
        new.update({name: memory.replace_slot(old[name], chosen, entry) for name, entry in entries.items()})
    return new
