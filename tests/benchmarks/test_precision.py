"""The script on half precision: what is stored narrow is smaller, and what rounds coarser drifts farther."""

from __future__ import annotations

from pathlib import Path

import pytest

import precision
from odestream.export import half
from tests.helpers.calibration import skip_calibration


@pytest.mark.slow
def test_narrower_weights_are_smaller_and_coarser_ones_drift_farther(
    monkeypatch: pytest.MonkeyPatch, native_library: Path
) -> None:
    del native_library
    skip_calibration(monkeypatch)
    monkeypatch.setattr(half, "DRIFT_STEPS", 100)
    monkeypatch.setattr(half, "_WINDOW", 20)
    result = precision.measure(precision.QUICK_PLAN)
    sizes, drift = result["weight_bytes"], result["drift"]
    assert sizes["fp16"] == sizes["bf16"] < sizes["fp32"]
    assert 0 < drift["fp16"]["hidden state h"]["first"] < drift["bf16"]["hidden state h"]["first"]
    assert all(of["first"] > 0 for found in drift.values() for of in found.values())  # no weight of zero hides any
    assert result["us"]["onnxruntime"]["bf16"] is None
    assert all(us is not None and us > 0 for us in result["us"]["native"].values())
    assert "| bf16 | " in precision.report(result)
