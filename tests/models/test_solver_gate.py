"""The solver gate against fields whose error at every step count is known in closed form, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch

from odestream.models.cell import Cell
from odestream.models.checkpoint import DataInfo, RunInfo, Settings
from odestream.models.config import BUCKETS
from odestream.models.data import Dataset, centre_and_scale, load_table
from odestream.models.flow import Integrator
from odestream.models.labelling import classify_report, tokens_report
from odestream.models.metrics import forecast_report
from odestream.models.remarks import remarks
from odestream.models.solver_gate import LEAST, TOLERANCE, passes, solver_gate
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.regularity import Solving
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.contract.tableau import longest_gap, tableau
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.tables import classes_csv, seasonal_csv

RATE, GAP = 3.0, 0.8


class Decay:
    """The cell's flow is h(t) = exp(−RATE·t); the metric is how far it ends from `target`."""

    def __init__(self, target: float) -> None:
        self.cell, self.target = Cell(tiny_config(steps=2)), target
        self.asked: list[int | None] = []
        with torch.no_grad():
            self.cell.field.output.zero_()
            self.cell.field.log_decay.fill_(math.log(math.expm1(RATE)))

    def measure(self, steps: int | None, integrator: Integrator | None) -> float:
        self.asked.append(steps)
        state = self.cell.initial_state(1)
        state["h"] = torch.ones_like(state["h"])
        inputs = {"dt": torch.full((1, 1), GAP), "phase": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}
        with torch.no_grad():
            flowed = self.cell.expect(inputs, state, self.cell.weights(), steps, integrator).h
        return float((flowed - self.target).abs().mean())


def ends(steps: int) -> float:
    """Where `steps` steps of bosh32 bring exp(−RATE·GAP), by the stability function."""
    return tableau("bosh32").stability(-RATE * GAP / steps) ** steps


def test_a_field_that_was_fitted_by_its_exact_flow_passes_with_the_errors_of_the_closed_form() -> None:
    exact = math.exp(-RATE * GAP)
    decay = Decay(exact)
    gate = solver_gate(decay.cell, "distance", GAP, decay.measure)
    assert gate["passed"] is True
    assert gate["deployed_steps"] == 2
    assert list(gate["by_steps"]) == [str(n) for n in BUCKETS]
    for n, found in ((n, gate["by_steps"][str(n)]) for n in BUCKETS):
        assert found == pytest.approx(abs(ends(n) - exact), rel=1e-6, abs=2e-7)
    assert gate["dopri5"] == pytest.approx(0.0, abs=2e-5)


def test_a_field_that_has_learnt_its_solvers_error_fails() -> None:
    decay = Decay(ends(2))
    gate = solver_gate(decay.cell, "distance", GAP, decay.measure)
    assert gate["by_steps"]["2"] == pytest.approx(0.0, abs=2e-7)
    assert gate["by_steps"]["16"] == pytest.approx(abs(ends(16) - ends(2)), abs=2e-7)
    assert gate["dopri5"] == pytest.approx(abs(math.exp(-RATE * GAP) - ends(2)), abs=2e-5)
    assert gate["dopri5"] > LEAST
    assert gate["passed"] is False


def test_step_counts_that_do_not_cross_the_gaps_stably_are_left_out() -> None:
    decay = Decay(0.0)
    longest = longest_gap(2, decay.cell.field.stiffness(), "bosh32")
    gate = solver_gate(decay.cell, "distance", longest, decay.measure)
    assert gate["by_steps"]["1"] is None
    assert decay.asked == [2, 4, 8, 16, None]
    assert None not in (gate["by_steps"]["2"], gate["passed"])


def test_a_metric_that_is_no_number_or_a_solver_that_gives_up_is_not_judged() -> None:
    cell = Cell(tiny_config())

    def underflow(steps: int | None, integrator: Integrator | None) -> float:
        if integrator is not None:
            raise AssertionError("underflow in dt 0.0")
        return 1.0

    gates = [solver_gate(cell, "m", 0.0, m) for m in (lambda steps, integrator: math.nan, underflow)]
    assert [g["passed"] for g in gates] == [None, None]
    assert [g["dopri5"] for g in gates] == [None, None]
    assert msgspec.json.encode(gates)


def test_the_gate_allows_a_relative_excess_and_a_least_one() -> None:
    assert passes(1.0, 1.0 + 0.99 * TOLERANCE, 0.5) is True
    assert passes(1.0, 1.0 + 1.01 * TOLERANCE, 0.5) is False
    assert passes(1.0, 0.5, 1.0 + 1.01 * TOLERANCE) is False
    assert passes(1e-4, 1e-4 + 0.99 * LEAST, 0.0) is True
    assert passes(1e-4, 1e-4 + 1.01 * LEAST, 0.0) is False
    assert passes(0.0, 0.0, 0.0) is True
    assert passes(1.0, None, 1.0) is None


@pytest.fixture
def forecasts(tmp_path: Path) -> Dataset:
    task = TaskSpec("forecast", ("level", "other"), ("level",), (), "time")
    return load_table(seasonal_csv(tmp_path / "a.csv"), task, Settings(period=20.0))


