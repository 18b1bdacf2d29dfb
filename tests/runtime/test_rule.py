"""The bucket rule against its formula written out a second time, a solver made of numbers, and anything at all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from odestream.runtime.contract.rule import (
    MAX_HALVINGS,
    MAX_RERUNS,
    SPLIT_FIRST,
    Accepted,
    BucketRule,
    Verdict,
    check_buckets,
    check_tolerances,
)
from odestream.runtime.errors import InputError

MOST_RUNS = (2 ** (MAX_HALVINGS + 1) - 1) * (1 + MAX_RERUNS)
CLOSE = 1e-6
"""Nearer to the factor than this, relatively, rounding may decide either way."""

gaps = st.floats(1e-3, 1e3)
errs = st.floats(1e-9, 1e9)
wild = st.one_of(errs, st.floats(), st.sampled_from([0.0, math.inf, math.nan]))


@st.composite
def rules(draw: st.DrawFn, least: int = 1, ratios: bool = False) -> BucketRule:
    """Any rule of at least `least` buckets; its limits grow with them, as a stability bound does, or do not exist.

    ratios: whether buckets may have ratios of their own.
    """
    buckets = tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=least, max_size=6))))
    bound = draw(st.one_of(st.just(math.inf), st.floats(1e-2, 1e2)))
    return BucketRule(
        buckets,
        draw(st.sampled_from(buckets)),
        draw(st.floats(0.05, 1.5)),
        draw(st.integers(1, 4)),
        tuple(bound * n for n in buckets),
        draw(st.booleans()),
        draw(st.tuples(*[st.floats(0.1, 8.0)] * len(buckets))) if ratios else (),
    )


def predicted(rule: BucketRule, gap: float, previous: Accepted, steps: int) -> float:
    """The contract's sentence, word for word: err_prev·(dt/dt_prev)^(p+1)·(N_prev/N)^(p+1), times the ratio."""
    power, ratio = rule.order + 1, rule.ratios[rule.buckets.index(steps)]
    return ratio * previous.err * (gap / previous.gap) ** power * (previous.steps / steps) ** power


@given(st.data(), rules(ratios=True), gaps, errs, gaps)
def test_the_smallest_stable_bucket_that_is_predicted_to_fit_is_chosen(
    data: st.DataObject, rule: BucketRule, gap_before: float, err: float, gap: float
) -> None:
    assume(gap <= rule.limits[-1])
    previous = Accepted(gap_before, data.draw(st.sampled_from(rule.buckets)), err)
    chosen = rule.choose(gap, previous, MAX_HALVINGS)
    stable = [n for n, limit in zip(rule.buckets, rule.limits, strict=True) if limit >= gap]
    assert chosen in stable
    errors = {n: predicted(rule, gap, previous, n) / rule.factor for n in stable}
    assert all(errors[n] > 1 - CLOSE for n in stable if n < chosen)
    assert errors[chosen] <= 1 + CLOSE or chosen == rule.buckets[-1]


@given(st.data(), rules(ratios=True), gaps, gaps, errs, st.integers(0, MAX_HALVINGS))
def test_a_gap_is_split_at_once_where_no_bucket_is_predicted_to_fit_and_a_half_may_be(
    data: st.DataObject, rule: BucketRule, gap: float, gap_before: float, err: float, halvings: int
) -> None:
    assume(gap <= rule.limits[-1])
    previous = Accepted(gap_before, data.draw(st.sampled_from(rule.buckets)), err)
    stable = [n for n, limit in zip(rule.buckets, rule.limits, strict=True) if limit >= gap]
    errors = [predicted(rule, gap, previous, n) / rule.factor for n in stable]
    assume(all(abs(e - 1) > CLOSE for e in errors))
    allowed = rule.splits and halvings < MAX_HALVINGS and len(rule.buckets) > 1
    assert (rule.choose(gap, previous, halvings) == SPLIT_FIRST) == (allowed and min(errors) > 1)


