"""Prediction columns against their formulas worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import BundleError
from odestream.runtime.predictions import number, predictions

NOTHING = np.zeros(0, np.float32)


def test_forecast_writes_mean_and_deviation_of_its_targets_alone() -> None:
    table = predictions(TaskSpec("forecast", ("a", "b", "c"), ("c", "a")), 6)
    y = np.array([1.0, 2.0, 3.5, math.log(4.0), 0.0, math.log(0.25)], np.float32)
    assert table.columns == ("c", "c_std", "a", "a_std")
    assert [float(cell) for cell in table.cells(y, NOTHING)] == pytest.approx([3.5, 0.5, 1.0, 2.0], rel=1e-7)


def test_classes_write_the_likeliest_label_and_every_probability() -> None:
    table = predictions(TaskSpec("classify", ("a",), ("kind",), ("off", "on")), 2)
    cells = table.cells(np.array([0.0, math.log(3.0)], np.float32), NOTHING)
    assert table.columns == ("kind", "p_off", "p_on")
    assert cells[0] == "on"
    assert [float(cell) for cell in cells[1:]] == pytest.approx([0.25, 0.75], rel=1e-6)


def test_probabilities_of_large_logits_are_finite() -> None:
    table = predictions(TaskSpec("classify", ("a",), ("kind",), ("off", "on")), 2)
    assert table.cells(np.array([3e38, -3e38], np.float32), NOTHING) == ["off", "1.0", "0.0"]


def test_tokens_cost_what_the_row_before_gave_them() -> None:
    table = predictions(TaskSpec("tokens"), 256)
    logits = np.full(256, -np.inf, np.float32)
    logits[[65, 66]] = np.log([0.75, 0.25]).astype(np.float32)
    first, second = table.cells(logits, np.array(10)), table.cells(logits, np.array(66))
    assert (first[:2], first[3]) == (["10", "65"], "")
    assert second[:2] == ["66", "65"]
    assert [float(cell) for cell in second[2:]] == pytest.approx([0.75, 2.0])


def test_untold_task_writes_every_output() -> None:
    table = predictions(TaskSpec(), 2)
    assert (table.columns, table.cells(np.array([0.1, -2], np.float32), NOTHING)) == (("y0", "y1"), ["0.1", "-2.0"])


@pytest.mark.parametrize(
    ("task", "width"),
    [
        (TaskSpec("forecast", ("a",), ("a",)), 3),
        (TaskSpec("forecast", ("a",), ("b",)), 2),
        (TaskSpec("forecast", ("a",)), 2),
        (TaskSpec("classify", ("a",), ("kind",), ("off", "on")), 3),
        (TaskSpec("tokens"), 10),
    ],
)
def test_output_that_does_not_fit_its_task_is_refused(task: TaskSpec, width: int) -> None:
    with pytest.raises(BundleError, match="; export the bundle again"):
        predictions(task, width)


@given(st.floats(width=32, allow_nan=False))
def test_number_reads_back_as_the_same_float32(value: float) -> None:
    assert np.float32(number(value)) == np.float32(value)
