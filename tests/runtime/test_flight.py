"""The input log: whatever it is cut off or damaged at, what is whole of it gives the same bytes again."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import InputError, LogError, Model, Output, SessionBusy, StateError, load
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.flight import moment, rebuild, replay, resume
from odestream.runtime.influence import influences
from odestream.runtime.inputlog import MAGIC, SUFFIX, decode_segment
from odestream.runtime.policies import Policies
from odestream.runtime.recorder import Recorder, read_segments, segment_paths
from tests.helpers.streams import SECOND, irregular, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny

POLICIES = Policies(on_gap="reset", on_late="replay", on_missing="hold")
SMALLEST = 1 << 16


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model that cannot cross more than 25.6 s."""
    with load(write_tiny(tmp_path_factory.mktemp("short") / "b", Tiny(stiffness=5.0, gain=3.0))) as model:
        yield model


Record = Callable[..., Recorder]


@pytest.fixture
def record() -> Iterator[Record]:
    """Makes recorders, which are closed after the test."""
    with ExitStack() as stack:

        def make(*arguments: Any) -> Recorder:
            recorder = Recorder(*arguments)
            stack.callback(recorder.close)
            return recorder

        yield make


def calls(count: int, seed: int = 0) -> Iterator[list[Observation]]:
    """Calls of up to three streams: late rows, missing values, gaps, overflows and rows that are refused among them."""
    rng = np.random.default_rng(seed)
    data = {name: irregular(count, seed=seed + i) for i, name in enumerate("abc")}
    ticks = {name: t - t[0] for name, (_, t, _) in data.items()}
    for i in range(count):
        rows = []
        for name in "abc"[: rng.integers(1, 4)]:
            x, mask = data[name][0][i].copy(), data[name][2][i]
            t = int(ticks[name][i]) + (i > count // 2) * 10**13
            kind = rng.integers(0, 25)
            x[0] = {0: np.nan, 1: 3e38}.get(kind, x[0])
            t = {2: t - 3 * SECOND, 3: 0}.get(kind, t)
            rows.append(Observation(name, x, t, None if kind % 2 else mask))
        yield rows


def recorded(model: Model, recorder: Recorder, count: int = 200) -> tuple[Fleet, list[Any]]:
    """A fleet with a log, and all answers that it gave."""
    fleet = Fleet(model, POLICIES, recorder=recorder)
    answers: list[Any] = []
    for i, rows in enumerate(calls(count)):
        answers += fleet.step(rows)
        if i % 60 == 59:
            fleet.evict(["a"])
    return fleet, answers


def test_a_log_is_run_again_bit_for_bit(short: Model, tmp_path: Path, record: Record) -> None:
    fleet, answers = recorded(short, record(tmp_path / "log", SMALLEST))
    kinds = {type(answer).__name__ for answer in answers}
    assert {"Output", "StateError", "TimeError"} <= kinds, "the calls hold faults of every kind"
    assert fleet.ended, "and gaps that were reset"
    segments = read_segments(tmp_path / "log")
    assert len(segments) >= 2
    again = Fleet(short, POLICIES)
    rows = list(replay(again, segments))
    assert len(rows) > 50
    assert all(row.same for row in rows)
    assert again.snapshot() == fleet.snapshot()


def test_a_resumed_fleet_goes_on_as_if_nothing_had_been(short: Model, tmp_path: Path, record: Record) -> None:
    fleet, _ = recorded(short, record(tmp_path / "log", SMALLEST))
    more = list(calls(60, seed=5))
    twin = resume(short, tmp_path / "log")
    assert twin.snapshot() == fleet.snapshot()
    for rows in more:
        for ours, theirs in zip(twin.step(rows), fleet.step(rows), strict=True):
            assert type(ours) is type(theirs)
            assert not isinstance(ours, Output) or same(ours, theirs)  # type: ignore[arg-type]
    assert twin.snapshot() == fleet.snapshot()


def test_a_log_that_is_continued_stays_one_log(short: Model, tmp_path: Path, record: Record) -> None:
    fleet, _ = recorded(short, record(tmp_path / "log", SMALLEST), count=40)
    fleet.close()
    fleet = resume(short, tmp_path / "log", record(tmp_path / "log", SMALLEST))
    for rows in calls(40, seed=5):
        fleet.step(rows)
    assert resume(short, tmp_path / "log").snapshot() == fleet.snapshot()
    fleet.close()


def test_the_ring_stays_within_its_limit_and_reaches_back(model: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log", SMALLEST))
    for t in range(4000):
        fleet.step([Observation("a", [1, 2, 3], t)])
        assert t % 100 or sum(path.stat().st_size for path in segment_paths(tmp_path / "log")) <= SMALLEST
    segments = read_segments(tmp_path / "log")
    kept = sum(len(event) for segment in segments for event in segment.events)
    assert 500 < kept < 4000
    assert resume(model, tmp_path / "log").snapshot() == fleet.snapshot()


def test_streams_too_many_for_the_limit_still_get_segments_that_hold_calls(
    model: Model, tmp_path: Path, record: Record
) -> None:
    """A segment is at least twice its snapshot: otherwise every call would begin a new one."""
    fleet = Fleet(model, recorder=record(tmp_path / "log", SMALLEST))
    for t in range(20):
        fleet.step([Observation(f"a stream with a long name, number {i}", [1, 2, 3], t) for i in range(100)])
    segments = read_segments(tmp_path / "log")
    assert len(segments[-2].snapshot) > SMALLEST // 8
    assert len(segments[-2].events) >= 2
    assert resume(model, tmp_path / "log").snapshot() == fleet.snapshot()


def test_every_cut_of_a_segment_gives_a_prefix_of_its_calls(model: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log"))
    states = []
    for t in range(5):
        fleet.step([Observation(name, [1, 2, t], t) for name in "ab"])
        states.append(fleet.snapshot())
    fleet.close()
    (path,) = segment_paths(tmp_path / "log")
    data, seen = path.read_bytes(), set()
    for length in range(len(data) + 1):
        try:
            segment = decode_segment(data[:length], path)
        except LogError:
            assert not seen, "once it can be read, it can be read at every length"
            continue
        again = Fleet(model)
        assert all(row.same for row in replay(again, [segment]))
        if segment.events:
            assert again.snapshot() == states[len(segment.events) - 1]
        assert segment.damage is None or "cut off" in segment.damage
        seen.add(len(segment.events))
    assert seen == set(range(6))


def test_every_flipped_bit_is_refused_or_ends_the_segment(model: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log"))
    for t in range(3):
        fleet.step([Observation("a", [1, 2, t], t, [1, 0, 1])])
    fleet.close()
    (path,) = segment_paths(tmp_path / "log")
    data = path.read_bytes()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            segment = decode_segment(bytes(flipped), path)
        except LogError:
            continue
        assert segment.damage is not None
        assert len(segment.events) < 3


def test_a_moment_is_the_stream_before_the_row_and_its_answer(short: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(short, POLICIES, recorder=record(tmp_path / "log", SMALLEST))
    held: dict[int, Any] = {}
    for rows in calls(120):
        before = fleet.state("a")
        answers = fleet.step(rows)
        held |= {row.t or 0: (before, a) for row, a in zip(rows, answers, strict=True) if row.stream == "a"}
    good = [tick for tick, (before, answer) in held.items() if isinstance(answer, Output) and before is not None]
    segments = read_segments(tmp_path / "log")
    for tick in good[-3:]:
        found = moment(short, segments, "a", tick)
        before, answer = held[tick]
        assert found.tick == tick
        assert found.replayed.same
        assert found.before is not None
        assert same_state(found.before, before)
        assert isinstance(found.replayed.answer, Output)
        assert same(found.replayed.answer, answer)
    assert moment(short, segments, "a", good[-1] + 1).tick >= good[-1], "the last row before a time"
    with pytest.raises(LogError, match="no row of stream 'z' at or before t = 5"):
        moment(short, segments, "z", 5)


def test_a_new_model_gets_the_memory_that_it_would_have_had(short: Model, tmp_path: Path, record: Record) -> None:
    recorded(short, record(tmp_path / "log", 1 << 20), count=60)
    with load(write_tiny(tmp_path / "new", Tiny(seed=7, name="new"))) as new:
        fleet, refused = rebuild(new, read_segments(tmp_path / "log"))
        rows: dict[str, list[Observation]] = {}
        for segment in read_segments(tmp_path / "log"):
            for call in (event for event in segment.events if isinstance(event, tuple)):
                for row in call:
                    rows.setdefault(row.observation.stream, []).append(row.observation)
        for name, each in rows.items():
            twin = Fleet(new, Policies(on_gap="reset", on_missing="hold"))
            for row in sorted(each, key=lambda row: row.t or 0):
                twin.step([row])
            ours, theirs = fleet.states()[name], twin.states()[name]
            assert (ours.tick, ours.counters.steps) == (theirs.tick, theirs.counters.steps)
            np.testing.assert_allclose(ours.arena, theirs.arena, rtol=1e-5, atol=1e-6)
        assert set(refused) <= set(rows)


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (Tiny(channels=2), "a model of the same inputs"),
        (Tiny(time=TimeSpec(tick_seconds=1e-6)), "the same inputs"),
        (Tiny(time=TimeSpec(tick_seconds=1e-12)), "the same inputs"),
    ],
)
def test_a_model_of_other_inputs_is_not_rebuilt(
    model: Model, tmp_path: Path, record: Record, tiny: Tiny, message: str
) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log"))
    fleet.step([Observation("a", [1, 2, 3], 0)])
    fleet.close()
    with load(write_tiny(tmp_path / "new", tiny)) as new:
        with pytest.raises(LogError, match=message):
            rebuild(new, read_segments(tmp_path / "log"))
        with pytest.raises(LogError, match="give the one that it was recorded with"):
            resume(new, tmp_path / "log")


def test_tokens_and_rows_without_times_are_logged(tmp_path: Path, record: Record) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(tokens=True))) as model:
        fleet = Fleet(model, recorder=record(tmp_path / "log"))
        for token in b"hello":
            fleet.step([Observation("a", token), Observation("b", token, None, [1])])
        assert resume(model, tmp_path / "log").snapshot() == fleet.snapshot()


def test_damage_in_the_middle_of_a_ring_is_bridged_by_the_next_snapshot(
    model: Model, tmp_path: Path, record: Record
) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log", SMALLEST))
    for t in range(1500):
        fleet.step([Observation("a", [1, 2, 3], t)])
    paths = segment_paths(tmp_path / "log")
    middle = paths[len(paths) // 2]
    data = bytearray(middle.read_bytes())
    data[-3000] ^= 1
    middle.write_bytes(data)
    again = Fleet(model)
    assert all(row.same for row in replay(again, read_segments(tmp_path / "log")))
    assert again.snapshot() == fleet.snapshot()


def test_what_is_no_log_is_refused(model: Model, tmp_path: Path, record: Record) -> None:
    with pytest.raises(LogError, match="no such folder"):
        read_segments(tmp_path / "none")
    with pytest.raises(LogError, match="no segment"):
        read_segments(tmp_path)
    for data, message in (
        (b"", "not an input log"),
        (b"odestream-log-2\n", "version '2'"),
        (MAGIC, "cut off or damaged before its first call"),
        (MAGIC + bytes(8), "Input data was truncated"),
    ):
        with pytest.raises(LogError, match=message):
            decode_segment(data, tmp_path / "x")
    with pytest.raises(InputError, match="limit is 5 bytes"):
        Recorder(tmp_path / "log", 5)
    fleet = Fleet(model, recorder=record(tmp_path / "log"))
    fleet.close()
    with pytest.raises(SessionBusy, match="the recorder is closed"):
        fleet.step([Observation("a", [1, 2, 3], 0)])


def test_a_copied_log_can_be_read_beside_the_one_that_goes_on(model: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log"))
    fleet.step([Observation("a", [1, 2, 3], 0)])
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    assert resume(model, tmp_path / "copy").snapshot() == fleet.snapshot()


def test_a_memory_that_is_written_and_never_read_has_no_influence(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(members={"es": (2,)}))) as model:
        stream = model.stream()
        stream.step([1, 2, 3], 0)
        assert influences(model, stream.save(), [Observation("a", [1, 1, 1], SECOND)]) == []


def test_a_row_that_failed_where_it_was_recorded_is_not_taken_when_its_log_is_resumed(
    model: Model, tmp_path: Path, record: Record
) -> None:
    recorder = record(tmp_path / "log", SMALLEST)
    fleet = Fleet(model, recorder=recorder)
    fleet.step([Observation("a", [1, 2, 3], 0)])
    recorder.record(fleet, [Observation("a", [1, 2, 3], SECOND)], [StateError("the device failed")])
    told: list[str] = []
    assert resume(model, tmp_path / "log", tell=told.append).snapshot() == fleet.snapshot()
    assert told == []


def test_damage_in_the_newest_segment_is_told_when_it_is_resumed(model: Model, tmp_path: Path, record: Record) -> None:
    fleet = Fleet(model, recorder=record(tmp_path / "log", SMALLEST))
    for t in range(10):
        fleet.step([Observation("a", [1, 2, 3], t)])
    fleet.close()
    path = segment_paths(tmp_path / "log")[-1]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    told: list[str] = []
    state = resume(model, tmp_path / "log", tell=told.append).state("a")
    assert state is not None
    assert state.tick == 8
    assert "is damaged" in told[0]


def test_what_a_killed_recorder_left_half_written_is_removed(model: Model, tmp_path: Path, record: Record) -> None:
    folder = tmp_path / "log"
    Fleet(model, recorder=record(folder)).close()
    left, other = folder / f".000000000002{SUFFIX}.0123456789ab.tmp", folder / ".notes.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    Fleet(model, recorder=record(folder)).close()
    assert not left.exists()
    assert other.exists(), "which is not the log's"


@pytest.mark.parametrize("name", ["lone \ud800", "b" * 16_384])
def test_a_name_that_a_log_cannot_hold_leaves_the_fleet_and_its_log_as_they_were(
    model: Model, tmp_path: Path, record: Record, name: str
) -> None:
    fleet = Fleet(model, POLICIES, recorder=record(tmp_path / "log"))
    fleet.step([Observation("a", [1, 2, 3], 0)])
    before = fleet.snapshot()
    with pytest.raises(InputError, match="streams: "):
        fleet.step([Observation("a", [1, 2, 3], 1), Observation(name, [1, 2, 3], 1)])
    with pytest.raises(InputError, match="streams: "):
        fleet.rename("a", name)
    assert fleet.snapshot() == before
    fleet.step([Observation("a", [1, 2, 3], 1)])
    (segment,) = read_segments(tmp_path / "log")
    assert (len(segment.events), segment.damage) == (2, None)
    assert resume(model, tmp_path / "log").snapshot() == fleet.snapshot()
