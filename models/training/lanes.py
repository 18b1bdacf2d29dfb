"""Lanes: many places in many sequences, walked on chunk by chunk, with the state carried from chunk to chunk.

This is truncated back-propagation: a chunk is short, so that the weights change often, and what a lane remembers is
older than its chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Chunk(NamedTuple):
    """For each of N lanes: which sequence, from which call on, and whether the lane has just been put there."""

    sequence: Rows
    start: Rows
    fresh: NDArray[np.bool_]


@dataclass(frozen=True)
class LanePlan:
    """count: N lanes. length: calls of a chunk. restart: chance that a lane is moved before a chunk.

    anywhere: whether a lane may be put inside a sequence (calls that do not fill a chunk are then left out), or
    always at its start and walked to its end.
    """

    count: int
    length: int
    restart: float
    anywhere: bool


class Lanes:
    """Draws chunks; sequences are chosen by their length. `position` [2, N] is all that must be kept to go on."""

    def __init__(self, plan: LanePlan, lengths: Sequence[int]) -> None:
        self.plan = plan
        self.lengths = np.asarray(lengths, np.int64)
        self.position = np.full((2, plan.count), -1, np.int64)  # sequence and next call; −1: nowhere yet

    def draw(self, random: np.random.Generator) -> Chunk:
        """The next chunk of every lane."""
        sequence, start = self.position
        moved = (start < 0) | (start + self._needed(sequence) > self.lengths[sequence])
        moved |= random.random(self.plan.count) < self.plan.restart
        chosen = random.choice(len(self.lengths), self.plan.count, p=self.lengths / self.lengths.sum())
        spare = np.maximum(self.lengths[chosen] - self.plan.length, 0) if self.plan.anywhere else np.zeros_like(chosen)
        place = random.integers(0, spare + 1)
        sequence, start = np.where(moved, chosen, sequence), np.where(moved, place, start)
        self.position = np.stack([sequence, start + self.plan.length])
        return Chunk(sequence, start, moved)

    def _needed(self, sequence: Rows) -> Rows:
        """Calls that must be left for a lane to stay in its sequence."""
        if not self.plan.anywhere:
            return np.ones_like(sequence)
        return np.minimum(self.lengths[sequence], self.plan.length)
