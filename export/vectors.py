"""Collects a chain of steps with torch's answers, for verification on machines without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from odestream.export.plan import Plan
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.contract.vectors import Vectors

CHECKPOINT_EVERY = 250  # rows; a whole state is much larger than a row's outputs

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass
class Recorder:
    """Collects a chain with torch's answers."""

    spec: StepSpec
    inputs: list[Arrays] = field(default_factory=list)
    outputs: list[Arrays] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    reset: list[bool] = field(default_factory=list)
    state: dict[int, Arrays] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def truncate(self, rows: int) -> None:
        """Forget all but the first `rows`, whose last one was the last of a chain."""
        for column in (self.inputs, self.outputs, self.labels, self.reset):
            del column[rows:]
        self.state = {row: state for row, state in self.state.items() if row < rows}

    def add(self, plan: Plan, i: int, reset: bool, outputs: Arrays, state: Arrays) -> None:
        """Append row `i` of the plan with its answers, which are copied; whole states are kept now and then.

        reset: whether the row started from initial values.
        """
        self.inputs.append({name: values[i] for name, values in plan.inputs.items()})
        self.outputs.append({name: value.copy() for name, value in outputs.items()})
        self.reset.append(reset)
        self.labels.append(plan.labels[i])
        row = len(self.labels) - 1
        if row % CHECKPOINT_EVERY != 0:
            self.state.pop(row - 1, None)  # the last row is always kept, until another follows
        self.state[row] = {name: value.copy() for name, value in state.items()}

    def vectors(self) -> Vectors:
        """The chain so far; its last row is always a checkpoint."""
        return Vectors(
            inputs={t.name: np.stack([row[t.name] for row in self.inputs]) for t in self.spec.inputs},
            outputs={t.name: np.stack([row[t.name] for row in self.outputs]) for t in self.spec.outputs},
            labels=tuple(self.labels),
            reset=np.asarray(self.reset),
            checkpoints=np.asarray(list(self.state), np.int64),
            state={m.name: np.stack([row[m.name] for row in self.state.values()]) for m in self.spec.state},
        )
