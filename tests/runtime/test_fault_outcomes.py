"""The rest of the fault table: faults that end in the right answer, in a user's choice, or in a counted event."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import GapError, Model, Output, SessionBusy, SnapshotError, StateError, load
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.generations import read_generation, write_generation
from odestream.runtime.policies import Policies
from odestream.runtime.replay import failures, verify_vectors
from odestream.runtime.telemetry import Telemetry
from odestream.runtime.watchdog import Watchdog
from tests.helpers.run_verb import write_table
from tests.helpers.streams import SECOND, continues_like, irregular, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny
from tests.runtime.test_faults import FAULTS

ROOT = Path(__file__).parents[2]

_ENGINES = "runtime/test_backend_tensorrt.py"
_PLUGINS = "runtime/test_plugin_library.py"
_ON_A_GPU = "export/test_cuda_gpu.py"

ELSEWHERE = {
    25: (_PLUGINS, "test_25_a_plugin_library_outside_the_allowed_folders_is_never_opened"),
    26: ("models/test_checkpoint.py", "test_a_pickle_is_refused_and_not_executed"),
    27: ("models/test_checkpoint.py", "test_weights_that_are_not_finite_are_neither_saved_nor_loaded"),
    28: ("runtime/test_backend_onnxruntime.py", "test_an_unknown_backend_lists_the_known"),
    **dict.fromkeys(range(29, 34), (_ENGINES, "test_an_engine_that_does_not_belong_here_is_refused_before_it_is_read")),
    57: ("runtime/test_generations.py", "test_a_damaged_newest_gives_the_one_before_and_says_why"),
    62: ("runtime/test_generations.py", "test_a_disk_that_fails_at_any_point_keeps_a_whole_generation"),
    64: ("export/test_bundle.py", "test_a_bundle_is_replaced_whole_and_only_by_force"),
    69: ("runtime/test_batch.py", "test_a_row_that_fails_fails_alone_and_leaves_its_stream_as_it_was"),
    70: (_ENGINES, "test_what_fails_while_loading_is_told_and_nothing_is_kept"),
    71: (_ENGINES, "test_a_sticky_error_marks_the_device_as_lost_and_asks_it_nothing_more"),
    74: (_ON_A_GPU, "test_case_74_a_device_that_is_slowed_down_gives_the_same_bytes_and_its_misses_are_counted"),
}
"""Cases whose table is another file: what they need is built there. Devices and their engines are scripted there;
only 74, throttling, waits for a GPU of one's own (`pytest -m gpu`).
"""

NOT_YET = {14, 15}
"""Signatures."""


def test_every_case_of_the_catalogue_is_held_by_a_test() -> None:
    here = {int(n) for n in re.findall(r"^def test_case_(\d+)", Path(__file__).read_text("utf-8"), re.MULTILINE)}
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), name
    held = {number for number, *_ in FAULTS} | here | set(ELSEWHERE)
    assert held | NOT_YET == set(range(1, 76))
    assert [number for number, (file, _) in ELSEWHERE.items() if file == _ON_A_GPU] == [74]
    assert not held & NOT_YET


def test_case_13_a_file_swapped_between_hash_and_load_changes_nothing(tiny_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_path, tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    for name in bundle.files:
        (tmp_path / "b" / name).write_bytes(b"swapped")
    engine = open_engine("onnxruntime", bundle, 1)
    assert failures(verify_vectors(engine, bundle)) == []
    engine.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.asfortranarray(np.stack([x, x]))[0],
        lambda x: np.repeat(x, 2)[::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(">f4"),
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
    ],
    ids=["fortran", "strided", "reversed", "big-endian", "big-endian double", "list"],
)
def test_case_38_values_in_any_order_of_memory_are_read_right(model: Model, change: Any) -> None:
    stream, twin, x = model.stream(), model.stream(), np.array([1.5, -2, 3], np.float32)
    assert same(stream.step(change(x), 0), twin.step(x, 0))
    assert continues_like(stream, twin)


def test_case_43_a_caller_may_change_its_arrays_after_the_call(model: Model) -> None:
    stream, twin = model.stream(), model.stream()
    fleet = Fleet(model, Policies(on_late="replay"))
    x, mask = np.array([1.5, -2, 3], np.float32), np.array([1, 0, 1], np.float32)
    twin.step(x, 0, mask)
    out = stream.step(x, 0, mask)
    fleet.step([Observation("a", x, 0, mask)])
    kept = out.y.copy()
    x.fill(np.nan)
    mask.fill(7)
    assert continues_like(stream, twin)
    np.testing.assert_array_equal(out.y, kept)
    fleet.step([Observation("a", [1, 1, 1], 5)])
    (late,) = fleet.step([Observation("a", [2, 2, 2], 3)])
    twin = model.stream()
    twin.step([1.5, -2, 3], 0, [1, 0, 1])
    assert isinstance(late, Output)
    assert same(late, twin.step([2, 2, 2], 3))


@pytest.mark.parametrize("day", [1, 7, 30, 365])
def test_case_51_a_clock_that_starts_on_any_day_gives_the_same_bytes(day: int, tmp_path: Path) -> None:
    """100 Hz, where a float32 of absolute seconds loses most gaps within a week; phases count from the same origin."""
    start = day * 86_400 * SECOND
    results = []
    for origin in (0, start):
        tiny = Tiny(time=TimeSpec(origin=origin))
        with load(write_tiny(tmp_path / str(origin), tiny)) as model:
            stream = model.stream()
            x, _, mask = irregular(300)
            t = origin + np.cumsum(np.full(300, SECOND // 100))
            results.append((stream.steps(x, t, mask), stream.save()))
    (ours, state), (theirs, other) = results
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert state.arena.tobytes() == other.arena.tobytes()


def test_case_52_every_truncation_of_a_snapshot_is_refused(model: Model) -> None:
    blob = stepped(model)
    for length in range(len(blob)):
        with pytest.raises(SnapshotError):
            model.restore(blob[:length])


def test_case_53_every_bit_flip_of_a_snapshot_is_refused(model: Model) -> None:
    blob = stepped(model)
    for place in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(SnapshotError):
            model.restore(bytes(flipped))


def test_case_59_a_discarded_step_is_counted_by_its_error_and_the_last_good_state_kept(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "bundle", Tiny(gain=3.0))) as model:
        fleet = Fleet(model, telemetry=Telemetry())
        fleet.step([Observation("a", [1, 2, 3], SECOND), Observation("b", [1, 2, 3], SECOND)])
        good = fleet.state("a")
        answers = fleet.step([Observation("a", [0, -3e38, 0], 2 * SECOND), Observation("b", [1, 2, 3], 2 * SECOND)])
        assert [type(answer) for answer in answers] == [StateError, Output]
        assert good is not None
        assert same_state(fleet.state("a"), good)  # type: ignore[arg-type]
        assert fleet.telemetry.refused == {"StateError": 1}
        assert fleet.telemetry.streams == {"a": 1, "b": 2}


WRITER = (
    "import sys; from pathlib import Path; from odestream.runtime.generations import write_generation\n"
    "blobs = [Path(name).read_bytes() for name in sys.argv[2:]]; print('ready', flush=True)\n"
    "for n in range(10**9): write_generation(Path(sys.argv[1]), blobs[n % len(blobs)])\n"
)


def test_case_60_kill_while_writing_leaves_whole_generations(model: Model, tmp_path: Path) -> None:
    blobs = written(model, tmp_path)
    for delay in (0.0, 0.005, 0.02):
        with writer(tmp_path) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert read_generation(tmp_path / "s").data in blobs
        assert (tmp_path / "s").read_bytes() in blobs, "the newest is old or new, nothing else"


def test_case_61_data_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut can undo is the last steps of this order, never one in the middle."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        kind = "directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"  # noqa: PTH112
        events.append(f"sync {kind}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return replace(path, target)

    first, second = stepped(model), stepped(model, 3)
    write_generation(tmp_path / "s", first)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_generation(tmp_path / "s", second)
    once = ["sync file", "rename to {}", "sync directory"]
    assert events == [event.format(name) for name in ("s.previous", "s") for event in once]


def test_case_63_two_writers_leave_a_whole_snapshot(model: Model, tmp_path: Path) -> None:
    blobs = written(model, tmp_path)
    with writer(tmp_path) as one, writer(tmp_path) as two:
        seen = set()
        for _ in range(50):
            seen.add(read_generation(tmp_path / "s").data)
            time.sleep(0.002)
        assert (one.poll(), two.poll()) == (None, None), "neither was disturbed by the other"
        for process in (one, two):
            process.send_signal(signal.SIGKILL)
    assert seen <= blobs


def test_case_66_a_stream_that_was_put_away_comes_back_as_it_was(model: Model) -> None:
    fleet, twin = Fleet(model), model.stream()
    fleet.step([Observation("a", [1, 2, 3], 0)])
    twin.step([1, 2, 3], 0)
    held = fleet._members["a"].stream
    fleet.evict(["a"])
    with pytest.raises(SessionBusy, match="closed"):
        held.step([1, 2, 3], 5)
    (answer,) = fleet.step([Observation("a", [3, 2, 1], SECOND)])
    assert isinstance(answer, Output)
    assert same(answer, twin.step([3, 2, 1], SECOND))
    assert continues_like(fleet._members["a"].stream, twin)


def test_case_67_a_name_that_is_used_again_begins_at_the_initial_values(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=5.0, max_calls=2))) as model:
        fleet = Fleet(model, Policies(on_gap="reset"))
        fleet.step([Observation("a", [9, 9, 9], 0)])
        (answer,) = fleet.step([Observation("a", [1, 2, 3], 10**15)])
        twin = model.stream()
        assert isinstance(answer, Output)
        assert same(answer, twin.step([1, 2, 3], 10**15))
        assert continues_like(fleet._members["a"].stream, twin, 10)
        assert {name: counters.steps for name, counters in fleet.ended.items()} == {"a": 1}


def test_a_stream_that_gets_a_taken_name_keeps_its_own_ended_counters_alone(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=5.0, max_calls=2))) as model:
        fleet = Fleet(model, Policies(on_gap="reset"))
        for t in (0, 10**15, 2 * 10**15):
            fleet.step([Observation(name, [9, 9, 9], t) for name in ("a", "b") if t <= 10**15 or name == "a"])
        fleet.step([Observation("new", [1, 2, 3], 0)])
        assert {name: counters.steps for name, counters in fleet.ended.items()} == {"a": 2, "b": 1}
        fleet.rename("a", "a")
        fleet.rename("a", "b")
        assert {name: counters.steps for name, counters in fleet.ended.items()} == {"b": 2}
        fleet.evict(["b"])
        fleet.rename("new", "b")
        assert fleet.ended == {}
        assert fleet.names == ["b"]


def test_case_68_streams_without_rows_are_put_away_and_the_others_are_not(model: Model) -> None:
    fleet = Fleet(model)
    fleet.step([Observation(name, [1, 2, 3], 0) for name in "ab"])
    before = fleet.states()
    for member in fleet._members.values():
        member.used -= 3600
    fleet.step([Observation("b", [1, 2, 3], 5)])
    assert fleet.evict_idle(1800) == ["a"]
    assert set(fleet.names) == {"a", "b"}
    assert same_state(fleet.states()["a"], before["a"])


def test_case_72_missed_deadlines_are_counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry(deadline=0.05)
    fleet = Fleet(model, telemetry=telemetry)
    fleet.step([Observation("a", [1, 2, 3], 0)])
    step = fleet._members["a"].step

    def slow(row: Observation) -> Output:
        time.sleep(0.06)
        return step(row)

    monkeypatch.setattr(fleet._members["a"], "step", slow)
    fleet.step([Observation("a", [1, 2, 3], 5)])
    assert (telemetry.calls, telemetry.missed, telemetry.rows) == (2, 1, 2)
    assert telemetry.quantile(1.0) >= 0.06


def test_case_73_a_hang_ends_the_watchdog_s_pings(tmp_path: Path) -> None:
    """Pings go on while rows come, and while none comes; they stop where one row never ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(tmp_path / "notify"))
        service.settimeout(5)
        idle, resume = threading.Event(), threading.Event()

        def rows() -> Any:
            yield 1
            idle.wait(5)
            yield 2

        told = []
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        with Watchdog(environment) as watchdog:
            work = watchdog.watched(rows())
            next(work)
            thread = threading.Thread(target=lambda: (next(work), resume.wait(5)))
            thread.start()
            told += [service.recv(99) for _ in range(4)]
            idle.set()
            service.settimeout(0.1)
            assert any(not drain(service) for _ in range(50)), "the row in hand hangs, so at last there is silence"
            resume.set()
            thread.join()
        assert told == [b"READY=1"] + [b"WATCHDOG=1"] * 3
        assert drain(service) == [b"STOPPING=1"]


