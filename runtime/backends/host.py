"""Buffers in this process's memory, for engines that read and write it directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena, Layout, aligned, initial, round_up
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.guards import finite, held


class HostBinding:
    """All of `odestream.runtime.backends.Binding` but `run`: inputs, outputs and two state arenas that change sides.

    arena and next_arena are the buffers themselves, so that reading and writing them copies nothing. The outputs lie
    between the two, so that a run's outputs and new state are one stretch of memory, checked in one pass.
    """

    def __init__(self, spec: StepSpec, batch: int) -> None:
        self.batch = batch
        self.inputs: Mapping[str, NDArray[Any]] = {t.name: aligned((batch, *t.shape), t.dtype) for t in spec.inputs}
        outputs, self._state_layout = Layout(spec.outputs, batch), Layout(spec.state, batch)
        size, middle = self._state_layout.size, round_up(self._state_layout.size)
        last = middle + round_up(outputs.size)
        whole = aligned((last + size,), np.float32)
        self.arena, self.next_arena = whole[:size], whole[last:]
        self.flat_outputs = whole[middle : middle + outputs.size]
        self.outputs: Mapping[str, NDArray[np.float32]] = outputs.views(self.flat_outputs)
        self.arena[...] = initial(spec.state, batch)
        self._results = (
            held(whole[middle:]),
            held(whole[: middle + outputs.size]),
        )  # of a run from the first side, of one back
        self._sides = (self.arena, self.next_arena)
        self._side = 0

    def swap(self) -> None:
        """Make next_arena the arena."""
        self.arena, self.next_arena = self.next_arena, self.arena
        self._side ^= 1

    def set_state(self, arena: Arena) -> None:
        """Take over a state; nothing to do for what was written into `arena` itself."""
        if arena is not self.arena:
            self.arena[...] = arena

    def set_next_state(self, arena: Arena) -> None:
        """Take over a new state, as if a run had left it."""
        if arena is not self.next_arena:
            self.next_arena[...] = arena

    def finite(self) -> bool:
        """Whether the last run left neither NaN nor infinity."""
        return finite(self._results[self._side])
