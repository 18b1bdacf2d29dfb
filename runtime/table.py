"""Tables of observations: CSV in, one checked row at a time.

The trainer and `odestream run` read through this file, so that a model meets the same numbers in both. An empty
cell is a missing value (mask 0), never zero. Reading takes constant memory, and a row of a pipe is given as soon
as its line ends. Errors name the file, the line, the column and the value.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError, TimeError
from odestream.runtime.timestamps import MAX_TICKS, format_time, parse_time, step_spec, time_spec

STDIN = "-"
Source = str | Path | BinaryIO


@dataclass(frozen=True)
class Row:
    """One observation.

    line: of the file, from 1, the header included. time, stream: cells as they are written, empty where the table has
    no such column. ticks: the time by the TimeSpec; without a time column, one unit after the stream's previous row.
    x, mask: `[X]` float32, in the order of the task's inputs; a missing value has x 0 and mask 0. label: the label
    cell, None where it is empty or absent.
    """

    line: int
    time: str
    stream: str
    ticks: int
    x: NDArray[np.float32]
    mask: NDArray[np.float32]
    label: str | None = None


@dataclass(frozen=True)
class Series:
    """One stream's rows. ticks `[T]` int64; x, mask `[T, X]` float32; labels `[T]` int64, −1 where missing."""

    name: str
    ticks: NDArray[np.int64]
    x: NDArray[np.float32]
    mask: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """A whole table: its clock, its classes (sorted; empty without a label column), its streams by first appearance."""

    time: TimeSpec
    labels: tuple[str, ...]
    series: tuple[Series, ...]


def read_rows(
    source: Source,
    task: TaskSpec,
    time: TimeSpec,
    last: Mapping[str, int] | None = None,
    *,
    labelled: bool = False,
    name: str | None = None,
    late: bool = False,
) -> Iterator[Row]:
    """Rows of a table, as they arrive.

    source: a path, `-` for standard input, or a binary stream. task: names the columns. last: the last tick of streams
    that are being resumed, by name; their rows must come after it. labelled: whether the label column must exist.
    name: what messages call the source. late: lets times pass that do not advance, for whoever puts them in order.
    Raises InputError for a table or cell that cannot be used, TimeError where a stream's time does not advance.
    """
    with _open_lines(source) as (found, lines):
        name = name or found
        cells = _Cells(name, lines)
        columns = _Columns.find(name, cells.header, task, labelled)
        ticks = _Ticks(name, time, columns, dict(last or {}), late)
        for line, row in cells:
            stream = _stream_name(name, line, row, columns)
            text = "" if columns.time is None else row[columns.time]
            x, mask = _observation(name, line, row, columns)
            label = row[columns.label] if columns.label is not None else ""
            yield Row(line, text, stream, ticks.next(line, stream, text), x, mask, label or None)


def read_table(path: str | Path, task: TaskSpec, time: TimeSpec | None = None, unit: str = "s") -> Table:
    """A whole table in memory, for training.

    time: the clock to count by; None chooses it from the time column, whose numbers are of `unit` (a table without
    one counts steps). task.labels: the known classes; where it is empty, they are those that appear. Raises what
    `read_rows` raises, InputError for a table without rows or labels, or with a class that is not known, and TimeError
    for a stream whose ticks differ by more than 64 bits, as numpy would wrap them.
    """
    time = time or _choose_time(path, task, unit)
    grouped: dict[str, list[Row]] = {}
    for row in read_rows(path, task, time, labelled=True):
        grouped.setdefault(row.stream, []).append(row)
    if not grouped:
        raise InputError(f"{path}: a header without rows; give a table that has some")
    labels = task.labels or _labels_of(path, task, grouped)
    return Table(time, labels, tuple(_series(path, name, rows, labels) for name, rows in grouped.items()))


def read_bytes(source: Source) -> Iterator[int]:
    """The bytes of a text, as they arrive; InputError where the file cannot be opened."""
    with open_source(source) as (_, stream):
        while piece := _read_some(stream):
            yield from piece