def test_a_forecaster_is_judged_by_the_score_that_selects_its_weights(forecasts: Dataset) -> None:
    centre, scale = centre_and_scale(forecasts)
    frequencies = forecasts.time.frequencies
    cell = random_cell(tiny_config(scale=scale, centre=centre, averages=(0.5, 4.0), frequencies=frequencies))
    gate = forecast_report(cell, forecasts, (1, 5), None, seed=0)["solver_gate"]
    recipe = ForecastRecipe(cell, forecasts, Settings(horizons=(1, 5)), 4, 8, Solving())
    assert gate["by_steps"]["1"] == pytest.approx(recipe.validate(cell), rel=1e-6)
    assert gate["dopri5"] == pytest.approx(gate["by_steps"]["16"], rel=1e-3)
    assert gate["by_steps"]["1"] != pytest.approx(gate["by_steps"]["16"], rel=1e-4)
    assert isinstance(gate["passed"], bool)


def test_a_classifier_is_judged_by_its_validation_log_loss(tmp_path: Path) -> None:
    task = TaskSpec("classify", ("value",), ("kind",), (), "time", "stream")
    data = load_table(classes_csv(tmp_path / "a.csv", streams=30), task, Settings())
    centre, scale = centre_and_scale(data)
    cell = random_cell(tiny_config("classify", channels=1, scale=scale, centre=centre, averages=(), frequencies=()))
    report = classify_report(cell, data)
    gate = report["solver_gate"]
    assert gate["by_steps"]["2"] == pytest.approx(report["validation"]["log_loss"], rel=1e-5)
    assert gate["dopri5"] == pytest.approx(gate["by_steps"]["16"], rel=1e-3)
    assert gate["passed"] is passes(gate["by_steps"]["2"], gate["by_steps"]["16"], gate["dopri5"])


def test_a_text_is_judged_where_its_bytes_are_crossed_stably() -> None:
    cell = random_cell(tiny_config("tokens", steps=4))
    text = b"the cat sat on the mat. " * 40
    report = tokens_report(cell, text, text, text)
    gate = report["solver_gate"]
    stable = [n for n in BUCKETS if longest_gap(n, cell.field.stiffness(), "bosh32") >= 1.0]
    assert [int(n) for n, value in gate["by_steps"].items() if value is not None] == stable
    assert gate["by_steps"]["4"] == pytest.approx(report["validation"]["bits_per_byte"] * math.log(2), rel=1e-5)


def run_of(kind: str, test: dict[str, object], gate: dict[str, object] | None = None) -> RunInfo:
    passed = {"metric": "score", "deployed_steps": 4, "by_steps": {"4": 0.5, "16": 0.5}, "dopri5": 0.5, "passed": True}
    metrics = {"test": test, "solver_gate": {**passed, **(gate or {})}}
    return RunInfo(TaskSpec(kind), TimeSpec(), Settings(consistency=0.02), DataInfo("a", "", 1, 1, 1.0), metrics)  # type: ignore[arg-type]


def test_rivals_that_win_are_named_with_where_they_win() -> None:
    figures = {
        "1": {"mae": 0.4, "rivals": {"last_value": 0.3, "seasonal_naive": 0.5}},
        "4": {"mae": 0.4, "rivals": {"last_value": 0.4, "seasonal_naive": 0.3}},
        "9": {"mae": None, "rivals": {"last_value": None, "seasonal_naive": None}},
    }
    said = remarks(run_of("forecast", {"level": figures}))
    assert "level is forecast no better than by last value at 1, 4 gaps ahead" in said[0]
    assert "by seasonal naive at 4 gaps ahead" in said[1]
    assert all("--minutes" in sentence for sentence in said[:2])
    assert len(said) == 3
    rivals = {"majority_accuracy": 0.6, "majority_accuracy_at_stream_end": 0.2, "class_frequencies_log_loss": 1.0}
    own = {"accuracy": 0.5, "accuracy_at_stream_end": 0.5, "log_loss": 1.1}
    said = remarks(run_of("classify", {**own, "rivals": rivals}))
    assert [sentence.split(" is ")[0] for sentence in said[:-1]] == ["Accuracy", "Log loss"]
    rivals = {"unigram_bits_per_byte": 4.0, "bigram_bits_per_byte": 3.0}
    said = remarks(run_of("tokens", {"bits_per_byte": 3.5, "rivals": rivals}))
    assert "no better than 3 by bigram" in said[0]
    assert len(said) == 2
    assert len(remarks(run_of("classify", {"count": 0}))) == 1


def test_the_gate_is_put_into_words_with_a_remedy_where_it_fails() -> None:
    failed = remarks(run_of("forecast", {}, {"by_steps": {"4": 0.5, "16": 0.6}, "dopri5": 0.61, "passed": False}))[0]
    assert "failed: score 0.5 at 4 solver steps as deployed, 0.6 at 16, 0.61 under dopri5" in failed
    assert "--consistency 0.04" in failed
    assert "passed" in remarks(run_of("forecast", {}))[0]
    assert "not judged" in remarks(run_of("forecast", {}, {"passed": None}))[0]
