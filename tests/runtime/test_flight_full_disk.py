"""A log whose disk is full or fails: each call is answered and logged, or refused with nothing changed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from odestream.runtime import LogError, Model, Output
from odestream.runtime.fleet import Answer, Fleet, Observation
from odestream.runtime.flight import replay, resume
from odestream.runtime.policies import Policies
from odestream.runtime.pool import Pool
from odestream.runtime.recorder import Recorder, read_segments, segment_paths
from odestream.runtime.shelf import Shelf
from tests.helpers.full_disk import Disk, mounted
from tests.helpers.run_verb import ROWS, refusal, run, write_table
from tests.helpers.streams import same_state

SMALLEST = 1 << 16
Record = Callable[[int], Recorder]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return mounted(tmp_path / "log", monkeypatch)


@pytest.fixture
def record(disk: Disk) -> Iterator[Record]:
    with ExitStack() as stack:

        def make(limit: int) -> Recorder:
            recorder = Recorder(disk.folder, limit)
            stack.callback(recorder.close)
            return recorder

        yield make


def step(fleet: Fleet, t: int) -> Answer:
    (answer,) = fleet.step([Observation("a", [1, 2, t], t)])
    return answer


def test_calls_that_a_full_disk_cannot_take_are_refused_and_change_nothing(
    model: Model, disk: Disk, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, twin = Fleet(model, recorder=record(1 << 20)), model.stream()
    step(fleet, 0)
    logged = fleet.snapshot()
    disk.fill()
    assert isinstance(step(fleet, 1), Output), "only now is it known, and the stream has taken the row"
    assert "the log lacks what was done last (No space left on device)" in caplog.text
    before = fleet.snapshot()
    for t in (2, 3):
        answer = step(fleet, t)
        assert isinstance(answer, LogError)
        assert str(answer) == (
            f"{disk.folder}: the log cannot be written (no space left on device; it lacks what was done last), so no "
            "call is taken; make room there or record into another folder"
        )
    assert fleet.snapshot() == before
    assert (fleet.telemetry.unlogged, fleet.telemetry.refused, fleet.telemetry.rows) == (1, {"LogError": 2}, 4)
    assert resume(model, disk.folder).snapshot() == logged, "no more is lost than that one call"
    disk.holds = None
    assert isinstance(step(fleet, 2), Output)
    for t in range(3):
        twin.step([1, 2, t], t)
    assert same_state(fleet.states()["a"], twin.save())
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()
    first, second = read_segments(disk.folder)
    assert [len(segment.events) for segment in (first, second)] == [1, 1], "t = 1 is in the second's snapshot"


@pytest.mark.parametrize("left", [1, 20, 40])
def test_a_call_that_was_written_in_part_does_not_count(model: Model, disk: Disk, record: Record, left: int) -> None:
    fleet = Fleet(model, recorder=record(1 << 20))
    step(fleet, 0)
    disk.fill(left)
    assert isinstance(step(fleet, 1), Output)
    assert isinstance(step(fleet, 2), LogError)
    (segment,) = read_segments(disk.folder)
    assert "cut off" in (segment.damage or "")
    fleet.evict(["a"])
    disk.holds = None
    for t in (2, 3):
        assert isinstance(step(fleet, t), Output)
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()
    assert all(row.same for row in replay(Fleet(model), read_segments(disk.folder)))


def test_the_ring_makes_room_for_itself_where_others_have_filled_the_disk(
    model: Model, disk: Disk, record: Record
) -> None:
    fleet = Fleet(model, recorder=record(SMALLEST))
    for t in range(1000):
        if len(segment_paths(disk.folder)) == 3:
            disk.fill(100)
        assert isinstance(step(fleet, t), Output)
    assert disk.refused > 0
    assert fleet.telemetry.unlogged <= disk.refused
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()


def test_the_ring_never_takes_more_than_its_limit(model: Model, disk: Disk, record: Record) -> None:
    """Also not while a segment begins: the oldest goes before."""
    fleet = Fleet(model, recorder=record(SMALLEST))
    disk.holds = SMALLEST
    for t in range(3000):
        assert isinstance(step(fleet, t), Output)
    assert len(segment_paths(disk.folder)) > 3
    assert (disk.refused, fleet.telemetry.unlogged) == (0, 0)


def test_a_segment_goes_on_while_there_is_no_room_for_the_next(
    model: Model, disk: Disk, record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(model, recorder=record(SMALLEST))
    tries = []

    def full(*_: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("odestream.runtime.recorder.new_file", full)
        for t in range(1000):
            assert isinstance(step(fleet, t), Output)
    assert 1 < len(tries) < 20, "it is tried again, but not at every call"
    assert "the next segment cannot begin (No space left on device); this one goes on" in caplog.text
    assert "no call is taken" not in caplog.text
    assert fleet.telemetry.unlogged == 0
    (segment,) = read_segments(disk.folder)
    assert len(segment.events) == 1000
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()


@pytest.mark.parametrize("larger", [False, True])
def test_a_segment_that_goes_on_grows_to_the_limit_and_calls_are_refused_from_there(
    model: Model, disk: Disk, record: Record, tmp_path: Path, larger: bool
) -> None:
    """Where the streams alone are larger than that, to three times what it begins with, as any segment then."""
    (tmp_path / "shelf").mkdir()
    fleet = Fleet(model, shelf=Shelf(tmp_path / "shelf"), recorder=record(SMALLEST))
    for i in range(1 + 1000 * larger):
        fleet.step([Observation(f"lost{i}", [1, 2, 3], 0)])
    for t in range(1000 * (not larger)):
        assert isinstance(step(fleet, t), Output)
    assert len(segment_paths(disk.folder)) > 1
    fleet.evict(["lost0"])
    whole = {path: path.read_bytes() for path in (tmp_path / "shelf").glob("*.snapshot")}
    for path in whole:
        path.write_bytes(b"spoiled")
    ticks = iter(range(1000, 9000))
    answer = next(answer for t in ticks if isinstance(answer := step(fleet, t), LogError))
    assert "for want of a stream" in str(answer)
    *older, segment = segment_paths(disk.folder)
    size = segment.stat().st_size
    assert larger or (not older and 0 < size - SMALLEST < 100), "beyond it is the last row that it took, no other"
    assert not larger or 2 * SMALLEST < size < 3 * len(read_segments(disk.folder)[-1].snapshot) + 1000
    assert isinstance(step(fleet, next(ticks)), LogError)
    assert segment.stat().st_size == size
    for path, data in whole.items():
        path.write_bytes(data)
    assert isinstance(step(fleet, next(ticks)), Output)
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()
    fleet.close()


def test_late_rows_after_a_segment_could_not_begin_are_in_the_one_that_goes_on(
    model: Model, disk: Disk, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they may come before is not thinned: the segment that goes on would not reach as far back."""
    fleet = Fleet(model, Policies(on_late="replay", window=400), recorder=record(SMALLEST))
    late: list[Answer] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("odestream.runtime.recorder.new_file", full)
        for t in range(1001):
            assert isinstance(step(fleet, 2 * t), Output)
            if t >= 700 and t % 100 == 0:
                late += [step(fleet, 2 * (t - back) - 1) for back in range(500, 380, -20)]
    answered = sum(isinstance(answer, Output) for answer in late)
    assert 0 < answered < len(late), "some reach too far back, some do not"
    assert len(segment_paths(disk.folder)) == 1
    told = list[str]()
    assert resume(model, disk.folder, tell=told.append).snapshot() == fleet.snapshot()
    assert told == []


