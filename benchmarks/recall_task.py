"""Event recall: key/value events among noise, nothing that marks them, then questions for the values.

A row has 16 key and 16 value channels. An event holds one key and one value, both one-hot; every other row is normal
noise of deviation 0.3 in all channels, so an event has *less* energy than most noise. A question shows a key channel
pattern and no value channels; the label is the value that this sequence gave to the key.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

KEYS, VALUES, EVENTS = 16, 16, 8
CHANNELS = KEYS + VALUES
NOISE = 0.3
CHANCE = 1 / VALUES
MEDIAN_GAP = 0.1  # of dt, in model units: the model's unit is ten median gaps
LONGEST_GAP = 1.0


class Rows(NamedTuple):
    """x [T, B, 32], mask [T, B, 32], dt [T, B, 1]."""

    x: Tensor
    mask: Tensor
    dt: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """As a cell takes them."""
        return self._asdict()


class Events(NamedTuple):
    """Rows that hold the events, the keys they used [B, 8], each once, and their values [B, 8]."""

    rows: Rows
    keys: Tensor
    values: Tensor


class Questions(NamedTuple):
    """Rows that ask, and the values asked for [Q, B]."""

    rows: Rows
    labels: Tensor


class Sequence(NamedTuple):
    """Whole sequences; the last `len(labels)` rows are the questions."""

    rows: Rows
    labels: Tensor

    @property
    def asked(self) -> range:
        """Times of the questions."""
        return range(len(self.rows.x) - len(self.labels), len(self.rows.x))


def sequences(batch: int, before: int, between: int, gap: int, make: torch.Generator) -> Sequence:
    """`before` noise rows, 8 events among `between` noise rows, `gap` noise rows, then 8 questions."""
    events = event_rows(batch, between, make)
    asked = questions(events, make)
    parts = (noise(before, batch, make), events.rows, noise(gap, batch, make), asked.rows)
    return Sequence(Rows(*(torch.cat(part) for part in zip(*parts, strict=True))), asked.labels)


def noise(length: int, batch: int, make: torch.Generator) -> Rows:
    """Rows that say nothing."""
    x = NOISE * torch.randn(length, batch, CHANNELS, generator=make)
    return Rows(x, torch.ones_like(x), _gaps(length, batch, make))


def event_rows(batch: int, between: int, make: torch.Generator) -> Events:
    """8 events with distinct keys at random places among `between` noise rows; the last row is an event."""
    rows = noise(EVENTS + between, batch, make)
    keys, values = _distinct(batch, KEYS, make), torch.randint(0, VALUES, (batch, EVENTS), generator=make)
    early = torch.rand(batch, EVENTS + between - 1, generator=make).argsort(dim=1)[:, : EVENTS - 1]
    places = torch.cat([early, torch.full((batch, 1), EVENTS + between - 1)], dim=1)
    pairs = torch.cat([_one_hot(keys, KEYS), _one_hot(values, VALUES)], dim=-1)
    rows.x[places, torch.arange(batch).unsqueeze(1)] = pairs
    return Events(rows, keys, values)


def questions(events: Events, make: torch.Generator) -> Questions:
    """8 questions for keys that occurred, drawn with replacement: who writes while answering is found out."""
    which = torch.randint(0, EVENTS, events.keys.shape, generator=make)
    shown, labels = _one_hot(events.keys.gather(1, which), KEYS), events.values.gather(1, which)
    x = torch.cat([shown, torch.zeros(*shown.shape[:-1], VALUES)], dim=-1).transpose(0, 1).contiguous()
    mask = torch.zeros_like(x)
    mask[..., :KEYS] = 1.0
    return Questions(Rows(x, mask, _gaps(EVENTS, len(which), make)), labels.T.contiguous())


def _gaps(length: int, batch: int, make: torch.Generator) -> Tensor:
    """Exponential waiting times [T, B, 1]: as irregular as can be."""
    drawn = torch.empty(length, batch, 1).exponential_(math.log(2) / MEDIAN_GAP, generator=make)
    return torch.clamp(drawn, max=LONGEST_GAP)


def _distinct(batch: int, choices: int, make: torch.Generator) -> Tensor:
    return torch.rand(batch, choices, generator=make).argsort(dim=1)[:, :EVENTS]


def _one_hot(index: Tensor, width: int) -> Tensor:
    return torch.nn.functional.one_hot(index, width).float()
