"""Named streams of one model: made when their name first comes, stepped together, put away when idle, kept in a log.

A fleet depends on nothing but the calls it gets: the same model, policies and calls give the same states and answers,
bit for bit. That is what an input log replays. It is for one thread; a `Pool` serves many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from odestream.runtime.batch import LARGEST, Batcher
from odestream.runtime.errors import GapError, InputError, LogError, OdestreamError
from odestream.runtime.generations import read_generation
from odestream.runtime.history import Block
from odestream.runtime.member import Member, Observation, check_name
from odestream.runtime.model import Model
from odestream.runtime.policies import ERROR, REPLAY, RESET, Policies
from odestream.runtime.records import Counters, Output, StreamState
from odestream.runtime.shelf import Shelf
from odestream.runtime.snapshot import decode_snapshot, encode_snapshot
from odestream.runtime.telemetry import Telemetry

Answer = Output | OdestreamError

_LOG = logging.getLogger(__name__)


class CallLog(Protocol):
    """What a fleet tells of its calls; see `Recorder`."""

    def begin(self, fleet: Fleet) -> None:
        """The fleet's streams are other ones from here on."""

    def ready(self, fleet: Fleet) -> None:
        """A call is about to begin; LogError where it cannot be logged."""

    def record(self, fleet: Fleet, rows: Sequence[Observation], answers: Sequence[Answer]) -> bool:
        """A call and what came of it; whether that is logged."""

    def evicted(self, names: Sequence[str]) -> None:
        """Streams were put away."""

    def close(self) -> None:
        """There are no more calls."""


