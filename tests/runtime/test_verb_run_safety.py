"""`odestream run`: states and files that a mistake must not cost, and gaps that no call can cross."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from odestream.runtime import load
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.fleet import Answer, Fleet, Observation
from tests.helpers.run_verb import ROWS, files_under, refusal, run, with_task, write_table
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("run") / "bundle")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "table.csv", ROWS)


@pytest.mark.parametrize("same", ["input", "output"])
def test_outputs_that_are_one_file_or_the_input_are_refused_before_work(
    same: str, bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_under(tmp_path)
    target = table if same == "input" else tmp_path / "both"
    assert run(bundle, table, "--output", tmp_path / "both", "--snapshot", target, "--force") == 2
    assert "own" in refusal(capsys) or same == "input"
    assert files_under(tmp_path) == before


def test_snapshot_of_the_python_interface_is_resumed_and_back(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_text(bundle, table, capsys)
    first = write_table(tmp_path / "first.csv", ROWS[:3])
    second = write_table(tmp_path / "second.csv", [ROWS[0], *ROWS[3:]])
    assert run(bundle, first, "--output", tmp_path / "out.csv", "--snapshot", tmp_path / "one.snap") == 0
    with load(bundle) as model:
        blob = model.restore((tmp_path / "one.snap").read_bytes()).snapshot()
    assert blob == (tmp_path / "one.snap").read_bytes()
    (tmp_path / "two.snap").write_bytes(blob)
    capsys.readouterr()
    assert run(bundle, second, "--resume", tmp_path / "two.snap") == 0
    assert capsys.readouterr().out.splitlines()[1:] == whole.splitlines()[3:]


SEVERAL = ["time,id,c0,c1,c2", "0,x,1,2,3", "0,y,2,3,4", "1,x,2,1,0", "2,y,0,0,1", "2,x,3,2,1", "3,y,1,1,1"]


@pytest.mark.parametrize("kept", ["snapshot", "log"])
def test_the_same_table_goes_on_where_a_run_had_ended(
    kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill: nobody has to count what was read, though streams ended at different times."""
    task = TaskSpec("forecast", ("c0", "c1", "c2"), ("c1",), (), "time", "id")
    bundle = with_task(write_tiny(tmp_path / "several"), task)
    table = write_table(tmp_path / "table.csv", SEVERAL)
    whole = run_text(bundle, table, capsys).splitlines()
    place, option = tmp_path / kept, "--snapshot" if kept == "snapshot" else "--record"
    assert run(bundle, write_table(tmp_path / "part.csv", SEVERAL[:5]), option, place) == 0
    capsys.readouterr()
    assert run(bundle, table, "--resume", place) == 2
    assert refusal(capsys).endswith("leave out --resume, or the rows up to then (--skip-seen)")
    assert run(bundle, table, "--resume", place, "--skip-seen", *((option, place) if kept == "log" else ())) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [whole[0], *whole[5:]]
    assert "4 rows were passed over: their streams had seen them" in err
    assert (
        run(bundle, write_table(tmp_path / "back.csv", [*SEVERAL, "1,y,0,0,0"]), "--resume", place, "--skip-seen") == 2
    )
    assert "sort the rows" in refusal(capsys)


def test_gap_that_cannot_be_crossed_is_an_error_or_a_new_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "bundle", Tiny(stiffness=50.0))
    table = write_table(tmp_path / "gap.csv", ["time,c0,c1,c2", "0,1,2,3", "1e6,1,2,3", "1000000.5,2,2,2"])
    assert run(path, table) == 2
    assert "--on-gap reset" in capsys.readouterr().err
    assert run(path, table, "--on-gap", "reset") == 0
    rows = capsys.readouterr().out.splitlines()
    alone = write_table(tmp_path / "alone.csv", ["time,c0,c1,c2", "1e6,1,2,3", "1000000.5,2,2,2"])
    assert run(path, alone) == 0
    assert rows[2:] == capsys.readouterr().out.splitlines()[1:]
    assert run(path, table, "--on-gap", "skip") == 2
    assert "choose one of error, reset" in refusal(capsys)


def test_bad_row_of_a_pipe_keeps_the_state_of_the_rows_before_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_table(tmp_path / "good.csv", ROWS[:4]), write_table(tmp_path / "bad.csv", [*ROWS[:4], "9,x,1,1"])
    assert run(bundle, bad, "--snapshot", tmp_path / "bad.snap") == 2
    assert run(bundle, good, "--snapshot", tmp_path / "good.snap") == 0
    assert (tmp_path / "bad.snap").read_bytes() == (tmp_path / "good.snap").read_bytes()
    assert run(bundle, bad, "--output", tmp_path / "out.csv", "--snapshot", tmp_path / "none.snap") == 2
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "none.snap").exists()


def test_state_outlives_the_reader_of_standard_output(bundle: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", ["time,c0,c1,c2", *(f"{i},1,2,3" for i in range(20_000))])
    command = [sys.executable, "-m", "odestream.runtime.cli", "run", str(bundle), "--input", str(table)]
    with subprocess.Popen([*command, "--snapshot", str(tmp_path / "s")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert process.wait(60) == 141
    assert all(rows)
    with load(bundle) as model:
        stream, twin = model.restore((tmp_path / "s").read_bytes()), model.stream()
        assert 2 <= stream.counters.steps < 20_000
        for i in range(stream.counters.steps):
            twin.step([1, 2, 3], model.tick(str(i)))
        assert stream.snapshot() == twin.snapshot()


@pytest.mark.parametrize("fault", [RuntimeError("a fault of odestream itself"), MemoryError(), KeyboardInterrupt()])
def test_a_fault_of_any_kind_keeps_the_state_of_the_rows_that_are_out(
    fault: BaseException, bundle: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = Fleet.step, list[int]()

    def failing(fleet: Fleet, rows: Sequence[Observation]) -> list[Answer]:
        calls.append(len(rows))
        if len(calls) == 4:
            raise fault
        return step(fleet, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "step", failing)
        assert run(bundle, table, "--snapshot", tmp_path / "fault.snap") in (70, 130)
    good = write_table(tmp_path / "good.csv", ROWS[:4])
    assert run(bundle, good, "--snapshot", tmp_path / "good.snap") == 0
    assert (tmp_path / "fault.snap").read_bytes() == (tmp_path / "good.snap").read_bytes()


@pytest.mark.parametrize("broken", ["disk", "fleet"])
def test_a_snapshot_that_fails_does_not_hide_the_fault_that_ended_the_run(
    broken: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = write_table(tmp_path / "bad.csv", [*ROWS[:4], "9,x,1,1"])
    assert run(bundle, bad) == 2
    alone = refusal(capsys)

    def failing(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if broken == "disk" else RuntimeError("a second fault")

    disk, fleet = "odestream.runtime.verbs.run.write_generation", "odestream.runtime.fleet.Fleet.snapshot"
    monkeypatch.setattr(disk if broken == "disk" else fleet, failing)
    assert run(bundle, bad, "--snapshot", tmp_path / "bad.snap") == 2
    second, first = capsys.readouterr().err.splitlines()
    assert first == alone
    assert str(tmp_path / "bad.snap") in second
    assert ("No space left" if broken == "disk" else "a second fault") in second


def run_text(bundle: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(bundle, table) == 0
    return capsys.readouterr().out
