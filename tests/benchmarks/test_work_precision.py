"""The work-precision benchmark measures what it says: its exponential method, its points, and its quick path's core."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import work_precision
import work_precision_peers
from odestream.models.cell import Cell
from odestream.models.config import CellConfig
from odestream.models.held_out import HeldOut
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from tests.helpers.problems import TINY, pure_decay
from tests.helpers.sequences import random_cell, random_inputs
from work_precision import Plan, compare_exponential, measure_scenario, task_metric
from work_precision_figure import draw
from work_precision_peers import Rescaled, diffrax_agreement, peers
from work_precision_points import Errors, cheapest, interleaved, make_point
from work_precision_report import report
from work_precision_runtime import Deployed
from work_precision_scenarios import scenarios, with_leaks
from work_precision_solvers import Gaps, Judge, exponential, exponential_flow, in_precision, reference, runge_kutta

PLAN = Plan(12, 8, 2, 1, verify_steps=10, pairs=("bosh32",), factors=(0.05,), tightenings=(0,))
TIME = TimeSpec(ticks_per_model_unit=6.048e15, origin=-371174400000000000, frequencies=(0.7, 1.9))


def forecaster() -> Cell:
    """A random cell for the CO2 record: one channel."""
    config = CellConfig("forecast", 1, TINY, (2.8,), (329.0,), averages=(1.0, 5.0), frequencies=(0.7, 1.9))
    return random_cell(config).eval()


def held_out(cell: Cell) -> HeldOut:
    """A few calls to calibrate on: what is found does not matter here."""
    inputs = random_inputs(cell.config, 12, 4)
    return HeldOut(inputs, torch.ones(12, 4, dtype=torch.bool), torch.arange(4) % 2)


def some_gaps(count: int = 6, longest: float = 4.0) -> Gaps:
    make = torch.Generator().manual_seed(0)
    angle = 6 * torch.rand(count, 2, generator=make)
    phase = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
    h, u = torch.randn(2, count, TINY.hidden, generator=make)
    return Gaps(h, u, phase, longest * (0.1 + 0.9 * torch.rand(count, 1, generator=make)))


@pytest.fixture(scope="module")
def judge() -> Judge:
    with torch.no_grad():
        return Judge.of(forecaster())


def test_the_exponential_method_solves_a_leak_exactly_in_one_step() -> None:
    w, h = (
        pure_decay(torch.tensor([0.001, 0.1, 40.0], dtype=torch.float64)),
        torch.full((1, 3), 0.7, dtype=torch.float64),
    )
    dt = torch.full((1, 1), 1.3, dtype=torch.float64)
    after, err = exponential_flow(h, h, None, dt, w, steps=1, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after, 0.7 * torch.exp(-1.3 * w.decay)[None], rtol=1e-14, atol=0)
    assert err.item() == 0


def test_the_exponential_method_and_its_estimate_are_of_second_order() -> None:
    cell = forecaster().double()
    w, gaps = cell.field.weights(), some_gaps().double()
    expected = reference(gaps, w)

    def crossed(dt: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return exponential_flow(gaps.h, gaps.u, gaps.phase, dt, w, steps=steps, rtol=1e-300, atol=1.0)

    coarse, fine = ((crossed(gaps.dt, n)[0] - expected).norm().item() for n in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)
    long, short = (crossed(gaps.dt / n, 1)[1].norm().item() for n in (256, 512))
    assert math.log2(long / short) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("solver", [runge_kutta("bosh32"), runge_kutta("heun"), exponential()], ids=lambda s: s.name)
def test_a_gap_is_cut_where_a_bucket_is_not_stable_and_halved_where_it_is_asked(solver: object, judge: Judge) -> None:
    gaps = some_gaps(longest=8.0)
    expected = reference(gaps, judge.w)
    after, evaluations = solver.cross(gaps, judge, 2, halvings=5)  # type: ignore[attr-defined]
    torch.testing.assert_close(after.double(), expected, rtol=0, atol=4e-3)
    whole = solver.cross(gaps, judge, 2)[1]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(evaluations, 32 * whole)
    assert whole.max() > whole.min() > 0


def test_raised_leaks_are_the_faster_half_and_the_others_stay() -> None:
    cell = forecaster()
    before, after = cell.field.weights().decay, with_leaks(cell, 50.0).field.weights().decay
    fast = before >= before.median()
    torch.testing.assert_close(after[fast], torch.full_like(after[fast], 50.0))
    torch.testing.assert_close(after[~fast], before[~fast])
    assert fast.sum() >= len(before) / 2


def test_a_point_counts_what_is_unflagged_and_a_divergence_is_no_success() -> None:
    errors = Errors(np.array([0.5, 2.0, math.nan]), np.array([0.1, 0.2, math.nan]))
    plain = make_point("a", "1", errors, np.ones(3))
    assert plain.within == pytest.approx(1 / 3)
    assert plain.worst > 1e20
    honest = make_point("a", "2", errors, np.full(3, 7.0), flagged=np.array([False, True, True]))
    assert (honest.within, honest.worst) == (1.0, 0.5)
    assert honest.flagged == pytest.approx(2 / 3)
    dearer = dataclasses.replace(honest, evaluations=8.0)
    assert cheapest([plain, dearer, honest]) == honest
    assert cheapest([plain]) is None


def test_contenders_take_turns_over_the_rows_in_order() -> None:
    seen: list[tuple[str, int]] = []
    times = interleaved({name: lambda row, name=name: seen.append((name, row)) for name in "ab"}, 25, repeats=2)
    assert {name: len(t) for name, t in times.items()} == {"a": 25, "b": 25}
    round_ = [("a", i) for i in range(20)] + [("b", i) for i in range(20)]
    round_ += [("a", i) for i in range(20, 25)] + [("b", i) for i in range(20, 25)]
    assert seen == 3 * round_
    assert all((t > 0).all() for t in times.values())


def test_torchdiffeq_solves_the_same_flow_and_counts_its_evaluations(judge: Judge) -> None:
    gaps = some_gaps()
    expected = reference(gaps, judge.w)
    alone, coupled, fixed, *_ = peers(judge.w, judge.rtol, judge.atol, (3,))
    for peer, setting in ((alone, 3), (coupled, 3), (fixed, 16)):
        after, evaluations = peer.solve(gaps, setting)
        assert judge.errors(gaps, after, expected).scaled.max() < 5
        assert (evaluations >= 14).all()
        peer.call(gaps, setting)(0)
    assert set(fixed.solve(gaps, 16)[1]) == {64.0}
    assert len(set(coupled.solve(gaps, 3)[1])) == 1 < len(set(alone.solve(gaps, 3)[1]))


def test_the_field_given_to_peers_is_dt_times_the_cells_own(judge: Judge) -> None:
    gaps = some_gaps()
    small = 1e-3
    near = Gaps(gaps.h, gaps.u, gaps.phase, gaps.dt * small).double()
    moved = reference(near, judge.w) - near.h
    w = in_precision(judge.w, torch.float64)
    field = Rescaled(near, w)(torch.tensor(0.5, dtype=torch.float64), (reference(near, judge.w) + near.h) / 2)
    torch.testing.assert_close(field, moved, rtol=1e-4, atol=1e-9)


def test_diffrax_is_given_the_same_field(judge: Judge) -> None:
    pytest.importorskip("diffrax")
    error = diffrax_agreement(some_gaps(), judge.w)
    assert error is not None
    assert error < 1e-13


def test_the_quick_paths_core_works_without_the_optional_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = list(work_precision_peers.OPTIONAL)
    monkeypatch.setattr(work_precision_peers, "missing", lambda: absent)
    cell = forecaster()
    task = TaskSpec("forecast", ("co2_ppm",), ("co2_ppm",), time="time")
    deployed = Deployed(tmp_path, task, TIME, held_out(cell), PLAN.verify_steps)
    scenario = scenarios(cell, PLAN.gaps)[0]
    with torch.no_grad():
        measured = measure_scenario(scenario, deployed, PLAN)
        trial = {"as trained": compare_exponential(some_gaps(), Judge.of(cell))}
    points = measured["points"]
    by_family = {p["family"] for p in points}
    assert {"bosh32 adaptive", "etd-rk21 fixed", "torchdiffeq dopri5, one by one"} <= by_family
    assert not any("diffrax" in family or "torchode" in family for family in by_family)
    dopri = [p["p99"] for p in points if p["family"] == "dopri54 fixed"]
    assert dopri[-1] < min(dopri[0], 0.1)
    stated = next(p for p in points if p["family"] == "bosh32 adaptive" and p["stated"])
    assert stated["evaluations"] >= 4
    assert stated["p50_us"] > 0
    result = {
        "scenarios": {scenario.name: measured},
        "missing": absent,
        "exponential": trial,
        "task_metric": {},
        "peers": {"torchdiffeq": "0"},
    }
    text = report(result)
    assert f"Not installed here, and so not compared: {', '.join(absent)}." in text
    assert text.count("adaptive |") == 1
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_task_metric_is_the_runs_own_gate_where_it_has_one() -> None:
    by_steps = {"1": {"y": {"1": 0.5}}}
    plain = {"validation_mae_by_solver_steps": by_steps, "deployed_solver_steps": 4}
    assert task_metric(plain)["values"] is by_steps
    gate = {"metric": "nll", "deployed_steps": 4, "by_steps": {"1": None, "4": 0.14}, "dopri5": 0.15, "passed": True}
    chosen = task_metric({**plain, "solver_gate": gate})
    assert chosen["values"] is gate
    text = report({"scenarios": {}, "missing": [], "exponential": {}, "task_metric": chosen, "peers": {}})
    assert "| 1 | not stable |\n| 4 | 0.14000 |\n| dopri5 | 0.15000 |" in text
    assert task_metric({}) == {}


def test_the_plans_differ_in_size_alone() -> None:
    assert work_precision.QUICK.gaps < Plan().gaps
    assert set(work_precision.QUICK.pairs) <= set(Plan().pairs)
