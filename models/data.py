"""A table as a trainer needs it: its clock, its parts in time, its centres and scales.

Parts of a stream are row ranges, in order of time: fit `[0, validation)`, validation `[validation, test)`, test
`[test, T)`. Choices are made on validation rows, and nothing that a model is made from (clock, centre, scale) reads
past the fit rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odestream.models.checkpoint import DataInfo, Settings
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError
from odestream.runtime.table import Series, open_source, read_table
from odestream.runtime.timestamps import NANOSECONDS, step_spec

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

VALIDATION_FRACTION = 0.2  # of what is not test
GAPS_PER_UNIT = 10  # the model's time unit, in median gaps
HARMONICS = 4  # of a season
MIN_FIT_ROWS = 16


@dataclass(frozen=True)
class Part:
    """One stream and the rows at which its validation and its test part begin."""

    series: Series
    validation: int
    test: int


@dataclass(frozen=True)
class Dataset:
    """A table ready for training.

    task: with its classes filled in. time: the clock with model unit, origin and frequencies. gap: the median gap
    of the fit rows, in ticks. parts: one a stream. info: what a checkpoint says of the data.
    """

    task: TaskSpec
    time: TimeSpec
    gap: float
    parts: tuple[Part, ...]
    info: DataInfo


def number_columns(path: str | Path, excluded: Collection[str | None]) -> tuple[str, ...]:
    """Columns of a CSV whose first filled cell is a number, but those `excluded`; InputError where there are none.

    One number makes a number column, so that text further down is an error and not a column left out.
    """
    header, first = _first_cells(path)
    names = [name for name, cell in zip(header, first, strict=True) if name not in excluded and _is_number(cell)]
    if not names:
        raise InputError(f"{path}: no column of numbers is left for the inputs; name some with --inputs")
    return tuple(names)


@dataclass(frozen=True)
class Text:
    """A text of bytes in three parts, by position."""

    task: TaskSpec
    time: TimeSpec
    training: bytes
    validation: bytes
    test: bytes
    info: DataInfo


def load_text(path: str | Path, settings: Settings) -> Text:
    """Read a text file; InputError where it cannot be opened or is too short. A byte lasts one model unit."""
    with open_source(Path(path)) as (_, stream):
        text = stream.read()
    test = int((1 - settings.test_fraction) * len(text))
    validation = int((1 - VALIDATION_FRACTION) * test)
    if min(validation, test - validation, len(text) - test) < MIN_FIT_ROWS:
        raise InputError(
            f"{path}: {len(text)} bytes cannot be split into training, validation and test; give a longer text"
        )
    time = step_spec()
    info = DataInfo(Path(path).name, hashlib.sha256(text).hexdigest(), len(text), 1, time.ticks_per_model_unit)
    parts = text[:validation], text[validation:test], text[test:]
    return Text(TaskSpec("tokens"), time, *parts, info)


def load_table(path: str | Path, task: TaskSpec, settings: Settings) -> Dataset:
    """Read a CSV and split it; raises what `read_table` raises, and InputError where too little is left to train on."""
    table = read_table(path, task, unit=settings.time_unit)
    task = TaskSpec(task.kind, task.inputs, task.targets, table.labels, task.time, task.stream)
    parts = split(task, table.series, settings)
    gap = _median_gap(path, parts)
    time = complete_time(table.time, gap, min(int(p.series.ticks[0]) for p in parts), settings.period)
    rows = sum(len(p.series.ticks) for p in parts)
    return Dataset(task, time, gap, parts, DataInfo(Path(path).name, file_hash(path), rows, len(parts), gap))


def split(task: TaskSpec, series: Sequence[Series], settings: Settings) -> tuple[Part, ...]:
    """Test and validation rows of every stream.

    Forecasts, and classes that change within a stream: by time, the last rows of each stream. Where each of several
    streams belongs to one class: whole streams, drawn by the seed, the same share of every class.
    """
    if task.kind == "classify" and len(series) > 1 and all(_one_label(s) for s in series):
        return _split_streams(task, series, settings)
    return tuple(_split_rows(s, settings.test_fraction) for s in series)


def complete_time(time: TimeSpec, gap: float, origin: int, period: float | None) -> TimeSpec:
    """The clock with a model unit of ten median gaps, phases counted from `origin`, and the season's harmonics."""
    unit = GAPS_PER_UNIT * gap
    frequencies: tuple[float, ...] = ()
    if period is not None:
        turn = 2 * np.pi * unit / period_ticks(time, period)
        frequencies = tuple(float(k * turn) for k in range(1, HARMONICS + 1))
    return TimeSpec(
        time.kind, time.unit, time.ticks_per_column_unit, time.tick_seconds, float(unit), origin, frequencies
    )


def period_ticks(time: TimeSpec, period: float) -> float:
    """A season's length in ticks; given in the time column's units, in days where it holds dates."""
    if not (np.isfinite(period) and period > 0):
        raise InputError(f"--period {period}: give the season's length, a number above 0")
    per_unit = time.ticks_per_column_unit
    if time.kind == "iso":
        per_unit *= NANOSECONDS["day"] // NANOSECONDS["s"]
    return period * per_unit


