"""`odestream replay`: an input log run again, to see a moment as it was, to check it all, or to fill a new model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from odestream.runtime import Model, load
from odestream.runtime.arena import Layout
from odestream.runtime.errors import InputError
from odestream.runtime.fleet import Fleet
from odestream.runtime.flight import Moment, check_model, moment, rebuild, replay
from odestream.runtime.generations import write_generation
from odestream.runtime.influence import MEMORIES, Influence, influences
from odestream.runtime.inputlog import Segment
from odestream.runtime.predictions import number, predictions
from odestream.runtime.recorder import read_segments
from odestream.runtime.records import Output, StreamState
from odestream.runtime.session import UNNAMED
from odestream.runtime.timestamps import format_time
from odestream.runtime.verbs.console import print_json, refuse_outputs, show_table
from odestream.runtime.verbs.memories import describe_members, show_members
from odestream.runtime.verbs.rows import with_inputs

SHOWN = 12
DIFFERS = 1


def replay_log(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A folder that `odestream run --record` wrote.")],
    at: Annotated[str | None, typer.Option(help="Show the last row up to this time, as the table writes it.")] = None,
    stream: Annotated[
        str, typer.Option(help="With --at: of the stream of this name, where the log has several.")
    ] = UNNAMED,
    bundle: Annotated[Path | None, typer.Option(help="The bundle, where it is not where the log was recorded.")] = None,
    backend: Annotated[str | None, typer.Option(help="The engine, the recorded one unless given.")] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="Write the streams that a new --bundle has after all inputs of the log here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the snapshot where it exists.")] = False,
) -> None:
    """Run an input log again: all of it, up to one moment, or into a new model's memory.

    Without --at, every call is run and compared with what was recorded; exit status 1 where one differs. With --at, the
    moment is shown: what came in, what was answered, what the memories held, and which of their places the answer read
    (each is emptied in turn). With --snapshot, a bundle of the same inputs, perhaps trained anew, gets the streams that
    it would have had, for `odestream run --resume`. On the same engine answers are the same bit for bit.
    """
    if at is not None and snapshot is not None:
        raise InputError("--at shows a moment, --snapshot fills a model; give one of them")
    refuse_outputs(force, snapshot)
    segments = read_segments(log)
    head = segments[-1].head
    with load(bundle or Path(head.bundle), backend=backend or head.backend) as model:
        if snapshot is not None:
            _fill(model, segments, snapshot)
        elif at is not None:
            _show(model, moment(model, segments, _stream_of(segments, stream), model.tick(at)), as_json)
        else:
            _check(model, segments, as_json)


def _fill(model: Model, segments: Sequence[Segment], snapshot: Path) -> None:
    fleet, refused = rebuild(model, segments)
    write_generation(snapshot, fleet.snapshot())
    steps = sum(state.counters.steps for state in fleet.states().values())
    log, name = segments[0].path.parent, model.manifest.name
    print(f"{len(fleet.names)} streams of {name} from {steps:,} rows of {log}, saved as {snapshot}.")
    for stream, refusal in refused.items():
        print(f"{refusal.rows:,} rows of stream {stream!r} were refused, the first because {refusal.first}.")


def _stream_of(segments: Sequence[Segment], given: str) -> str:
    """The stream to show: the given one, or the only one of a log; InputError names those that it holds."""
    calls = [event for segment in segments for event in segment.events if isinstance(event, tuple)]
    if any(logged.observation.stream == given for call in calls for logged in call):
        return given
    names = list(dict.fromkeys(logged.observation.stream for call in calls for logged in call))
    if not names:
        return given
    if given == UNNAMED and len(names) == 1:
        return names[0]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    wrong = "--at shows a moment of one stream" if given == UNNAMED else f"--stream {given} is not in it"
    log = segments[0].path.parent
    raise InputError(f"{log} holds the streams {', '.join(names[:SHOWN])}{more}; {wrong}: name one of them by --stream")


def _check(model: Model, segments: Sequence[Segment], as_json: bool) -> None:
    check_model(model, segments[-1])
    head = segments[-1].head
    fleet = Fleet(model, head.policies, buckets=head.buckets, largest=head.largest)
    rows = differing = 0
    for replayed in replay(fleet, segments):
        rows += 1
        differing += not replayed.same
    damaged = [segment for segment in segments if segment.damage is not None]
    if as_json:
        damage = {segment.path.name: segment.damage for segment in damaged}
        print_json({"segments": len(segments), "rows": rows, "differing": differing, "damage": damage})
    else:
        print(f"{rows:,} rows of {len(segments)} segments run again: {differing:,} differ from what was recorded.")
        for segment in damaged:
            print(f"{segment.path} is {segment.damage}; what comes after it was left out.")
    if differing:
        raise typer.Exit(DIFFERS)


def _show(model: Model, seen: Moment, as_json: bool) -> None:
    row, before = seen.replayed.row, seen.before
    members = [] if before is None else describe_members(_members(model, before))
    reads = _reads(model, seen)
    facts = _facts(model, seen)
    if as_json:
        print_json({**facts, "members": members, "reads": [dataclasses.asdict(each) for each in reads]})
    else:
        show_table(f"Row of {row.stream or 'the stream'}", ("what", "value"), [(k, str(v)) for k, v in facts.items()])
        show_members("What the state held before it", members)
        _show_reads(reads)
    if not seen.replayed.same:
        raise typer.Exit(DIFFERS)


def _reads(model: Model, seen: Moment) -> list[Influence]:
    """What the answer read; nothing where there was no answer, or no stream to read from."""
    row, (earlier, first) = seen.replayed.row, seen.earlier or (None, None)
    if not isinstance(seen.replayed.answer, Output) or seen.before is None:
        return []
    if earlier is None or first is None:
        return influences(model, seen.before, [row], seen.buckets)
    return influences(model, earlier, [first, row], seen.buckets)


def _facts(model: Model, seen: Moment) -> dict[str, Any]:
    """What came in and what was answered."""
    manifest, answer, row = model.manifest, seen.replayed.answer, seen.replayed.row
    task, x = with_inputs(manifest), np.asarray(row.x).reshape(-1)
    mask = np.ones(x.shape) if row.mask is None else np.asarray(row.mask).reshape(-1)
    names = task.inputs or ("x",)
    facts: dict[str, Any] = {"time": format_time(seen.tick, manifest.time), "tick": seen.tick}
    facts |= {f"in {name}": number(v) if m else "missing" for name, v, m in zip(names, x, mask, strict=True)}
    if not isinstance(answer, Output):
        return facts | {"refused": str(answer)}
    table = predictions(task, answer.y.size)
    facts |= {f"out {name}": cell for name, cell in zip(table.columns, table.cells(answer.y, x), strict=True)}
    solver = {"err": answer.err, "bucket": answer.bucket, "flagged": answer.flagged, "calls": answer.calls}
    return facts | solver | {"as recorded": "the same, bit for bit" if seen.replayed.same else "differs"}


def _members(model: Model, state: StreamState) -> dict[str, NDArray[np.float32]]:
    views = Layout(model.manifest.spec.state, 1).views(state.arena)
    return {name: view[0] for name, view in views.items()}


def _show_reads(reads: Sequence[Influence]) -> None:
    """The places that meant most to the answer."""
    if not reads:
        print("No memory held anything that the answer could read.")
        return
    columns = ("memory", "place", "strength", "change")
    rows = [(MEMORIES[r.member], str(r.place), f"{r.strength:.3g}", f"{r.change:.3g}") for r in reads[:SHOWN]]
    show_table("What the answer read: its change without each place", columns, rows, numbers=columns[1:])
    if len(reads) > SHOWN:
        rest = sum(each.change for each in reads[SHOWN:])
        print(f"{len(reads) - SHOWN} more places changed it by {rest:.2g} in all.")