@given(rules(), gaps, st.integers(1, 64), errs, gaps, st.integers(1, 64), errs)
def test_a_harder_call_is_remembered_as_what_it_foretold_of_this_one_and_fades(
    rule: BucketRule, gap_before: float, steps_before: int, err_before: float, gap: float, steps: int, err: float
) -> None:
    power = rule.order + 1
    foretold = err_before * (gap / gap_before) ** power * (steps_before / steps) ** power
    kept = rule.remember(Accepted(gap_before, steps_before, err_before), gap, steps, err)
    assert kept[:2] == (gap, steps)
    assert kept.err == pytest.approx(max(err, 0.9**power * foretold), rel=1e-9)
    for nothing in (None, Accepted(0.0, 1, 1.0), Accepted(1.0, 1, 0.0), Accepted(1.0, 1, math.inf)):
        assert rule.remember(nothing, gap, steps, err) == (gap, steps, err)


@given(rules(), gaps, wild, wild)
def test_whatever_is_known_of_the_call_before_a_known_stable_bucket_is_chosen(
    rule: BucketRule, gap: float, gap_before: float, err: float
) -> None:
    assume(gap <= rule.limits[-1])
    for previous in (None, Accepted(gap_before, rule.buckets[0], err)):
        chosen = rule.choose(gap, previous, MAX_HALVINGS)
        assert chosen in rule.buckets
        assert rule.limits[rule.buckets.index(chosen)] >= gap


@given(rules(), gaps, errs, st.lists(gaps, min_size=2, max_size=6), st.lists(errs, min_size=2, max_size=6))
def test_a_longer_gap_or_a_larger_error_before_never_takes_fewer_steps(
    rule: BucketRule, gap_before: float, err: float, some_gaps: list[float], some_errs: list[float]
) -> None:
    steps = rule.buckets[-1]
    by_gap = [rule.choose(gap, Accepted(gap_before, steps, err), MAX_HALVINGS) for gap in sorted(some_gaps)]
    by_err = [rule.choose(some_gaps[0], Accepted(gap_before, steps, e), MAX_HALVINGS) for e in sorted(some_errs)]
    assert by_gap == sorted(by_gap)
    assert by_err == sorted(by_err)


@given(rules(), gaps, st.sampled_from([0.0, -1.0, math.nan]))
def test_where_nothing_is_known_the_default_is_taken_unless_it_is_unstable(
    rule: BucketRule, gap: float, nothing: float
) -> None:
    stable = [n for n, limit in zip(rule.buckets, rule.limits, strict=True) if limit >= gap]
    assume(stable)
    expected = min(n for n in stable if n >= min(rule.default, stable[-1]))
    if len(rule.buckets) == 1:
        expected = rule.buckets[0]
    assert rule.choose(gap, None, MAX_HALVINGS) == expected
    assert rule.choose(gap, Accepted(nothing, 1, 1.0), MAX_HALVINGS) == expected
    assert rule.choose(gap, Accepted(1.0, 1, nothing), MAX_HALVINGS) == expected


@given(rules(), st.one_of(st.none(), st.builds(Accepted, gaps, st.integers(1, 64), errs)))
def test_a_call_over_no_time_takes_the_smallest_bucket(rule: BucketRule, previous: Accepted | None) -> None:
    assert rule.choose(0.0, previous, MAX_HALVINGS) == rule.buckets[0]


@given(st.data(), rules(ratios=True), wild, st.integers(0, MAX_RERUNS), st.integers(0, MAX_HALVINGS))
def test_a_result_is_accepted_if_and_only_if_its_error_is_within_the_factor(
    data: st.DataObject, rule: BucketRule, err: float, reruns: int, halvings: int
) -> None:
    steps = data.draw(st.sampled_from(rule.buckets))
    for value in (err, rule.factor, math.nextafter(rule.factor, math.inf)):
        accepted = rule.judge(value, steps, reruns, halvings).verdict is Verdict.ACCEPT
        assert accepted == (value * rule.ratios[rule.buckets.index(steps)] <= rule.factor)


