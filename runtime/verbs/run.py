"""`odestream run`: a table in, its predictions out, row by row."""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, TextIO

import typer

from odestream.runtime import Model, load
from odestream.runtime.atomic import new_file
from odestream.runtime.batch import LARGEST
from odestream.runtime.errors import InputError, LogError, OdestreamError, PathError, SnapshotError
from odestream.runtime.fleet import Answer, Fleet
from odestream.runtime.flight import resume as resume_log
from odestream.runtime.generations import read_generation, write_generation
from odestream.runtime.metrics import serve
from odestream.runtime.policies import REPLAY, Policies
from odestream.runtime.predictions import predictions
from odestream.runtime.recorder import Recorder, segment_paths
from odestream.runtime.session import UNNAMED
from odestream.runtime.table import STDIN, open_source
from odestream.runtime.telemetry import Telemetry
from odestream.runtime.verbs.console import reading_progress, refuse_engines, refuse_outputs, save_json, whole_numbers
from odestream.runtime.verbs.rows import TableRow, Unseen, Writer, table_rows, with_inputs
from odestream.runtime.verbs.stopping import Stopper
from odestream.runtime.verbs.tally import Tally, as_json, sentence, total
from odestream.runtime.watchdog import Watchdog

STDOUT = "-"
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
WINDOW = 4096
"""Rows that are read ahead, so that streams which come one after the other in a table still share calls."""
MIB = 1 << 20


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    source: Annotated[str, typer.Option("--input", help="A CSV (a text for a token model); - is standard input.")],
    output: Annotated[str, typer.Option(help="The CSV to write; - is standard output, row by row.")] = STDOUT,
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes native where it can run.")] = "auto",
    engines: Annotated[
        Path | None, typer.Option(help="Folder of the engines of --backend tensorrt; BUNDLE.engines by default.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the streams of this snapshot, or of the log in this folder.")
    ] = None,
    skip_seen: Annotated[
        bool, typer.Option("--skip-seen", help="Pass over rows up to where their resumed streams ended.")
    ] = False,
    snapshot: Annotated[
        Path | None, typer.Option(help="Save the streams here at the end; the one before stays as NAME.previous.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Keep a log of all inputs in this folder, see `odestream replay`.")
    ] = None,
    record_mib: Annotated[int, typer.Option(help="Most that the log takes, in MiB; the oldest rows go first.")] = 64,
    on_gap: Annotated[str, typer.Option(help="A gap too long to cross: error, or reset to a new stream.")] = "error",
    on_late: Annotated[
        str, typer.Option(help="A row before its stream's last: error, or replay the rows since in order of time.")
    ] = "error",
    buckets: Annotated[
        str | None, typer.Option(help="Solver steps to choose among, with commas; one alone fixes them.")
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Most streams that share a call where the output is a file; 1 is row by row.")
    ] = LARGEST,
    deadline: Annotated[float | None, typer.Option(help="Milliseconds a call may take; misses are counted.")] = None,
    metrics: Annotated[
        int | None, typer.Option(help="Serve counts for Prometheus on this port of the loopback address.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write what each stream's solver did to this JSON file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the written files where they exist.")] = False,
) -> None:
    """Stream a table through a bundle and write its predictions, one row for each row.

    Written are the input's time and stream columns, a column for each target (a forecast is made before its row was
    seen), err (estimated solver error in units of the tolerance), bucket (solver steps) and flagged (1 where err is
    above the bundle's safety factor although more steps and shorter pieces were tried). One line on standard error
    sums up what the solver did: calls whose result was kept, by solver steps, and apart from them the rejected ones,
    which ran again. The report has the same counts, as buckets and rejected.
    An empty cell is a missing value; a row of empty cells asks for a prediction. SIGINT and SIGTERM finish the rows
    that were read and save the snapshot. A row that cannot be read ends the run, as does any other fault: a file of
    output is then not written, standard output keeps its rows and the snapshot their state. Under systemd the run tells
    that it is alive.
    """
    chosen = None if buckets is None else whole_numbers("--buckets", buckets, "1,4")
    how = _How(
        Policies(on_gap=on_gap, on_late=on_late), chosen, batch, Telemetry(deadline and deadline / 1e3), skip_seen
    )
    _refuse_paths(source, None if output == STDOUT else Path(output), resume, snapshot, report, force)
    _refuse_log(record, resume)
    refuse_engines(engines, (backend,))
    with ExitStack() as stack:
        model, stopper = stack.enter_context(load(bundle, backend, engines=engines)), stack.enter_context(Stopper())
        if metrics is not None:
            stack.callback(serve(how.telemetry, metrics))
        recorder = None if record is None else Recorder(record, record_mib * MIB)
        if recorder is not None:
            stack.callback(recorder.close)
        fleet = _fleet(model, resume, how, recorder)
        tally, watchdog = Tally(fleet), stack.enter_context(Watchdog())
        with _open_output(output, force) as file:
            try:
                _stream_table(fleet, source, file, stopper, watchdog, tally, how.skip_seen)
            except BaseException:  # also of a reader that has left, and of a fault of our own
                if snapshot is not None and fleet.names and output == STDOUT:
                    _keep(fleet, snapshot)  # its rows are out
                raise
            saved = b"" if snapshot is None else _saved(fleet, source)
        if snapshot is not None:
            write_generation(snapshot, saved)
        _tell(fleet, tally, report, force)
    if stopper.signal is not None:
        raise typer.Exit(128 + stopper.signal)


