"""`odestream run` as a service: counts over HTTP on the loopback address alone, and what systemd is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from odestream.runtime import InputError
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.fleet import Answer, Fleet, Observation
from odestream.runtime.watchdog import Watchdog
from tests.helpers.run_verb import ROWS, refusal, run, with_task, write_table
from tests.helpers.tiny_bundle import write_tiny


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_running_service_serves_its_counts_and_tells_systemd_its_states(tiny_path: Path, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        command = [sys.executable, "-m", "odestream.runtime.cli", "run", str(tiny_path), "--input", "-"]
        with subprocess.Popen(
            [*command, "--metrics", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert systemd.recv(99) == b"READY=1"
            process.stdin.write("\n".join(ROWS[:3]) + "\n")
            process.stdin.flush()
            for _ in ROWS[:3]:
                process.stdout.readline()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert "odestream_rows_total 2.0" in answer.read().decode()
            assert bound_to(port) == ["127.0.0.1"]
            assert systemd.recv(99) == b"WATCHDOG=1"
            process.stdin.close()
            assert process.wait(30) == 0
        told = b""
        while told != b"STOPPING=1":
            told = systemd.recv(99)
            assert told in (b"WATCHDOG=1", b"STOPPING=1")


def bound_to(port: int) -> list[str]:
    """The addresses that listen on a port of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = [line[1].split(":") for line in lines if line[3] == "0A"]
    return [socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address, where in found if int(where, 16) == port]


def test_a_port_that_is_taken_is_refused_before_any_row(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run(tiny_path, write_table(tmp_path / "t.csv", ROWS), "--metrics", port) == 2
    assert "Address already in use" in refusal(capsys)


def test_work_on_rows_that_were_read_ahead_is_told_call_by_call(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table whose output is a file is read ahead by thousands of rows, which must not look like a hang."""
    done, step, found = list[int](), Fleet.step, Watchdog.done

    def noted(watchdog: Watchdog) -> None:
        done.append(0)
        found(watchdog)

    def stepping(fleet: Fleet, rows: Sequence[Observation]) -> list[Answer]:
        done.append(len(rows))
        return step(fleet, rows)

    monkeypatch.setattr(Watchdog, "done", noted)
    monkeypatch.setattr(Fleet, "step", stepping)
    rows = [f"{t},{name},1,2,3" for t in range(5) for name in "ab"]
    table = write_table(tmp_path / "t.csv", ["time,id,c0,c1,c2", *rows])
    bundle = with_task(write_tiny(tmp_path / "b"), TaskSpec("forecast", ("c0", "c1", "c2"), ("c1",), (), "time", "id"))
    assert run(bundle, table, "--output", tmp_path / "out.csv") == 0
    assert done[done.index(2) :] == [2, 0] * 5


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NOTIFY_SOCKET": "relative"}, "NOTIFY_SOCKET is 'relative', expected a path or @name"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC is 'soon', expected microseconds"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-5"}, "WATCHDOG_USEC is '-5'"),
    ],
)
def test_an_environment_that_systemd_would_not_set_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Watchdog(environment)


def test_without_systemd_or_for_another_process_nothing_is_sent(tmp_path: Path) -> None:
    with Watchdog({}) as watchdog:
        assert list(watchdog.watched(iter("ab"))) == ["a", "b"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0odestream-test")
        systemd.settimeout(0.2)
        other = {"NOTIFY_SOCKET": "@odestream-test", "WATCHDOG_USEC": "10000", "WATCHDOG_PID": "1"}
        with Watchdog(other) as watchdog:
            assert systemd.recv(99) == b"READY=1", "an abstract name"
            with pytest.raises(TimeoutError):
                systemd.recv(99)
        assert list(watchdog.watched(iter("ab"))) == ["a", "b"]
    with Watchdog({"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        pass
