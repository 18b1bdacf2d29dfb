"""`odestream train` as a user types it: exit status, one sentence for an error, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odestream.models import config as config_module
from odestream.models.checkpoint import Settings, load_checkpoint, load_model
from odestream.models.cli import task_of
from odestream.models.train import check_settings
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskKind, TaskSpec
from odestream.runtime.errors import InputError
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.tables import classes_csv, seasonal_csv

QUICK = ("--epochs", "1", "--horizons", "1,3")


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return seasonal_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("model", ["cell", "gru"])
def test_a_stationary_record_gets_an_average_that_stays_at_its_centre(table: Path, tmp_path: Path, model: str) -> None:
    arguments = ["train", str(table), "--time", "time", "--model", model, "--out", str(tmp_path / "run"), *QUICK]
    assert main([*arguments, "--stationary"]) == 0
    trained, info = load_model(tmp_path / "run")
    assert info.settings.stationary
    assert trained.averages[-1] == 1e4
    assert trained.initial_state(1)["norm"][0, 0].tolist() == [0.0, 0.0, 1.0, *[0.0] * len(trained.averages)]


@pytest.mark.parametrize("kind", ["classify", "tokens"])
def test_stationary_is_refused_where_nothing_is_forecast(kind: TaskKind) -> None:
    with pytest.raises(InputError, match=f"--stationary is for a forecast, and a task of {kind} is none; leave it out"):
        check_settings(Settings(stationary=True), TaskSpec(kind))


def test_a_sink_is_trained_with_the_cell(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", str(table), "--time", "time", "--out", str(run), *QUICK, "--episodic-sink"]) == 0
    cell, info = load_checkpoint(run)
    assert info.settings.episodic_sink
    assert cell.config.episodic_sink
    assert cell.memory.sink is not None
    assert cell.memory.sink.item() not in (0.0, 0.7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(episodic_sink=True, model="gru"), "--episodic-sink is for a cell, and gru is none; leave it out"),
        (Settings(episodic_sink=True, without=("episodic",)), "--episodic-sink needs the memory that --without"),
    ],
)
def test_a_sink_is_refused_where_there_is_no_episodic_memory(settings: Settings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_settings(settings, TaskSpec("forecast"))
    with pytest.raises(InputError, match="add the episodic one, or leave the sink out"):
        tiny_config(stores=("working", "longterm"), episodic_sink=True)


def test_a_table_becomes_a_run(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(table), "--time", "time", "--period", "20", "--out", str(run), *QUICK]) == 0
    _, info = load_checkpoint(run)
    assert info.task.inputs == info.task.targets == ("level", "other")
    assert info.settings.horizons == (1, 3)
    assert info.settings.epochs == 1
    printed = capsys.readouterr().out
    assert "seasonal naive" in printed
    assert "Solver gate " in printed
    assert f"{info.metrics['test']['level']['3']['mae']:.4g}" in printed
    assert json.loads((run / "metrics.json").read_text()) == info.metrics


def test_weights_reach_the_run_and_progress_is_plain_lines_where_standard_error_is_no_terminal(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(table), "--time", "time", "--out", str(tmp_path / "run"), "--horizons", "1,3"]
    weights = ("--consistency", "0.5", "--kinetic", "0.25", "--jacobian", "0.125")
    assert main([*arguments, "--epochs", "10", *weights]) == 0
    settings = load_checkpoint(tmp_path / "run")[1].settings
    assert (settings.consistency, settings.kinetic, settings.jacobian) == (0.5, 0.25, 0.125)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{tenth}0%" for tenth in range(1, 10)]
    assert all(re.fullmatch(r"\d+%: step \d+, loss \d+\.\d+, best validation \d+\.\d+", line) for line in lines)


def test_a_run_is_replaced_only_by_force(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(table), "--time", "time", "--inputs", "level", "--out", str(tmp_path / "run"), *QUICK]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 2
    assert main([*arguments, "--resume", "--force"]) == 2
    assert main([*arguments, "--seed", "1", "--force"]) == 0
    assert load_checkpoint(tmp_path / "run")[1].settings.seed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "when"], "time, level, other"),
        (["--time", "time", "--inputs", "lvl"], "time, level, other"),
        (["--time", "time", "--task", "guess"], "forecast, classify, tokens"),
        (["--time", "time", "--task", "classify"], "--targets"),
        (["--time", "time", "--inputs", "time"], "--inputs"),
        (["--time", "time", "--time-unit", "fortnight"], "unknown time unit"),
        (["--time", "time", "--horizons", "1,x"], "--horizons"),
        (["--task", "tokens", "--time", "time"], "--task tokens"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_leaves_nothing(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", str(table), *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("time,level\n", "no column of numbers"),
        ("time,level\n1,2\n2,oops\n", "oops"),
        ("time,level\n1,2\n2,nan\n", "nan"),
        (f"time,level\n1,{'1' * 200_000}\n", "line 2: not CSV"),
        ("time,level\n2,2\n1,3\n", "does not come after"),
        ("time,level\n1,2\n2,3\n", "left to train on"),
    ],
)
def test_a_bad_table_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "b.csv").write_text(text)
    assert main(["train", str(tmp_path / "b.csv"), "--time", "time", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv"]


def test_options_left_out_are_filled_in(table: Path, tmp_path: Path) -> None:
    assert task_of(table, "forecast", "time", (), ("other",), None).inputs == ("level", "other")
    assert task_of(table, "forecast", "time", ("level",), ("other",), None).inputs == ("level", "other")
    classes = classes_csv(tmp_path / "c.csv")
    task = task_of(classes, "classify", "time", (), ("kind",), "stream")
    assert (task.inputs, task.targets) == (("value",), ("kind",))
    with pytest.raises(InputError, match="label"):
        task_of(classes, "classify", "time", ("value", "kind"), ("kind",), "stream")


@pytest.mark.slow
def test_an_interrupted_training_is_kept_and_resumed(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "odestream.runtime.cli", "train", str(table), "--time", "time", "--epochs", "40"]
    command += ["--inputs", "level", "--horizons", "1,3", "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 120
    while not list(run.glob("training.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"--resume" in said
    assert [path.name for path in run.iterdir()] == ["training.safetensors"]
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=300, capture_output=True)
    assert load_checkpoint(run)[1].metrics["steps"] == 40
