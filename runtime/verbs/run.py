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
from odestream.runtime.atomic import new_file
from odestream.runtime.contract.manifest import Manifest, TaskSpec
from odestream.runtime.errors import GapError, InputError, OdestreamError, PathError, SnapshotError
from odestream.runtime.generations import read_generation, write_generation
from odestream.runtime.predictions import Predictions, number, predictions
from odestream.runtime.session import UNNAMED
from odestream.runtime.table import STDIN, open_source, read_bytes, read_rows
from odestream.runtime.verbs.console import reading_progress, refuse_outputs, save_json, whole_numbers
from odestream.runtime.verbs.stopping import Stopper
from odestream.runtime.verbs.tally import Tally, as_json, sentence, total

STDOUT = "-"
RESET = "reset"
GAP_POLICIES = ("error", RESET)
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    source: Annotated[str, typer.Option("--input", help="A CSV (a text for a token model); - is standard input.")],
    output: Annotated[str, typer.Option(help="The CSV to write; - is standard output, row by row.")] = STDOUT,
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes native where it can run.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="Continue the streams of this snapshot.")] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Save the streams here at the end.")] = None,
    on_gap: Annotated[str, typer.Option(help="A gap too long to cross: error, or reset to a new stream.")] = "error",
    buckets: Annotated[
        str | None, typer.Option(help="Solver steps to choose among, with commas; one alone fixes them.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write what each stream's solver did to this JSON file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the written files where they exist.")] = False,
) -> None:
    """Stream a table through a bundle and write its predictions, one row for each row.

    Written are the input's time and stream columns, a column for each target (a forecast is made before its row was
    seen), err (estimated solver error in units of the tolerance), bucket (solver steps) and flagged (1 where err is
    above the bundle's safety factor although more steps and shorter pieces were tried). One line on standard error
    sums up what the solver did.
    An empty cell is a missing value; a row of empty cells asks for a prediction. SIGINT and SIGTERM finish the row
    and save the snapshot. A row that cannot be read ends the run: a file of output is then not written, standard
    output keeps its rows and the snapshot their state.
    """
    if on_gap not in GAP_POLICIES:
        raise InputError(f"--on-gap is {on_gap!r}; choose one of {', '.join(GAP_POLICIES)}")
    chosen = None if buckets is None else whole_numbers("--buckets", buckets, "1,4")
    _refuse_paths(source, None if output == STDOUT else Path(output), resume, snapshot, report, force)
    with load(bundle, backend=backend) as model, Stopper() as stopper:
        streams = _Streams(model, resume, chosen, on_gap)
        with _open_output(output, force) as file:
            try:
                _stream_table(streams, source, file, stopper)
            except OdestreamError:
                if snapshot is not None and streams.by_name and output == STDOUT:
                    write_generation(snapshot, streams.save(source))  # its rows are out: their state is kept
                raise
            saved = b"" if snapshot is None else streams.save(source)
        if snapshot is not None:
            write_generation(snapshot, saved)
        streams.tell(report, force)
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


def _refuse_paths(
    source: str, output: Path | None, resume: Path | None, snapshot: Path | None, report: Path | None, force: bool
) -> None:
    """Refuse what cannot be written, or would be written over what is read, before any work is done."""
    refuse_outputs(force, output, report)
    refuse_outputs(force or snapshot == resume, snapshot)
    refuse_outputs(True, output, snapshot, report)
    read = [] if source == STDIN else [Path(source).resolve()]
    for path in (output, snapshot, report):
        if path is not None and path.resolve() in read:
            raise PathError(f"{path} is the input itself; write to another path")
    for path in (output, report):
        if path is not None and resume is not None and path.resolve() == resume.resolve():
            raise PathError(f"{path} is the snapshot that is resumed; write to another path")


class _Streams:
    """The streams of a run, new ones made as they appear. by_name: by the names that the table has for them."""

    def __init__(self, model: Model, resume: Path | None, buckets: list[int] | None, on_gap: str) -> None:
        self.model = model
        self._buckets = buckets
        self._on_gap = on_gap
        model.stream(buckets).close()  # buckets that the bundle lacks are refused before any work is done
        self.by_name = {} if resume is None else _restore(model, resume, buckets)
        self._tally = Tally(self.by_name)

    def step(self, seen: _Observation) -> Output:
        """The stream's answer; a gap that it cannot cross ends it where the user says so."""
        stream = self.by_name.get(seen.stream) or self._begin(seen.stream)
        try:
            return stream.step(seen.x, seen.t, seen.mask)
        except GapError:
            if self._on_gap != RESET:
                raise
        self._tally.end(seen.stream, stream)
        return self._begin(seen.stream).step(seen.x, seen.t, seen.mask)

    def save(self, source: str) -> bytes:
        """A snapshot of all streams."""
        if not self.by_name:
            raise InputError(f"{source}: no rows, so there is no stream to save; leave --snapshot out")
        return self.model.snapshot_streams(self.by_name)

    def tell(self, report: Path | None, force: bool) -> None:
        """Say on standard error what the solver did, where it can tell how well it did, and write the report."""
        counts, manifest = self._tally.of(self.by_name), self.model.manifest
        together = total(counts.values())
        if together.steps and manifest.solver is not None and manifest.solver.error_estimate:
            print(f"odestream: {sentence(together)}; on {self.model.backend}", file=sys.stderr)
        if report is not None:
            streams = {name: as_json(counters) for name, counters in counts.items()}
            about = {"bundle": manifest.name, "identity": manifest.identity}
            engine = {"backend": self.model.backend, "why": self.model.why}
            save_json(report, about | engine | {"total": as_json(together), "streams": streams}, force)

    def _begin(self, name: str) -> Stream:
        self.by_name[name] = stream = self.model.stream(self._buckets)
        return stream


def _restore(model: Model, path: Path, buckets: list[int] | None) -> dict[str, Stream]:
    """The snapshot's streams by the names that the table has for them."""
    found = read_generation(path)
    if found.path != path:
        print(f"odestream: resuming from {found.origin}", file=sys.stderr)
    streams = model.restore_streams(found.data, str(found.path), buckets)
    if model.manifest.task.stream is not None:
        return streams
    if len(streams) > 1:
        raise SnapshotError(
            f"{path} holds {len(streams)} streams, the table has no stream column; resume a snapshot of one stream"
        )
    return dict(zip([UNNAMED], streams.values(), strict=True))


def _stream_table(streams: _Streams, source: str, file: TextIO, stopper: Stopper) -> None:
    """Run every row of the source through its stream."""
    manifest = streams.model.manifest
    task = _with_inputs(manifest)
    y = manifest.spec.output("y")
    writer = _Writer(file, task, predictions(task, 0 if y is None else y.size))
    with open_source(source) as (name, stream), reading_progress(stream, "Streaming") as counted:
        for seen in stopper.until_stopped(_observations(counted, name, manifest, task, streams.by_name)):
            try:
                out = streams.step(seen)
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
