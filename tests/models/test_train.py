"""The training loop: it learns, it resumes to the same weights, it keeps the best, and it selects on validation."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open

from odestream.models import config as config_module
from odestream.models.checkpoint import RunInfo, Settings, load_checkpoint
from odestream.models.config import BUCKETS
from odestream.models.curve import draw_curve
from odestream.models.distributed import World
from odestream.models.flow import integrator
from odestream.models.train import Job, Plan, budget, prepare, train_run
from odestream.models.training import recipe as recipe_module
from odestream.models.training.labels import start_at_frequencies
from odestream.models.training.lanes import LanePlan, Lanes
from odestream.models.training.loop import Budget, Curve, Trainer, rate
from odestream.models.training.resume import TRAINING_FILE, resume_training, save_training
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import CheckpointError, InputError, PathError
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.tables import classes_csv, seasonal_csv

ALONE = World()
FORECAST = TaskSpec("forecast", ("level",), ("level",), (), "time")
CLASSES = TaskSpec("classify", ("value",), ("kind",), (), "time", "stream")


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)


def job_for(tmp_path: Path, kind: str, epochs: int = 3, **changes: object) -> Job:
    settings = Settings(epochs=epochs, period=20.0 if kind == "forecast" else None, horizons=(1, 5))
    if kind == "forecast":
        source, task = seasonal_csv(tmp_path / "a.csv"), FORECAST
    elif kind == "classify":
        source, task = classes_csv(tmp_path / "a.csv"), CLASSES
    else:
        source, task = tmp_path / "a.txt", TaskSpec("tokens")
        source.write_bytes(b"the cat sat on the mat. " * 60)
    job = Job(source, task, settings, tmp_path / "run")
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def trainer_for(plan: Plan, steps: int) -> Trainer:
    return Trainer(plan.cell, plan.recipe, Budget(None, steps), 0, ALONE)


def read_identity(run: Path) -> dict[str, object]:
    with safe_open(run / TRAINING_FILE, "pt") as file:  # type: ignore[no-untyped-call]
        identity: dict[str, object] = json.loads(file.metadata()["training"])["identity"]
    return identity


def ignore(report: object) -> None:
    del report


@pytest.mark.parametrize(("kind", "steps"), [("forecast", 40), ("classify", 40), ("tokens", 24)])
def test_training_lowers_the_validation_score(tmp_path: Path, kind: str, steps: int) -> None:
    plan = prepare(job_for(tmp_path, kind), ALONE)
    before = plan.recipe.validate(plan.cell)
    trainer = trainer_for(plan, steps)
    assert trainer.run(ignore, lambda: False, lambda: None)
    assert trainer.best_score < 0.95 * before
    assert plan.recipe.validate(trainer.best) == pytest.approx(trainer.best_score)
    assert trainer.best_score == min(trainer.curve.validation)


@pytest.mark.parametrize("kind", ["forecast", "classify", "tokens"])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    job = job_for(tmp_path, kind)
    whole = trainer_for(prepare(job, ALONE), 8)
    whole.run(ignore, lambda: False, lambda: None)
    broken = trainer_for(prepare(job, ALONE), 8)
    assert not broken.run(ignore, lambda: broken.step == 5, lambda: None)
    save_training(tmp_path, broken, {"a": 1})
    resumed = trainer_for(prepare(job, ALONE), 8)
    resume_training(tmp_path, resumed, {"a": 1})
    assert resumed.step == 5
    resumed.run(ignore, lambda: False, lambda: None)
    for name in ("cell", "average", "best"):
        expected, found = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert resumed.curve == whole.curve


def test_a_training_begun_before_an_option_existed_is_resumed_without_it(tmp_path: Path) -> None:
    plan = prepare(job_for(tmp_path, "forecast"), ALONE)
    trainer = trainer_for(plan, 3)
    trainer.run(ignore, lambda: trainer.step == 1, lambda: None)
    save_training(tmp_path, trainer, {"preset": "nano"})
    resume_training(tmp_path, trainer, {"preset": "nano", "episodic_sink": False})
    with pytest.raises(CheckpointError, match="another episodic_sink"):
        resume_training(tmp_path, trainer, {"preset": "nano", "episodic_sink": True})


def test_a_stopped_run_can_be_resumed_and_then_holds_no_training_state(tmp_path: Path) -> None:
    settings = Settings(epochs=6, period=20.0, horizons=(1, 5), episodic_sink=True)
    job = job_for(tmp_path, "forecast", settings=settings)
    steps: list[int] = []
    assert train_run(job, ALONE, lambda report: steps.append(report.step), lambda: len(steps) >= 2) is None
    assert [path.name for path in job.out.iterdir()] == [TRAINING_FILE]
    with pytest.raises(CheckpointError, match="--resume"):
        load_checkpoint(job.out)
    with pytest.raises(PathError, match="exists already"):
        train_run(job, ALONE, ignore)
    info = train_run(dataclasses.replace(job, resume=True), ALONE, lambda report: steps.append(report.step))
    assert steps == [*range(1, len(steps) + 1)]
    assert isinstance(info, RunInfo)
    names = {"config.json", "curve.png", "held_out.safetensors", "metrics.json", "model.safetensors"}
    assert {path.name for path in job.out.iterdir()} == names
    cell, read = load_checkpoint(job.out)
    assert read == info
    assert read.metrics["parameters"] == sum(p.numel() for p in cell.parameters())
    assert read.metrics["steps"] == len(steps)
    assert read.time.frequencies == cell.config.frequencies
    assert read.settings.episodic_sink
    assert cell.config.episodic_sink


@pytest.mark.parametrize("kind", ["classify", "tokens"])
def test_other_tasks_make_a_whole_run_too(tmp_path: Path, kind: str) -> None:
    job = job_for(tmp_path, kind, epochs=1)
    info = train_run(job, ALONE, ignore)
    assert info is not None
    assert info.metrics["test"]["count"] > 0
    assert load_checkpoint(job.out)[1] == info


def test_a_resumed_training_must_have_the_same_options(tmp_path: Path) -> None:
    job = job_for(tmp_path, "forecast")
    train_run(job, ALONE, ignore, lambda: True)
    other = dataclasses.replace(job, resume=True, settings=Settings(epochs=4, period=20.0, horizons=(1, 5), seed=7))
    with pytest.raises(CheckpointError, match="epochs, seed"):
        train_run(other, ALONE, ignore)


def test_a_training_is_resumed_by_as_many_processes_as_its_lanes_suit(tmp_path: Path) -> None:
    job = job_for(tmp_path, "forecast")
    train_run(job, ALONE, ignore, lambda: True)
    five = World(0, 5)
    plan = prepare(job, five)
    with pytest.raises(CheckpointError, match="same number of processes"):
        resume_training(job.out, Trainer(plan.cell, plan.recipe, Budget(None, 3), 0, five), read_identity(job.out))


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_run(job_for(tmp_path, "forecast", resume=True), ALONE, ignore)
    assert not (tmp_path / "run").exists()


def test_damaged_training_state_is_refused(tmp_path: Path) -> None:
    job = job_for(tmp_path, "forecast")
    train_run(job, ALONE, ignore, lambda: True)
    (job.out / TRAINING_FILE).write_bytes(b"\x80\x04damaged")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        train_run(dataclasses.replace(job, resume=True), ALONE, ignore)


def test_force_replaces_a_run_and_bad_input_leaves_it_alone(tmp_path: Path) -> None:
    job = job_for(tmp_path, "forecast", epochs=1)
    train_run(job, ALONE, ignore)
    before = (job.out / "config.json").read_bytes()
    bad = dataclasses.replace(job, force=True, task=TaskSpec("forecast", ("nothing",), ("nothing",), (), "time"))
    with pytest.raises(InputError, match="no column 'nothing'"):
        train_run(bad, ALONE, ignore)
    assert (job.out / "config.json").read_bytes() == before
    again = dataclasses.replace(job, force=True, settings=Settings(epochs=2, period=20.0, horizons=(1, 5)))
    train_run(again, ALONE, ignore)
    assert load_checkpoint(job.out)[1].settings.epochs == 2


def test_a_full_disk_leaves_the_run_that_force_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_for(tmp_path, "forecast", epochs=1)
    info = train_run(job, ALONE, ignore)
    before = {path.name: path.read_bytes() for path in job.out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        train_run(dataclasses.replace(job, force=True), ALONE, ignore)
    assert {path.name: path.read_bytes() for path in job.out.iterdir()} == before
    assert load_checkpoint(job.out)[1] == info


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "notes.txt", TRAINING_FILE])
def test_force_leaves_folders_that_are_no_run_alone(tmp_path: Path, name: str) -> None:
    job = job_for(tmp_path, "forecast", epochs=1, force=True)
    job.out.mkdir()
    (job.out / "config.json").write_text('{"version": 1, "theme": "dark"}')
    (job.out / name).write_text('{"mine": true}')
    before = {path.name: path.read_bytes() for path in job.out.iterdir()}
    with pytest.raises(PathError, match="choose another --out"):
        train_run(job, ALONE, ignore)
    assert {path.name: path.read_bytes() for path in job.out.iterdir()} == before


def test_force_takes_empty_folders_and_unfinished_runs_and_no_files(tmp_path: Path) -> None:
    job = job_for(tmp_path, "forecast", epochs=1, force=True)
    job.out.mkdir()
    assert train_run(job, ALONE, ignore, lambda: True) is None
    assert [path.name for path in job.out.iterdir()] == [TRAINING_FILE]
    assert train_run(job, ALONE, ignore) is not None
    with pytest.raises(PathError, match="no training run"):
        train_run(dataclasses.replace(job, out=job.source), ALONE, ignore)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "unknown preset"),
        ({"solver": "rk5"}, "unknown solver"),
        ({"solver": "odeint:nothing"}, "odeint"),
        ({"epochs": 0}, "--epochs"),
        ({"minutes": 1.0}, "exclude each other"),
        ({"epochs": None, "minutes": math.nan}, "--minutes"),
        ({"seed": -1}, "--seed"),
        ({"test_fraction": 1.0}, "--test-fraction"),
        ({"horizons": ()}, "--horizons"),
        ({"period": -1.0}, "--period"),
        ({"consistency": -0.1}, "--consistency"),
        ({"kinetic": math.nan}, "--kinetic"),
        ({"jacobian": math.inf}, "--jacobian"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    settings = Settings(**{"epochs": 1, **changes})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        train_run(job_for(tmp_path, "forecast", settings=settings), ALONE, ignore)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("solver", ["odeint:dopri5", "odeint_adjoint:dopri5", "odeint:rk4"])
def test_torchdiffeq_integrates_the_same_flow_and_gives_the_same_gradients(tmp_path: Path, solver: str) -> None:
    settings = Settings(epochs=1, period=20.0, horizons=(1, 5), solver=solver)
    found = []
    for job in (job_for(tmp_path, "forecast"), job_for(tmp_path, "forecast", settings=settings)):
        plan = prepare(job, ALONE)
        with torch.no_grad():
            plan.cell.field.output.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
            plan.cell.heads.expect.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        loss = plan.recipe.loss(plan.cell, ALONE, np.random.default_rng(0), 0.0)
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradient = plan.cell.field.output.grad
        assert gradient is not None
        found.append((loss.total.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-2, atol=1e-2 * float(found[0][1].abs().max()))


@pytest.mark.parametrize("kind", ["forecast", "classify"])
def test_chunks_are_solved_with_deployed_buckets_and_at_last_with_the_coarsest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan, drawn = prepare(job_for(tmp_path, kind), ALONE), []

    def record(*arguments: Any, steps: int, **options: Any) -> Unrolled:
        drawn.append(steps)
        return unroll(*arguments, steps=steps, **options)

    monkeypatch.setattr(recipe_module, "unroll", record)
    for progress in (0.0, 1.0):
        random = np.random.default_rng(0)
        for _ in range(8):
            assert torch.isfinite(plan.recipe.loss(plan.cell, ALONE, random, progress).total)
    assert len(set(drawn[:8])) > 1
    assert set(drawn[:8]) <= set(BUCKETS)
    assert drawn[8:] == [1] * 8


@pytest.mark.parametrize("kind", ["forecast", "classify"])
def test_regularity_is_asked_of_flows_that_take_time(tmp_path: Path, kind: str) -> None:
    weights = {"consistency": 0.0, "kinetic": 0.0, "jacobian": 0.0}
    settings = job_for(tmp_path, kind).settings
    totals = []
    for asked in (None, *weights):
        given = msgspec.structs.replace(settings, **{**weights, **({asked: 1.0} if asked else {})})
        plan = prepare(job_for(tmp_path, kind, settings=given), ALONE)
        with torch.no_grad():
            plan.cell.field.output.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        loss = plan.recipe.loss(plan.cell, ALONE, np.random.default_rng(0), 1.0)
        loss.total.backward()  # type: ignore[no-untyped-call]
        totals.append(float(loss.total.detach()))
        assert plan.cell.field.output.grad is not None
        assert bool(torch.isfinite(plan.cell.field.output.grad).all())
    assert all(total > totals[0] + 1e-6 for total in totals[1:])


def test_a_tableau_needs_no_other_integrator() -> None:
    assert integrator("heun21") is None


def test_lanes_visit_every_call_in_order_and_start_anew_only_when_told() -> None:
    lanes = Lanes(LanePlan(count=3, length=4, restart=0.0, anywhere=False), [10, 7])
    random, seen, last = np.random.default_rng(0), set(), {}
    for _ in range(60):
        chunk = lanes.draw(random)
        for lane, (sequence, start, fresh) in enumerate(zip(*chunk, strict=True)):
            assert fresh == (start == 0)
            assert start < (10, 7)[sequence]
            if not fresh:
                assert last[lane] == (sequence, start - 4)
            last[lane] = (sequence, start)
            seen.add((sequence, start))
    assert seen == {(0, 0), (0, 4), (0, 8), (1, 0), (1, 4)}


def test_lanes_put_anywhere_leave_no_chunk_unfilled() -> None:
    lanes = Lanes(LanePlan(count=4, length=4, restart=0.2, anywhere=True), [10, 5])
    random, starts = np.random.default_rng(0), set()
    for _ in range(200):
        chunk = lanes.draw(random)
        assert np.all(chunk.start + 4 <= np.array([10, 5])[chunk.sequence])
        starts |= set(chunk.start[chunk.fresh].tolist())
    assert starts == set(range(7))


def test_the_rate_warms_up_and_falls() -> None:
    rates = [rate(p / 100) for p in range(101)]
    assert rates[0] < 0.01
    assert np.argmax(rates) == 5
    assert np.all(np.diff(rates[5:]) < 0)
    assert rates[-1] == pytest.approx(0.02)


def test_a_loss_that_stays_infinite_ends_training_with_a_reason(tmp_path: Path) -> None:
    plan = prepare(job_for(tmp_path, "forecast"), ALONE)
    with torch.no_grad():
        plan.cell.update.bias[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        trainer_for(plan, 1000).run(ignore, lambda: False, lambda: None)


def test_a_budget_of_minutes_is_kept(tmp_path: Path) -> None:
    plan = prepare(job_for(tmp_path, "forecast"), ALONE)
    trainer = Trainer(plan.cell, plan.recipe, Budget(1.5, None), 0, ALONE)
    trainer.run(ignore, lambda: False, lambda: None)
    assert 1.5 <= trainer.seconds < 6.0
    assert budget(Settings(minutes=2.0), plan.recipe).progress(0, 60.0) == 0.5


def test_the_curve_is_a_figure() -> None:
    picture = draw_curve(Curve([1, 2, 3], [3.0, 2.0, 1.0], [2, 3], [1.0, math.nan]), "loss, nats", "score, nats")
    assert picture.startswith(b"\x89PNG")


def test_a_classifier_starts_at_the_frequencies_of_its_labels() -> None:
    cell = random_cell(tiny_config("classify"))
    assert cell.heads.answer is not None
    cell.heads.answer.outer.weight.data.zero_()
    start_at_frequencies(cell, np.array([6, 2, 0]))
    assert cell.heads.answer.outer.bias is not None
    chances = torch.softmax(cell.heads.answer.outer.bias, dim=-1)
    torch.testing.assert_close(chances, torch.tensor([7.0, 3.0, 1.0]) / 11)
