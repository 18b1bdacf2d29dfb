"""Where state lives: one contiguous float32 array per set of streams.

Members stand one after another in the order of the spec, each as `[B, *shape]`; with `h: (2,)`, `a: ()` and
B = 2 the arena is `h00 h01 h10 h11 a0 a1`. So a check, a copy or a snapshot of the whole state is one pass.
Arenas are aligned to 64 bytes: vectorised sums start where the alignment allows, so equal alignment is part of
equal results, bit for bit, between two buffers and between two processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from odestream.runtime.contract.spec import StateSpec, TensorSpec
from odestream.runtime.errors import InputError

Arena = NDArray[np.float32]

_ALIGNMENT = 64
_ALIGNED = _ALIGNMENT // 4  # in float32


class Layout:
    """Places of tensors (without their batch axis: `shape`) in an arena for `batch` rows.

    size: elements of an arena. offsets: name → first element.
    """

    def __init__(self, tensors: Sequence[StateSpec | TensorSpec], batch: int) -> None:
        if batch < 1:
            raise InputError(f"received a batch of {batch} rows, expected at least 1; bind at least one stream")
        self.batch = batch
        self.offsets: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.size = 0
        for tensor in tensors:
            self.offsets[tensor.name] = self.size
            self.shapes[tensor.name] = (batch, *tensor.shape)
            self.size += batch * tensor.size

    def empty(self) -> Arena:
        """A new arena of zeros."""
        return aligned((self.size,), np.float32)

    def views(self, arena: Arena) -> dict[str, NDArray[np.float32]]:
        """Name → view `[B, *shape]` into `arena`."""
        return {
            name: arena[offset : offset + prod(self.shapes[name])].reshape(self.shapes[name])
            for name, offset in self.offsets.items()
        }


def initial(state: Sequence[StateSpec], batch: int) -> Arena:
    """The arena of `batch` new streams."""
    layout = Layout(state, batch)
    arena = layout.empty()
    for member, view in zip(state, layout.views(arena).values(), strict=True):
        view[...] = member.initial_row()
    return arena


def stack(state: Sequence[StateSpec], rows: Sequence[Arena]) -> Arena:
    """One arena of `len(rows)` rows from arenas of one row each."""
    layout, single = Layout(state, len(rows)), Layout(state, 1)
    arena = layout.empty()
    views = layout.views(arena)
    for index, row in enumerate(rows):
        for name, value in single.views(row).items():
            views[name][index] = value[0]
    return arena


def unstack(state: Sequence[StateSpec], arena: Arena, batch: int) -> list[Arena]:
    """The inverse of `stack`: an arena of one row for each of the `batch` rows of `arena`."""
    views, single = Layout(state, batch).views(arena), Layout(state, 1)
    rows = []
    for index in range(batch):
        row = single.empty()
        for name, value in single.views(row).items():
            value[0] = views[name][index]
        rows.append(row)
    return rows


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros of `shape` whose first element stands at a multiple of 64 bytes."""
    kind = np.dtype(dtype)
    length = prod(shape) * kind.itemsize
    raw = np.zeros(length + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + length].view(kind).reshape(shape)


def round_up(elements: int) -> int:
    """The least number of float32 from `elements` on after which another arena may begin."""
    return -(-elements // _ALIGNED) * _ALIGNED
