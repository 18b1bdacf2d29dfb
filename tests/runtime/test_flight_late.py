"""Late rows in an input log: whatever was answered is there again, after any number of restarts."""

import errno
import os
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.runtime import LogError, Model, Output
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.flight import moment, replay, resume
from odestream.runtime.inputlog import MAGIC, LogHead, decode_segment, frame
from odestream.runtime.policies import Policies
from odestream.runtime.recorder import Recorder, read_segments, segment_paths
from odestream.runtime.shelf import Claim
from tests.helpers.streams import SECOND, same, same_state

SMALLEST = 1 << 16
LATE = Policies(on_late="replay")


def row(rng: np.random.Generator, tick: int, name: str = "a") -> Observation:
    return Observation(name, rng.normal(size=3).astype(np.float32), tick)


def restarted(model: Model, folder: Path, fleet: Fleet, limit: int = SMALLEST) -> Fleet:
    """The fleet as a new process finds it."""
    fleet.close()
    return resume(model, folder, Recorder(folder, limit))


def replays_the_same(model: Model, folder: Path, policies: Policies = LATE) -> bool:
    rows = list(replay(Fleet(model, policies), read_segments(folder)))
    return bool(rows) and all(each.same for each in rows)


def test_a_late_row_after_two_restarts_is_not_lost_in_the_third(model: Model, tmp_path: Path) -> None:
    rng, told = np.random.default_rng(0), list[str]()
    fleet = Fleet(model, LATE, recorder=Recorder(tmp_path / "log"))
    for count in (100, 5, 0):
        for _ in range(count):
            state = fleet.state("a")
            fleet.step([row(rng, (0 if state is None else state.tick or 0) + 2 * SECOND)])
        fleet = restarted(model, tmp_path / "log", fleet)
    (late,) = fleet.step([row(rng, 101 * SECOND)])
    assert isinstance(late, Output)
    assert resume(model, tmp_path / "log", tell=told.append).snapshot() == fleet.snapshot()
    assert told == []
    fleet.close()
    assert replays_the_same(model, tmp_path / "log")


def test_late_rows_that_reach_over_segments_are_run_again_bit_for_bit(model: Model, tmp_path: Path) -> None:
    """One row in forty is 500 rows late, so that each segment has rows which reach into one before it."""
    rng = np.random.default_rng(0)
    policies = Policies(on_late="replay", window=600)
    with closing(Fleet(model, policies, recorder=Recorder(tmp_path / "log", SMALLEST))) as fleet:
        for i in range(1200):
            fleet.step([row(rng, 2 * i)])
            if i > 600 and i % 40 == 0:
                assert isinstance(fleet.step([row(rng, 2 * (i - 500) + 1)])[0], Output)
        assert len(read_segments(tmp_path / "log")) >= 2
        assert replays_the_same(model, tmp_path / "log", policies)
        assert resume(model, tmp_path / "log").snapshot() == fleet.snapshot()


