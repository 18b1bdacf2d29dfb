"""The latency benchmark: its counts against the cell's own weights, its parity check, its criteria, its quick path."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency import QUICK, Plan, measure
from latency_flat import MOST, flatness
from latency_gru import Gru
from latency_limits import reader
from latency_measure import check
from latency_model import Arrays, Inputs, drawn_cell, drawn_inputs, matrix_floats, torch_answers, weight_floats
from latency_paired import CALLS, WARM, Side, in_turn, interval, median_of
from latency_report import criteria, draw, report
from latency_subjects import Contender, torch_eager, torchdiffeq_integrator
from odestream.export.protocol import check_module
from odestream.models.cell import Cell
from odestream.models.config import PRESETS, Sizes
from odestream.runtime import Stream, load
from odestream.runtime.contract.manifest import TimeSpec
from tests.helpers.calibration import skip_calibration
from tests.helpers.tiny_bundle import Tiny, write_tiny

SMALL = Sizes(hidden=6, field=7, content=5, head=9, gate=8, window=3, slots=4, heads=2, keys=3, values=5)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The quick plan at one number of solver steps, without the export's calibration and with short warm-ups."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        skip_calibration(monkeypatch)
        monkeypatch.setattr("odestream.runtime.verbs.latency.WARMUP_CALLS", 2)
        return measure(dataclasses.replace(QUICK, steps=(1,), calls=1000), tmp_path_factory.mktemp("latency"))


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return drawn_inputs(TimeSpec(frequencies=drawn_cell(SMALL, 2).config.frequencies), 6, channels=2)


@pytest.mark.parametrize("sizes", [SMALL, PRESETS["nano"]])
def test_weights_counted_once_are_those_of_the_cell(sizes: Sizes) -> None:
    cell = drawn_cell(sizes, channels=3)
    matrices = [p for name, p in cell.named_parameters() if p.dim() == 2]
    assert matrix_floats(cell) == sum(p.numel() for p in matrices)


def test_the_field_is_counted_once_an_evaluation() -> None:
    cell, sizes = drawn_cell(), PRESETS["nano"]
    evaluations = {1: 4, 4: 13, 16: 49}  # 3N + 1 of bosh32
    field, time = 2 * sizes.field * sizes.hidden, sizes.field * 8
    for steps, count in evaluations.items():
        times = 3 * steps + 1  # c = 0, 1/2, 3/4, 1, the last being the next step's first
        assert weight_floats(cell, steps) == matrix_floats(cell) + (count - 1) * field + (times - 1) * time


@pytest.mark.parametrize("solver", ["unrolled", "rk4", "dopri5"])
def test_torch_subjects_pass_the_parity_check(solver: str, inputs: Inputs) -> None:
    cell = drawn_cell(SMALL, 2)
    integrator = None if solver == "unrolled" else torchdiffeq_integrator(solver, 1 if solver == "rk4" else None)
    contender = torch_eager(solver, cell, inputs, 1, integrator)
    assert contender.exact == (solver == "unrolled")
    assert parity_of(contender, cell, inputs).reached


@pytest.mark.parametrize("tensor", ["y", "h", "m"])
def test_a_subject_that_errs_fails_the_parity_check(tensor: str, inputs: Inputs) -> None:
    cell = drawn_cell(SMALL, 2)
    contender = torch_eager("torch", cell, inputs, 1, None)

    def wrong() -> Arrays:
        found = contender.found()
        return {**found, tensor: found[tensor] + 1e-4 * np.abs(found[tensor]).max() + 1e-6}

    parity = parity_of(dataclasses.replace(contender, found=wrong), cell, inputs)
    assert not parity.reached
    assert parity.tensor == tensor
    unclean = parity_of(
        dataclasses.replace(contender, found=lambda: {**contender.found(), tensor: np.float32([np.nan])}), cell, inputs
    )
    assert unclean.error == float("inf")


def parity_of(contender: Contender, cell: Cell, inputs: Inputs) -> Any:
    return check(contender, inputs, torch_answers(cell, inputs, 1), torch_answers(cell, inputs, 16), 1e-3, 1e-4)


def test_the_reader_takes_time_for_every_pass() -> None:
    block = reader(100_000)  # its sum is held against numpy's when it is made
    assert block.total(4) == pytest.approx(4 * float(block.block.sum(dtype=np.float64)), rel=1e-3)


def test_the_quick_plan_measures_checks_and_judges(quick: dict[str, Any], tmp_path: Path) -> None:
    names = {row["name"] for row in quick["subjects"]}
    assert {"ONNX Runtime, one call", "ONNX Runtime, plain export", "torch eager", "torchdiffeq dopri5"} <= names
    assert all(0 <= row["parity"]["error"] <= 1 and row["p50_us"] > 0 for row in quick["subjects"])
    assert not quick["refused"]
    text = report(quick)
    assert all(row["criterion"] in text for row in quick["criteria"])
    draw(quick, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("native_library")
def test_a_criterion_is_met_exactly_when_its_bound_is_kept(quick: dict[str, Any]) -> None:
    ratios = {"native / ONNX Runtime": 0.2, "native / IREE": 0.2, "batch 64 / batch 1": 64 / 1.5}
    found = {row["criterion"]: row for row in criteria({**quick, "ratios": ratios})}
    assert found["native / ONNX Runtime, I/O binding, 1 solver step"]["met"] is False
    assert found["native / IREE, 1 solver step"]["met"] is True
    batch = found["native, rows a second at batch 64 / batch 1"]
    assert (batch["measured"], batch["met"]) == (pytest.approx(1.5), False)
    assert "native / torch eager, 1 solver step" not in found
    aged = {"at": {"100": {}, "1000": {"to_fresh": [0.995, 1.001, 1.02]}}, "grown_bytes": 0}
    found = {row["criterion"]: row for row in criteria({**quick, "flat": aged})}
    flat = found["step of an aged stream / of a fresh one, farthest from 1"]
    assert (flat["measured"], flat["met"]) == (pytest.approx(0.02), False)


def test_memory_that_grows_and_steps_that_slow_down_with_age_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown, step = iter(range(0, 10**9, 4096)), Stream.step

    def slower(stream: Stream, x: Any, t: int) -> Any:
        if stream.counters.steps >= 1000:
            time.sleep(1e-3)
        return step(stream, x, t)

    monkeypatch.setattr("latency_flat.MOST", 2)
    monkeypatch.setattr("latency_flat.resident_bytes", lambda: next(grown))
    monkeypatch.setattr(Stream, "step", slower)
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1, 4)))) as model:
        found = flatness(model, drawn_inputs(model.manifest.time, 6, channels=3), 1000, turns=2)
    assert list(found["at"]) == ["100", "1000"]
    assert found["grown_bytes"] == 4096
    assert "to_fresh" not in found["at"]["100"]
    assert found["at"]["1000"]["to_fresh"][1] > 2


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 10), (0.05, 10 * MOST)])
def test_more_turns_are_measured_only_where_noise_leaves_a_ratio_unsure(
    noise: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)

    def timed(_sides: Any, turns: int) -> dict[str, Any]:
        pace = rng.choice([10.0, 13.0], turns)  # of the machine, which both sides of a turn share
        return {"aged": pace * rng.normal(1.0, noise, turns), "fresh": pace}

    monkeypatch.setattr("latency_flat.in_turn", timed)
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1, 4)))) as model:
        found = flatness(model, drawn_inputs(model.manifest.time, 6, channels=3), 1000, turns=10)
    assert [row["turns"] for row in found["at"].values()] == [expected] * 2
    if noise == 0.0:
        assert found["at"]["1000"]["to_fresh"] == [1.0, 1.0, 1.0]


def test_runs_are_drawn_by_themselves() -> None:
    run = {"a": np.random.default_rng(3).normal(9, 1, 100)}
    low, middle, high = interval(lambda one, two: median_of(one, "a") - median_of(two, "a"), run, run)
    assert low < middle == 0 < high


def test_an_interval_holds_the_figure_and_narrows_with_the_turns() -> None:
    rng = np.random.default_rng(1)
    few, many = ({name: rng.normal(at, 1, turns) for name, at in (("a", 9), ("b", 12))} for turns in (16, 1600))
    difference = [interval(lambda m: median_of(m, "b") - median_of(m, "a"), medians) for medians in (few, many)]
    assert all(low < 3 < high and low <= middle <= high for low, middle, high in difference)
    widths = [high - low for low, _, high in difference]
    assert widths[1] < widths[0] / 4


def test_sides_take_turns_and_the_first_calls_of_a_block_do_not_count() -> None:
    calls: list[str] = []
    sides = {
        name: Side(lambda n=name: calls.append(n.upper()), lambda _: None, lambda n=name: calls.append(n))
        for name in ("a", "b")
    }
    assert {name: len(medians) for name, medians in in_turn(sides, 2).items()} == {"a": 2, "b": 2}
    blocks = [["A", *"a" * CALLS], ["B", *"b" * CALLS]]
    assert calls == [*blocks[0], *blocks[1], *blocks[1], *blocks[0]]
    slow_start = iter([0.01] * WARM + [0.0] * (CALLS - WARM))
    (median,) = in_turn({"a": Side(lambda: None, lambda _: None, lambda: time.sleep(next(slow_start)))}, 1)["a"]
    assert median < 5000


def test_the_gru_steps_as_it_was_unrolled_in_training() -> None:
    torch.manual_seed(0)
    model = Gru(5, 4, centre=330.0, scale=2.0)
    torch.nn.init.normal_(model.head.weight)
    check_module(model)
    x, mask, dt = 330 + torch.randn(9, 1, 1), torch.ones(9, 1, 1), torch.rand(9, 1, 1)
    mask[4] = 0.0
    phase = torch.randn(9, 1, 8)
    state = {"h": torch.zeros(1, 5), "last": torch.zeros(1, 1)}
    stepped, values = [], [torch.zeros(1, 1)]
    for t in range(9):
        outputs, state = model.step({"x": x[t], "mask": mask[t], "dt": dt[t], "phase": phase[t]}, state)
        stepped.append(outputs["y"])
        values.append(state["last"])
    value, last = torch.stack(values[1:]), torch.stack(values[:-1])
    features = torch.cat([(value - last) / 2.0, mask, dt, phase], dim=-1)
    expected = value + 2.0 * model.unroll(features, phase) + 330.0
    torch.testing.assert_close(torch.stack(stepped), expected)
    assert torch.equal(value[4], value[3])


def test_the_full_plan_measures_all_that_the_criteria_need() -> None:
    assert {1, 16} <= set(Plan().steps)
    assert Plan().calls == 1_000_000
    assert Plan().compilers
    assert Plan().gru
