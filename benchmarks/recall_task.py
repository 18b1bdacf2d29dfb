"""Event recall: key/value events among noise, nothing that marks them, then questions for the values.

A row has 16 key and 16 value channels. An event holds one key and one value, both one-hot; every other row is normal
noise of deviation 0.3 in all channels, so an event has *less* energy than most noise. A question shows a key channel
pattern and no value channels; the label is the value that this sequence gave to the key.

Two things make it harder. A rewritten key has a second event with another value: the latest one counts. A near-miss
stands in the place of noise and looks like an event, but is none: it has no key or no value, two of one, or half the
height. Its keys and values are those of the events, so whoever takes it in has the wrong value for a key.
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
NEAR_MISSES = (
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (1.0, 1.0, 1.0, 0.0),
    (1.0, 0.0, 1.0, 1.0),
    (0.5, 0.0, 0.5, 0.0),
)
"""Heights of a first and a second key, of a first and a second value: what an event is not."""


class Rows(NamedTuple):
    """x [T, B, 32], mask [T, B, 32], dt [T, B, 1]."""

    x: Tensor
    mask: Tensor
    dt: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """As a cell takes them."""
        return self._asdict()


class Events(NamedTuple):
    """Rows that hold the events, the keys they used [B, 8], and the latest value of each [B, 8]."""

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


def sequences(
    batch: int,
    before: int,
    between: int,
    gap: int,
    make: torch.Generator,
    *,
    rewritten: int = 0,
    near_misses: float = 0.0,
) -> Sequence:
    """`before` noise rows, the events among `between` noise rows, `gap` noise rows, then 8 questions."""
    events = event_rows(batch, between, make, rewritten=rewritten, near_misses=near_misses)
    asked = questions(events, make)
    head, tail = (noise(length, batch, make, near_misses=near_misses) for length in (before, gap))
    parts = (head, events.rows, tail, asked.rows)
    return Sequence(Rows(*(torch.cat(part) for part in zip(*parts, strict=True))), asked.labels)


def noise(length: int, batch: int, make: torch.Generator, *, near_misses: float = 0.0) -> Rows:
    """Rows that say nothing; a share `near_misses` of them looks as if it did."""
    x = NOISE * torch.randn(length, batch, CHANNELS, generator=make)
    if near_misses:
        places = torch.rand(length, batch, generator=make) < near_misses
        x[places] = near_miss_rows(int(places.sum()), make)
    return Rows(x, torch.ones_like(x), _gaps(length, batch, make))


def near_miss_rows(count: int, make: torch.Generator) -> Tensor:
    """Rows [count, 32] of the kinds of NEAR_MISSES, each as often."""
    heights = torch.tensor(NEAR_MISSES)[torch.randint(0, len(NEAR_MISSES), (count,), generator=make)]
    keys, values = (_one_hot(_distinct(count, width, make)[:, :2], width) for width in (KEYS, VALUES))
    parts = zip((keys, values), torch.split(heights, 2, dim=-1), strict=True)
    return torch.cat([torch.sum(shown * height.unsqueeze(-1), dim=1) for shown, height in parts], dim=-1)


def event_rows(
    batch: int, between: int, make: torch.Generator, *, rewritten: int = 0, near_misses: float = 0.0
) -> Events:
    """8 events with distinct keys at random places among `between` noise rows; the last row is an event.

    `rewritten` of the keys have a second event, with another value, before or after their first.
    """
    count = EVENTS + rewritten
    rows = noise(count + between, batch, make, near_misses=near_misses)
    keys, values = _distinct(batch, KEYS, make), torch.randint(0, VALUES, (batch, EVENTS), generator=make)
    other = (values[:, :rewritten] + torch.randint(1, VALUES, (batch, rewritten), generator=make)) % VALUES
    places = _places(batch, count, count + between, make)
    pairs = torch.cat(
        [
            _one_hot(torch.cat([keys, keys[:, :rewritten]], dim=1), KEYS),
            _one_hot(torch.cat([values, other], dim=1), VALUES),
        ],
        dim=-1,
    )
    rows.x[places, torch.arange(batch).unsqueeze(1)] = pairs
    later = places[:, EVENTS:] > places[:, :rewritten]
    latest = torch.cat([torch.where(later, other, values[:, :rewritten]), values[:, rewritten:]], dim=1)
    return Events(rows, keys, latest)


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


def _places(batch: int, count: int, length: int, make: torch.Generator) -> Tensor:
    """`count` places among `length` in random order [B, count]; one of them is the last."""
    early = torch.rand(batch, length - 1, generator=make).argsort(dim=1)[:, : count - 1]
    places = torch.cat([early, torch.full((batch, 1), length - 1)], dim=1)
    return places.gather(1, torch.rand(batch, count, generator=make).argsort(dim=1))


def _distinct(batch: int, choices: int, make: torch.Generator) -> Tensor:
    return torch.rand(batch, choices, generator=make).argsort(dim=1)[:, :EVENTS]


def _one_hot(index: Tensor, width: int) -> Tensor:
    return torch.nn.functional.one_hot(index, width).float()
