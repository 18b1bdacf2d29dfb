"""Streams of the hand-written bundle against its float64 reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime import InputError, Model, TimeError, load
from tests.helpers.streams import SECOND, continues_like, irregular, same
from tests.helpers.tiny_bundle import Tiny, TinyReference, write_tiny

TINY = Tiny()


@pytest.mark.parametrize(
    "tiny",
    [
        TINY,
        Tiny(buckets=(), err=False, gates=False),
        Tiny(frequencies=()),
        Tiny(channels=1, members={"m": (2, 3), "a": ()}),
    ],
    ids=["full", "no solver", "no phase", "one channel"],
)
def test_steps_agree_with_the_float64_reference(tmp_path: Path, tiny: Tiny) -> None:
    x, t, mask = irregular(300, tiny.channels)
    reference = TinyReference(tiny)
    with load(write_tiny(tmp_path / "b", tiny)) as model:
        stream = model.stream()
        for row in range(300):
            expected = reference.step(x[row], int(t[row]), mask[row])
            found = stream.step(x[row], int(t[row]), mask[row])
            np.testing.assert_allclose(found.y, expected["y"], rtol=1e-5, atol=1e-5)
            if tiny.err:
                assert found.err == pytest.approx(expected["err"][0], rel=1e-4, abs=1e-7)
                np.testing.assert_allclose(found.gates, expected["gates"], rtol=1e-4, atol=1e-5)
            else:
                assert found.err is None
                assert found.gates is None
        assert found.bucket == (1 if tiny.buckets else None)
        for name, value in stream.state().items():
            np.testing.assert_allclose(value, reference.state[name], rtol=1e-5, atol=1e-5)
        assert stream.counters.steps == 300
        assert stream.counters.buckets[tiny.labels[0]] == 300


def test_the_first_call_has_dt_zero_and_the_phase_of_its_own_time(model: Model) -> None:
    t = 123_456_789_012
    weights = TINY.weights
    phase = TinyReference(TINY).clock.phase(t).astype(np.float64)
    expected = 0.25 + phase @ weights["phases"].astype(np.float64)
    np.testing.assert_allclose(model.stream().step([1, 2, 3], t).y[:3], expected, rtol=1e-5)


def test_token_models_take_integers_and_count_time_themselves(tmp_path: Path) -> None:
    tiny = Tiny(tokens=True)
    reference = TinyReference(tiny)
    with load(write_tiny(tmp_path / "b", tiny)) as model:
        stream, explicit = model.stream(), model.stream()
        for index, token in enumerate(b"hello, world"):
            out = stream.step(token)
            expected = reference.step(token, index * SECOND)
            np.testing.assert_allclose(out.y, expected["y"], rtol=1e-4, atol=1e-4)
            assert same(out, explicit.step(np.uint8(token), index * SECOND, mask=[1]))
        for wrong, message in (
            (256, "expected 0 to 255"),
            (300, "token 300"),
            (-1, "token -1"),
            (1.0, "an integer"),
            ([1], "shape"),
        ):
            with pytest.raises(InputError, match=message):
                stream.step(wrong)


def test_without_dt_time_may_be_left_out_but_never_go_back(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(dt=False, frequencies=()))) as model:
        counted, timed = model.stream(), model.stream()
        for t in (5, 6, 10**17):
            assert same(counted.step([1, 2, 3]), timed.step([1, 2, 3], t))
        with pytest.raises(TimeError):
            timed.step([1, 2, 3], 6)


def test_steps_equals_one_by_one_bit_for_bit(model: Model) -> None:
    x, t, mask = irregular(200)
    many, single = model.stream(), model.stream()
    outputs = many.steps(x, t, mask)
    assert len(outputs) == 200
    assert all(same(a, single.step(*row)) for a, row in zip(outputs, zip(x, t, mask, strict=True), strict=True))
    assert continues_like(many, single)
    lists = model.stream().steps(x.tolist(), t.tolist(), mask.tolist())
    assert all(same(a, b) for a, b in zip(outputs, lists, strict=True))
    assert many.steps([], []) == []


def test_steps_of_tokens_need_no_times(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(tokens=True))) as model:
        many, single = model.stream(), model.stream()
        assert all(same(a, single.step(token)) for a, token in zip(many.steps([3, 1, 2]), [3, 1, 2], strict=True))
        assert many.last_tick == single.last_tick


@given(gaps=st.lists(st.integers(0, 20 * SECOND), max_size=4), seed=st.integers(0, 5))
def test_predict_agrees_with_a_masked_step_and_leaves_the_stream_unchanged(
    model: Model, gaps: list[int], seed: int
) -> None:
    stream, twin = model.stream(), model.stream()
    x, t, mask = irregular(5, seed=seed)
    for each in (stream, twin):
        each.steps(x, t, mask)
    last, before = int(t[-1]), stream.counters
    outputs = stream.predict([last + gap for gap in gaps])
    for gap, output in zip(gaps, outputs, strict=True):
        assert same(output, stream.predict(last + gap))
        if gap > 0:
            fork = model.restore(stream.snapshot())
            assert same(output, fork.step([np.nan] * 3, last + gap, [0, 0, 0]))
    assert stream.counters == before
    assert continues_like(stream, twin, count=5)


def test_predict_before_the_first_observation_gives_the_initial_state_s_forecast(model: Model) -> None:
    stream = model.stream()
    first = stream.predict(7 * SECOND)
    assert same(first, stream.predict([7 * SECOND])[0])
    assert stream.last_tick is None
    np.testing.assert_array_equal(first.y, stream.step([1, 2, 3], 7 * SECOND).y)


def test_predict_of_an_earlier_time_is_refused(model: Model) -> None:
    stream = model.stream()
    stream.step([1, 2, 3], 10)
    assert stream.predict(10).calls == 1
    with pytest.raises(TimeError, match="t = 9 lies before the stream's last time 10; predict that time or a later"):
        stream.predict([11, 9])


def test_flagged_follows_err(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(err_scale=10.0))) as model:
        stream = model.stream(buckets=(1,))
        assert not stream.step([1, 1, 1], 0).flagged
        output = stream.step([1, 1, 1], SECOND)
        assert output.err is not None
        assert output.err > 1
        assert output.flagged
        assert stream.counters.flagged == 1


def test_a_method_without_an_estimate_gives_no_err(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(err_scale=10.0, error_estimate=False))) as model:
        stream = model.stream()
        stream.step([1, 1, 1], 0)
        output = stream.step([1, 1, 1], SECOND)
        assert output.err is None
        assert not output.flagged


def test_a_missing_channel_may_hold_anything(model: Model) -> None:
    stream, twin = model.stream(), model.stream()
    for t, junk in enumerate((np.nan, np.inf, 1e39, -5.0)):
        assert same(stream.step([1, junk, 3], t, [1, 0, 1]), twin.step([1, 0, 3], t, [True, False, True]))
    assert continues_like(stream, twin)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.tolist(),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: np.stack([x, x], 1)[:, 0],
        lambda x: x[::-1].copy()[::-1],
        tuple,
    ],
    ids=["list", "float64", "big-endian", "strided", "reversed", "scalars"],
)
def test_any_form_of_the_same_values_gives_the_same_bytes(model: Model, form: Callable[[Any], Any]) -> None:
    stream, twin = model.stream(), model.stream()
    x, t, mask = irregular(20)
    for row, tick, seen in zip(x, t, mask, strict=True):
        assert same(stream.step(form(row), tick, form(seen)), twin.step(row, int(tick), seen))


def test_what_the_caller_changes_after_a_call_changes_nothing(model: Model) -> None:
    stream, twin = model.stream(), model.stream()
    x, mask = np.ones(3, np.float32), np.ones(3, np.float32)
    output = stream.step(x, 0, mask)
    kept = output.y.copy()
    twin.step([1, 1, 1], 0)
    for array in (x, mask, output.y, output.gates):
        assert array is not None
        array.fill(np.nan)
    following = stream.step([1, 2, 3], 5)
    twin_following = twin.step([1, 2, 3], 5)
    assert same(following, twin_following)
    stream.step([9, 9, 9], 6)
    assert same(following, twin_following), "an output must not be overwritten by the next call"
    assert kept.tolist() != following.y.tolist()
