"""`odestream run`: a table in, its predictions out, row by row."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from odestream.runtime import Model, Output, Stream, load
from odestream.runtime.atomic import new_file, refuse_existing, write_bytes
from odestream.runtime.contract.manifest import Manifest, TaskSpec
from odestream.runtime.errors import InputError, OdestreamError
from odestream.runtime.predictions import Predictions, number, predictions
from odestream.runtime.snapshot import read_snapshot
from odestream.runtime.table import open_source, read_bytes, read_rows
from odestream.runtime.verbs.console import reading_progress
from odestream.runtime.verbs.stopping import Stopper

STDOUT = "-"
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    source: Annotated[str, typer.Option("--input", help="A CSV (a text for a token model); - is standard input.")],
    output: Annotated[str, typer.Option(help="The CSV to write; - is standard output, row by row.")] = STDOUT,
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes the fastest that works here.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="Continue the streams of this snapshot.")] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Save the streams here at the end.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace output and snapshot where they exist.")] = False,
) -> None:
    """Stream a table through a bundle and write its predictions, one row for each row.

    Written are the input's time and stream columns, a column for each target (a forecast is made before its row was
    seen), err (solver error in units of the tolerance), bucket (solver steps) and flagged (1 where err is above 1).
    An empty cell is a missing value; a row of empty cells asks for a prediction. SIGINT and SIGTERM finish the row
    and save the snapshot.
    """
    refuse_existing(Path(output), force or output == STDOUT)
    if snapshot is not None:
        refuse_existing(snapshot, force or snapshot == resume)
    with load(bundle, backend=backend) as model, Stopper() as stopper:
        streams = {} if resume is None else _restore(model, resume)
        with _open_output(output, force) as file:
            _stream_table(model, streams, source, file, stopper)
            saved = b"" if snapshot is None else _save(model, streams, source)
        if snapshot is not None:
            write_bytes(snapshot, saved)
    if stopper.signal is not None:
        raise typer.Exit(128 + stopper.signal)


@dataclass(frozen=True)
class _Observation:
    """One row of the input. where: its place for messages. cells: what the output repeats. t: None for tokens."""

    where: str
    cells: list[str]
    stream: str
    x: NDArray[np.generic]
    t: int | None
    mask: NDArray[np.float32] | None


class _Writer:
    """Rows of the output; each is handed on at once, so that a pipe's reader sees it."""

    def __init__(self, file: TextIO, task: TaskSpec, table: Predictions) -> None:
        self._file = file
        self._csv = csv.writer(file, lineterminator="\n")
        self._table = table
        self._live = file is sys.stdout
        named = [column for column in (task.time, task.stream) if column is not None]
        self._header: list[str] | None = [*named, *table.columns, "err", "bucket", "flagged"]

    def write(self, seen: _Observation, out: Output) -> None:
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


def _restore(model: Model, path: Path) -> dict[str, Stream]:
    try:
        return model.restore_streams(read_snapshot(path))
    except OdestreamError as error:
        raise _placed(error, str(path)) from error


def _save(model: Model, streams: dict[str, Stream], source: str) -> bytes:
    if not streams:
        raise InputError(f"{source}: no rows, so there is no stream to save; leave --snapshot out")
    return model.snapshot_streams(streams)


def _stream_table(model: Model, streams: dict[str, Stream], source: str, file: TextIO, stopper: Stopper) -> None:
    """Run every row of the source through its stream; new streams are added to `streams`."""
    task = _with_inputs(model.manifest)
    y = model.manifest.spec.output("y")
    writer = _Writer(file, task, predictions(task, 0 if y is None else y.size))
    with open_source(source) as (name, stream), reading_progress(stream, "Streaming") as counted:
        for seen in stopper.until_stopped(_observations(counted, name, model.manifest, task, streams)):
            if seen.stream not in streams:
                streams[seen.stream] = model.stream()
            try:
                out = streams[seen.stream].step(seen.x, seen.t, seen.mask)
            except OdestreamError as error:
                raise _placed(error, seen.where) from error
            writer.write(seen, out)
    writer.write_header()


def _observations(
    source: BinaryIO, name: str, manifest: Manifest, task: TaskSpec, streams: dict[str, Stream]
) -> Iterator[_Observation]:
    if task.kind == "tokens":
        for i, byte in enumerate(read_bytes(source)):
            yield _Observation(f"{name} byte {i}", [], "", np.array(byte, np.int64), None, None)
        return
    last = {key: stream.last_tick for key, stream in streams.items() if stream.last_tick is not None}
    for row in read_rows(source, task, manifest.time, last, name=name):
        cells = [row.time] * (task.time is not None) + [row.stream] * (task.stream is not None)
        mask = None if row.mask.all() else row.mask
        yield _Observation(f"{name} line {row.line}", cells, row.stream, row.x, row.ticks, mask)


def _with_inputs(manifest: Manifest) -> TaskSpec:
    """The task; a step exported without column names reads `x0`, `x1`, …"""
    x = manifest.spec.input("x")
    if manifest.task.inputs or manifest.task.kind == "tokens" or x is None:
        return manifest.task
    return msgspec.structs.replace(manifest.task, inputs=tuple(f"x{i}" for i in range(x.size)))


def _placed(error: OdestreamError, where: str) -> OdestreamError:
    """The same error, saying where it came up."""
    return type(error)(f"{where}: {error}")


@contextmanager
def _open_output(output: str, force: bool) -> Generator[TextIO, None, None]:
    """Standard output, or a file that appears when all its rows are there."""
    if output == STDOUT:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has left, as `head` does; the interpreter must not try to flush again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        return
    with new_file(Path(output), force) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=False)
        try:
            yield text
        finally:
            text.detach()
