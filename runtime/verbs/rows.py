"""Rows of a table on their way through `odestream run`: read as observations, written with their answers."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, TextIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import Manifest, TaskSpec
from odestream.runtime.member import Observation
from odestream.runtime.predictions import Predictions, number
from odestream.runtime.records import Output
from odestream.runtime.table import read_bytes, read_rows


@dataclass(frozen=True)
class TableRow:
    """One row of the input. where: its place for messages. cells: what the output repeats. t: None for tokens."""

    where: str
    cells: list[str]
    stream: str
    x: NDArray[np.generic]
    t: int | None
    mask: NDArray[np.float32] | None

    @property
    def observation(self) -> Observation:
        """What its stream is given."""
        return Observation(self.stream, self.x, self.t, self.mask)


class Writer:
    """Rows of the output; each is handed on at once, so that a pipe's reader sees it."""

    def __init__(self, file: TextIO, task: TaskSpec, table: Predictions) -> None:
        self._file = file
        self._csv = csv.writer(file, lineterminator="\n")
        self._table = table
        self._live = file is sys.stdout
        named = [column for column in (task.time, task.stream) if column is not None]
        self._header: list[str] | None = [*named, *table.columns, "err", "bucket", "flagged"]

    def write(self, seen: TableRow, out: Output) -> None:
        """One row, the header before the first."""
        self.write_header()
        err = "" if out.err is None else number(out.err)
        bucket = "" if out.bucket is None else str(out.bucket)
        self._csv.writerow([*seen.cells, *self._table.cells(out.y, seen.x), err, bucket, int(out.flagged)])
        if self._live:
            self._file.flush()

    def write_header(self) -> None:
        """The header, unless it was written."""
        if self._header is not None:
            self._csv.writerow(self._header)
            self._header = None


def table_rows(
    source: BinaryIO, name: str, manifest: Manifest, task: TaskSpec, last: Mapping[str, int], late: bool
) -> Iterator[TableRow]:
    """The rows of a table, or the bytes of a text, as they arrive.

    last: see `read_rows`. late: whether a time may lie at or before its stream's last one.
    """
    if task.kind == "tokens":
        for i, byte in enumerate(read_bytes(source)):
            yield TableRow(f"{name} byte {i}", [], "", np.array(byte, np.int64), None, None)
        return
    for row in read_rows(source, task, manifest.time, last, name=name, late=late):
        cells = [row.time] * (task.time is not None) + [row.stream] * (task.stream is not None)
        mask = None if row.mask.all() else row.mask
        yield TableRow(f"{name} line {row.line}", cells, row.stream, row.x, row.ticks, mask)


class Unseen:
    """The rows of a table that come after what their resumed streams had seen. skipped: the others.

    last: the last tick of the streams that are resumed, by name; a row without a time was never seen.
    """

    def __init__(self, last: Mapping[str, int]) -> None:
        self.skipped = 0
        self._last = last

    def of(self, rows: Iterable[TableRow]) -> Iterator[TableRow]:
        """Those of `rows`, as they arrive."""
        for row in rows:
            last = self._last.get(row.stream)
            if row.t is not None and last is not None and row.t <= last:
                self.skipped += 1
            else:
                yield row


def with_inputs(manifest: Manifest) -> TaskSpec:
    """The task; a step exported without column names reads `x0`, `x1`, …"""
    x = manifest.spec.input("x")
    if manifest.task.inputs or manifest.task.kind == "tokens" or x is None:
        return manifest.task
    return msgspec.structs.replace(manifest.task, inputs=tuple(f"x{i}" for i in range(x.size)))
