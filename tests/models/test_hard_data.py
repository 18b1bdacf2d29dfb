"""Records at the edge of what can be trained on: each becomes a whole run, or is refused in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from odestream.models import config as config_module
from odestream.models.checkpoint import Settings, load_checkpoint
from odestream.models.data import load_table
from odestream.models.distributed import World
from odestream.models.forecasting import nearest_rows
from odestream.models.labelling import log_loss, score
from odestream.models.metrics import Judge
from odestream.models.sequences import MAX_CALLS, Calls, calls_of, calls_of_bytes, longest_call, steps_across
from odestream.models.train import Job, prepare, train_run
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.labels import LabelRecipe
from odestream.models.training.lanes import LanePlan
from odestream.models.training.loop import Budget, Trainer
from odestream.models.training.recipe import Recipe
from odestream.models.training.regularity import Solving
from odestream.models.validation import FACTORS, ValidationSegments
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError
from odestream.runtime.table import Series
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.tables import classes_csv

ALONE = World()
LEVELS = TaskSpec("forecast", ("level",), ("level",), (), "time", "stream")
CLASSES = TaskSpec("classify", ("value",), ("kind",), (), "time", "stream")
CHUNK = 8


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)


def ignore(report: object) -> None:
    del report


def streams_csv(path: Path, rows: dict[str, int]) -> Path:
    """Noisy waves, a stream of so many rows by name."""
    random = np.random.default_rng(0)
    lines = ["stream,time,level"]
    for name, count in rows.items():
        lines += [f"{name},{t},{math.sin(t / 5) + 0.1 * random.standard_normal():.4f}" for t in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def job_for(tmp_path: Path, source: Path, task: TaskSpec, **settings: object) -> Job:
    return Job(source, task, Settings(**{"epochs": 1, "horizons": (1, 3), **settings}), tmp_path / "run")  # type: ignore[arg-type]


def recipe_for(tmp_path: Path, rows: dict[str, int]) -> ForecastRecipe:
    recipe = prepare(job_for(tmp_path, streams_csv(tmp_path / "a.csv", rows), LEVELS), ALONE).recipe
    assert isinstance(recipe, ForecastRecipe)
    return recipe


def test_a_column_that_never_changes_makes_a_run_with_finite_weights(tmp_path: Path) -> None:
    random, source = np.random.default_rng(0), tmp_path / "a.csv"
    rows = [f"{t},{math.sin(t / 5) + 0.1 * random.standard_normal():.4f},5" for t in range(400)]
    source.write_text("\n".join(["time,level,still", *rows]) + "\n")
    names = ("level", "still")
    job = job_for(tmp_path, source, TaskSpec("forecast", names, names, (), "time"))
    train_run(job, ALONE, ignore)
    cell, info = load_checkpoint(job.out)
    assert all(torch.isfinite(value).all() for value in cell.state_dict().values())
    assert info.metrics["test"]["still"]["1"]["mae"] < 0.5


def test_deviations_change_within_limits_and_not_at_all_where_errors_are_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(tmp_path, streams_csv(tmp_path / "a.csv", {"a": 400}), LEVELS)
    cell, data = prepare(job, ALONE).cell, load_table(job.source, LEVELS, job.settings)
    segments = ValidationSegments(cell, data, 0)
    for error, factor in ((0.0, 1.0), (1e-30, FACTORS[0]), (2.0, 2.0), (1e30, FACTORS[1]), (math.nan, 1.0)):
        forecast = np.full((30, 1), error), np.ones((30, 1)), np.zeros((30, 1)), np.ones((30, 1), bool)
        monkeypatch.setattr(segments, "_forecast", lambda *_, made=forecast: made)
        assert segments.deviation_factors(cell, (1,), 1) == pytest.approx([factor])


@pytest.mark.parametrize(
    ("short", "period", "seed"),  # seed: which rows are dropped at random
    [(1, None, 0), (1, 30.0, 1), (2, 30.0, 0), (2, None, 1), (5, None, 0)],
)
def test_a_stream_of_few_rows_beside_long_ones_makes_a_run(
    tmp_path: Path, short: int, period: float | None, seed: int
) -> None:
    source = streams_csv(tmp_path / "a.csv", {"a": 120, "b": 120, "c": short})
    info = train_run(job_for(tmp_path, source, LEVELS, period=period, seed=seed), ALONE, ignore)
    assert info is not None
    for part in ("test", "test_thinned", "validation"):
        assert info.metrics[part]["level"]["1"]["count"] > 0


def test_a_stream_of_which_nothing_arrives_is_left_out_of_the_figures(tmp_path: Path) -> None:
    job = job_for(tmp_path, streams_csv(tmp_path / "a.csv", {"a": 120, "b": 1}), LEVELS)
    data = load_table(job.source, LEVELS, job.settings)
    judge = Judge(prepare(job, ALONE).cell, data, (1,))
    ranges = [(p.test, len(p.series.ticks)) for p in data.parts]
    walks = judge.walks([np.arange(120), np.arange(0)])
    assert walks[1] is None
    assert judge.report(walks, ranges) == judge.report(walks[:1], ranges[:1])


def test_the_nearest_row_of_one_row_is_that_row() -> None:
    one = np.ones((1, 1), np.float32)
    series = Series("a", np.array([50]), one, one, np.full(1, -1))
    rows, found = nearest_rows(series, np.array([10.0, 49.0, 50.0, 53.0, 90.0]), 3.0)
    assert rows.tolist() == [0] * 5
    assert found.tolist() == [False, True, True, True, False]


def test_a_short_stream_leaves_the_chunks_of_the_others_long(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"a": 200, "b": 5})
    assert recipe.lanes.plan.length == CHUNK
    lengths = {len(s) for s in recipe.sequences}
    assert min(lengths) < CHUNK < max(lengths)


def test_streams_that_are_all_shorter_than_a_chunk_train(tmp_path: Path) -> None:
    source = streams_csv(tmp_path / "a.csv", {f"s{i}": 6 + i % 3 for i in range(12)})
    plan = prepare(job_for(tmp_path, source, LEVELS), ALONE)
    assert plan.recipe.lanes.plan.length == max(len(s) for s in plan.recipe.sequences) < CHUNK
    trainer = Trainer(plan.cell, plan.recipe, Budget(None, 3), 0, ALONE)
    assert trainer.run(ignore, lambda: False, lambda: None)
    assert np.isfinite(trainer.curve.loss).all()


def trainer_with_scores(tmp_path: Path, scores: list[float]) -> Trainer:
    plan = prepare(job_for(tmp_path, classes_csv(tmp_path / "a.csv"), CLASSES), ALONE)
    given = iter(scores)
    plan.recipe.validate = lambda cell: next(given)  # type: ignore[method-assign]
    return Trainer(plan.cell, plan.recipe, Budget(None, 10), 0, ALONE)


def test_without_a_validation_score_the_latest_average_is_kept(tmp_path: Path) -> None:
    trainer = trainer_with_scores(tmp_path, [math.nan] * 10)
    trainer.run(ignore, lambda: False, lambda: None)
    assert trainer.best_score == math.inf
    average = trainer.average.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in trainer.best.state_dict().items())


def test_a_score_that_is_no_number_does_not_replace_one_that_is(tmp_path: Path) -> None:
    trainer = trainer_with_scores(tmp_path, [math.nan, 2.0, math.nan, 1.0, math.nan, *[3.0] * 5])
    kept: dict[int, torch.Tensor] = {}

    def watch(report: object) -> None:
        del report
        kept[trainer.step] = trainer.average.encode.weight.detach().clone()

    trainer.run(watch, lambda: False, lambda: None)
    assert trainer.best_score == 1.0
    assert torch.equal(trainer.best.encode.weight, kept[4])


@pytest.mark.parametrize(("streams", "expected"), [(9, 1), (6, 1), (3, 0), (15, 3)])
def test_whole_streams_are_split_with_one_to_validate_on_where_a_class_can_spare_it(
    tmp_path: Path, streams: int, expected: int
) -> None:
    data = load_table(classes_csv(tmp_path / "a.csv", streams=streams, rows=20), CLASSES, Settings())
    roles = Counter("validation" if p.validation < p.test else "fit" if p.validation else "test" for p in data.parts)
    assert roles["validation"] == expected
    fitted = {int(p.series.labels.max()) for p in data.parts if p.validation > 0}
    assert fitted == {0, 1, 2}


def test_a_text_is_trained_with_as_many_solver_steps_as_its_clock_needs(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"the cat sat on the mat. " * 200)
    plan = prepare(job_for(tmp_path, source, TaskSpec("tokens")), ALONE)
    recipe = plan.recipe
    assert isinstance(recipe, LabelRecipe)
    assert recipe.buckets == (4, 8, 16)
    assert longest_call(plan.cell.config, recipe.steps) >= 1.0 > longest_call(plan.cell.config, recipe.steps - 1)
    with torch.no_grad():
        for head in (plan.cell.heads.answer, plan.cell.heads.expect):
            assert head is not None
            head.outer.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    fine = log_loss(score(plan.cell, recipe.judged, 16))
    assert recipe.validate(plan.cell) == pytest.approx(fine, rel=0.01)
    assert log_loss(score(plan.cell, recipe.judged, 1)) != pytest.approx(fine, rel=0.01)


def test_a_call_that_the_solver_does_not_cross_stably_is_refused() -> None:
    cell, plan = random_cell(tiny_config("tokens")), LanePlan(4, 8, 0.0, anywhere=True)
    sequences: list[Calls] = [calls_of_bytes(b"a text that is long enough")]
    needed = steps_across(cell.config, 1.0)
    with pytest.raises(InputError, match=f"train with {needed} steps"):
        LabelRecipe(cell, sequences, plan, [], Solving(), needed - 1)
    assert isinstance(LabelRecipe(cell, sequences, plan, [], Solving(), needed), Recipe)


def test_a_very_long_gap_is_walked_in_full_where_a_model_is_judged(tmp_path: Path) -> None:
    source = streams_csv(tmp_path / "a.csv", {"a": 120})
    with source.open("a") as file:
        file.writelines(f"a,{3000 + t},0.5\n" for t in range(40))
    job = job_for(tmp_path, source, LEVELS)
    data, cell = load_table(source, LEVELS, job.settings), prepare(job, ALONE).cell
    series, unit = data.parts[0].series, data.time.ticks_per_model_unit

    def elapsed(calls: Calls) -> float:
        return float(calls.inputs["dt"].astype(np.float64).sum() * unit)

    walked = Judge(cell, data, (1,)).walks([np.arange(160)])[0]
    assert walked is not None
    whole = float(series.ticks[-1] - series.ticks[0])
    assert elapsed(walked.calls) == pytest.approx(whole, rel=1e-5)
    longest = longest_call(cell.config, 1)
    assert elapsed(calls_of(series, np.arange(160), data.time, longest)) < 0.5 * whole
    assert elapsed(calls_of(series, np.arange(160), data.time, longest, MAX_CALLS)) == pytest.approx(whole, rel=1e-4)


def test_rows_that_never_come_make_no_calls() -> None:
    one = np.ones((3, 1), np.float32)
    series = Series("a", np.array([0, 1, 2]), one, one, np.full(3, -1))
    assert len(calls_of(series, np.arange(0), TimeSpec(), 1.0)) == 0
