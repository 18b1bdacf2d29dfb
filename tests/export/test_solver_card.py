"""What the card says of the trainer's metric by solver steps."""

from __future__ import annotations

from typing import Any

import pytest

from odestream.export.solver_card import error_section, is_flat
from odestream.runtime.contract.manifest import SolverSpec

SOLVER = SolverSpec("bosh32", (1, 4), 4, 1e-3, 1e-4, True, 5.0)


def gate(one: float | None, many: float, passed: bool | None = True) -> dict[str, Any]:
    return {"solver_gate": {"metric": "error", "by_steps": {"1": one, "16": many}, "dopri5": many, "passed": passed}}


@pytest.mark.parametrize(
    ("metrics", "flat"),
    [
        (gate(1.005, 1.0), True),
        (gate(1.02, 1.0), False),
        (gate(None, 1.0), False),
        ({"validation_mae_by_solver_steps": {"1": {"a": {"1": 2.0}}, "16": {"a": {"1": 2.01}}}}, True),
        ({"validation_mae_by_solver_steps": {"1": {"a": {"1": None}}, "16": {"a": {"1": 2.01}}}}, False),
        ({}, False),
    ],
)
def test_one_step_is_recommended_only_where_the_metric_is_known_to_be_flat(metrics: dict[str, Any], flat: bool) -> None:
    assert is_flat(metrics) == flat
    assert ("--buckets 1" in error_section(SOLVER, metrics)) == flat


@pytest.mark.parametrize(
    ("passed", "says"), [(True, "no worse"), (False, "**Finer solving makes it worse**"), (None, "could not be judged")]
)
def test_the_gate_is_told_in_words_beside_its_numbers(passed: bool | None, says: str) -> None:
    text = error_section(SOLVER, gate(1.5, 1.25, passed))
    assert says in text
    assert "| 1.5 | 1.25 | 1.25 |" in text
