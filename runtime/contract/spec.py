"""Shapes, dtypes and initial values of a step function: the part of a model that every layer must agree on.

A step is `step(inputs, state) -> (outputs, state')` over named tensors. Every tensor has a leading batch axis
that the spec leaves out: `shape=(64,)` means `[B, 64]`, `shape=()` means `[B]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.errors import InputError

DType = Literal["float32", "int64"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a step: its name, its shape without the batch axis, its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"

    @property
    def size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)


class StateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One state member (float32): `initial` holds one value, or one for each place of the last axis."""

    name: str
    shape: tuple[int, ...]
    initial: tuple[float, ...] = (0.0,)

    @property
    def size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    def initial_row(self) -> NDArray[np.float32]:
        """The member's value in a new stream, shape `self.shape`."""
        values = self.initial if self.shape else self.initial[0]
        row: NDArray[np.float32] = np.broadcast_to(np.asarray(values, np.float32), self.shape).copy()
        return row


class StepSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs, outputs and state of a step, in the order of its graph.

    Inputs are `x` and, where the model uses them, `mask`, `dt`, `phase`; outputs are `y` and, where it has them,
    `err` and `gates`. A graph names a member `NAME` of the state `state_in_NAME` and `state_out_NAME`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StateSpec, ...]

    def input(self, name: str) -> TensorSpec | None:
        """The input called `name`, or None where the model does not take it."""
        return next((t for t in self.inputs if t.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        """The output called `name`, or None where the model does not give it."""
        return next((t for t in self.outputs if t.name == name), None)

    @property
    def state_bytes(self) -> int:
        """Bytes of one stream's state."""
        return 4 * sum(member.size for member in self.state)

    def validate(self) -> None:
        """Raise InputError unless the spec is one that odestream can export and stream."""
        names = [t.name for t in (*self.inputs, *self.outputs)]
        members = [m.name for m in self.state]
        if self.input("x") is None or self.output("y") is None:
            raise InputError(f"a step needs an input 'x' and an output 'y', found {names}; name them so in spec()")
        unknown = sorted({t.name for t in self.inputs} - {"x", "mask", "dt", "phase"})
        if unknown:
            raise InputError(f"unknown inputs {unknown}; a step may take x, mask, dt and phase: rename or drop them")
        for kind, group in (("tensor", names), ("state", members)):
            if len(set(group)) != len(group):
                raise InputError(f"{kind} names {group} repeat; give each its own name in spec()")
        every: tuple[TensorSpec | StateSpec, ...] = (*self.inputs, *self.outputs, *self.state)
        for tensor in every:
            if any(n < 1 for n in tensor.shape):
                raise InputError(f"{tensor.name} has shape {tensor.shape}; make every axis at least 1 in spec()")
        for member in self.state:
            last = member.shape[-1] if member.shape else 1
            if len(member.initial) not in (1, last):
                raise InputError(
                    f"state {member.name} has {len(member.initial)} initial values; "
                    f"give one, or one for each of its {last}"
                )


Shapes = Mapping[str, tuple[int, ...]]


def step_spec(
    inputs: Shapes, outputs: Shapes, state: Shapes, initial: Mapping[str, tuple[float, ...]] | None = None
) -> StepSpec:
    """Make a StepSpec of float32 tensors from their shapes without the batch axis.

    Example, a GRU cell over 3 channels: `step_spec({"x": (3,)}, {"y": (64,)}, {"h": (64,)})`.
    """
    spec = StepSpec(
        inputs=tuple(TensorSpec(name, tuple(shape)) for name, shape in inputs.items()),
        outputs=tuple(TensorSpec(name, tuple(shape)) for name, shape in outputs.items()),
        state=tuple(StateSpec(name, tuple(shape), (initial or {}).get(name, (0.0,))) for name, shape in state.items()),
    )
    spec.validate()
    return spec