def test_case_75_sigterm_finishes_the_rows_and_saves_every_stream(tiny_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "odestream.runtime.cli", "run", str(tiny_path), "--input", "-"]
    with subprocess.Popen(
        [*command, "--snapshot", str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("time,c0,c1,c2\n0,1,2,3\n1,1,2,3\n")
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert len(lines) == 3
    twin = write_table(tmp_path / "t.csv", ["time,c0,c1,c2", "0,1,2,3", "1,1,2,3"])
    subprocess.run([*command[:-1], str(twin), "--snapshot", str(tmp_path / "twin")], check=True, capture_output=True)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "twin").read_bytes()


def test_a_reset_that_fails_keeps_the_stream_it_would_have_replaced(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=50.0, max_calls=2, gain=3.0))) as model:
        fleet, strict = Fleet(model, Policies(on_gap="reset")), Fleet(model)
        for each in (fleet, strict):
            each.step([Observation("a", [9, 9, 9], 0)])
        before = fleet.state("a")
        (answer,) = fleet.step([Observation("a", [3e38, 0, 0], 10**15)])
        assert isinstance(answer, StateError)
        assert isinstance(strict.step([Observation("a", [1, 2, 3], 10**15)])[0], GapError)
        after = fleet.state("a")
        assert before is not None
        assert after is not None
        assert same_state(before, after)
        assert fleet.ended == {}


def stepped(model: Model, steps: int = 2) -> bytes:
    stream = model.stream()
    for t in range(steps):
        stream.step([1, 2, 3], t * SECOND)
    return stream.snapshot()


def written(model: Model, folder: Path) -> set[bytes]:
    """Two snapshots for a writer, of which the first is written already."""
    blobs = [stepped(model, 2), stepped(model, 3)]
    for name, blob in zip("ab", blobs, strict=True):
        (folder / name).write_bytes(blob)
    write_generation(folder / "s", blobs[0])
    return set(blobs)


def writer(folder: Path) -> subprocess.Popen[bytes]:
    """A process that writes both snapshots in turn, over and over."""
    names = [str(folder / name) for name in "sab"]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *names], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def drain(service: socket.socket) -> list[bytes]:
    """What has come, and comes within the socket's timeout, up to ten."""
    found: list[bytes] = []
    with suppress(TimeoutError):
        found.extend(service.recv(99) for _ in range(10))
    return found
