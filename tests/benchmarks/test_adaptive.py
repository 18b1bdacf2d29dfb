"""The parts of the coverage benchmark that can be told from an independent answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptive_bursts import ADAPTIVE, better
from adaptive_coverage import coupled_summary, evaluations, solver_of, summary, take, walk
from adaptive_data import BURST_PERIOD, FASTER, LOUD, MEDIAN_GAP, MISSING, NOISE, SLOW_PERIODS, SPREAD, bursty_record
from adaptive_models import KINDS, LONGEST, SHORTEST, Made, fresh, stronger
from adaptive_probe import Flow, Probe, reached, references, true_errors
from odestream.models.field import FieldWeights
from odestream.models.flow import unrolled_flow
from odestream.runtime import Model
from odestream.runtime.contract.tableau import calls_needed
from odestream.runtime.records import Counters, Output


def test_a_bursty_record_is_quiet_most_of_the_time_and_rings_fast_in_bursts() -> None:
    record = bursty_record(4000, seed=3)
    gaps, loud = np.diff(record.times), record.envelope[:-1] > LOUD
    assert 0.05 < loud.mean() < 0.4
    assert np.median(gaps[~loud]) == pytest.approx(MEDIAN_GAP, rel=0.1)
    assert np.median(gaps[loud]) == pytest.approx(MEDIAN_GAP / FASTER, rel=0.25)
    assert gaps.min() > 0
    assert gaps.max() < MEDIAN_GAP * SPREAD * (1 + 1e-9)
    assert 1 - record.observed.mean() == pytest.approx(MISSING, abs=0.02)
    assert min(SLOW_PERIODS) >= 30 * BURST_PERIOD
    slopes = np.abs(np.diff(record.values[:, 1])) / (gaps + 4 * NOISE)
    assert slopes[loud].mean() > 3 * slopes[~loud].mean()


def test_a_seed_gives_the_same_record_and_another_seed_another() -> None:
    first, again, other = bursty_record(50, 1), bursty_record(50, 1), bursty_record(50, 2)
    assert np.array_equal(first.times, again.times)
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.times, other.times)


def test_a_probe_says_what_the_unrolled_flow_in_torch_does_and_leaves_the_stream_alone(
    made: Made, model: Model
) -> None:
    (series,) = made.streams
    stream, probe, solver = model.stream(), Probe(model), solver_of(model)
    weights, compared = made.cell.field.weights(), 0
    take(stream, series, 0)
    for row in range(1, 20):
        before = stream.save()
        flow = probe.cross(before, int(series.ticks[row]))
        assert np.array_equal(stream.save().arena, before.arena)
        assert take(stream, series, row).err == flow.output.err
        if flow.output.calls == 1:
            h, u, phase = (torch.tensor(getattr(flow, n)[None], dtype=torch.float32) for n in ("h", "u", "phase"))
            options = {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol}
            steps, dt = int(flow.output.bucket or 0), torch.tensor([[flow.gap]], dtype=torch.float32)
            with torch.no_grad():
                after, _ = unrolled_flow(h, u, phase, dt, weights, steps=steps, **options)  # type: ignore[arg-type]
            np.testing.assert_allclose(flow.after, after[0].numpy(), rtol=0, atol=2e-6)
            assert not np.array_equal(flow.after, flow.h)
            compared += 1
    assert compared > 10


def test_the_reference_solves_a_leak_exactly_and_an_error_of_the_tolerance_counts_as_one() -> None:
    decay = torch.tensor([0.5, 2.0], dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    weights = FieldWeights(decay, zero, zero, torch.zeros(2, dtype=torch.float64), zero, None, None)
    starts = np.array([[1.0, -2.0], [0.5, 3.0]])
    output = Output(np.zeros(1, np.float32), 0.0, None, 1, flagged=False, calls=1, reruns=0)
    flows = [Flow(h, np.zeros(2), np.zeros(0), gap, h, output) for h, gap in zip(starts, (2.0, 0.1), strict=True)]
    expected = np.stack([f.h * np.exp(-decay.numpy() * f.gap) for f in flows])
    np.testing.assert_allclose(references(flows, weights), expected, rtol=1e-8)
    off = expected + (1e-4 + 1e-3 * np.abs(starts))
    np.testing.assert_allclose(true_errors(flows, off, expected, 1e-3, 1e-4), 1.0, rtol=1e-12)
    assert np.array_equal(reached(flows), starts)


def test_evaluations_count_accepted_and_rejected_calls_by_what_the_method_costs(model: Model) -> None:
    counters = Counters(steps=3, buckets={"1": 2, "4": 1}, rejected={"4": 1, "16": 0})
    assert evaluations(counters, solver_of(model)) == 2 * 4 + 2 * 13


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_streams_advance_and_have_the_gaps_that_were_asked_for(made: Made, kind: str) -> None:
    streams = list(fresh(made, kind, steps=90, seed=5))
    gaps = np.concatenate([np.diff(s.ticks) for s in streams]) / made.time.ticks_per_model_unit
    assert len(gaps) == (39 if kind == "streams" else 90)
    assert gaps.min() > 0
    if kind == "gaps":
        assert SHORTEST <= gaps.min() < 0.2
        assert 2 < gaps.max() <= LONGEST
    if kind == "bursts":
        assert max(np.abs(s.x).max() for s in streams) > np.abs(made.streams[0].x).max() + 1
    if kind == "streams":
        assert np.array_equal(streams[0].ticks, made.streams[0].ticks)


def test_a_walk_counts_what_a_fixed_bucket_must_cost_and_knows_what_is_within_tolerance(
    made: Made, model: Model
) -> None:
    weights, solver = made.cell.field.weights(), solver_of(model)
    walked = walk(model, weights, made.streams, buckets=(16,))
    gaps = [flow.gap for flow in walked.flows]
    calls = [calls_needed(gap, 16, solver.stiffness, solver.method) for gap in gaps]
    assert walked.evaluations == 49 * sum(calls)
    counted = summary(walked)
    assert counted["steps"] == len(gaps) == 39
    assert counted["within_all"] == (walked.true <= 1).mean()
    assert counted["over_unflagged"] == 0
    coarse = summary(walk(model, weights, made.streams, buckets=(1,)))
    assert coarse["within_all"] < counted["within_all"]
    assert coarse["evaluations"] < counted["evaluations"]
    assert 0 <= coupled_summary(walked, weights)["within"] <= 1


def test_a_stronger_field_is_a_stiffer_one_and_the_cell_is_left_as_it_was(made: Made) -> None:
    before, leak = made.cell.field.stiffness(), float(made.cell.field.weights().decay.detach().max())
    assert stronger(made.cell, 4.0).field.stiffness() - leak == pytest.approx(16 * (before - leak), rel=1e-5)
    assert made.cell.field.stiffness() == before


def test_better_names_what_is_lost() -> None:
    ours = {"evaluations": 5.0, "b2b_p50_us": 1.0, "b2b_p99_us": 4.0}
    theirs = {"evaluations": 9.0, "b2b_p50_us": 2.0, "b2b_p99_us": 3.0}
    assert better({ADAPTIVE: ours, "always 4": theirs}, "always 4", "b2b") == ["p99"]
    assert better({ADAPTIVE: ours, "always 4": {**theirs, "b2b_p99_us": 4.0}}, "always 4", "b2b") == []
    assert better({ADAPTIVE: ours}, None, "b2b")
