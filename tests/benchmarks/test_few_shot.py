"""Few streams, all of the new family, the same clock; verdicts that can fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import few_shot
import irregular_data
from few_shot import CFC, DIGITS, LAST, NAMES, OSCILLATORS, OURS, PRIOR, QUICK, adapt, draw, measure, report, verdicts
from few_shot_data import A_CLASS, KNOWN, NEW, digits, oscillators
from irregular_data import Count
from sweep import Sweep
from tests.helpers.problems import TINY

FEW = Count(3, 1, 2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of a quarter of their length."""
    monkeypatch.setattr(irregular_data, "DURATION", 32.0)
    monkeypatch.setattr(irregular_data, "MOMENTS", 3)


def test_what_is_adapted_to_has_the_known_clock_and_scale_other_streams_and_nothing_to_choose_on() -> None:
    known, new = oscillators(FEW, (1, 3), 0)
    assert new[1].data.time == new[3].data.time == known.data.time
    assert np.array_equal(new[3].spread, known.spread)
    assert [len(new[shot].data.parts) for shot in (1, 3)] == [1, 3]
    assert new[1].data.parts[0].series is new[3].data.parts[0].series
    assert all(p.validation == p.test == len(p.series.ticks) for p in new[3].data.parts)
    assert new[1].questions is new[3].questions
    used = [s.x for p in new[3].data.parts for s in [p.series]]
    for series in (*new[1].tests[1.0], *(p.series for p in known.data.parts)):
        assert not any(np.array_equal(series.x, x) for x in used)


def test_the_new_family_is_faster_than_the_known_one() -> None:
    times, random = np.linspace(0.0, 60.0, 2000), np.random.default_rng(0)

    def crossings(periods: tuple[float, float]) -> float:
        values = np.concatenate([irregular_data.damped(random, periods)(times) for _ in range(20)], axis=1)
        return float((np.diff(np.sign(values), axis=0) != 0).sum(axis=0).mean())

    assert crossings(NEW) > 1.7 * crossings(KNOWN)


def test_digits_are_ten_of_a_class_and_no_stream_is_in_two_parts() -> None:
    pytest.importorskip("sklearn")
    data = digits(50, 0)
    fitted = [p.series for p in data.parts if p.validation]
    judged = [p.series for p in data.parts if not p.validation and p.test]
    tested = [p.series for p in data.parts if not p.test]
    assert np.bincount([s.labels[-1] for s in fitted]).tolist() == [A_CLASS] * 10
    assert np.bincount([s.labels[-1] for s in judged]).tolist() == [A_CLASS] * 10
    assert len(tested) == 50
    assert len({s.name for s in (*fitted, *judged, *tested)}) == 250


def test_adapting_moves_a_copy_and_the_fewest_streams_do_not_leak_into_the_next(short: None) -> None:
    del short
    plan = dataclasses.replace(QUICK, sizes=TINY, steps=3, adapting=3)
    alone, both = (
        adapt("gru-dt", 1e-2, 0, dataclasses.replace(plan, shots=shots))["scores"] for shots in ((2,), (1, 2))
    )
    assert alone[PRIOR] == both[PRIOR]
    assert alone["2"] == both["2"]
    assert len(set(both.values())) == 3


@pytest.mark.slow
def test_a_sweep_measures_adapts_and_reports(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del short
    pytest.importorskip("sklearn")
    monkeypatch.setattr(few_shot, "NAMES", {name: NAMES[name] for name in (OURS, CFC)})
    result = measure(dataclasses.replace(QUICK, sizes=TINY), Sweep(tmp_path / "points.json"))
    assert f"| {CFC} |" in report(result)
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_claim_falls_where_cfc_is_as_good_in_error_or_accuracy() -> None:
    good, bad = [0.1, 0.2, 0.9], [0.3, 0.3, 0.3]
    waves: dict[str, Any] = {name: {PRIOR: bad, "1": bad} for name in NAMES} | {LAST: {PRIOR: bad}}
    told: dict[str, Any] = {name: {str(A_CLASS): bad} for name in NAMES}
    both = {"scores": {OSCILLATORS: {**waves, OURS: {PRIOR: bad, "1": good}}, DIGITS: {**told, OURS: {"10": good}}}}
    assert [line.split(":")[0] for line in verdicts(both)] == ["**Falsified**", "Holds"]  # less accuracy is worse
    even = {"scores": {OSCILLATORS: waves, DIGITS: told}}
    assert [line.split(":")[0] for line in verdicts(even)] == ["**Falsified**"] * 2
