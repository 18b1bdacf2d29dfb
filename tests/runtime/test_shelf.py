"""Streams that are put away come back as they went, or are refused: never older, another fleet's, or left out."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from odestream.runtime import InputError, Model, Output, Pool, SessionBusy, SnapshotDamaged, SnapshotError
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.generations import read_generation
from odestream.runtime.recorder import Recorder
from odestream.runtime.shelf import Shelf
from tests.helpers.streams import SECOND, same, same_state

Spoil = Callable[[Path, bytes, bytes], object]


@pytest.fixture
def fleet(model: Model, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose shelf is a folder of its own."""
    (tmp_path / "shelf").mkdir()
    fleet = Fleet(model, shelf=Shelf(tmp_path / "shelf"))
    yield fleet
    fleet.close()


def row(t: int, name: str = "a") -> Observation:
    return Observation(name, [1, 2, t / SECOND], t)


def put_away(fleet: Fleet, t: int, name: str = "a") -> bytes:
    """Step a stream and put it away; the file that it lies in."""
    assert isinstance(fleet.step([row(t, name)])[0], Output)
    fleet.evict([name])
    return file_of(fleet).read_bytes()


def file_of(fleet: Fleet) -> Path:
    folder = fleet._shelf._folder
    assert folder is not None
    (path,) = folder.glob("*.snapshot")
    return path