@dataclass(frozen=True)
class _How:
    """What the options say of streams."""

    policies: Policies
    buckets: list[int] | None
    batch: int
    telemetry: Telemetry
    skip_seen: bool


def _fleet(model: Model, resume: Path | None, how: _How, recorder: Recorder | None) -> Fleet:
    """The fleet that the options ask for, with the streams that are resumed."""
    fleet = Fleet(model, how.policies, buckets=how.buckets, largest=how.batch)
    if resume is not None and resume.is_dir():
        fleet = resume_log(model, resume, tell=_tell_user)
        wanted = how.policies, how.buckets and tuple(how.buckets), how.batch
        if (fleet.policies, fleet.buckets, fleet.largest) != wanted:
            raise LogError(f"{resume} was recorded with other options; resume it with {_options(fleet)}")
    elif resume is not None:
        found = read_generation(resume)
        if found.path != resume:
            _tell_user(f"resuming from {found.origin}")
        fleet.restore(found.data, str(found.path))
    if model.manifest.task.stream is None:
        _name_alone(fleet, resume)
    fleet.continue_with(recorder, how.telemetry)
    return fleet


def _options(fleet: Fleet) -> str:
    """The options of `run` that make such a fleet; a log of the Python interface may have policies that none makes."""
    policies, usual = fleet.policies, Policies()
    if (policies.on_missing, policies.window) != (usual.on_missing, usual.window):
        return "odestream.runtime.flight.resume, which takes all of them from the log"
    buckets = "" if fleet.buckets is None else f" --buckets {','.join(map(str, fleet.buckets))}"
    return f"--on-gap {policies.on_gap} --on-late {policies.on_late} --batch {fleet.largest}{buckets}"


def _tell_user(sentence: str) -> None:
    print(f"odestream: {sentence}", file=sys.stderr)


def _name_alone(fleet: Fleet, resume: Path | None) -> None:
    """A table without a stream column has one stream, whatever the snapshot calls it."""
    if len(fleet.names) > 1:
        raise SnapshotError(
            f"{resume} holds {len(fleet.names)} streams, the table has no stream column; "
            "resume a snapshot of one stream"
        )
    if fleet.names and fleet.names != [UNNAMED]:
        fleet.rename(fleet.names[0], UNNAMED)


def _saved(fleet: Fleet, source: str) -> bytes:
    """A snapshot of all streams."""
    if not fleet.names:
        raise InputError(f"{source}: no rows, so there is no stream to save; leave --snapshot out")
    return fleet.snapshot()


