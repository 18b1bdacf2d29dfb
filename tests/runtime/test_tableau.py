"""Tableaus check themselves; the stability guard's arithmetic."""

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime.contract.tableau import TABLEAUS, calls_needed, tableau
from odestream.runtime.errors import InputError

COEFFICIENTS = [
    (name, field) for name, t in TABLEAUS.items() for field in ("a", "b", "c", "error") if getattr(t, field) is not None
]


@pytest.mark.parametrize(("name", "field"), COEFFICIENTS)
def test_any_single_wrong_coefficient_is_refused(name: str, field: str) -> None:
    good = TABLEAUS[name]
    values = getattr(good, field)
    rows = range(1, len(values)) if field == "a" else range(len(values))
    for i in rows:
        wrong = list(values)
        wrong[i] = (values[i][0] + Fraction(1, 997), *values[i][1:]) if field == "a" else values[i] + Fraction(1, 997)
        with pytest.raises(InputError, match=f"tableau {name}"):
            dataclasses.replace(good, **{field: tuple(wrong)})


def test_a_wrong_stability_bound_is_refused() -> None:
    for factor in (0.9, 1.1):
        with pytest.raises(InputError, match="stability bound"):
            dataclasses.replace(TABLEAUS["bosh32"], real_bound=TABLEAUS["bosh32"].real_bound * factor)


def test_first_same_as_last_saves_an_evaluation_a_step() -> None:
    assert [TABLEAUS[n].evaluations(4) for n in ("euler", "rk4", "bosh32", "dopri54")] == [4, 16, 13, 25]


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown solver method 'rk5'; choose one of euler, midpoint"):
        tableau("rk5")


@given(st.floats(0, 1e6), st.sampled_from([1, 2, 4, 8, 16]), st.floats(1e-3, 50), st.sampled_from(sorted(TABLEAUS)))
def test_split_gaps_stay_inside_the_bound_and_no_fewer_calls_would(
    gap: float, steps: int, rho: float, name: str
) -> None:
    calls, bound = calls_needed(gap, steps, rho, name), TABLEAUS[name].real_bound
    assert gap / (calls * steps) * rho <= bound * (1 + 1e-6)
    assert calls == 1 or gap / ((calls - 1) * steps) * rho > bound * (1 - 1e-6)