SPOILT: dict[str, Spoil] = {
    "flipped": lambda path, older, newest: path.write_bytes(newest[:-1] + bytes([newest[-1] ^ 1])),
    "flipped in the first line": lambda path, older, newest: path.write_bytes(newest[:19] + b"3" + newest[20:]),
    "older": lambda path, older, newest: path.write_bytes(older),
    "cut": lambda path, older, newest: path.write_bytes(newest[:-1]),
    "gone": lambda path, older, newest: path.unlink(),
    "another generation": lambda path, older, newest: path.rename(path.with_name(path.name + ".previous")),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_only_the_file_that_a_stream_was_put_away_in_brings_it_back(model: Model, fleet: Fleet, spoil: Spoil) -> None:
    older, newest = put_away(fleet, SECOND), put_away(fleet, 2 * SECOND)
    path = file_of(fleet)
    spoil(path, older, newest)
    (answer,) = fleet.step([row(3 * SECOND)])
    assert type(answer) is SnapshotDamaged
    assert f"stream 'a', put away: {path}: " in str(answer)
    assert str(answer).endswith("; restore it from a snapshot, or forget it")
    with pytest.raises(SnapshotDamaged):
        fleet.predict("a", 3 * SECOND)
    with pytest.raises(SnapshotDamaged):
        fleet.state("a")
    path.write_bytes(newest)
    twin = model.stream()
    expected = [twin.step([1, 2, t], t * SECOND) for t in (1, 2, 3)]
    (answer,) = fleet.step([row(3 * SECOND)])
    assert isinstance(answer, Output)
    assert same(answer, expected[-1])


def test_a_snapshot_without_a_stream_that_cannot_be_read_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Written twice, it would be in neither generation, and the stream would begin as a new one."""
    put_away(fleet, SECOND)
    fleet.step([row(SECOND, "b")])
    saved, good = tmp_path / "pool.snapshot", fleet.snapshot()
    with Pool(fleet) as pool:
        pool.save(saved)
        file_of(fleet).write_bytes(b"spoiled")
        for _ in range(2):
            with pytest.raises(SnapshotDamaged, match="stream 'a', put away: .*; restore it from a snapshot, or forge"):
                pool.save(saved)
        assert read_generation(saved).data == good
        assert isinstance(pool.step("b", [1, 2, 3], 2 * SECOND), Output), "one bad stream fails alone"
        fleet.restore(saved)
        assert fleet.snapshot() == good


def test_a_stream_that_was_lost_can_be_forgotten(model: Model, fleet: Fleet) -> None:
    put_away(fleet, SECOND)
    fleet.step([row(SECOND, "b"), row(SECOND, "c")])
    kept = fleet.state("b")
    file_of(fleet).write_bytes(b"spoiled")
    fleet.forget(["a", "c"])
    assert fleet.names == ["b"]
    after = model.restore_streams(fleet.snapshot())["b"].save()
    assert kept is not None
    assert same_state(after, kept)
    (answer,) = fleet.step([row(0)])
    assert isinstance(answer, Output)
    assert same(answer, model.stream().step([1, 2, 0], 0))


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_shelf_is_one_fleet_s_until_that_is_closed(model: Model, tmp_path: Path, on_disk: bool) -> None:
    shelf = Shelf(tmp_path if on_disk else None)
    first = Fleet(model, shelf=shelf)
    with pytest.raises(SessionBusy, match="another fleet .*; close it or choose another"):
        Fleet(model, shelf=shelf)
    first.step([row(SECOND)])
    first.evict(["a"])
    first.close()
    second = Fleet(model, shelf=shelf)
    assert second.names == [], "a shelf begins empty"
    second.close()


def test_a_closed_fleet_puts_nothing_where_another_one_may_be_by_now(fleet: Fleet) -> None:
    newest = put_away(fleet, SECOND)
    fleet.close()
    fleet.forget()
    fleet.step([row(0)])
    with pytest.raises(SessionBusy, match="the shelf's fleet is closed"):
        fleet.evict(["a"])
    assert fleet.awake == ["a"]
    assert file_of(fleet).read_bytes() == newest


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_a_closed_fleet_still_does_leaves_the_next_one_s_shelf_alone(
    model: Model, tmp_path: Path, on_disk: bool
) -> None:
    shelf = Shelf(tmp_path if on_disk else None)
    first = Fleet(model, shelf=shelf)
    first.close()
    second = Fleet(model, shelf=shelf)
    second.step([row(SECOND)])
    second.evict(["a"])
    first.close()
    assert first.names == []
    assert isinstance(first.step([row(2 * SECOND)])[0], Output)
    with pytest.raises(SessionBusy, match="the shelf's fleet is closed"):
        first.evict(["a"])
    for again in (shelf, Shelf(tmp_path)) if on_disk else (shelf,):
        with pytest.raises(SessionBusy, match="another fleet"):
            again.claim()
    twin = model.stream()
    expected = [twin.step([1, 2, t], t * SECOND) for t in (1, 2)]
    (answer,) = second.step([row(2 * SECOND)])
    assert isinstance(answer, Output)
    assert same(answer, expected[-1])
    second.evict(["a"])
    second.close()


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_nothing_can_be_locked_a_shelf_and_a_log_are_kept_and_a_warning_says_so(
    model: Model, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_locks(monkeypatch, number)
    fleet = Fleet(model, shelf=Shelf(tmp_path), recorder=Recorder(tmp_path / "log"))
    put_away(fleet, SECOND)
    assert isinstance(fleet.step([row(2 * SECOND)])[0], Output)
    fleet.close()
    for folder in (tmp_path, tmp_path / "log"):
        assert f"{folder}: cannot be locked (refused); see to it that nobody else writes there" in caplog.messages


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_both_errors_of_a_lock_that_is_held_say_who_has_the_folder(
    model: Model, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch, number)
    with pytest.raises(SessionBusy, match=f"^{tmp_path}: another fleet .*; close it or choose another shelf$"):
        Fleet(model, shelf=Shelf(tmp_path))


def test_a_shelf_s_folder_must_exist(model: Model, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    with pytest.raises(InputError, match=f"^{tmp_path}/shelf: no such folder .*; make it or choose another shelf$"):
        Fleet(model, shelf=shelf)
    (tmp_path / "shelf").mkdir()
    Fleet(model, shelf=shelf).close()


def test_a_folder_is_one_fleet_s_and_a_second_one_leaves_it_as_it_was(model: Model, fleet: Fleet) -> None:
    newest = put_away(fleet, SECOND)
    folder = fleet._shelf._folder
    assert folder is not None
    with pytest.raises(SessionBusy, match=f"^{folder}: another fleet "):
        Fleet(model, shelf=Shelf(folder))
    code = (
        "import sys; from pathlib import Path; from odestream.runtime.shelf import Shelf\n"
        "Shelf(Path(sys.argv[1])).claim()\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert "SessionBusy" in found.stderr
    assert file_of(fleet).read_bytes() == newest
    fleet.close()
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.parametrize("refusal", [{"buckets": [99]}, {"recorder": True}])
def test_a_fleet_that_could_not_be_made_frees_its_shelf(model: Model, tmp_path: Path, refusal: dict[str, Any]) -> None:
    shelf = Shelf(tmp_path)
    if "recorder" in refusal:
        refusal["recorder"] = Recorder(tmp_path / "log")
        refusal["recorder"].close()
    with pytest.raises((InputError, SessionBusy)):
        Fleet(model, shelf=shelf, **refusal)
    Fleet(model, shelf=shelf).close()


def test_what_was_left_half_written_is_removed_once_the_folder_is_the_shelf_s(model: Model, tmp_path: Path) -> None:
    left, mine = tmp_path / f".{'a' * 32}.snapshot.0123456789ab.tmp", tmp_path / ".mine.0123456789ab.tmp"
    for path in (left, mine):
        path.write_bytes(b"half")
    shelf = Shelf(tmp_path)
    assert left.exists()
    Fleet(model, shelf=shelf).close()
    assert mine.exists()
    assert not left.exists()


def test_one_file_is_kept_of_a_stream(fleet: Fleet) -> None:
    put_away(fleet, SECOND)
    put_away(fleet, 2 * SECOND)
    assert len(list(file_of(fleet).parent.glob("*.snapshot*"))) == 1


def test_a_full_disk_keeps_the_stream_awake(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    put_away(fleet, SECOND)
    fleet.step([row(2 * SECOND)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        fleet.evict(["a"])
    monkeypatch.undo()
    assert fleet.awake == ["a"]
    assert isinstance(fleet.step([row(3 * SECOND)])[0], Output)


def test_snapshots_without_streams_are_refused(fleet: Fleet) -> None:
    with pytest.raises(SnapshotError, match="no streams"):
        fleet.snapshot()
