"""Orbits that are what they are called, questions that no later row answers, verdicts that can fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ablations
import irregular_data
from ablations import COPIES, PARTS
from equal_models import build, fit
from irregular import CONSTANT, GRU_DT, LAST, NAMES, OURS, QUICK, draw, measure, report, verdicts
from irregular_data import CO2, FAMILIES, HORIZONS, NOISE, RATES, SECOND, Count, Problem, Questions, problem
from irregular_scoring import answers_of, errors, last_values
from odestream.models.baselines import footprint
from odestream.models.data import centre_and_scale
from odestream.models.train import Settings
from odestream.models.training.forecast import MOST_DROPPED, ForecastRecipe
from odestream.models.training.regularity import Solving
from odestream.runtime.table import Series
from sweep import Sweep
from tests.helpers.problems import TINY

FEW = Count(3, 1, 3)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of a quarter of their length."""
    monkeypatch.setattr(irregular_data, "DURATION", 32.0)
    monkeypatch.setattr(irregular_data, "MOMENTS", 3)


@pytest.fixture
def few(short: None) -> Problem:
    del short
    return problem("oscillators", FEW, 0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_observed_at_poisson_times_of_each_rate_with_its_share_of_holes(kind: str) -> None:
    drawn, again = (problem(kind, Count(4, 1, 6), seed=3) for _ in range(2))
    for rate in RATES:
        tests = drawn.tests[rate]
        assert all(np.array_equal(a.x, b.x) for a, b in zip(tests, again.tests[rate], strict=True))
        gaps = np.concatenate([np.diff(s.ticks) for s in tests]) / SECOND
        assert gaps.min() > 0
        assert gaps.mean() * rate == pytest.approx(1, abs=0.25)
        assert gaps.std() * rate == pytest.approx(1, abs=0.35)  # an exponential's deviation is its mean
        masks = np.concatenate([s.mask for s in tests])
        assert masks.any(axis=1).all()
        assert 0.2 < masks.mean() < 0.75
    assert np.abs(centre_and_scale(drawn.data)[1]).min() > 0


def test_orbits_follow_their_equations() -> None:
    times = np.linspace(0.0, 60.0, 601)
    prey, hunter = irregular_data.lotka_volterra(np.random.default_rng(1))(times).T
    # ln u − u and ln v − v trace a line: the invariant of the equations is a weighted sum of both.
    a, b = prey - np.log(prey), hunter - np.log(hunter)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(-1, abs=1e-6)
    x, y, z = 10 * irregular_data.lorenz(np.random.default_rng(1))(times).T
    speed = np.gradient(x, 0.025 * times, edge_order=2)
    np.testing.assert_allclose(speed[1:-1], (10 * (y - x))[1:-1], atol=0.02 * np.abs(speed).max())
    assert z.min() > 0
    damped = irregular_data.damped(np.random.default_rng(2), (20.0, 20.0001))(times)
    envelope = [np.abs(damped[i : i + 201]).max() for i in (0, 400)]
    assert 0.01 < envelope[1] / envelope[0] < 0.9
    tone = irregular_data.chirp(np.random.default_rng(3))(np.linspace(0.0, irregular_data.DURATION, 4001))[:, 0]
    crossings = np.flatnonzero(np.diff(np.sign(tone)))
    first, last = np.diff(crossings)[[0, -1]]
    assert max(first, last) > 1.8 * min(first, last)


def test_rows_are_the_truth_and_noise_and_questions_ask_for_the_truth() -> None:
    random = np.random.default_rng(0)
    truths = [irregular_data.oscillator(random) for _ in range(2)]
    series = irregular_data.observe(truths[0], 4.0, random)
    assert series.ticks[0] == 0
    off = (series.x - truths[0](series.ticks / SECOND))[series.mask > 0]
    assert off.std() == pytest.approx(NOISE, rel=0.2)
    q = irregular_data.ask(truths)
    np.testing.assert_allclose(truths[1](q.asked[q.stream == 1] / SECOND), q.truth[q.stream == 1], atol=1e-7)
    assert sorted(set((q.asked - q.known) / SECOND)) == list(HORIZONS)


@pytest.mark.parametrize("name", ["cell", "gru-d"])
def test_answers_owe_nothing_to_rows_after_the_moment_of_the_question(few: Problem, name: str) -> None:
    torch.manual_seed(0)
    model = build(name, few.data, TINY)
    with torch.no_grad():
        for parameter in model.heads.expect.outer.parameters():
            parameter.normal_(std=0.5)
    first = int(few.questions.known.min())
    early = few.questions.known == first
    asked = Questions(*(part[early] for part in few.questions))
    for answer in (answers_of(model, few), last_values(few)):
        said = answer(few.tests[1.0], asked)
        changed = answer(tuple(_shifted(s, after=first) for s in few.tests[1.0]), asked)
        other = answer(tuple(_shifted(s, after=0) for s in few.tests[1.0]), asked)
        assert np.array_equal(said, changed)
        assert not np.allclose(said, other)


def test_errors_are_means_in_deviations_and_the_last_value_is_the_last_value(few: Problem) -> None:
    q, found = few.questions, errors(few, last_values(few))
    for rate in RATES:
        off = []
        for stream, known, truth in zip(q.stream, q.known, q.truth, strict=True):
            series = few.tests[rate][stream]
            for channel in range(q.truth.shape[1]):
                seen = np.flatnonzero((series.ticks <= known) & (series.mask[:, channel] > 0))
                value = series.x[seen[-1], channel] if len(seen) else few.mean[channel]
                off.append(abs(value - truth[channel]) / few.spread[channel])
        assert found[f"{rate:g}"] == pytest.approx(np.mean(off), rel=1e-6)
    assert set(errors(few, lambda _, questions: questions.truth).values()) == {0.0}


def test_the_record_is_thinned_in_training_and_asked_in_its_last_fifth() -> None:
    drawn, whole = problem(CO2, FEW, 0), irregular_data.load_record()
    assert sum(p.test > p.validation for p in drawn.data.parts) == irregular_data.CO2_JUDGED
    last = max(int(p.series.ticks[-1]) for p in drawn.data.parts)
    assert last < whole.first_tick <= drawn.questions.known.min()
    rows = {rate: np.mean([len(s.ticks) for s in tests]) for rate, tests in drawn.tests.items()}
    assert rows[1.0] / rows[0.25] == pytest.approx(4, rel=0.3)
    assert rows[4.0] / rows[1.0] == pytest.approx(4, rel=0.1)


def test_models_are_of_equal_size_and_a_part_that_is_off_changes_the_cell_alone(few: Problem) -> None:
    sizes = {name: footprint(build(name, few.data)).parameters for name in NAMES.values()}
    assert max(sizes.values()) < 1.03 * min(sizes.values())
    seasonal = problem(CO2, FEW, 0).data  # not stationary, so it has no level to lose
    for data, same in ((seasonal, {"no level"}), (few.data, {"no time features"})):
        whole = build("cell", data, TINY).config
        changed = {name: build("cell", data, TINY, **changes).config for name, changes in PARTS.items()}
        assert {name for name, config in changed.items() if config == whole} == same
        assert len(set(changed.values()) | {whole}) == 1 + len(PARTS) - len(same)


def test_without_thinned_copies_training_sees_every_row_of_every_stream(few: Problem) -> None:
    cell, settings = build("gru", few.data, TINY), Settings()
    for dropped in (0.0, MOST_DROPPED):
        recipe = ForecastRecipe(cell, few.data, settings, 4, 4, Solving.of(settings), dropped)
        left_out = sum(len(own) < part.validation for own, part in zip(recipe.sequences, recipe.parts, strict=True))
        assert (left_out > 0) == (dropped > 0)


def test_training_makes_a_model_better_than_the_last_value_it_starts_from(short: None) -> None:
    del short
    many = problem("Lotka–Volterra", Count(24, 2, 6), 0)
    torch.manual_seed(0)
    model = build("gru", many.data, TINY)
    before = errors(many, answers_of(model.eval(), many))["1"]
    assert before == pytest.approx(errors(many, last_values(many))["1"], rel=0.02)
    best, validation = fit(model, many.data, 2e-2, 40, 0)
    assert errors(many, answers_of(best, many))["1"] < 0.95 * before
    assert 0 < validation < 5


def test_a_sweep_measures_all_models_chooses_rates_and_reports(short: None, tmp_path: Path) -> None:
    del short
    plan = dataclasses.replace(QUICK, sizes=TINY, rates=(1e-4, 1e-2), kinds=QUICK.kinds[:1], names=(OURS, GRU_DT))
    result = measure(plan, Sweep(tmp_path / "points.json"))
    assert {rate for by_name in result["learning_rates"].values() for rate in by_name.values()} <= set(plan.rates)
    assert f"| {GRU_DT} |" in report(result)
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_claim_falls_where_any_of_the_three_is_not_beaten_by_the_median() -> None:
    ours, worse = [0.1, 0.2, 0.9], [0.3, 0.3, 0.3]
    even = {f"{rate:g}": worse for rate in RATES}
    models: dict[str, Any] = dict.fromkeys((*NAMES, CONSTANT, LAST), even)
    won = {**models, OURS: {f"{rate:g}": ours for rate in RATES}}
    lost = {**won, GRU_DT: {**even, "4": [0.2, 0.2, 0.2]}}
    result = {"errors": {"a": won, "b": lost}}
    said = verdicts(result)
    assert [line.startswith("Holds") for line in said] == [False, True, True, True]
    assert said[0].startswith("**Falsified**: b at 4 times")


def _shifted(series: Series, after: int) -> Series:
    x = np.where((series.ticks > after)[:, None] & (series.mask > 0), series.x + 1, series.x).astype(np.float32)
    return Series(series.name, series.ticks, x, series.mask, series.labels)


@pytest.mark.slow
def test_ablations_train_each_part_off_and_a_part_without_which_errors_shrink_falls(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del short
    monkeypatch.setattr(ablations, "PARTS", {name: PARTS[name] for name in ("dt ignored", "no time features")})
    result = ablations.measure(dataclasses.replace(QUICK, sizes=TINY), Sweep(tmp_path / "points.json"))
    assert f"| {OURS}, {COPIES} |" in ablations.report(result)
    ablations.draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    for kind, part, factor in ((ablations.ABLATED, "dt ignored", 1.25), (ablations.SEASONAL, "no time features", 0.5)):
        models = result["errors"][kind]
        models[part] = {rate: [factor * e for e in errors_] for rate, errors_ in models[OURS].items()}
        assert ablations.costs(result, part) == pytest.approx([factor - 1])
    said = ablations.verdicts(result)
    assert [line.split(":")[0] for line in said] == ["**Falsified**", "Holds"]
    assert "no time features: -50.0 %" in said[0]