@given(st.data(), rules(least=2), wild, st.integers(0, MAX_RERUNS))
def test_a_rerun_is_one_bucket_above_the_formula_and_above_the_rejected_one(
    data: st.DataObject, rule: BucketRule, err: float, reruns: int
) -> None:
    steps = data.draw(st.sampled_from(rule.buckets))
    verdict, again = rule.judge(err, steps, reruns, 0)
    assume(not err <= rule.factor)
    if reruns == MAX_RERUNS or steps == rule.buckets[-1]:
        assert verdict is (Verdict.SPLIT if rule.splits else Verdict.FLAG)
        return
    assert verdict is Verdict.RERUN
    assert again > steps
    wanted = steps * (err / rule.factor) ** (1 / (rule.order + 1)) if err < math.inf else math.inf
    assume(all(abs(n - wanted) > CLOSE * n for n in rule.buckets))
    fits = [n for n in rule.buckets if n >= max(wanted, steps)] or [rule.buckets[-1]]
    assert again == next((n for n in rule.buckets if n > fits[0]), rule.buckets[-1])


def drive(rule: BucketRule, gap: float, solve: Callable[[float, int], float]) -> list[tuple[Verdict, float, int, int]]:
    """Cross a gap by the rule alone: (verdict, err, steps, re-runs of the piece) of every run, in order."""
    runs: list[tuple[Verdict, float, int, int]] = []
    previous: Accepted | None = None
    pieces = [(gap, 0)]
    while pieces:
        length, halvings = pieces.pop()
        steps, reruns, verdict = rule.choose(length, previous, halvings), 0, Verdict.SPLIT
        while steps != SPLIT_FIRST:
            err = solve(length, steps)
            verdict, wanted = rule.judge(err, steps, reruns, halvings)
            runs.append((verdict, err, steps, reruns))
            if verdict is not Verdict.RERUN:
                previous = rule.remember(previous, length, steps, err)
                break
            steps, reruns = wanted, reruns + 1
        if verdict is Verdict.SPLIT:
            pieces += [(length / 2, halvings + 1)] * 2
    return runs


@given(st.data(), rules(ratios=True), gaps)
def test_whatever_a_solver_says_the_rule_ends_and_nothing_above_the_factor_ends_unflagged(
    data: st.DataObject, rule: BucketRule, gap: float
) -> None:
    said = itertools.chain(data.draw(st.lists(wild, max_size=10)), itertools.repeat(data.draw(wild)))
    runs = drive(rule, gap, lambda length, steps: next(said))
    assert 0 < len(runs) <= MOST_RUNS
    assert all((verdict is Verdict.ACCEPT) == (rule.error(err, n) <= rule.factor) for verdict, err, n, _ in runs)
    ended = [verdict for verdict, *_ in runs if verdict in (Verdict.ACCEPT, Verdict.FLAG)]
    assert 1 <= len(ended) <= (2**MAX_HALVINGS if rule.splits and len(rule.buckets) > 1 else 1)
    assert runs[-1][0] in (Verdict.ACCEPT, Verdict.FLAG)


def test_a_solver_that_never_satisfies_ends_flagged_in_every_piece_of_an_eighth() -> None:
    """The first piece is run three times; of the 14 below it some are split at once, none is run twice."""
    rule = BucketRule((1, 2, 4, 8), 1, 1.0, 2, (math.inf,) * 4)
    runs = drive(rule, 1.0, lambda length, steps: 1.5)
    assert [steps for _, _, steps, _ in runs[:3]] == [1, 4, 8]
    assert len(runs) <= 3 + 14
    assert [verdict for verdict, *_ in runs].count(Verdict.FLAG) == 2**MAX_HALVINGS