def test_a_segment_that_is_there_and_cannot_be_opened_does_not_hide_the_one_before(
    model: Model, disk: Disk, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(model, recorder=record(SMALLEST))
    opened = Path.open

    def too_many(path: Path, mode: str = "r", buffering: int = -1) -> object:
        if mode == "ab":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, mode, buffering)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", too_many)
        for t in range(300):
            assert isinstance(step(fleet, t), Output)
    assert len(segment_paths(disk.folder)) == 1
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()


@pytest.mark.parametrize("change", ["restore", "rename", "forget"])
def test_streams_that_were_changed_on_a_full_disk_wait_for_room(
    model: Model, disk: Disk, record: Record, change: str
) -> None:
    fleet = Fleet(model, recorder=record(1 << 20))
    step(fleet, 0)
    blob = fleet.snapshot()
    step(fleet, 1)
    disk.fill()
    {"restore": lambda: fleet.restore(blob), "rename": lambda: fleet.rename("a", "b"), "forget": fleet.forget}[change]()
    before = fleet.states()
    assert isinstance(step(fleet, 2), LogError)
    assert fleet.states().keys() == before.keys()
    disk.holds = None
    assert isinstance(step(fleet, 2), Output)
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()


def test_a_log_that_cannot_begin_is_refused_before_any_row(
    model: Model, tiny_path: Path, disk: Disk, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.holds = 100
    with pytest.raises(LogError, match="the log cannot be written"):
        Fleet(model, recorder=record(1 << 20))
    with pytest.raises(LogError, match="no segment"):
        read_segments(disk.folder)
    (disk.folder / ".lock").unlink()
    assert run(tiny_path, write_table(tmp_path / "t.csv", ROWS), "--record", disk.folder) == 2
    assert "the log cannot be written" in refusal(capsys)


def test_a_run_tells_of_a_call_that_its_log_lacks(
    tiny_path: Path, tmp_path: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.csv", ROWS[:3])
    assert run(tiny_path, table, "--record", tmp_path / "whole") == 0
    (whole,) = segment_paths(tmp_path / "whole")
    assert "log lacks" not in capsys.readouterr().err
    disk.folder.mkdir()
    disk.holds = whole.stat().st_size - 1
    assert run(tiny_path, table, "--record", disk.folder) == 0
    assert "odestream: the log lacks 1 of 2 calls" in capsys.readouterr().err


def test_a_stream_that_the_shelf_lost_ends_no_segment_that_is_whole(
    model: Model, disk: Disk, record: Record, tmp_path: Path
) -> None:
    (tmp_path / "shelf").mkdir()
    fleet = Fleet(model, shelf=Shelf(tmp_path / "shelf"), recorder=record(SMALLEST))
    fleet.step([Observation("lost", [1, 2, 3], 0)])
    fleet.evict(["lost"])
    for path in (tmp_path / "shelf").glob("*.snapshot"):
        path.write_bytes(b"spoiled")
    for t in range(400):
        assert isinstance(step(fleet, t), Output)
    (segment,) = read_segments(disk.folder)
    assert len(segment.events) == 402
    disk.fill()
    assert isinstance(step(fleet, 400), Output)
    disk.holds = None
    assert "for want of a stream" in str(step(fleet, 401))
    fleet.forget(["lost"])
    assert isinstance(step(fleet, 401), Output)
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()
    fleet.close()


def test_rows_of_a_pool_that_its_log_cannot_take_are_refused(model: Model, disk: Disk, record: Record) -> None:
    with Pool(Fleet(model, recorder=record(1 << 20)), wait_us=0) as pool:
        pool.step("a", [1, 2, 3], 0)
        disk.fill()
        assert isinstance(pool.step("a", [1, 2, 3], 1), Output)
        with pytest.raises(LogError, match="make room there"):
            pool.step("a", [1, 2, 3], 2)
        disk.holds = None
        assert isinstance(pool.step("a", [1, 2, 3], 2), Output)


def test_an_old_segment_that_cannot_be_synced_does_not_stop_the_new_one(
    model: Model, disk: Disk, record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = record(1 << 20)
    fleet = Fleet(model, recorder=recorder)
    step(fleet, 0)
    assert recorder._file is not None
    old, synced = recorder._file.fileno(), os.fsync

    def failing(number: int) -> None:
        if number == old:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synced(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        recorder.begin(fleet)
    assert "Input/output error" in caplog.text
    assert isinstance(step(fleet, 1), Output)
    assert resume(model, disk.folder).snapshot() == fleet.snapshot()