def centre_and_scale(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean of each channel over the fit rows and the size of its changes.

    For a forecast the scale is a channel's typical change over one model unit (mean absolute change over 0.8, the
    deviation where changes are normal); else, and where nothing changes, its standard deviation; else 1.
    """
    centres, scales = [], []
    for channel, name in enumerate(data.task.inputs):
        values = np.concatenate([_observed(p, channel)[1] for p in data.parts])
        if len(values) == 0:
            raise InputError(f"column {name!r} has no value in the training part; drop it from --inputs")
        centres.append(float(values.mean()))
        change = _typical_change(data, channel) if data.task.kind == "forecast" else 0.0
        scales.append(next((s for s in (change, float(values.std())) if s > 1e-6 * (1 + abs(centres[-1]))), 1.0))
    return tuple(centres), tuple(scales)


def phases(ticks: Rows, time: TimeSpec) -> Floats:
    """sin and cos of absolute time [..., 2K], computed in float64 as the host does; all sines first."""
    angles = (_since(ticks, time.origin) / time.ticks_per_model_unit)[..., None] * np.asarray(time.frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def file_hash(path: str | Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _since(ticks: Rows, origin: int) -> NDArray[np.float64]:
    """ticks − origin, rounded once; the difference of two int64 needs 65 bits, but its size fits 64 without a sign."""
    later = ticks >= origin
    high, low = np.where(later, ticks, origin), np.where(later, origin, ticks)
    size = (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
    return np.where(later, size, -size)


def _first_cells(path: str | Path) -> tuple[list[str], list[str]]:
    """A CSV's header and the first filled cell under each name; what is wrong with the table is found by its reader."""
    with open_source(Path(path)) as (_, stream):
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        reader = csv.reader(lines)
        try:
            header = [name.strip() for name in next(reader, [])]
            first = [""] * len(header)
            for row in reader:
                first = [old or new.strip() for old, new in itertools.zip_longest(first, row, fillvalue="")][
                    : len(header)
                ]
                if all(first):
                    break
        except csv.Error as cause:
            raise InputError(f"{path} line {reader.line_num}: not CSV ({cause}); correct the line") from cause
        finally:
            lines.detach()
    if not header:
        raise InputError(f"{path}: the file is empty; give a table whose first line names its columns")
    return header, first


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _split_rows(series: Series, test_fraction: float) -> Part:
    count = len(series.ticks)
    test = int((1 - test_fraction) * count)
    return Part(series, int((1 - VALIDATION_FRACTION) * test), test)


def _split_streams(task: TaskSpec, series: Sequence[Series], settings: Settings) -> tuple[Part, ...]:
    random = np.random.default_rng(settings.seed)
    classes = [[s for s in series if s.labels.max() == label] for label in range(len(task.labels))]
    tests = [round(settings.test_fraction * len(members)) for members in classes]
    validations = _validation_streams([len(m) - test for m, test in zip(classes, tests, strict=True)])
    parts: dict[str, Part] = {}
    for members, test, validation in zip(classes, tests, validations, strict=True):
        for place, index in enumerate(random.permutation(len(members))):
            stream, end = members[index], len(members[index].ticks)
            start = (0, 0) if place < test else (0, end) if place < test + validation else (end, end)
            parts[stream.name] = Part(stream, *start)
    return tuple(parts[s.name] if s.name in parts else Part(s, len(s.ticks), len(s.ticks)) for s in series)


def _validation_streams(left: Sequence[int]) -> list[int]:
    """Validation streams of each class, of those that are `left` after test: one at least, if a class can spare it."""
    counts = [round(VALIDATION_FRACTION * count) for count in left]
    largest = int(np.argmax(left))
    if sum(counts) == 0 and left[largest] > 1:
        counts[largest] = 1
    return counts


def _one_label(series: Series) -> bool:
    known = series.labels[series.labels >= 0]
    return len(np.unique(known)) <= 1


def _median_gap(path: str | Path, parts: Sequence[Part]) -> float:
    gaps = np.concatenate([np.diff(p.series.ticks[: p.validation]) for p in parts])
    if len(gaps) < MIN_FIT_ROWS:
        raise InputError(
            f"{path}: {len(gaps) + 1} rows are left to train on after validation and test; "
            f"give at least {MIN_FIT_ROWS} more, or a smaller --test-fraction"
        )
    return float(np.median(gaps))


def _observed(part: Part, channel: int) -> tuple[Rows, NDArray[np.float64]]:
    """Ticks and values of the fit rows in which a channel was observed."""
    seen = part.series.mask[: part.validation, channel] > 0
    return part.series.ticks[: part.validation][seen], part.series.x[: part.validation, channel][seen].astype(
        np.float64
    )


def _typical_change(data: Dataset, channel: int) -> float:
    changes = []
    for part in data.parts:
        ticks, values = _observed(part, channel)
        later = np.searchsorted(ticks, ticks + GAPS_PER_UNIT * data.gap)
        usable = later < len(ticks)
        changes.append(np.abs(values[later[usable]] - values[usable]))
    pooled = np.concatenate(changes)
    return float(pooled.mean() / 0.8) if len(pooled) else 0.0
