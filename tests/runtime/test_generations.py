"""Two generations of a snapshot: whatever happens to the newest, the stream comes back from one that is whole."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import Model, SnapshotDamaged, SnapshotError, load
from odestream.runtime.generations import previous_path, read_generation, write_generation
from tests.helpers.run_verb import ROWS, run, write_table
from tests.helpers.streams import continues_like, forged, of_version
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> tuple[Path, bytes, bytes]:
    """A snapshot of two generations, after one step and after two."""
    stream, path = model.stream(), tmp_path / "s.snapshot"
    blobs = []
    for t in (0, 10**9):
        stream.step([1, 2, 3], t)
        blobs.append(stream.snapshot())
        write_generation(path, blobs[-1])
    return path, blobs[0], blobs[1]


def test_both_generations_are_kept_and_the_newest_is_taken(model: Model, saved: tuple[Path, bytes, bytes]) -> None:
    path, older, newest = saved
    assert (previous_path(path).read_bytes(), path.read_bytes()) == (older, newest)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["s.snapshot", "s.snapshot.previous"]
    stream = model.restore(path)
    assert stream.origin == f"{path}, the newest generation"
    assert continues_like(stream, model.restore(newest))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "zeros"])
def test_a_damaged_newest_gives_the_one_before_and_says_why(
    model: Model, saved: tuple[Path, bytes, bytes], damage: str
) -> None:
    path, older, newest = saved
    flipped = newest[:-1] + bytes([newest[-1] ^ 1])
    spoiled = {"empty": b"", "cut": newest[:-1], "flipped": flipped, "zeros": bytes(len(newest))}
    path.unlink() if damage == "missing" else path.write_bytes(spoiled[damage])
    stream = model.restore(path)
    assert stream.origin.startswith(f"{previous_path(path)}, the generation before, because {path}: ")
    assert continues_like(stream, model.restore(older))


def test_a_damaged_newest_does_not_take_the_place_of_the_one_before(saved: tuple[Path, bytes, bytes]) -> None:
    path, older, newest = saved
    path.write_bytes(newest[:50])
    write_generation(path, newest)
    assert (previous_path(path).read_bytes(), path.read_bytes()) == (older, newest)
    write_generation(path, newest)
    assert previous_path(path).read_bytes() == older, "writing the same again loses nothing"


def test_two_damaged_generations_are_refused_never_replaced_by_zeros(
    model: Model, saved: tuple[Path, bytes, bytes]
) -> None:
    path, older, newest = saved
    path.write_bytes(newest[:50])
    previous_path(path).write_bytes(older[:50])
    with pytest.raises(SnapshotDamaged, match=rf"{path}: damaged .*, and {previous_path(path)}: .*; use") as caught:
        model.restore(path)
    assert str(caught.value).count("; ") == 1
    previous_path(path).unlink()
    with pytest.raises(SnapshotDamaged, match=f"^{path}: damaged"):
        read_generation(path)


def test_a_whole_newest_that_does_not_fit_is_refused_not_passed_over(
    saved: tuple[Path, bytes, bytes], tmp_path: Path
) -> None:
    with load(write_tiny(tmp_path / "other", Tiny(seed=5))) as other, pytest.raises(SnapshotError, match="made by"):
        other.restore(saved[0])
    saved[0].write_bytes(of_version(saved[2], 9))
    with pytest.raises(SnapshotError, match="version '9', this odestream reads 1; use a snapshot") as caught:
        read_generation(saved[0])
    assert type(caught.value) is SnapshotError


def test_another_version_s_file_is_kept_as_the_one_before(saved: tuple[Path, bytes, bytes]) -> None:
    path, _, newest = saved
    later = of_version(newest, 9)
    path.write_bytes(later)
    write_generation(path, newest)
    assert (previous_path(path).read_bytes(), path.read_bytes()) == (later, newest)
    write_generation(path, newest)
    assert previous_path(path).read_bytes() == later
    path.write_bytes(newest[:-1])
    with pytest.raises(SnapshotError, match="previous: version '9'"):
        read_generation(path)


def test_whatever_bit_is_flipped_the_one_before_is_taken_and_the_next_one_written(
    saved: tuple[Path, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for the test's speed
    path, older, newest = saved
    anywhere = np.random.default_rng(0).integers(64 * 8, 8 * len(newest), 100).tolist()
    for bit in [*range(64 * 8), *anywhere]:
        flipped = bytearray(newest)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = read_generation(path)
        assert found.data == older, bit
        assert found.origin.startswith(f"{previous_path(path)}, the generation before, because {path}: "), bit
        write_generation(path, newest)
        assert (previous_path(path).read_bytes(), path.read_bytes()) == (older, newest), bit


def test_a_snapshot_with_content_that_is_not_finite_is_refused(model: Model, saved: tuple[Path, bytes, bytes]) -> None:
    saved[0].write_bytes(forged(saved[2], lambda tensors, info: tensors["h"].fill(float("nan"))))
    with pytest.raises(SnapshotError, match="state h is not finite"):
        model.restore(saved[0])


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_disk_that_fails_at_any_point_keeps_a_whole_generation(
    saved: tuple[Path, bytes, bytes], model: Model, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path, _, newest = saved
    later = model.restore(newest)
    later.step([3, 2, 1], 2 * 10**9)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace" if broken == "replace" else "open", fail)
    with pytest.raises(OSError, match="No space"):
        write_generation(path, later.snapshot())
    monkeypatch.undo()
    assert read_generation(path).data == newest
    assert not [entry for entry in path.parent.iterdir() if entry.suffix == ".tmp"]


INSIDE = (
    "import os, sys; from pathlib import Path; from odestream.runtime.generations import write_generation\n"
    "synced = os.fsync; data = Path(sys.argv[2]).read_bytes()\n"
    "def wait(descriptor): print('inside', flush=True); sys.stdin.readline(); synced(descriptor)\n"
    "os.fsync = wait; write_generation(Path(sys.argv[1]), data)\n"
)


@contextmanager
def inside(path: Path, data: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process that writes a generation and waits before its first temporary file is on the disk; that file."""
    before = set(path.parent.iterdir())
    command = [sys.executable, "-c", INSIDE, str(path), str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"inside\n"
        (temporary,) = set(path.parent.iterdir()) - before
        yield process, temporary
        process.kill()


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_live_writer_s_file_is_not(
    saved: tuple[Path, bytes, bytes], tmp_path: Path
) -> None:
    path, older, newest = saved
    data = tmp_path / "data"
    data.write_bytes(older)
    with inside(path, data) as (_, left):
        pass
    assert left.exists(), "killed with its file half written"
    with inside(path, data) as (writer, held):
        assert not left.exists()
        write_generation(path, newest)
        assert held.exists()
        writer.communicate(b"\n" * 9, timeout=60)
        assert writer.returncode == 0
    assert read_generation(path).data == older, "what the writer that was slower had to write"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "s.snapshot", "s.snapshot.previous"]


def test_run_writes_generations_and_says_when_it_resumes_from_the_one_before(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        write_table(tmp_path / name, [ROWS[0], *rows]) for name, rows in {"a": ROWS[1:3], "b": ROWS[3:]}.items()
    )
    snapshot = tmp_path / "s"
    assert run(tiny_path, first, "--snapshot", snapshot) == 0
    assert run(tiny_path, second, "--resume", snapshot, "--snapshot", snapshot) == 0
    wanted = capsys.readouterr().out.splitlines()[-len(ROWS[3:]) :]
    snapshot.write_bytes(b"")
    assert run(tiny_path, second, "--resume", snapshot) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[1:] == wanted
    assert f"odestream: resuming from {previous_path(snapshot)}, the generation before, because" in told.err