def lawful(rule: BucketRule, gap: float, enough: float) -> Callable[[float, int], float]:
    """A solver whose err is size·(length/N)^(p+1) exactly, and equals the factor for the whole gap at N = `enough`."""
    power = rule.order + 1
    return lambda length, steps: rule.factor * (length / gap * enough / steps) ** power


@given(rules(least=2), gaps, st.floats(1e-2, 1 - CLOSE))
def test_a_solver_that_obeys_the_asymptotic_law_is_accepted_at_the_first_rerun(
    rule: BucketRule, gap: float, share: float
) -> None:
    """Where the largest bucket satisfies, no second re-run and no split is needed."""
    solve = lawful(rule, gap, share * rule.buckets[-1])
    runs = drive(rule, gap, solve)
    assert len(runs) <= 2
    verdict, err, steps, _ = runs[-1]
    assert verdict is Verdict.ACCEPT
    again = rule.choose(gap, Accepted(gap, steps, err), MAX_HALVINGS)
    assert solve(gap, again) <= rule.factor * (1 + CLOSE), "the next choice fits at once"


@given(rules(least=2), gaps, st.floats(1 + CLOSE, (1 - CLOSE) * 2**MAX_HALVINGS))
def test_a_lawful_solver_is_accepted_in_halves_where_an_eighth_of_the_gap_is_short_enough(
    rule: BucketRule, gap: float, share: float
) -> None:
    runs = drive(rule, gap, lawful(rule, gap, share * rule.buckets[-1]))
    verdicts = {verdict for verdict, *_ in runs}
    assert (Verdict.SPLIT in verdicts, Verdict.FLAG in verdicts) == (rule.splits, not rule.splits)


GOOD: dict[str, Any] = {"buckets": (1, 4), "default": 1, "factor": 1.0, "order": 2, "limits": (1.0, 4.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buckets": (4, 1)}, "give increasing numbers of solver steps, from 1"),
        ({"buckets": (1, 1)}, "give increasing numbers of solver steps, from 1"),
        ({"buckets": (0, 1)}, "give increasing numbers of solver steps, from 1"),
        ({"buckets": ()}, "give increasing numbers of solver steps, from 1"),
        ({"default": 2}, "default bucket 2 is not among (1, 4); choose one of them"),
        *(({"factor": value}, "give a finite number above 0") for value in (0.0, -1.0, math.nan, math.inf)),
        *(({"ratios": (1.0, value)}, "give finite numbers above 0") for value in (0.0, -1.0, math.nan, math.inf)),
        ({"ratios": (1.0,)}, "give one each"),
        *(
            ({"limits": value}, "give one each, increasing")
            for value in ((1.0,), (4.0, 1.0), (1.0, math.nan), (math.nan, 1.0), (-1.0, 1.0), ())
        ),
        ({"order": 0}, "give a single bucket, or a method with an estimate such as bosh32"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_the_remedy(change: dict[str, Any], message: str) -> None:
    BucketRule(**GOOD)
    with pytest.raises(InputError) as caught:
        BucketRule(**GOOD | change)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan, math.inf, -math.inf])
def test_tolerances_that_are_not_positive_are_refused_by_name(value: float) -> None:
    check_tolerances(1e-3, 1e-4)
    for name, pair in (("rtol", (value, 1e-4)), ("atol", (1e-3, value))):
        with pytest.raises(InputError, match=rf"^{name} is .*; give a finite number above 0, such as 1e-3$"):
            check_tolerances(*pair)


def test_a_method_without_an_estimate_has_one_bucket_and_flags_nothing_that_it_cannot_see() -> None:
    rule = BucketRule((4,), 4, 1.0, 0, (10.0,))
    assert not rule.adaptive
    assert rule.choose(1.0, Accepted(1.0, 4, 5.0), MAX_HALVINGS) == 4
    assert rule.judge(0.0, 4, 0, 0).verdict is Verdict.ACCEPT
    check_buckets((4,))