@dataclass
class Lives:
    """A fleet that is stopped again and again, beside one that never was; ticks: what each stream was given."""

    model: Model
    folder: Path
    policies: Policies
    rng: np.random.Generator
    ticks: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.model, self.policies, recorder=Recorder(self.folder, SMALLEST))
        self.never = Fleet(self.model, self.policies)

    def tick(self, name: str) -> int:
        """A later one, or one among those of the stream's window that no row has."""
        ticks = self.ticks.setdefault(name, [])
        recent = sorted(ticks)[-self.policies.window :]
        place = self.rng.integers(0, 3 * len(recent) + 1)
        free = place + 1 < len(recent) and recent[place] + 1 < recent[place + 1]
        tick = (recent[place] + recent[place + 1]) // 2 if free else (max(ticks) if ticks else 0) + 1000
        ticks.append(tick)
        return tick

    def step(self, names: str) -> None:
        rows = [row(self.rng, self.tick(name), name) for name in names]
        for ours, theirs in zip(self.fleet.step(rows), self.never.step(rows), strict=True):
            assert isinstance(ours, Output)
            assert isinstance(theirs, Output)
            assert len(names) > 1 or same(ours, theirs)

    def restart(self) -> None:
        before = self.fleet.snapshot()
        self.fleet = restarted(self.model, self.folder, self.fleet)
        assert self.fleet.snapshot() == before


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    window=st.sampled_from([1, 20, 100]),
    names=st.sampled_from([["a"], ["a", "b"], ["abc", "a", "bc"]]),
)
def test_a_fleet_that_is_stopped_at_any_time_is_like_one_that_never_was(
    model: Model, seed: int, window: int, names: list[str]
) -> None:
    """To the bit where rows run one by one; within the backend's tolerance where rows of several streams shared calls,
    though what is resumed is also then what it was, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(seed)
        lives = Lives(model, Path(folder) / "log", Policies(on_late="replay", on_missing="hold", window=window), rng)
        for _ in range(150):
            lives.step(names[rng.integers(0, len(names))])
            if rng.random() < 0.06:
                lives.restart()
        lives.restart()
        assert replays_the_same(model, Path(folder) / "log", lives.policies)
        ours, theirs = lives.fleet.states(), lives.never.states()
        assert ours.keys() == theirs.keys()
        for name, state in theirs.items():
            assert ours[name].tick == state.tick
            np.testing.assert_allclose(ours[name].arena, state.arena, rtol=1e-5, atol=1e-6)
            assert "abc" in names or ours[name].arena.tobytes() == state.arena.tobytes()
        lives.fleet.close()


def test_what_comes_late_to_a_resumed_fleet_gives_the_bits_of_the_one_that_goes_on(
    model: Model, tmp_path: Path
) -> None:
    """Of streams that share calls too: a log holds the very checkpoints that a late row goes back to."""
    rng = np.random.default_rng(4)
    with closing(Fleet(model, LATE, recorder=Recorder(tmp_path / "log", SMALLEST))) as fleet:
        for i in range(700):
            fleet.step([row(rng, 2 * i, name) for name in "abc"])
        twin = resume(model, tmp_path / "log")
        for i in rng.permutation(650)[:12]:
            rows = [row(rng, 2 * int(i) + 1, name) for name in "ab"]
            for ours, theirs in zip(twin.step(rows), fleet.step(rows), strict=True):
                assert isinstance(ours, Output)
                assert isinstance(theirs, Output)
                assert same(ours, theirs)
        assert twin.snapshot() == fleet.snapshot()


def test_a_fleet_is_resumed_from_the_newest_segment_alone(model: Model, tmp_path: Path) -> None:
    """So that a start takes no longer the more the ring holds."""
    rng = np.random.default_rng(1)
    with closing(Fleet(model, LATE, recorder=Recorder(tmp_path / "log", SMALLEST))) as fleet:
        for i in range(2000):
            fleet.step([row(rng, 2 * i)])
        older = segment_paths(tmp_path / "log")[:-1]
        assert older
        for path in older:
            path.write_bytes(b"spoiled")
        twin = resume(model, tmp_path / "log")
        assert isinstance(twin.step([row(rng, 2 * 1000 + 1)])[0], Output), "1,000 rows late"


def test_a_stream_that_began_anew_does_not_go_back_to_the_one_before(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    fleet = Fleet(model, LATE, recorder=Recorder(tmp_path / "log", SMALLEST))
    for i in range(40):
        fleet.step([row(rng, 2 * i)])
        if i == 20:
            blob = fleet.snapshot()
    fleet.restore(blob)
    for i in range(21, 24):
        fleet.step([row(rng, 2 * i)])
    twin = restarted(model, tmp_path / "log", fleet)
    assert "far back" in str(twin.step([row(rng, 2 * 19 + 1)])[0])
    assert isinstance(twin.step([row(rng, 2 * 22 + 1)])[0], Output)
    twin.close()


def test_streams_put_away_before_one_that_cannot_be_are_so_in_the_log_too(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is late for a stream which was put away is also refused once the log is resumed."""
    put = Claim.put

    def full(claim: Claim, name: str, snapshot: bytes) -> None:
        if name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(claim, name, snapshot)

    monkeypatch.setattr(Claim, "put", full)
    rng, told = np.random.default_rng(5), list[str]()
    with closing(Fleet(model, LATE, recorder=Recorder(tmp_path / "log"))) as fleet:
        for i in range(5):
            fleet.step([row(rng, 2 * i, name) for name in "ab"])
        with pytest.raises(OSError, match="No space"):
            fleet.evict(["a", "b"])
        assert fleet.awake == ["b"]
        fleet.step([row(rng, 20)])
        assert [isinstance(fleet.step([row(rng, 5, name)])[0], Output) for name in "ab"] == [False, True]
        twin = resume(model, tmp_path / "log", tell=told.append)
        assert twin.states().keys() == fleet.states().keys()
        assert all(same_state(state, fleet.states()[name]) for name, state in twin.states().items())
        assert [isinstance(twin.step([row(rng, 7, name)])[0], Output) for name in "ab"] == [False, True]
    assert told == []


