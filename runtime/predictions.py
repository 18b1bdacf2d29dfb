"""A model's output `y` as named columns of a table.

Numbers are written with the fewest digits that read back as the same float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import BundleError

VOCABULARY = 256  # tokens are UTF-8 bytes


class Predictions(ABC):
    """What one task's `y` says. columns: their names, the same for every row."""

    columns: tuple[str, ...]

    @abstractmethod
    def cells(self, y: NDArray[np.float32], x: NDArray[np.generic]) -> list[str]:
        """The columns' cells. y `[Y]`; x: the observation of the same call."""


def predictions(task: TaskSpec, width: int) -> Predictions:
    """How to write the `y` of a task; width: Y. BundleError where task and width do not fit each other."""
    kinds: dict[str, type[_Forecast | _Classes | _Tokens | _Raw]] = {
        "forecast": _Forecast,
        "classify": _Classes,
        "tokens": _Tokens,
        "step": _Raw,
    }
    return kinds[task.kind](task, width)


def number(value: float | np.floating) -> str:
    """Shortest text that reads back as the same float32."""
    return str(np.float32(value))


class _Forecast(Predictions):
    """`TARGET`: the mean made before the row was seen. `TARGET_std`: its standard deviation, in the target's units."""

    def __init__(self, task: TaskSpec, width: int) -> None:
        channels = len(task.inputs)
        _check_width(task, width, 2 * channels)
        if not task.targets or not set(task.targets) <= set(task.inputs):
            raise BundleError(f"targets {task.targets} are not among the inputs {task.inputs}; export the bundle again")
        self.means = [task.inputs.index(target) for target in task.targets]
        self.variances = [channels + mean for mean in self.means]
        self.columns = tuple(column for target in task.targets for column in (target, f"{target}_std"))

    def cells(self, y: NDArray[np.float32], x: NDArray[np.generic]) -> list[str]:
        del x
        deviations = np.exp(0.5 * y[self.variances].astype(np.float64))
        return [number(v) for pair in zip(y[self.means], deviations, strict=True) for v in pair]


class _Classes(Predictions):
    """`TARGET`: the likeliest label. `p_LABEL`: each label's probability."""

    def __init__(self, task: TaskSpec, width: int) -> None:
        _check_width(task, width, len(task.labels))
        self.labels = task.labels
        self.columns = (*task.targets, *(f"p_{label}" for label in task.labels))

    def cells(self, y: NDArray[np.float32], x: NDArray[np.generic]) -> list[str]:
        del x
        return [self.labels[int(np.argmax(y))], *map(number, _softmax(y))]


class _Tokens(Predictions):
    """`byte`: the one read. `next_byte`, `p_next`: the likeliest next one. `bits`: what `byte` cost, −log2 of the
    probability that the row before gave it; empty in the first row, and in the first one after a resume."""

    columns = ("byte", "next_byte", "p_next", "bits")

    def __init__(self, task: TaskSpec, width: int) -> None:
        _check_width(task, width, VOCABULARY)
        self.before: NDArray[np.float64] | None = None

    def cells(self, y: NDArray[np.float32], x: NDArray[np.generic]) -> list[str]:
        byte = int(x.item())
        bits = "" if self.before is None else number(-np.log2(max(self.before[byte], np.finfo(np.float64).tiny)))
        self.before = _softmax(y)
        likeliest = int(np.argmax(y))
        return [str(byte), str(likeliest), number(self.before[likeliest]), bits]


class _Raw(Predictions):
    """`y0` … : the outputs of a step that names no task."""

    def __init__(self, task: TaskSpec, width: int) -> None:
        del task
        self.columns = tuple(f"y{i}" for i in range(width))

    def cells(self, y: NDArray[np.float32], x: NDArray[np.generic]) -> list[str]:
        del x
        return [number(v) for v in y.reshape(-1)]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - np.max(logits))
    return np.asarray(powers / powers.sum(), np.float64)


def _check_width(task: TaskSpec, width: int, expected: int) -> None:
    if width != expected:
        raise BundleError(f"y has {width} values, a {task.kind} over these columns {expected}; export the bundle again")
