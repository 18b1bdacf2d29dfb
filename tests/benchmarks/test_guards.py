"""benchmarks/guards.py: what it times, and when it says that the bound holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import guards
from latency_model import drawn_inputs
from odestream.runtime import load
from odestream.runtime.backends.host import HostBinding
from sweep import Sweep
from tests.helpers.tiny_bundle import Tiny, write_tiny


def test_what_the_guards_take_is_told_and_what_the_engine_takes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = HostBinding.finite

    def slower(binding: HostBinding) -> bool:
        time.sleep(2e-3)
        return finite(binding)

    monkeypatch.setattr(HostBinding, "finite", slower)
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1,))), backend="onnxruntime") as model:
        inputs = drawn_inputs(model.manifest.time, 4, channels=3)
        found = guards.around_calls(model, inputs, turns=3)
    assert found
    for row in found.values():
        low, middle, high = row["cost_us"]
        assert 2000 < low <= middle <= high
        assert 0 < row["call_us"] < 2000


def test_the_quick_plan_measures_every_engine_that_runs_here(tmp_path: Path, native_library: Path) -> None:
    result = guards.measure(guards.QUICK, Sweep(tmp_path / "points.json"))
    assert guards.NATIVE in result["engines"]
    assert guards.NUMPY in result["engines"]
    assert all(row["call_us"] > 0 for row in result["engines"].values())


def result(high: float) -> dict[str, Any]:
    row = {"call_us": 200.0, "cost_us": [1.0, 1.5, high]}
    return {"turns": 3, "engines": {guards.COMPILED: row, guards.NUMPY: {**row, "cost_us": [5.0, 6.0, 7.0]}}}


@pytest.mark.parametrize(("high", "verdict"), [(1.99, "Holds"), (2.01, "**Falsified**")])
def test_the_interval_s_upper_end_is_held_to_the_bound_and_numpy_s_guards_stand_beside(
    high: float, verdict: str
) -> None:
    text = guards.report(result(high))
    assert text.startswith(f"{verdict}: {guards.COMPILED}: at most 2 µs a step; 1.50 (1.00 – {high:.2f}).")
    assert f"| {guards.NUMPY} | 200.0 | 6.00 (5.00 – 7.00) |" in text