def _keep(fleet: Fleet, snapshot: Path) -> None:
    """Save the streams of a run that a fault ends; where that fails too, it is told beside the fault."""
    try:
        write_generation(snapshot, fleet.snapshot())
    except Exception as error:  # noqa: BLE001 (whatever it is, the fault that ended the run is the one to tell)
        _tell_user(f"{snapshot}: the streams of the rows that are out could not be saved ({error})")


def _tell(fleet: Fleet, tally: Tally, report: Path | None, force: bool) -> None:
    """Say on standard error how many rows there were and what the solver did, and write the report."""
    counts, manifest, telemetry = tally.counts(), fleet.model.manifest, fleet.telemetry
    together = total(counts.values())
    if together.steps:
        estimated = manifest.solver is not None and manifest.solver.error_estimate
        print(f"odestream: {sentence(together, tally.late, estimated)}; on {fleet.model.backend}", file=sys.stderr)
    if telemetry.deadline is not None:
        limit = f"the deadline of {1e3 * telemetry.deadline:g} ms"
        print(f"odestream: {telemetry.missed:,} of {telemetry.calls:,} calls missed {limit}", file=sys.stderr)
    if telemetry.unlogged:
        print(f"odestream: the log lacks {telemetry.unlogged:,} of {telemetry.calls:,} calls", file=sys.stderr)
    if report is not None:
        streams = {name: as_json(counters) for name, counters in counts.items()}
        about = {"bundle": manifest.name, "identity": manifest.identity}
        engine = {"backend": fleet.model.backend, "why": fleet.model.why}
        counted = {"total": as_json(together), "late": tally.late, "streams": streams, "calls": telemetry.as_dict()}
        save_json(report, about | engine | counted, force)


def _stream_table(
    fleet: Fleet, source: str, file: TextIO, stopper: Stopper, watchdog: Watchdog, tally: Tally, skip_seen: bool
) -> None:
    """Run every row of the source through its stream."""
    manifest = fleet.model.manifest
    task = with_inputs(manifest)
    y = manifest.spec.output("y")
    writer = Writer(file, task, predictions(task, 0 if y is None else y.size))
    window = 1 if file is sys.stdout or task.stream is None or fleet.largest == 1 else WINDOW
    last = {name: state.tick for name, state in fleet.states().items() if state.tick is not None}
    unseen = Unseen(last if skip_seen else {})
    with open_source(source) as (name, stream), reading_progress(stream, "Streaming") as counted:
        begun = {} if skip_seen else last
        rows = table_rows(counted, name, manifest, task, begun, fleet.policies.on_late == REPLAY)
        ahead = watchdog.watched(stopper.until_stopped(tally.watched(unseen.of(rows))))
        for seen, answer in _answered(fleet, ahead, window, watchdog):
            if isinstance(answer, OdestreamError):
                raise type(answer)(f"{seen.where}: {answer}") from answer
            writer.write(seen, answer)
    writer.write_header()
    if unseen.skipped:
        _tell_user(f"{unseen.skipped:,} rows were passed over: their streams had seen them")


def _answered(
    fleet: Fleet, rows: Iterator[TableRow], window: int, watchdog: Watchdog
) -> Iterator[tuple[TableRow, Answer]]:
    """Rows with their answers, in order; of each window, all first rows of a stream share a call, then all second."""
    while ahead := list(islice(rows, window)):
        answers: dict[int, Answer] = {}
        waiting: dict[str, deque[int]] = {}
        for place, row in enumerate(ahead):
            waiting.setdefault(row.stream, deque()).append(place)
        while waiting:
            places = [queue.popleft() for queue in waiting.values()]
            waiting = {stream: queue for stream, queue in waiting.items() if queue}
            answers |= zip(places, fleet.step([ahead[place].observation for place in places]), strict=True)
            watchdog.done()
        yield from ((row, answers[place]) for place, row in enumerate(ahead))


def _refuse_log(record: Path | None, resume: Path | None) -> None:
    """A log that lies there is continued by whoever says so, and not mixed with another one."""
    continues = record is not None and resume is not None and record.resolve() == resume.resolve()
    if record is not None and not continues and record.is_dir() and segment_paths(record):
        raise PathError(f"{record} holds a log already; go on with it by --resume {record}, or choose another folder")


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
