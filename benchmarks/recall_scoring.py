"""Accuracy of recall over the gap, for every row, in one pass through the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odestream.models.cell import Cell, State
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from recall_task import Questions, Rows, event_rows, noise, questions
from recall_training import ROWS


@dataclass(frozen=True)
class Trial:
    """gaps: noise rows between the last event and the questions. before, between: noise rows before and among events.

    sequences: of a figure, each asked `rounds` times 8 questions: every round starts from the same state.
    """

    gaps: tuple[int, ...] = (10, 32, 64, 300, 1000, 3000, 10_000)
    before: int = 300
    between: int = 8
    sequences: int = 128
    rounds: int = 2


@dataclass(frozen=True)
class Score:
    """accuracy: of each row by gap. written: share of noise rows that the write gate let through at all."""

    accuracy: dict[str, list[float]]
    written: float


class _Stream:
    """Every row of ROWS over the same sequences, side by side in one batch."""

    def __init__(self, cell: Cell, sequences: int) -> None:
        self._cell = cell
        self._opened = torch.tensor(list(ROWS.values()), dtype=torch.float32).repeat_interleave(sequences, dim=0)
        self._state: State = cell.initial_state(len(self._opened))

    def feed(self, rows: Rows) -> Tensor:
        """Take rows in; returns the write gates [T, sequences, 3] of the first row of ROWS."""
        got = self._unroll(rows)
        self._state = got.state
        return got.gates[:, : rows.x.shape[1], : self._opened.shape[1]]

    def ask(self, asked: Questions) -> Tensor:
        """Accuracy of each row of ROWS; the state stays as it was."""
        chosen = self._unroll(asked.rows).y.argmax(dim=-1).view(len(asked.labels), len(ROWS), -1)
        return torch.mean((chosen == asked.labels.unsqueeze(1)).float(), dim=(0, 2))

    def _unroll(self, rows: Rows) -> Unrolled:
        inputs = {name: part.repeat(1, len(ROWS), 1) for name, part in rows.inputs().items()}
        return unroll(self._cell, inputs, self._state, opened=self._opened)


@torch.no_grad()
def score(cell: Cell, test: Trial, seed: int) -> Score:
    """Stream `test.before` noise rows, the events, and noise up to the longest gap, asking on the way."""
    make = torch.Generator().manual_seed(1_000_000 + seed)
    stream = _Stream(cell, test.sequences)
    written = [_feed_noise(stream, test.before, test.sequences, make)]
    events = event_rows(test.sequences, test.between, make)
    stream.feed(events.rows)
    accuracy: dict[str, list[float]] = {name: [] for name in ROWS}
    for last, gap in zip((0, *test.gaps), test.gaps, strict=False):
        written.append(_feed_noise(stream, gap - last, test.sequences, make))
        right = torch.stack([stream.ask(questions(events, make)) for _ in range(test.rounds)]).mean(dim=0)
        for name, value in zip(ROWS, right.tolist(), strict=True):
            accuracy[name].append(value)
    return Score(accuracy, sum(written) / ((test.before + max(test.gaps)) * test.sequences))


def _feed_noise(stream: _Stream, length: int, sequences: int, make: torch.Generator, chunk: int = 50) -> float:
    """Noise rows in chunks, so that memory stays small; returns how many of them were written."""
    count = 0.0
    for start in range(0, length, chunk):
        writes = stream.feed(noise(min(chunk, length - start), sequences, make))
        count += float((writes.amax(dim=-1) > 0).sum())
    return count
