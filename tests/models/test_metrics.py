"""Errors against independent answers: closed forms, loops, and the deployed step one by one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.config import CellConfig
from odestream.models.data import Dataset, centre_and_scale, load_table
from odestream.models.forecasting import forecast, pairs_at, walk
from odestream.models.labelling import Judging, classify_report, score, tokens_report
from odestream.models.losses import absolute_error, cross_entropy, normalised, spread_loss
from odestream.models.metrics import Judge, forecast_report
from odestream.models.sequences import calls_of, calls_of_bytes, longest_call, stack
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.regularity import Solving
from odestream.models.validation import ValidationSegments
from odestream.runtime.contract.manifest import TaskSpec
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.tables import classes_csv, seasonal_csv

TASK = TaskSpec("forecast", ("level", "other"), ("level",), (), "time")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return load_table(seasonal_csv(tmp_path / "a.csv"), TASK, Settings(period=20.0))


def cell_for(data: Dataset, **changes: object) -> Cell:
    centre, scale = centre_and_scale(data)
    config = CellConfig(
        "forecast", 2, TINY, scale, centre, averages=(0.5, 4.0), frequencies=data.time.frequencies, steps=2
    )
    return random_cell(dataclasses.replace(config, **changes))  # type: ignore[arg-type]


def test_an_untrained_cell_is_the_last_value_rival(data: Dataset) -> None:
    cell = cell_for(data)
    with torch.no_grad():
        cell.heads.expect.outer.weight.zero_()
    report = forecast_report(cell, data, (1, 5), 20.0, seed=0)
    for part in ("test", "test_thinned", "validation"):
        for horizon, figures in report[part]["level"].items():
            assert figures["count"] > 4, (part, horizon)
            assert figures["mae"] == pytest.approx(figures["rivals"]["last_value"], rel=1e-5)
    assert set(report["test"]) == {"level"}


def test_a_forecast_equals_steps_one_by_one_and_a_query_without_observation(data: Dataset) -> None:
    cell, part = cell_for(data), data.parts[0]
    calls = calls_of(part.series, np.arange(60), data.time, longest_call(cell.config, cell.config.steps))
    walked = walk(cell, [part.series], [calls])[0]
    ahead = 2 * int(data.gap)
    ticks = calls.ticks[50:52] + ahead
    mean, deviation = forecast(cell, data.time, walked, np.array([50, 51]), ticks)
    inputs, state = stack([calls]), cell.initial_state(1)
    for t in range(51):
        _, state = cell.step({name: value[t] for name, value in inputs.items()}, state)
    query = {name: value[51] for name, value in inputs.items()}
    query["mask"] = torch.zeros_like(query["mask"])
    query["dt"] = torch.tensor([[ahead / data.time.ticks_per_model_unit]])
    outputs, _ = cell.step(query, state)
    np.testing.assert_allclose(mean[:1], outputs["y"][:, :2].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(deviation[:1], np.exp(0.5 * outputs["y"][:, 2:].detach().numpy()), rtol=1e-4)


def test_a_long_forecast_equals_that_of_a_gap_split_into_calls(data: Dataset) -> None:
    cell, part = cell_for(data, steps=1), data.parts[0]
    longest = longest_call(cell.config, 1)
    calls = calls_of(part.series, np.arange(40), data.time, longest)
    walked = walk(cell, [part.series], [calls])[0]
    far = calls.ticks[-1:] + int(30 * data.gap)
    mean, _ = forecast(cell, data.time, walked, np.array([len(calls) - 1]), far)
    exact, _ = forecast(cell, data.time, walked, np.array([len(calls) - 1]), far, steps=64)
    assert 30 * data.gap / data.time.ticks_per_model_unit > 2 * longest
    np.testing.assert_allclose(mean, exact, rtol=2e-3, atol=2e-3)


def test_figures_equal_those_of_a_loop_over_rows(data: Dataset) -> None:
    cell, part = cell_for(data), data.parts[0]
    series, horizon = part.series, 5
    judge = Judge(cell, data, (horizon,))
    rows = (part.test, len(series.ticks))
    walks = judge.walks([np.arange(len(series.ticks))])
    found = judge.report(walks, [rows])["level"]["5"]
    errors, inside = [], []
    for place, row in enumerate(walks[0].calls.rows):
        if row < part.test or not series.mask[row].any():
            continue
        wanted = series.ticks[row] + horizon * int(data.gap)
        for target in range(row + 1, len(series.ticks)):
            if series.ticks[target] == wanted and series.mask[target, 0]:
                mean, deviation = forecast(cell, data.time, walks[0], np.array([place]), series.ticks[[target]])
                errors.append(mean[0, 0] - series.x[target, 0])
                inside.append(abs(errors[-1]) <= deviation[0, 0])
    assert found["count"] == len(errors) > 10
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(math.sqrt(np.square(errors).mean()), rel=1e-5)
    assert found["bias"] == pytest.approx(np.mean(errors), rel=1e-4, abs=1e-6)
    assert found["coverage_1"] == pytest.approx(np.mean(inside))


def test_the_future_does_not_reach_a_forecast(data: Dataset) -> None:
    cell, part = cell_for(data), data.parts[0]
    changed = dataclasses.replace(part.series, x=part.series.x.copy())
    changed.x[100:] += 1000.0
    made = []
    for series in (part.series, changed):
        calls = calls_of(series, np.arange(len(series.ticks)), data.time, 1.0)
        walked = walk(cell, [series], [calls])[0]
        origins, _ = pairs_at(walked, 5 * data.gap, 0.5 * data.gap, 0, 100)
        made.append(forecast(cell, data.time, walked, origins, walked.calls.ticks[origins] + 5 * int(data.gap))[0])
    assert len(made[0]) > 50
    np.testing.assert_array_equal(made[0], made[1])


def test_the_fast_validation_agrees_with_the_whole_walk(data: Dataset) -> None:
    cell, part = cell_for(data), data.parts[0]
    judge = Judge(cell, data, (1, 5))
    segments = ValidationSegments(cell, data, seed=0)
    segments.segments = segments.segments[:1]  # the whole rows; the others are thinned
    whole = judge.report(judge.walks([np.arange(part.test)]), [(part.validation, part.test)])
    fast = segments.errors(cell, (1, 5), cell.config.steps)
    for horizon in (1, 5):
        assert fast[horizon][0] == pytest.approx(whole["level"][str(horizon)]["mae"], rel=1e-2)  # warmed for 64 calls


def test_losses_equal_their_formulas() -> None:
    random = np.random.default_rng(0)
    mean, x, log_variance = (torch.from_numpy(random.standard_normal((4, 3, 2))) for _ in range(3))
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    weight = normalised(torch.from_numpy(random.random((4, 3, 2))))
    assert float(weight.sum()) == pytest.approx(1.0)
    error = ((x - mean).abs() / scale * weight).sum()
    assert float(absolute_error(mean, x, scale, weight)) == pytest.approx(float(error))
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    constant = 0.5 * math.log(2 * math.pi) + torch.log(scale)
    likelihood = (weight * (-normal.log_prob(x) - constant)).sum()
    assert float(spread_loss(mean, log_variance, x, scale, weight)) == pytest.approx(float(likelihood))
    logits, labels = torch.from_numpy(random.standard_normal((5, 3))), torch.tensor([0, 2, -1, 1, 0])
    weights = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4], dtype=torch.float64)
    costs = -torch.log_softmax(logits, -1)[range(5), labels.clamp(min=0)]
    assert float(cross_entropy(logits, labels, weights)) == pytest.approx(float((weights * costs).sum()))


def test_the_deviation_s_loss_leaves_the_mean_alone() -> None:
    mean = torch.zeros(3, 1, requires_grad=True)
    log_variance = torch.zeros(3, 1, requires_grad=True)
    spread_loss(mean, log_variance, torch.ones(3, 1), torch.ones(1), torch.ones(3, 1)).backward()  # type: ignore[no-untyped-call]
    assert mean.grad is None
    assert log_variance.grad is not None


def test_padding_does_not_change_scores() -> None:
    cell = random_cell(tiny_config("tokens"))
    long, short = Judging(calls_of_bytes(b"a long piece of text"), 0), Judging(calls_of_bytes(b"short"), 0)
    together, alone = score(cell, [long, short]), score(cell, [short])
    np.testing.assert_allclose(together.log_chances[-4:], alone.log_chances, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(together.last), [18, 22])


def test_uniform_answers_cost_eight_bits_and_counts_cost_the_entropy() -> None:
    cell = Cell(tiny_config("tokens"))  # its answer's last layer is zero
    assert cell.heads.recall is not None
    with torch.no_grad():
        cell.heads.recall.weight.zero_()
    text = b"ab" * 400
    report = tokens_report(cell, text, text, text)
    assert report["test"]["bits_per_byte"] == pytest.approx(8.0, rel=1e-5)
    assert report["test"]["rivals"]["unigram_bits_per_byte"] == pytest.approx(1.0, abs=0.5)
    assert report["test"]["rivals"]["bigram_bits_per_byte"] < 0.1


def test_a_classifier_is_judged_beside_the_commonest_class(tmp_path: Path) -> None:
    task = TaskSpec("classify", ("value",), ("kind",), (), "time", "stream")
    data = load_table(classes_csv(tmp_path / "a.csv", streams=30), task, Settings())
    centre, scale = centre_and_scale(data)
    cell = Cell(CellConfig("classify", 1, TINY, scale, centre, outputs=3, steps=2))
    assert cell.heads.recall is not None
    with torch.no_grad():
        cell.heads.recall.weight.zero_()
    report = classify_report(cell, data)
    assert report["test"]["count"] == 6 * 12
    assert report["test"]["streams"] == 6
    assert report["test"]["log_loss"] == pytest.approx(math.log(3), rel=1e-5)
    assert report["test"]["rivals"]["majority_accuracy"] == pytest.approx(1 / 3)


def test_calibrated_deviations_cover_two_thirds_of_the_validation_errors(data: Dataset) -> None:
    cell = cell_for(data)
    segments = ValidationSegments(cell, data, seed=0)
    recipe = ForecastRecipe(cell, data, Settings(horizons=(1, 5)), 4, 8, Solving())
    means = segments.errors(cell, (1, 5), 1)
    assert abs(float(segments.deviation_factors(cell, (1, 5), 1)[0]) - 1) > 0.05
    recipe.calibrate(cell)
    np.testing.assert_allclose(segments.deviation_factors(cell, (1, 5), 1), 1.0, rtol=1e-3)
    np.testing.assert_array_equal(segments.errors(cell, (1, 5), 1)[5], means[5])
