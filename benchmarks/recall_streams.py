"""Those who listen in the recall benchmark: a trained cell's bundle on the deployed runtime, and the torch step.

A row of ROWS is the cell exported as a user would, with the other reads held closed by their weights. The native
backend steps all streams together: a million rows of noise take minutes, and what is scored is what a device runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.export import export_bundle
from odestream.models.ablation import CLOSED
from odestream.models.cell import Cell
from odestream.models.config import Part
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from odestream.runtime import Batcher, Model, Output, load
from recall_scoring import Trial, accuracy
from recall_task import Rows
from recall_training import ROWS, SOLVER_STEPS, Recipe, train

TICKS = 1_000_000_000  # of a model unit


class Subject:
    """The cell of one seed and the bundles of its rows, trained and exported when first asked for.

    An interrupted run has kept its points, and may need neither again. Use it as a context manager: bundles go with it.
    """

    def __init__(self, seed: int, recipe: Recipe, without: tuple[Part, ...] = ()) -> None:
        self.seed, self._recipe, self._without = seed, recipe, without
        self._folder = tempfile.TemporaryDirectory()
        self._bundles: dict[str, Path] = {}

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @cached_property
    def cell(self) -> Cell:
        """As trained, all reads open."""
        return train(self.seed, self._recipe, self._without)

    def deployed(self, row: str, test: Trial) -> list[float]:
        """Accuracy of a row of ROWS on the deployed runtime."""
        with load(self.bundle(row), "native") as model:
            return accuracy(Streams(model, test.sequences), test, self.seed)

    def stepped(self, test: Trial) -> list[float]:
        """Accuracy of the torch step, all reads open: as trained, and a hundred times slower."""
        return accuracy(Steps(self.cell, test.sequences), test, self.seed)

    def bundle(self, row: str) -> Path:
        """Of a row of ROWS."""
        if row not in self._bundles:
            folder = Path(self._folder.name) / row.replace(" ", "_")
            cell = with_reads(self.cell, ROWS[row])
            export_bundle(cell, folder, buckets=(SOLVER_STEPS,), allow_uncalibrated=True, verify_steps=100)
            self._bundles[row] = folder
        return self._bundles[row]


def with_reads(cell: Cell, opened: Sequence[float]) -> Cell:
    """A copy whose read gates are closed by their weights where `opened` is zero, and as trained elsewhere."""
    copy = Cell(cell.config)
    copy.load_state_dict(cell.state_dict())
    gates, shut = copy.memory.gates, torch.tensor(opened) == 0
    with torch.no_grad():
        gates.read.weight[shut] = 0.0
        gates.read_state[shut] = 0.0
        gates.read.bias[shut] = CLOSED
    return copy.eval()


class Streams:
    """Streams of a loaded bundle. See `recall_scoring.Listener`."""

    def __init__(self, model: Model, sequences: int) -> None:
        self._streams = [model.stream() for _ in range(sequences)]
        self._batch = Batcher(model)
        self._ticks: NDArray[np.int64] = np.zeros(sequences, np.int64)

    def feed(self, rows: Rows) -> None:
        """Take rows in."""
        for _ in self._steps(rows):
            pass

    def answers(self, asked: Rows) -> Tensor:
        """Labels [Q, B]; the streams stay as they were."""
        states, ticks = [stream.save() for stream in self._streams], self._ticks
        chosen = [[int(np.argmax(output.y)) for output in outputs] for outputs in self._steps(asked)]
        for stream, state in zip(self._streams, states, strict=True):
            stream.load(state)
        self._ticks = ticks
        return torch.tensor(chosen)

    def _steps(self, rows: Rows) -> Iterator[list[Output]]:
        """What each stream says to each row."""
        gaps = np.maximum(np.rint(rows.dt.squeeze(-1).double().numpy() * TICKS), 1).astype(np.int64)
        for x, mask, gap in zip(rows.x.numpy(), rows.mask.numpy(), gaps, strict=True):
            self._ticks = self._ticks + gap
            outputs: list[Output] = []
            for output in self._batch.step(self._streams, x, self._ticks, mask):
                if not isinstance(output, Output):
                    raise output
                outputs.append(output)
            yield outputs


class Steps:
    """The torch step over a batch. See `recall_scoring.Listener`."""

    def __init__(self, cell: Cell, sequences: int) -> None:
        self._cell, self._state = cell, cell.initial_state(sequences)

    def feed(self, rows: Rows) -> None:
        """Take rows in."""
        self._state = self._unroll(rows).state

    def answers(self, asked: Rows) -> Tensor:
        """Labels [Q, B]; the state stays as it was."""
        return self._unroll(asked).y.argmax(dim=-1)

    @torch.no_grad()
    def _unroll(self, rows: Rows) -> Unrolled:
        return unroll(self._cell, rows.inputs(), self._state)
