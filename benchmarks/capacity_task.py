"""Pairs of a key and a value, then questions for the values: a few of them and a gap, or more than a memory can hold.

A row has 28 key and 4 value channels, both continuous. A pair's key is new in every sequence; its value is written with
noise of deviation 0.5 and asked for without it. A key may be written several times, each time with new noise: the
average of what was written is then worth more than any single row. Noise rows are those of event recall
(`recall_task`), a third as high as a pair. A question shows a key and no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recall_task import CHANNELS, Rows, noise

VALUES = 4
KEYS = CHANNELS - VALUES
NOISE = 0.5
FEWEST = 4
BEFORE = 16  # noise rows before the pairs


class Drawn(NamedTuple):
    """rows: everything said, questions last. wanted [Q, B, 4]: answers to the last Q rows."""

    rows: Rows
    wanted: Tensor

    @property
    def asked(self) -> range:
        """Times of the questions."""
        return range(len(self.rows.x) - len(self.wanted), len(self.rows.x))


@dataclass(frozen=True)
class Reach:
    """8 pairs and as many questions; points are gaps, noise rows between both. longest: gap in training."""

    points: tuple[int, ...]
    longest: int
    pairs = 8
    writes = 1
    noisy = True

    def draw(self, batch: int, ease: float, make: torch.Generator) -> Drawn:
        """A training sequence; gaps are uniform in the logarithm, and grow with `ease` from 0 to 1."""
        return self.trial(round(_log_uniform(1, 1 + ease * self.longest, make)) - 1, batch, make)

    def trial(self, point: int, batch: int, make: torch.Generator) -> Drawn:
        """Sequences with a gap of `point` rows."""
        return sequences(batch, self.pairs, self.writes, self.pairs, BEFORE, point, make)


@dataclass(frozen=True)
class Pairs:
    """No noise rows, 16 questions; points are numbers of distinct keys. most: in training. writes: rows of each."""

    points: tuple[int, ...]
    most: int
    writes: int = 1
    questions = 16
    noisy = False

    def draw(self, batch: int, ease: float, make: torch.Generator) -> Drawn:
        """A training sequence; numbers of keys are uniform in the logarithm, and grow with `ease` from 0 to 1."""
        most = FEWEST + ease * (self.most - FEWEST)
        return self.trial(round(_log_uniform(FEWEST, most, make)), batch, make)

    def trial(self, point: int, batch: int, make: torch.Generator) -> Drawn:
        """Sequences with `point` keys."""
        return sequences(batch, point, self.writes, self.questions, 0, 0, make)


Task = Reach | Pairs


def floor(task: Task) -> float:
    """Least mean squared error: that of the posterior mean given every row of the key."""
    return NOISE**2 / (NOISE**2 + task.writes)


def sequences(
    batch: int, pairs: int, writes: int, questions: int, before: int, gap: int, make: torch.Generator
) -> Drawn:
    """Noise rows, pairs in random order, noise rows, then questions: for different keys as long as there are some."""
    keys = F.normalize(torch.randn(batch, pairs, KEYS, generator=make), dim=-1) * math.sqrt(KEYS)
    values = torch.randn(batch, pairs, VALUES, generator=make)
    told = torch.rand(batch, pairs * writes, generator=make).argsort(dim=1) % pairs
    asked = torch.rand(batch, max(pairs, questions), generator=make).argsort(dim=1)[:, :questions] % pairs
    heard = _taken(values, told)
    heard = heard + NOISE * torch.randn(heard.shape, generator=make)
    said = torch.cat([_taken(keys, told), heard], dim=-1).transpose(0, 1)
    question = F.pad(_taken(keys, asked), (0, VALUES)).transpose(0, 1)
    rows = noise(before + pairs * writes + gap + questions, batch, make)
    rows.x[before : before + len(said)] = said
    rows.x[-questions:] = question
    rows.mask[-questions:, :, KEYS:] = 0.0
    return Drawn(rows, _taken(values, asked).transpose(0, 1))


def pieces(rows: Rows, length: int) -> Sequence[Rows]:
    """Rows in pieces of at most `length`."""
    return [Rows(*(part[start : start + length] for part in rows)) for start in range(0, len(rows.x), length)]


def _log_uniform(least: float, most: float, make: torch.Generator) -> float:
    return float(least * (most / least) ** float(torch.rand((), generator=make)))


def _taken(of: Tensor, index: Tensor) -> Tensor:
    """of [B, P, n] at index [B, Q] -> [B, Q, n]."""
    return of.gather(1, index.unsqueeze(-1).expand(-1, -1, of.shape[-1]))
