"""Records that are what they are called, a training that is scored at every point, verdicts that can fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.models import config as config_module
from solver_matters import (
    CELL,
    CFC,
    EXACT,
    EXPONENTIAL,
    INCONSISTENT,
    LAST,
    POINTS,
    QUICK,
    SETTINGS,
    draw,
    one,
    report,
    spread,
    verdicts,
)
from solver_matters_data import KINDS, PERIODS, record
from tests.helpers.problems import TINY


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_irregular_has_holes_and_repeats_for_its_seed(kind: str) -> None:
    found, again, other = (record(kind, 300, seed) for seed in (0, 0, 1))
    assert np.array_equal(found.values, again.values)
    assert not np.array_equal(found.values, other.values)
    gaps = np.diff(found.times)
    assert gaps.min() > 0
    assert gaps.std() > 0.5 * gaps.mean()
    assert 0.7 < found.observed.mean() < 0.9


def test_the_smooth_record_is_three_sinusoids_and_the_stiff_one_jumps() -> None:
    smooth = record("smooth", 400, 2)
    angles = 2 * np.pi * smooth.times[:, None] / np.asarray(PERIODS)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    left = smooth.values - waves @ np.linalg.lstsq(waves, smooth.values, rcond=None)[0]
    assert left.std() < 0.03
    stiff = record("stiff", 2000, 2)
    assert np.abs(stiff.values[:, 0]).max() == pytest.approx(2.0, abs=0.1)  # the oscillator's amplitude
    speed = np.abs(stiff.values[:, 1])
    assert np.quantile(speed, 0.99) > 20 * np.median(speed)


@pytest.mark.parametrize(
    "name",
    [CELL, CFC, pytest.param(INCONSISTENT, marks=pytest.mark.slow), pytest.param(EXPONENTIAL, marks=pytest.mark.slow)],
)
def test_a_model_is_trained_and_scored_where_it_has_a_solver(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)
    found = one("smooth", name, 0, dataclasses.replace(QUICK, steps=3))
    assert set(found["scores"]) == ({EXACT} if name in (EXPONENTIAL, CFC) else set(POINTS))
    assert all(0 < score < 10 for score in found["scores"].values())
    assert found["scores"][EXACT] < found["untrained"]


def test_a_flat_curve_falsifies_the_claim_and_a_steep_one_does_not(tmp_path: Path) -> None:
    flat: dict[str, Any] = {point: [0.500, 0.501] for point in POINTS}
    steep = {**flat, "1": [0.9, 0.6]}
    assert spread(flat) == 0
    assert spread(steep) == pytest.approx((0.8 + 0.6 / 0.501 - 1) / 2)
    models = {name: ({EXACT: [0.6, 0.7]} if name in (EXPONENTIAL, CFC) else flat) for name in SETTINGS}
    models[LAST] = {EXACT: [1.0, 1.0]}
    scores = {"smooth": models, "stiff": {**models, CELL: steep}, "bursty": models}
    result = {"seeds": [0, 1], "rows": 9, "training_steps": 1, "scores": scores}
    said = verdicts(result)
    assert [line.startswith("Holds") for line in said] == [False] * 5 + [True] * 4
    assert any(line.startswith("Holds: stiff, cell:") for line in said)
    assert "| stiff, CfC |" in report(result)
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
