"""What a log is for: going on where a process was killed, seeing a moment again, giving a new model a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from odestream.runtime.contract.manifest import Manifest, TimeSpec
from odestream.runtime.errors import LogError, OdestreamError
from odestream.runtime.fleet import Answer, Fleet
from odestream.runtime.history import Block, Checkpoint
from odestream.runtime.inputlog import FAILED, Call, Eviction, LoggedRow, Segment, answer_digest
from odestream.runtime.member import Observation
from odestream.runtime.model import Model
from odestream.runtime.policies import REPLAY, RESET
from odestream.runtime.recorder import Recorder, observed, read_segments
from odestream.runtime.records import Output, StreamState
from odestream.runtime.snapshot import REBUILD, decode_snapshot
from odestream.runtime.telemetry import Telemetry


@dataclass(frozen=True, eq=False)
class Replayed:
    """A row that was run again. same: whether the answer is the recorded one, bit for bit."""

    row: Observation
    answer: Answer
    same: bool


@dataclass(frozen=True, eq=False)
class Moment:
    """A row of a log that was run again.

    before: its stream, None where the row began it. earlier: the row before it, where its segment holds one, and the
    stream before that. tick: the row's time. buckets: see `Model.stream`.
    """

    replayed: Replayed
    before: StreamState | None
    earlier: tuple[StreamState | None, Observation] | None
    tick: int
    buckets: tuple[int, ...] | None


@dataclass(frozen=True)
class Refusal:
    """What a rebuilt stream could not take: how many of its rows, and why the first."""

    rows: int
    first: OdestreamError


def resume(
    model: Model,
    folder: Path,
    recorder: Recorder | None = None,
    telemetry: Telemetry | None = None,
    tell: Callable[[str], object] = lambda sentence: None,
) -> Fleet:
    """The fleet of a log as it was after the last call that the log holds.

    recorder: goes on with the log from here. telemetry: counts from here. tell: hears what a user should know, of
    damage and of answers that came out otherwise. LogError where the log is another model's.
    """
    segments = read_segments(folder, 1)
    if _leans_back(segments[-1]):
        segments = read_segments(folder, 2)
    newest = segments[-1]
    check_model(model, newest)
    head = newest.head
    fleet = Fleet(model, head.policies, buckets=head.buckets, largest=head.largest)
    different = sum(not replayed.same for replayed in replay(fleet, list(map(_without_failures, segments))))
    if newest.damage:
        tell(f"{newest.path} is damaged ({newest.damage}); the streams go on from the last call before")
    if different:
        tell(f"{different} answers of {folder} came out otherwise here; the log was recorded on {head.backend}")
    fleet.continue_with(recorder, telemetry)
    return fleet


def replay(fleet: Fleet, segments: Sequence[Segment]) -> Iterator[Replayed]:
    """Run the calls of segments again; their rows as they come. Each segment begins with the streams that it holds."""
    for segment in segments:
        _restore(fleet, segment)
        for event in segment.events:
            yield from _again(fleet, event)


def moment(model: Model, segments: Sequence[Segment], stream: str, tick: int) -> Moment:
    """The last row of `stream` in a log's segments whose time is not after `tick`, run again as it was run then.

    LogError where they hold no such row, or are another model's.
    """
    found = _latest(segments, stream, tick)
    if found is None:
        folder = segments[0].path.parent
        raise LogError(f"{folder}: no row of stream {stream!r} at or before t = {tick}; ask for one that it holds")
    place, wanted = found
    check_model(model, segments[place])
    head = segments[place].head
    fleet = Fleet(model, head.policies, buckets=head.buckets, largest=head.largest)
    earlier: tuple[StreamState | None, Observation] | None = None
    first = place - (place > 0 and _leans_back(segments[place]))
    for segment in segments[first : place + 1]:
        _restore(fleet, segment)
        for event in segment.events:
            before = fleet.state(stream)
            for replayed in _again(fleet, event):
                if replayed.row is wanted.observation:
                    return Moment(replayed, before, earlier, wanted.observation.t or 0, head.buckets)
                if replayed.row.stream == stream and isinstance(replayed.answer, Output):
                    earlier = before, replayed.row
    raise LogError(f"{segments[place].path}: changed while it was read; run it again")


def rebuild(model: Model, segments: Sequence[Segment]) -> tuple[Fleet, dict[str, Refusal]]:
    """Streams of a model that may be another one, from the inputs of a log: each from new, its rows in order of time.

    So a memory outlives a model update, as far back as the log reaches. Gaps that the model cannot cross begin a stream
    anew. What it refuses is left out and returned, by stream. LogError where its inputs or its ticks are others.
    """
    head, folder = segments[-1].head, segments[-1].path.parent
    if observed(model.manifest) != head.x or _ticks(model.manifest.time) != _ticks(head.time):
        raise LogError(f"{folder}: its rows are not those of {model.manifest.name}; rebuild a model of the same inputs")
    rows: dict[str, list[Observation]] = {}
    for segment in segments:
        for logged in (row for event in segment.events if isinstance(event, tuple) for row in event):
            rows.setdefault(logged.observation.stream, []).append(logged.observation)
    fleet = Fleet(model, replace(head.policies, on_gap=RESET), buckets=head.buckets, largest=head.largest)
    refused: dict[str, Refusal] = {}
    waiting = [sorted(each, key=lambda row: row.t or 0) for each in rows.values()]
    for call in zip_longest(*waiting):
        together = [row for row in call if row is not None]
        for row, answer in zip(together, fleet.step(together), strict=True):
            if not isinstance(answer, Output):
                known = refused.get(row.stream)
                refused[row.stream] = Refusal(1, answer) if known is None else replace(known, rows=known.rows + 1)
    return fleet, refused


def check_model(model: Model, segment: Segment) -> None:
    """LogError where the segment was recorded with another model or clock."""
    if segment.head.identity != model.manifest.identity:
        raise LogError(
            f"{segment.path}: recorded with model {segment.head.identity[:12]} ({segment.head.name}), this bundle is "
            f"{model.manifest.identity[:12]} ({model.manifest.name}), another model; give the one that it was recorded "
            f"with, or build this one's streams from its rows: {REBUILD.format(log=segment.path.parent)}"
        )
    if segment.head.time != model.manifest.time:
        raise LogError(
            f"{segment.path}: its ticks are {segment.head.time}, the bundle's are {model.manifest.time}; "
            "give the one that it was recorded with"
        )


def _without_failures(segment: Segment) -> Segment:
    """The rows that were taken: one that failed left its stream as it was, and might be taken on a sounder device."""
    taken = (
        event if isinstance(event, list) else tuple(row for row in event if row.digest != FAILED)
        for event in segment.events
    )
    return replace(segment, events=tuple(event for event in taken if event))


def _leans_back(segment: Segment) -> bool:
    """Whether late rows of the segment may come before rows that only the one before it holds: it is of an old log."""
    return segment.head.policies.on_late == REPLAY and not segment.head.pasts


def _restore(fleet: Fleet, segment: Segment) -> None:
    """Have the streams that the segment begins with, and what late rows may come before.

    An old segment does not hold that: streams that are as it says already, from the segment before, keep what they had.
    More than the recording fleet had does no harm: the rows that were too late for it are not in the log.
    """
    where = str(segment.path)
    if _leans_back(segment) and _begins(fleet, segment, where):
        return
    fleet.forget()
    if segment.snapshot:
        fleet.restore(segment.snapshot, where)
    fleet.recall(_pasts(segment, fleet.model.manifest, where))


def _begins(fleet: Fleet, segment: Segment, where: str) -> bool:
    """Whether the fleet's streams are those that the segment begins with."""
    wanted = decode_snapshot(segment.snapshot, fleet.model.manifest, where) if segment.snapshot else {}
    there = fleet.states()
    return {name: _facts(wanted[name]) for name in wanted} == {name: _facts(there[name]) for name in there}


