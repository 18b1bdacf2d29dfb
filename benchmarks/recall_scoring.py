"""Accuracy of recall over the gap, in one pass through the noise, of whoever listens to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.gates import write_gate
from recall_task import Rows, event_rows, near_miss_rows, noise, questions

BLOCK = 1000  # noise rows that are made at once
TEST_SEED = 1_000_000  # added to a seed, so that no test sequence is one of training


@dataclass(frozen=True)
class Trial:
    """gaps: noise rows between the last event and the questions. before, between: noise rows before and among events.

    rewritten: how many of the 8 keys have a second event. near_misses: their share of the noise rows. sequences: of a
    figure, each asked `rounds` times 8 questions: every round starts from the same state.
    """

    gaps: tuple[int, ...]
    before: int = 300
    between: int = 100
    rewritten: int = 0
    near_misses: float = 0.0
    sequences: int = 32
    rounds: int = 2


class Listener(Protocol):
    """A model that has taken in some rows of as many streams as a trial has sequences."""

    def feed(self, rows: Rows) -> None:
        """Take rows in."""

    def answers(self, asked: Rows) -> Tensor:
        """The labels [Q, B] that it gives to questions; its state stays as it was."""


def accuracy(listener: Listener, test: Trial, seed: int) -> list[float]:
    """Share of right answers at every gap, after noise, the events, and more noise."""
    make = torch.Generator().manual_seed(TEST_SEED + seed)
    for rows in _noise(test.before, test, make):
        listener.feed(rows)
    events = event_rows(test.sequences, test.between, make, rewritten=test.rewritten, near_misses=test.near_misses)
    listener.feed(events.rows)
    found = []
    for last, gap in pairwise((0, *test.gaps)):
        for rows in _noise(gap - last, test, make):
            listener.feed(rows)
        rounds = [questions(events, make) for _ in range(test.rounds)]
        right = torch.cat([listener.answers(asked.rows) == asked.labels for asked in rounds])
        found.append(float(right.float().mean()))
    return found


@torch.no_grad()
def leaks(cell: Cell, rows: int, seed: int) -> dict[str, int]:
    """How many of `rows` noise rows and of as many near-misses the write gate lets through at all."""
    make = torch.Generator().manual_seed(TEST_SEED + seed)
    weights, counts = cell.memory.gates.weights(), {"noise": 0, "near-misses": 0}
    for count in _blocks(rows):
        for name, x in (("noise", noise(count, 1, make).x.squeeze(1)), ("near-misses", near_miss_rows(count, make))):
            seen = cell.observe({"x": x, "mask": torch.ones_like(x)}, {})
            counts[name] += int((write_gate(seen.features, weights).write.amax(dim=-1) > 0).sum())
    return counts


def _noise(length: int, test: Trial, make: torch.Generator) -> Iterator[Rows]:
    return (noise(count, test.sequences, make, near_misses=test.near_misses) for count in _blocks(length))


def _blocks(length: int) -> Iterable[int]:
    """Lengths of at most BLOCK that add up to `length`."""
    return (min(BLOCK, length - start) for start in range(0, length, BLOCK))
