"""Buffers in this process's memory, for engines that read and write it directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena, Layout, aligned, all_finite, initial
from odestream.runtime.contract.spec import StepSpec


class HostBinding:
    """All of `odestream.runtime.backends.Binding` but `run`: inputs, outputs and two state arenas that change sides.

    arena and next_arena are the buffers themselves, so that reading and writing them copies nothing.
    """

    def __init__(self, spec: StepSpec, batch: int) -> None:
        self.batch = batch
        self.inputs: Mapping[str, NDArray[Any]] = {t.name: aligned((batch, *t.shape), t.dtype) for t in spec.inputs}
        outputs, self._state_layout = Layout(spec.outputs, batch), Layout(spec.state, batch)
        self.flat_outputs = outputs.empty()
        self.outputs: Mapping[str, NDArray[np.float32]] = outputs.views(self.flat_outputs)
        self.arena = initial(spec.state, batch)
        self.next_arena = self._state_layout.empty()
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
        return all_finite(self.next_arena) and all_finite(self.flat_outputs)