def _facts(state: StreamState) -> tuple[object, ...]:
    """All of a state in parts that can be compared."""
    return state.arena.tobytes(), state.tick, state.counters, state.previous, state.held


def _pasts(segment: Segment, manifest: Manifest, where: str) -> dict[str, list[Block]]:
    pasts: dict[str, list[Block]] = {}
    for past in segment.pasts:
        states = decode_snapshot(past.snapshot, manifest, where)
        if len(states) != len(past.rows):
            raise LogError(f"{where}: rows of {len(past.rows)} streams come after {len(states)}; record a new log")
        for (name, state), rows in zip(states.items(), past.rows, strict=True):
            pasts.setdefault(name, []).append(Block(Checkpoint(state, state.held), list(rows)))
    return pasts


def _again(fleet: Fleet, event: Call | Eviction) -> Iterator[Replayed]:
    if isinstance(event, list):
        fleet.evict(name for name in event if name in fleet.awake)
        return
    answers = fleet.step([row.observation for row in event])
    for row, answer in zip(event, answers, strict=True):
        yield Replayed(row.observation, answer, answer_digest(answer) == row.digest)


def _latest(segments: Sequence[Segment], stream: str, tick: int) -> tuple[int, LoggedRow] | None:
    """The segment and the row with the latest time up to `tick`; of equal ones, the last to come."""
    found: tuple[int, LoggedRow] | None = None
    latest: int | None = None
    for place, segment in enumerate(segments):
        for row in (row for event in segment.events if isinstance(event, tuple) for row in event):
            t = row.observation.t
            if row.observation.stream == stream and t is not None and t <= tick and (latest is None or t >= latest):
                found, latest = (place, row), t
    return found


def _ticks(time: TimeSpec) -> tuple[object, ...]:
    """What makes two clocks count alike."""
    return time.kind, time.unit, time.ticks_per_column_unit, time.tick_seconds