class Fleet:
    """Named streams of one model; not for two threads at once.

    policies: what to do with inputs that a stream refuses. buckets: see `Model.stream`. largest: see `Batcher`. shelf:
    where idle streams are put, in memory unless given; see `Shelf.claim`. recorder: a log of every call. telemetry:
    counts what is done. ended: name → counters of the streams of that name whose place a new one took (`on_gap`),
    summed up: never more of them than streams.
    """

    def __init__(
        self,
        model: Model,
        policies: Policies | None = None,
        *,
        buckets: Sequence[int] | None = None,
        largest: int = LARGEST,
        shelf: Shelf | None = None,
        recorder: CallLog | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.model = model
        self.policies = policies or Policies()
        self.buckets = None if buckets is None else tuple(buckets)
        self.largest = largest
        self.telemetry = telemetry or Telemetry()
        self.ended: dict[str, Counters] = {}
        self._batcher = Batcher(model, largest)
        self._members: dict[str, Member] = {}
        self._begin().stream.close()  # buckets that the bundle lacks are refused before any work is done
        self._shelf = (shelf or Shelf()).claim()
        self._recorder = recorder
        try:
            self._begin_log()
        except BaseException:
            self._shelf.close()
            raise

    def step(self, rows: Sequence[Observation]) -> list[Answer]:
        """One observation for each of several streams; each row's answer is its stream's, or its error.

        A row that fails changes nothing, not even the list of streams. InputError, before any row, for a stream that
        is named twice, and for a name that is none (`check_name`). Where the log cannot take the call, each row's
        answer is that LogError, and it may be sent again.
        """
        names = [row.stream for row in rows]
        for name in names:
            if type(name) is not str or name not in self._members:
                check_name(name)
        if len(set(names)) != len(names):
            raise InputError("streams: one is named twice; step it once now and again in the next call")
        start = time.perf_counter()
        refusal = self._refusal()
        if refusal is not None:
            answers: list[Answer] = [refusal] * len(rows)
        else:
            members = [self._members.get(name) or self._find(name) for name in names]
            answers = self._answers(rows, members)
            if self._recorder is not None:
                self.telemetry.unlogged += not self._recorder.record(self, rows, answers)
        self.telemetry.count(time.perf_counter() - start, rows, answers)
        return answers

    def predict(self, name: str, t: int) -> Output:
        """What the model expects of a stream at a later time; the stream is unchanged, a new one is not kept."""
        return self._member(name).stream.predict(t)

    @property
    def names(self) -> list[str]:
        """The streams, by the order in which they began or came back; those put away come last."""
        return [*self.awake, *self._shelf.names]

    @property
    def awake(self) -> list[str]:
        """The streams that are not put away."""
        return list(self._members)

    def state(self, name: str) -> StreamState | None:
        """A copy of what a stream is, None where there is no such stream."""
        member = self._members.get(name)
        if member is not None:
            return member.save()
        return self._shelved(name) if name in self._shelf else None

    def states(self) -> dict[str, StreamState]:
        """Name → a copy of what the stream is, of those put away too; SnapshotDamaged where one can no longer be read.

        Left out, it would begin as a new stream where a snapshot of the others is restored.
        """
        states = {name: member.save() for name, member in self._members.items()}
        return states | {name: self._shelved(name) for name in self._shelf.names}

    def pasts(self) -> dict[str, Sequence[Block]]:
        """Name → what late rows may come before, thinned as a log keeps it, of the streams that take any."""
        pasts = {name: member.past() for name, member in self._members.items()}
        return {name: past for name, past in pasts.items() if any(block.rows for block in past)}

    def recall(self, pasts: Mapping[str, Sequence[Block]]) -> None:
        """Let streams take late rows as a log that holds `pasts` will: this fleet's, or one that it is read from."""
        for name in pasts.keys() & self._members.keys():
            self._members[name].recall(pasts[name])

    def snapshot(self) -> bytes:
        """All streams; SnapshotError where there are none, or where one that was put away can no longer be read."""
        return encode_snapshot(self.model.manifest, self.states())

    def restore(self, snapshot: bytes | Path, where: str = "snapshot") -> str:
        """Take over the streams of a snapshot, in the place of those of the same name; its origin (`Stream.origin`).

        Raises SnapshotError as `Model.restore_streams` does, and the fleet is then as it was.
        """
        data, origin = snapshot, f"{where}, given as bytes"
        if isinstance(data, Path):
            found = read_generation(data)
            data, where, origin = found.data, str(found.path), found.origin
        states = decode_snapshot(data, self.model.manifest, where)
        members = {name: self._begin(state, origin) for name, state in states.items()}
        for name in members:
            self._shelf.discard(name)
        self._members |= members
        self._begin_log_again()
        return origin

    def forget(self, names: Iterable[str] | None = None) -> None:
        """End streams, all unless named, also those put away."""
        for name in self.names if names is None else names:
            member = self._members.pop(name, None)
            if member is not None:
                member.stream.close()
            self._shelf.discard(name)
            self.ended.pop(name, None)
        self._begin_log_again()

    def rename(self, name: str, to: str) -> None:
        """Give a stream another name, in the place of one that has it; InputError for a name that is none."""
        check_name(to)
        member, ended = self._members.pop(name), self.ended.pop(name, None)
        self._shelf.discard(to)
        self.ended.pop(to, None)
        self._members[to] = member
        if ended is not None:
            self.ended[to] = ended
        self._begin_log_again()

    def continue_with(self, recorder: CallLog | None, telemetry: Telemetry | None = None) -> None:
        """Log and count from here on in other places; LogError where the log cannot begin."""
        self._recorder = recorder
        self.telemetry = telemetry or Telemetry()
        self._begin_log()

    def evict(self, names: Iterable[str]) -> None:
        """Put streams away: their buffers are freed, their state stays on the shelf, their next row brings them back.

        A stream that was put away has no history, so that rows from before are too late. After an error those before
        it are put away, and the log knows.
        """
        away: list[str] = []
        try:
            for name in list(names):
                member = self._members[name]
                self._shelf.put(name, encode_snapshot(self.model.manifest, {name: member.save()}))
                del self._members[name]
                away.append(name)
                member.stream.close()
        finally:
            if self._recorder is not None and away:
                self._recorder.evicted(away)

    def evict_idle(self, seconds: float) -> list[str]:
        """Put away the streams that had no row for that long; their names."""
        before = time.monotonic() - seconds
        idle = [name for name, member in self._members.items() if member.used < before]
        self.evict(idle)
        return idle

    def close(self) -> None:
        """End all streams, and the log; the shelf is another fleet's to take."""
        for member in self._members.values():
            member.stream.close()
        self._shelf.close()
        if self._recorder is not None:
            self._recorder.close()

    def _begin_log(self) -> None:
        if self._recorder is not None:
            self._recorder.begin(self)

    def _begin_log_again(self) -> None:
        """The streams are other ones: a log that cannot take them now refuses calls until it can."""
        try:
            self._begin_log()
        except LogError as error:
            _LOG.warning("%s", error)

    def _refusal(self) -> LogError | None:
        """Why the log cannot take a call: then its streams must not step."""
        try:
            if self._recorder is not None:
                self._recorder.ready(self)
        except LogError as error:
            return error
        return None

    def _answers(self, rows: Sequence[Observation], members: Sequence[Member | OdestreamError]) -> list[Answer]:
        apart: dict[int, Answer] = {}
        together: list[Member] = []
        for place, member in enumerate(members):
            if isinstance(member, OdestreamError):
                apart[place] = member
            elif self.policies.on_late == REPLAY and member.is_late(rows[place].t):
                apart[place] = _attempt(member.insert, rows[place])
            else:
                together.append(member)
        if not apart:
            return self._together(rows, together)
        rest = [place for place in range(len(rows)) if place not in apart]
        apart.update(zip(rest, self._together([rows[place] for place in rest], together), strict=True))
        return [apart[place] for place in range(len(rows))]

    def _together(self, rows: Sequence[Observation], members: Sequence[Member]) -> list[Answer]:
        """Step rows by the batch; a row that is alone as by itself."""
        if len(members) == 1:
            return [self._settle(rows[0], members[0], _attempt(members[0].step, rows[0]))]
        x, mask = [row.x for row in rows], [row.mask for row in rows]
        if self.policies.on_missing != ERROR:
            for place, (member, row) in enumerate(zip(members, rows, strict=True)):
                x[place], mask[place] = member.fill(row)
        ticks = [row.t for row in rows]
        answers = self._batcher.step([member.stream for member in members], x, ticks, mask)  # type: ignore[arg-type]
        for place, (row, member, answer) in enumerate(zip(rows, members, answers, strict=True)):
            if isinstance(answer, Output):
                member.accepted(row, x[place], mask[place])
                self._keep(row.stream, member)
            else:
                answers[place] = self._settle(row, member, answer)
        return answers

    def _settle(self, row: Observation, member: Member, answer: Answer) -> Answer:
        """Begin a new stream after a gap where that was asked for; keep the stream that has taken the row."""
        if isinstance(answer, GapError) and self.policies.on_gap == RESET:
            ended, member = member, self._begin()
            answer = _attempt(member.step, row)
            if isinstance(answer, Output):
                self.ended.setdefault(row.stream, Counters()).add(ended.stream.counters)
                ended.stream.close()
        if isinstance(answer, Output):
            self._keep(row.stream, member)
        return answer

    def _keep(self, name: str, member: Member) -> None:
        self._members[name] = member
        self._shelf.discard(name)

    def _find(self, name: str) -> Member | OdestreamError:
        try:
            return self._member(name)
        except OdestreamError as error:
            return error

    def _member(self, name: str) -> Member:
        """The stream of that name; one that is new or was put away is kept only once it has taken a row."""
        member = self._members.get(name)
        if member is not None:
            return member
        if name in self._shelf:
            return self._begin(self._shelved(name), "put away while idle")
        return self._begin()

    def _begin(self, state: StreamState | None = None, origin: str = "new") -> Member:
        return Member(self.model, self.policies, self.buckets, state, origin)

    def _shelved(self, name: str) -> StreamState:
        return decode_snapshot(self._shelf.get(name), self.model.manifest, f"stream {name!r}, put away")[name]


def _attempt(step: Callable[[Observation], Output], row: Observation) -> Answer:
    try:
        return step(row)
    except OdestreamError as error:
        return error
