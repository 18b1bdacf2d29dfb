import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from odestream.runtime import atomic
from odestream.runtime.atomic import new_directory, publish_directory, refuse_existing, write_bytes
from odestream.runtime.errors import PathError


def test_write_bytes_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_bytes_and_removes_the_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_kill_while_writing_leaves_the_old_bytes_or_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import sys; from pathlib import Path; from odestream.runtime.atomic import write_bytes\n"
        "p = Path(sys.argv[1]); write_bytes(p, b'0' * 300_000); print('ready', flush=True)\n"
        "for n in range(10**9): write_bytes(p, str(n % 10).encode() * 300_000)\n"
    )
    for delay in (0.0, 0.01, 0.03):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay + 0.001)
            process.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1


def lost(file: BinaryIO, operation: int) -> None:
    raise BlockingIOError


def removed(file: BinaryIO, operation: int) -> None:
    Path(file.name).unlink()


def no_locks(file: BinaryIO, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("first", [lost, removed, no_locks])
def test_a_temporary_file_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Callable[[BinaryIO, int], None]
) -> None:
    """Somebody who cleans up holds its lock, or has removed it; where no file can be locked, it is used as it is."""

    def once(file: BinaryIO, operation: int) -> None:
        monkeypatch.undo()
        first(file, operation)

    monkeypatch.setattr(fcntl, "flock", once)
    write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.mark.parametrize(
    "name", [".f.0123456789ab.tmp", ".f.b.0123456789ab.tmp", ".f.notes.tmp", ".f.0123456789ab.old"]
)
def test_only_what_is_left_of_the_file_itself_is_removed(tmp_path: Path, name: str) -> None:
    for left in (tmp_path / name, tmp_path / f"{name}.more"):
        left.write_bytes(b"half")
    write_bytes(tmp_path / "f", b"new")
    kept = {"f", f"{name}.more"} | ({name} - {".f.0123456789ab.tmp"})
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_leftover_that_cannot_be_locked_stays_and_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".f.0123456789ab.tmp"
    left.write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_bytes(tmp_path / "f", b"new")
    assert sorted(tmp_path.iterdir()) == [left, tmp_path / "f"]


def fail_half_way(final: Path) -> None:
    with new_directory(final) as temporary:
        (temporary / "a").write_bytes(b"1")
        assert temporary.parent == final.parent
        raise RuntimeError("stop")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way(final)
    assert list(tmp_path.iterdir()) == []
    with new_directory(final) as temporary:
        (temporary / "a").write_bytes(b"2")
        assert not final.exists()
    assert (final / "a").read_bytes() == b"2"
    assert list(tmp_path.iterdir()) == [final]


@pytest.fixture(params=["exchanged", "moved aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How what exists is replaced: by the system's exchange of names, or without one."""
    if request.param == "moved aside":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("way")
def test_an_existing_directory_is_replaced_only_with_force(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with new_directory(final) as temporary:
        (temporary / "old").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "new").touch()
    with pytest.raises(PathError, match="--force"):
        publish_directory(other, final)
    publish_directory(other, final, force=True)
    assert [entry.name for entry in final.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_directory_that_is_replaced_is_at_no_moment_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    if not atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system exchanges no names")
    code = (
        "import os, sys; from itertools import count; from pathlib import Path\n"
        "from odestream.runtime.atomic import new_directory\n"
        "os.fsync = lambda _: None; out, enough = map(Path, sys.argv[1:])\n"
        "for n in count():\n"
        "    with new_directory(out, force=True) as new: (new / 'f').write_bytes(b'%d' % n)\n"
        "    n or print('ready', flush=True)\n"
        "    if enough.exists(): break\n"
        "print(n)\n"
    )
    final, enough, seen, before = tmp_path / "out" / "bundle", tmp_path / "enough", 0, None
    final.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, final, enough], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            while seen < 100 and process.poll() is None:
                found = os.lstat(final)
                now = (found.st_ino, found.st_mtime_ns)
                seen, before = seen + (now != before), now
        finally:
            enough.touch()
        last = process.stdout.read().strip()
    assert process.returncode == 0
    assert seen == 100, "it went on until so many were seen"
    assert (final / "f").read_bytes() == last
    assert list(final.parent.iterdir()) == [final]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PathError, match="exists already"):
        refuse_existing(link, force=False)
    refuse_existing(link, force=True)
    refuse_existing(tmp_path / "free", force=False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["file", "link to a directory", "dangling link"])
def test_what_is_no_directory_is_replaced_whole_by_force_and_what_a_link_names_stays(tmp_path: Path, kind: str) -> None:
    final, named = tmp_path / "out", tmp_path / "named"
    named.mkdir()
    (named / "kept").touch()
    if kind == "file":
        final.touch()
    else:
        final.symlink_to(named if kind == "link to a directory" else tmp_path / "nowhere")
    with new_directory(final, force=True) as temporary:
        (temporary / "new").touch()
    assert not final.is_symlink()
    assert [entry.name for entry in final.iterdir()] == ["new"]
    assert [entry.name for entry in named.iterdir()] == ["kept"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["named", "out"]