@contextmanager
def open_source(source: Source) -> Generator[tuple[str, BinaryIO], None, None]:
    """A source's name for messages and its bytes; InputError where the file cannot be opened."""
    if source == STDIN:
        yield "standard input", sys.stdin.buffer
    elif isinstance(source, str | Path):
        try:
            stream = Path(source).open("rb")  # noqa: SIM115 (closed below; only the opening may be refused)
        except OSError as cause:
            raise InputError(f"{source}: cannot be opened ({cause.strerror}); give a file that can be read") from cause
        with stream:
            yield str(source), stream
    else:
        yield getattr(source, "name", "the input"), source


_FLOAT32_END = 2.0**128 - 2.0**103  # from here on, rounding to float32 gives infinity
_BUFFER = 1 << 16
_WORD_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


class _Cells:
    """A CSV file's rows with their line numbers: stripped, of the header's width; empty lines are passed over."""

    def __init__(self, name: str, lines: Iterator[str]) -> None:
        self.name = name
        self.reader = csv.reader(lines, strict=True)
        header = next(self._rows(), None)
        if header is None:
            raise InputError(f"{name}: the file is empty; give a table whose first line names its columns")
        self.header = header[1]
        named = [column for column in self.header if column]
        repeated = sorted({column for column in named if named.count(column) > 1})
        if repeated:
            raise InputError(f"{name}: column {repeated[0]!r} stands twice in the header; rename one of them")

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        for line, row in self._rows():
            if len(row) != len(self.header):
                raise InputError(
                    f"{self.name} line {line}: {len(row)} cells under a header of {len(self.header)}; "
                    "correct the line (a missing value is an empty cell between its commas)"
                )
            yield line, row

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                row = next(self.reader, None)
            except csv.Error as cause:
                raise InputError(
                    f"{self.name} line {self.reader.line_num}: not CSV ({cause}); correct the line"
                ) from cause
            except UnicodeDecodeError as cause:
                where = f"{self.name} after line {self.reader.line_num}"
                raise InputError(f"{where}: not UTF-8 text ({cause.reason}); save the table as UTF-8 CSV") from cause
            if row is None:
                return
            if row:
                yield self.reader.line_num, [cell.strip() for cell in row]


@dataclass(frozen=True)
class _Columns:
    """Where a task's columns stand in a table."""

    names: tuple[str, ...]
    inputs: tuple[int, ...]
    time: int | None
    stream: int | None
    label: int | None

    @staticmethod
    def find(name: str, header: Sequence[str], task: TaskSpec, labelled: bool = False) -> _Columns:
        """InputError names the first missing column and those that exist; the label's counts where `labelled`."""
        label = task.targets[0] if task.kind == "classify" and task.targets else None
        for column in (task.time, task.stream, *task.inputs, label if labelled else None):
            if column is not None and column not in header:
                have = ", ".join(filter(None, header))
                raise InputError(f"{name}: no column {column!r}, the table has {have}; rename one or name another")
        return _Columns(
            names=task.inputs,
            inputs=tuple(header.index(column) for column in task.inputs),
            time=None if task.time is None else header.index(task.time),
            stream=None if task.stream is None else header.index(task.stream),
            label=header.index(label) if label in header else None,
        )


class _Ticks:
    """Times as ticks, each stream's strictly increasing unless rows may be late."""

    def __init__(self, name: str, spec: TimeSpec, columns: _Columns, last: dict[str, int], late: bool) -> None:
        self.name, self.spec, self.columns, self.late = name, spec, columns, late
        self.last = last
        self.text: dict[str, str] = {}

    def next(self, line: int, stream: str, text: str) -> int:
        previous = self.last.get(stream)
        ticks = self._parse(line, text) if self.columns.time is not None else self._count(previous)
        if previous is not None and ticks <= previous and not self.late:
            of = f" of stream {stream!r}" if stream else ""
            raise TimeError(
                f"{self.name} line {line}: time {text}{of} does not come after {self._last(stream, previous)}"
            )
        self.last[stream] = ticks
        self.text[stream] = text
        return ticks

    def _last(self, stream: str, previous: int) -> str:
        """The time before, and the remedy for one that does not come after it."""
        before = self.text.get(stream)
        if before is None:
            ended = format_time(previous, self.spec)
            return f"{ended}, where the resumed stream ended; leave out --resume, or the rows up to then (--skip-seen)"
        sort = "sort the rows by time and drop repeated ones"
        if self.columns.stream is not None:
            return f"{before}; {sort}"
        return f"{before}; train with --stream COLUMN where a column tells several streams apart, else {sort}"

    def _parse(self, line: int, text: str) -> int:
        try:
            return parse_time(text, self.spec)
        except TimeError as cause:
            raise TimeError(f"{self.name} line {line}: {cause}") from cause

    def _count(self, previous: int | None) -> int:
        ticks = 0 if previous is None else previous + self.spec.ticks_per_column_unit
        if ticks > MAX_TICKS:
            raise TimeError(f"{self.name}: the count of rows does not fit into 64 bits; start a new stream")
        return ticks


