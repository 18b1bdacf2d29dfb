"""Rivals train by the cell's own trainer, from the same table to the same kind of run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from odestream.models import config as config_module
from odestream.models.baselines import BASELINES, Baseline, footprint, name_of
from odestream.models.checkpoint import (
    CONFIG_FILE,
    DataInfo,
    RunInfo,
    Settings,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from odestream.models.distributed import World
from odestream.models.model import MODELS
from odestream.models.train import Job, Plan, prepare, train_run
from odestream.models.training.loop import Budget, Trainer
from odestream.models.training.resume import resume_training, save_training
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import CheckpointError
from tests.helpers.baselines import random_baseline
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.tables import classes_csv, seasonal_csv

ALONE = World()
TASKS = {
    "forecast": TaskSpec("forecast", ("level", "other"), ("level",), (), "time"),
    "classify": TaskSpec("classify", ("value",), ("kind",), (), "time", "stream"),
    "tokens": TaskSpec("tokens"),
}

INFO = RunInfo(
    TASKS["forecast"], TimeSpec(frequencies=(0.7, 1.9)), Settings(), DataInfo("a.csv", "00", 100, 1, 1.0), {}
)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)


def planned(folder: Path, kind: str, model: str) -> Plan:
    settings = Settings(model=model, epochs=3, period=20.0 if kind == "forecast" else None, horizons=(1, 5))
    source = folder / "data"
    if kind == "forecast":
        seasonal_csv(source)
    elif kind == "classify":
        classes_csv(source)
    else:
        source.write_bytes(b"the cat sat on the mat. " * 60)
    return prepare(Job(source, TASKS[kind], settings, folder / "run"), ALONE)


def ignore(report: object) -> None:
    del report


def trained(plan: Plan, steps: int, stop_at: int | None = None) -> Trainer:
    trainer = Trainer(plan.cell, plan.recipe, Budget(None, steps), 0, ALONE)
    trainer.run(ignore, lambda: trainer.step == stop_at, lambda: None)
    return trainer


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("model", BASELINES)
def test_every_rival_takes_finite_steps_in_every_task(tmp_path: Path, kind: str, model: str) -> None:
    plan = planned(tmp_path, kind, model)
    assert isinstance(plan.cell, Baseline)
    assert name_of(plan.cell) == model
    before = {name: value.clone() for name, value in plan.cell.state_dict().items()}
    trainer = trained(plan, 2)
    assert trainer.failures == 0
    still = [name for name, value in plan.cell.state_dict().items() if torch.equal(value, before[name])]
    assert not [name for name in still if "heads" in name and "outer" in name]
    assert plan.recipe.validate(trainer.best) < 100


@pytest.mark.parametrize(("kind", "model"), [("forecast", "gru-d"), ("classify", "cfc"), ("tokens", "gated-deltanet")])
def test_training_a_rival_lowers_its_validation_score(tmp_path: Path, kind: str, model: str) -> None:
    plan = planned(tmp_path, kind, model)
    before = plan.recipe.validate(plan.cell)
    assert trained(plan, 40).best_score < 0.97 * before


def test_a_resumed_rival_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trained(planned(tmp_path, "classify", "selective-ssm"), 12)
    broken = trained(planned(tmp_path, "classify", "selective-ssm"), 12, stop_at=5)
    save_training(tmp_path, broken, {})
    plan = planned(tmp_path, "classify", "selective-ssm")
    resumed = Trainer(plan.cell, plan.recipe, Budget(None, 12), 0, ALONE)
    resume_training(tmp_path, resumed, {})
    resumed.run(ignore, lambda: False, lambda: None)
    for name, value in whole.best.state_dict().items():
        assert torch.equal(value, resumed.best.state_dict()[name]), name


@pytest.mark.parametrize("model", ["gru-dt", "sliding-window"])
def test_a_rival_trains_from_the_command_line_and_is_judged_by_the_same_metrics(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, run = seasonal_csv(tmp_path / "a.csv"), tmp_path / "run"
    arguments = ["train", str(table), "--time", "time", "--period", "20", "--epochs", "2", "--horizons", "1,3"]
    assert main([*arguments, "--model", model, "--out", str(run)]) == 0
    assert "seasonal naive" in capsys.readouterr().out
    loaded, info = load_model(run)
    assert name_of(loaded) == info.settings.model == model  # type: ignore[arg-type]
    assert set(info.metrics["test"]["level"]) == {"1", "3"}
    assert "solver_gate" not in info.metrics
    assert not (run / "held_out.safetensors").exists()
    with pytest.raises(CheckpointError, match=f"holds a {model}, not a cell"):
        load_checkpoint(run)


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = seasonal_csv(tmp_path / "a.csv")
    assert main(["train", str(table), "--time", "time", "--model", "rnn", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "unknown model 'rnn'" in said
    assert all(name in said for name in MODELS)
    assert not (tmp_path / "run").exists()


def test_options_of_the_solver_are_refused_for_a_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(seasonal_csv(tmp_path / "a.csv")), "--time", "time", "--model", "gru"]
    assert main([*arguments, "--kinetic", "0.1", "--out", str(tmp_path / "run")]) == 2
    assert "--kinetic is for a cell, and gru is none" in capsys.readouterr().err


@pytest.mark.parametrize("name", BASELINES)
def test_a_saved_rival_comes_back_with_its_sizes_and_steps_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = random_baseline(name, tiny_config())
    save_checkpoint(tmp_path / "run", model, INFO)
    loaded, _ = load_model(tmp_path / "run")
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_run_of_a_model_that_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", random_baseline("gru", tiny_config()), INFO)
    config = json.loads((tmp_path / "run" / CONFIG_FILE).read_text())
    config["cell"]["model"] = "newer"
    (tmp_path / "run" / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="unknown model 'newer'"):
        load_model(tmp_path / "run")


def test_a_whole_run_without_the_command_line_holds_what_a_cells_run_holds(tmp_path: Path) -> None:
    settings = Settings(model="linoss", epochs=1, horizons=(1,))
    job = Job(classes_csv(tmp_path / "c.csv"), TASKS["classify"], settings, tmp_path / "run")
    info = train_run(job, ALONE, ignore)
    assert info is not None
    assert 0 <= info.metrics["test"]["accuracy"] <= 1
    assert info.metrics["parameters"] == footprint(load_model(job.out)[0]).parameters
