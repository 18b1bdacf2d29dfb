"""Parts of a cell that can be switched off, to see what they are good for.

A part that is off is held at weights under which it does nothing: the arithmetic, its exported graph and the kernels
stay the same, and so does the number of weights.

    write-gate    everything that is observed is written to every memory, at full strength
    read-gate     what a memory returns is passed on whole
    forget-gate   the long-term matrix forgets nothing: no factor, no decay over time
    reads         what any memory returns is held back: a cell without memory, of the same size
    flow          h stands still between observations: no leak, no drive
    drive         h only leaks between observations: an exact exponential
    elapsed       encoder and head are not told how much time has passed

Memories and time features are switched off by `CellConfig.stores` and `frequencies`; they then do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from odestream.models.cell import Cell

OPEN = 40.0  # the logit at which a sigmoid is exactly one in float32
CLOSED = -200.0  # and that at which it and a softplus are zero: exactly in torch, below 1e-38 in the kernels


@torch.no_grad()
def hold(cell: Cell) -> None:
    """Put the weights of everything that is off where they belong; the trainer leaves them alone."""
    for part in cell.config.without:
        for tensor, value in _HELD[part](cell):
            tensor.copy_(torch.as_tensor(value))


def freeze(cell: Cell) -> None:
    """Hold them for the first time, and let no gradient reach those that are held whole."""
    hold(cell)
    for part in cell.config.without:
        for tensor, _ in _HELD[part](cell):
            if isinstance(tensor, torch.nn.Parameter):
                tensor.requires_grad_(False)


Held = list[tuple[Tensor, Tensor | float]]


def _write_gate(cell: Cell) -> Held:
    gate = cell.memory.gates.write
    bias = torch.zeros_like(gate.bias)
    bias[0] = OPEN
    return [(gate.weight, 0.0), (gate.bias, bias)]


def _read_gate(cell: Cell, logit: float = OPEN) -> Held:
    gates = cell.memory.gates
    return [(gates.read.weight, 0.0), (gates.read_state, 0.0), (gates.read.bias, logit)]


def _forget_gate(cell: Cell) -> Held:
    gate = cell.memory.gates.forget
    return [(gate.weight, 0.0), (gate.bias, OPEN), (cell.memory.log_decay_rate, CLOSED)]


def _reads(cell: Cell) -> Held:
    return _read_gate(cell, CLOSED)


def _flow(cell: Cell) -> Held:
    return [(cell.field.log_decay, CLOSED), (cell.field.output, 0.0)]


def _drive(cell: Cell) -> Held:
    return [(cell.field.output, 0.0)]


def _elapsed(cell: Cell) -> Held:
    """Columns, not whole tensors: the last one of the encoder, and those of `normalise.head_features` in the head."""
    c = cell.config
    held: Held = [(cell.encode.weight[:, -1], 0.0)]
    if c.averages:
        start = c.sizes.hidden + 2 * len(c.frequencies) + c.channels * len(c.averages)
        held.append((cell.heads.expect.inner.weight[:, start : start + c.channels], 0.0))
    return held


_HELD: dict[str, Callable[[Cell], Held]] = {
    "write-gate": _write_gate,
    "read-gate": _read_gate,
    "forget-gate": _forget_gate,
    "reads": _reads,
    "flow": _flow,
    "drive": _drive,
    "elapsed": _elapsed,
}