@pytest.fixture
def old_log(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes]:
    """A log of two segments as it was before a segment held what late rows may come before, and what came of it.

    The second has a late row that comes before rows of the first.
    """

    def old_head(head: LogHead, snapshot: bytes) -> bytes:
        fields = msgspec.to_builtins(head)
        del fields["pasts"]
        return MAGIC + frame(msgspec.json.encode(fields)) + frame(snapshot)

    folder, rng = tmp_path / "old", np.random.default_rng(6)
    with monkeypatch.context() as patch:
        patch.setattr("odestream.runtime.recorder.encode_head", old_head)
        patch.setattr(Fleet, "pasts", lambda _: {})
        fleet = Fleet(model, LATE, recorder=Recorder(folder, SMALLEST))
        i = 0
        while len(segment_paths(folder)) < 2:
            i += 1
            fleet.step([row(rng, 2 * i)])
        for tick in (2 * i + 2, 2 * i - 21, 2 * i + 4):
            assert isinstance(fleet.step([row(rng, tick)])[0], Output)
        snapshot = fleet.snapshot()
        fleet.close()
    return folder, snapshot


def test_an_old_log_whose_late_rows_reach_into_the_segment_before_is_read_as_ever(
    model: Model, old_log: tuple[Path, bytes]
) -> None:
    folder, snapshot = old_log
    told, segments = list[str](), read_segments(folder)
    assert all(not segment.pasts for segment in segments)
    late = segments[1].events[1]
    assert isinstance(late, tuple)
    tick = late[0].observation.t or 0
    assert replays_the_same(model, folder)
    assert moment(model, segments, "a", tick).replayed.same
    with closing(resume(model, folder, Recorder(folder, SMALLEST), tell=told.append)) as twin:
        assert (told, twin.snapshot()) == ([], snapshot)
        assert isinstance(twin.step([row(np.random.default_rng(7), tick - 40)])[0], Output)
        for path in segment_paths(folder)[:-1]:
            path.write_bytes(b"spoiled")
        assert resume(model, folder).snapshot() == twin.snapshot(), "what it goes on with needs no old segment"


def test_an_old_log_that_has_lost_the_segment_before_tells_what_came_out_otherwise(
    model: Model, old_log: tuple[Path, bytes]
) -> None:
    folder, snapshot = old_log
    segment_paths(folder)[0].unlink()
    told = list[str]()
    assert resume(model, folder, tell=told.append).snapshot() != snapshot
    assert "answers of" in told[0]


@pytest.fixture
def segment(model: Model, tmp_path: Path) -> Path:
    """The file of a segment that begins with rows which late ones may come before."""
    rng = np.random.default_rng(3)
    fleet = Fleet(model, LATE, recorder=Recorder(tmp_path / "log"))
    for i in range(40):
        fleet.step([row(rng, 2 * i)])
    restarted(model, tmp_path / "log", fleet).close()
    return segment_paths(tmp_path / "log")[-1]


def test_every_cut_of_what_late_rows_need_is_refused_or_told(model: Model, segment: Path) -> None:
    data = segment.read_bytes()
    whole = decode_segment(data, segment)
    assert [[len(rows) for rows in past.rows] for past in whole.pasts] == [[40]]
    refused = damaged = 0
    for length in range(0, len(data), 7):
        try:
            cut = decode_segment(data[:length], segment)
        except LogError:
            refused += 1
            continue
        assert cut.events == ()
        assert cut.damage is not None or not cut.pasts
        damaged += cut.damage is not None
        list(replay(Fleet(model, LATE), [cut]))
    assert refused > 0
    assert damaged > 200


def test_rows_of_streams_that_have_no_checkpoint_are_refused(model: Model, segment: Path) -> None:
    whole = decode_segment(segment.read_bytes(), segment)
    (past,) = whole.pasts
    forged = replace(whole, pasts=(replace(past, rows=past.rows * 2),))
    with pytest.raises(LogError, match="rows of 2 streams come after 1; record a new log"):
        list(replay(Fleet(model, LATE), [forged]))