def _stream_name(name: str, line: int, row: list[str], columns: _Columns) -> str:
    if columns.stream is None:
        return ""
    if not row[columns.stream]:
        raise InputError(f"{name} line {line}: the stream's name is empty; give every row one")
    return row[columns.stream]


def _observation(
    name: str, line: int, row: list[str], columns: _Columns
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = np.zeros(len(columns.inputs), np.float32)
    mask = np.zeros(len(columns.inputs), np.float32)
    for i, column in enumerate(columns.inputs):
        if row[column]:
            x[i] = _number(f"{name} line {line} column {columns.names[i]!r}", row[column])
            mask[i] = 1.0
    return x, mask


def _number(where: str, text: str) -> float:
    if _WORD_NUMBER.fullmatch(text):
        raise InputError(f"{where}: {text!r} is not a finite number; leave the cell empty where a value is missing")
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(
            f"{where}: {text[:40]!r} is not a number; correct it, or leave the cell empty where a value is missing"
        )
    if abs(value) >= _FLOAT32_END:
        raise InputError(f"{where}: {text[:40]!r} is beyond float32 (±3.4e38); rescale the column or correct the cell")
    return value


def _choose_time(path: str | Path, task: TaskSpec, unit: str) -> TimeSpec:
    """A first pass over the time column alone."""
    if task.time is None:
        return step_spec()
    with _open_lines(path) as (name, lines):
        cells = _Cells(name, lines)
        column = _Columns.find(name, cells.header, task).time or 0
        try:
            return time_spec((row[column] for _, row in cells), unit)
        except TimeError as cause:
            raise TimeError(f"{name} column {task.time!r}: {cause}") from cause


def _labels_of(path: str | Path, task: TaskSpec, grouped: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    found = {row.label for rows in grouped.values() for row in rows if row.label is not None}
    if task.kind == "classify" and not found:
        raise InputError(f"{path}: column {task.targets[0]!r} holds no label; name the column that holds the classes")
    return tuple(sorted(found, key=_natural))


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers before words, 2 before 10; what reads as NaN, which has no order, or as infinity is a word."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (False, value, label) if math.isfinite(value) else (True, 0.0, label)


def _series(path: str | Path, name: str, rows: Sequence[Row], labels: tuple[str, ...]) -> Series:
    index = {label: i for i, label in enumerate(labels)}
    for row in rows:
        if row.label is not None and row.label not in index:
            raise InputError(
                f"{path} line {row.line}: label {row.label!r} is none of {', '.join(labels)}; train again to learn it"
            )
    span = rows[-1].ticks - rows[0].ticks
    if span > MAX_TICKS:
        raise TimeError(
            f"{path} line {rows[-1].line}: the time lies {span} ticks after the stream's first, which do not fit into "
            "64 bits; give a shorter stream, or its times in another unit"
        )
    return Series(
        name,
        np.array([row.ticks for row in rows], np.int64),
        np.stack([row.x for row in rows]),
        np.stack([row.mask for row in rows]),
        np.array([-1 if row.label is None else index[row.label] for row in rows], np.int64),
    )


@contextmanager
def _open_lines(source: Source) -> Generator[tuple[str, Iterator[str]], None, None]:
    """The file's name for messages and its decoded lines, line ends as they are (the CSV reader takes all kinds)."""
    with open_source(source) as (name, stream):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield name, _without_nul(name, text)
        finally:
            if not stream.closed:
                text.detach()


def _read_some(stream: BinaryIO) -> bytes:
    """What has arrived, at most one buffer; empty at the end."""
    read_once = getattr(stream, "read1", stream.read)
    piece: bytes = read_once(_BUFFER)
    return piece


def _without_nul(name: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise InputError(f"{name} line {number}: holds a NUL byte, so it is no text; save the table as UTF-8 CSV")
        yield line
