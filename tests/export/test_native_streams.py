"""Streams of the C library against Python's own over the same kernels: every number, decision and error, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.models.config import Task
from odestream.runtime.backends import StreamCore
from odestream.runtime.backends.native import NativeEngine
from odestream.runtime.backends.native_stream import NativeCore
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.rule import Accepted
from odestream.runtime.core import EngineCore
from odestream.runtime.errors import CompatError, GapError, InputError, OdestreamError, StateError, TimeError
from odestream.runtime.kernels.library import MAX_BUCKETS, load_library
from odestream.runtime.records import Counters, Output, StreamState
from tests.export.conftest import CONFIGS
from tests.helpers.native import memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.streams import SECOND, same, same_state

pytestmark = pytest.mark.usefixtures("native_library")

Answer = Output | OdestreamError


def adjusted(bundle: Bundle, factor: float = 1.0, stiffness: float = 1.0, max_calls: int = 20, **time: Any) -> Bundle:
    """The bundle with a solver and a clock of its own; ratios differ from bucket to bucket."""
    manifest = bundle.manifest
    assert manifest.solver is not None
    ratios = tuple(0.5 + 0.3 * i for i in range(len(manifest.solver.buckets)))
    solver = msgspec.structs.replace(
        manifest.solver,
        default_bucket=manifest.solver.buckets[1],
        safety_factor=factor,
        stiffness=stiffness,
        max_calls=max_calls,
        error_ratios=ratios,
    )
    clock = TimeSpec(frequencies=manifest.time.frequencies, origin=123456789, **time)
    changed = msgspec.structs.replace(manifest, solver=solver, time=clock, default_graph=str(solver.default_bucket))
    return Bundle(bundle.path, changed, bundle.files, bundle.weights)


class Pair:
    """Python's stream and the library's, doing the same."""

    def __init__(self, bundle: Bundle, buckets: Sequence[int] | None = None) -> None:
        engine = NativeEngine(load_library(), bundle)
        self.theirs: StreamCore = EngineCore(bundle.manifest, engine.bind(1), buckets)
        self.ours: StreamCore = engine.core(buckets)

    def both(self, act: Callable[[StreamCore], Output]) -> Answer:
        """What both gave, which is the same; afterwards both stand at the same place."""
        expected, found = answer(self.theirs, act), answer(self.ours, act)
        assert equal(found, expected), (found, expected)
        assert same_state(self.ours.save(), self.theirs.save())
        assert self.ours.last == self.theirs.last
        return found


def answer(core: StreamCore, act: Callable[[StreamCore], Output]) -> Answer:
    try:
        return act(core)
    except OdestreamError as error:
        return error


def equal(found: Answer, expected: Answer) -> bool:
    if isinstance(found, Output) and isinstance(expected, Output):
        return same(found, expected)
    return type(found) is type(expected) and str(found) == str(expected)


def observe(x: Any, t: Any, mask: Any) -> Callable[[StreamCore], Output]:
    return lambda core: core.observe(x, t, mask)


def foresee(t: Any) -> Callable[[StreamCore], Output]:
    return lambda core: core.foresee(t)


@pytest.fixture(scope="module")
def small() -> Bundle:
    return memory_bundle(random_cell(tiny_config()), (1, 2, 4, 8))


def rows(task: Task, count: int, seed: int) -> Iterator[tuple[Any, int, Any]]:
    """Observations milliseconds to minutes apart, some of them far off, with holes."""
    rng, config = np.random.default_rng(seed), CONFIGS[task]
    t = 17 * 10**17
    for i in range(count):
        t += int(np.exp(rng.normal(np.log(SECOND), 2)))
        mask = rng.random(config.channels) > 0.3
        if task == "tokens":
            yield int(rng.integers(256)), t, mask
            continue
        size = 1.0 if i % 7 else 50.0
        x = np.array(config.centre) + np.array(config.scale) * rng.normal(size=config.channels) * size
        yield x.astype(np.float32), t, None if i % 3 else mask


@pytest.mark.parametrize("factor", [1.0, 1e-2])
@pytest.mark.parametrize("task", CONFIGS)
def test_a_stream_of_each_task_is_pythons_bit_for_bit(task: Task, factor: float) -> None:
    pair = Pair(adjusted(memory_bundle(random_cell(CONFIGS[task]), (1, 2, 4, 8)), factor))
    outputs = []
    for x, t, mask in rows(task, 250, seed=3):
        outputs.append(pair.both(observe(x, t, mask)))
        assert isinstance(pair.both(foresee(t + SECOND // 3)), Output)
    assert all(isinstance(output, Output) for output in outputs)
    counters = pair.ours.counters
    assert counters.steps == 250
    assert min(counters.split, counters.rerun, *counters.buckets.values()) > 0
    assert factor == 1.0 or counters.flagged > 0


def test_a_stream_over_some_buckets_or_one_is_pythons(small: Bundle) -> None:
    for buckets in ((2, 8), (4,)):
        pair = Pair(adjusted(small, 1e-2, stiffness=20.0, max_calls=1000), buckets)
        for x, t, mask in rows("forecast", 50, seed=5):
            assert isinstance(pair.both(observe(x, t, mask)), Output)
        assert pair.ours.counters.buckets["1"] == 0


def test_a_method_without_an_estimate_reports_none_and_splits_for_stability() -> None:
    bundle = adjusted(memory_bundle(random_cell(tiny_config(method="rk4")), (1, 2)), stiffness=20.0, max_calls=1000)
    pair = Pair(bundle)
    for x, t, mask in rows("forecast", 60, seed=6):
        output = pair.both(observe(x, t, mask))
        assert isinstance(output, Output)
        assert output.err is None
    assert pair.ours.counters.split > 0


@pytest.mark.parametrize(
    ("unit", "start", "gaps"),
    [
        (1e9, -(1 << 63), (1, 0, 1 << 62, 10**9)),
        (1e18, 1 << 62, (3, 1 << 57, (1 << 60) + 1, (1 << 61) - 1)),
        (1e19, -(1 << 63), ((1 << 63) + 12345, (1 << 62) + 7, (1 << 60) + 3, 1)),
    ],
)
def test_ticks_at_the_ends_of_their_range_are_counted_like_pythons_integers(
    unit: float, start: int, gaps: tuple[int, ...], small: Bundle
) -> None:
    pair = Pair(adjusted(small, 1e-3, ticks_per_model_unit=unit, max_calls=1024))
    t = start
    kinds = []
    for gap in (0, *gaps):
        t += gap
        kinds.append(pair.both(observe(np.array([351, -2], np.float32), t, None)))
        kinds.append(pair.both(foresee(t + 1)))
    assert any(isinstance(kind, Output) for kind in kinds)


FAULTS: list[tuple[Any, Any, Any, type[OdestreamError], str]] = [
    ([350, np.nan], 2 * SECOND, None, InputError, "received nan in channel 1"),
    (np.array([np.inf, -2], np.float32), 2 * SECOND, None, InputError, "received inf in channel 0"),
    (np.array([np.nan, -2], np.float32), 2 * SECOND, np.array([1, 0], np.float32), InputError, "received nan"),
    (np.array([350, -2], np.float32), 2 * SECOND, np.array([1, 0.5], np.float32), InputError, "other than 0 and 1"),
    (np.array([350, -2], np.float32), 2 * SECOND, np.array([np.nan, 1], np.float32), InputError, "other than 0 and 1"),
    ([1e39, 0], 2 * SECOND, None, InputError, "beyond float32"),
    ([350, -2, 1], 2 * SECOND, None, InputError, "received shape"),
    ([350, -2], SECOND, None, TimeError, "does not advance"),
    ([350, np.nan], SECOND, None, TimeError, "does not advance"),
    (np.array([350, np.nan], np.float32), -5, None, TimeError, "does not advance"),
    ([350, -2], 1 << 63, None, TimeError, "does not fit 64 bits"),
    ([350, -2], None, None, InputError, "t is missing"),
    ([350, -2], 10**6 * SECOND, None, GapError, "more than the"),
    (np.array([3e38, -3e38], np.float32), 2 * SECOND, None, StateError, "became NaN or infinite"),
]


@pytest.mark.parametrize(("x", "t", "mask", "kind", "message"), FAULTS, ids=[f"{f[3].__name__} {f[4]}" for f in FAULTS])
def test_a_fault_is_told_in_pythons_words_and_changes_nothing(
    x: Any, t: Any, mask: Any, kind: type[OdestreamError], message: str, small: Bundle
) -> None:
    pair = Pair(adjusted(small))
    good = np.array([351, -2], np.float32)
    pair.both(observe(good, 0, None))
    pair.both(observe(good, SECOND, None))
    before = pair.ours.save()
    found = pair.both(observe(x, t, mask))
    assert type(found) is kind
    assert message in str(found)
    assert same_state(pair.ours.save(), before)
    assert isinstance(pair.both(observe(good, 2 * SECOND, None)), Output)


def test_a_prediction_for_the_past_is_refused_in_pythons_words(small: Bundle) -> None:
    pair = Pair(adjusted(small))
    pair.both(observe([350, -2], SECOND, None))
    assert isinstance(pair.both(foresee(SECOND - 1)), TimeError)
    assert isinstance(pair.both(foresee(10**6 * SECOND)), GapError)


TICK = st.one_of(st.integers(0, 3), st.integers(0, 100 * SECOND), st.integers(0, 1 << 50))
VALUE = st.one_of(
    st.floats(340, 360, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from([np.nan, 3e38, np.inf])
)
MASK = st.sampled_from([None, [1, 1], [1, 0], [0, 0], [1, 2], [True, False]])
KIND = st.sampled_from([list, np.float32, np.float64])
OBSERVED = st.tuples(st.lists(VALUE, min_size=2, max_size=2), TICK, MASK, KIND, st.sampled_from([list, np.float32]))
ACT = st.one_of(OBSERVED, OBSERVED, TICK, st.just("reload"))


@settings(max_examples=120)
@given(
    st.lists(ACT, min_size=1, max_size=25),
    st.sampled_from([1.0, 0.05, 1e-4]),
    st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    st.sampled_from([None, (1, 2), (2, 4, 8), (4,)]),
    st.sampled_from([1e9, 1e12, 7.25]),
)
def test_whatever_is_done_to_a_stream_the_library_does_what_python_does(
    small: Bundle, acts: list[Any], factor: float, stiffness: float, buckets: tuple[int, ...] | None, unit: float
) -> None:
    pair = Pair(adjusted(small, factor, stiffness, ticks_per_model_unit=unit), buckets)
    t = 17 * 10**17
    for act in acts:
        if act == "reload":
            state = pair.theirs.save()
            for core in (pair.ours, pair.theirs):
                core.load(state)
        elif isinstance(act, int):
            pair.both(foresee(t + act))
        else:
            x, gap, mask, *kinds = act
            x, mask = (
                v if v is None or kind is list else np.array(v, kind) for v, kind in zip((x, mask), kinds, strict=True)
            )
            if isinstance(pair.both(observe(x, t + gap, mask)), Output):
                t += gap


def test_observations_given_in_turn_as_lists_and_as_arrays_do_not_mix(small: Bundle) -> None:
    """Every way after every two others: what one leaves in a buffer, the next must not find."""
    ways = list(itertools.product((list, np.float32, np.float64), (None, list, np.float32, np.bool_)))
    pair, t = Pair(adjusted(small)), 0
    for three in itertools.product(ways, repeat=3):
        for kind, seen in three:
            t += SECOND // 10
            x, mask = [350 + t % 7, -2], [t // SECOND % 2, 1]
            given = x if kind is list else np.array(x, kind)
            masked = None if seen is None else mask if seen is list else np.array(mask, seen)
            assert isinstance(answer(pair.ours, observe(given, t, masked)), Output)
            assert isinstance(answer(pair.theirs, observe(given, t, masked)), Output)
    assert same_state(pair.ours.save(), pair.theirs.save())


def test_a_saved_stream_goes_on_in_either(small: Bundle) -> None:
    pair = Pair(adjusted(small, 1e-2))
    every = list(rows("forecast", 120, seed=8))
    for x, t, mask in every[:60]:
        pair.both(observe(x, t, mask))
    ours, theirs = pair.ours.save(), pair.theirs.save()
    pair.ours.load(theirs)
    pair.theirs.load(ours)
    for x, t, mask in every[60:]:
        assert isinstance(pair.both(observe(x, t, mask)), Output)


def test_counts_and_what_is_known_survive_a_load(small: Bundle) -> None:
    engine = NativeEngine(load_library(), adjusted(small))
    core, arena = engine.core((2, 4)), np.arange(engine.bind(1).arena.size, dtype=np.float32)
    counted = dict(zip("1248", range(10, 14), strict=True))
    counters = Counters(9, 1, 2, 3, counted, {label: count * 2 for label, count in counted.items()})
    state = StreamState(arena, -5, counters, Accepted(1 << 63, 4, 0.25))
    core.load(state)
    assert same_state(core.save(), state)
    with pytest.raises(StateError, match="a state has 3 values"):
        core.load(StreamState(arena[:3], None, counters))
    with pytest.raises(TimeError, match="does not fit 64 bits"):
        core.load(StreamState(arena, 1 << 63, counters))
    with pytest.raises(StateError, match="err below 0"):
        core.load(StreamState(arena, None, counters, Accepted(1, 1, -1.0)))
    assert same_state(core.save(), state)


def batch_of(bundle: Bundle, count: int) -> tuple[Any, list[NativeCore], list[NativeCore]]:
    """What steps together, streams for it, and as many for one at a time."""
    engine = NativeEngine(load_library(), bundle)
    return engine.batch(), *([engine.core() for _ in range(count)] for _ in range(2))


@pytest.mark.parametrize("count", [1, 7, 8, 21])
@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("task", CONFIGS)
def test_rows_of_a_batch_are_their_own_streams_bit_for_bit(task: Task, arrays: bool, count: int) -> None:
    bundle = adjusted(memory_bundle(random_cell(CONFIGS[task]), (1, 2, 4, 8)), 1e-2)
    batch, together, alone = batch_of(bundle, count)
    for each in itertools.islice(zip(*(rows(task, 30, seed) for seed in range(count)), strict=True), 30):
        x, t, mask = (list(column) for column in zip(*each, strict=True))
        given = (x, t, mask)
        if arrays:
            seen = [np.ones(len(together[0].mask), bool) if row is None else row for row in mask]
            given = (np.array(x), np.array(t), np.array(seen))
        found = batch.step(together, *given)
        expected = [core.observe(*row) for core, row in zip(alone, each, strict=True)]
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert all(same_state(a.save(), b.save()) for a, b in zip(together, alone, strict=True))
    assert all(core.counters.split for core in together)


def test_a_bad_row_of_a_batch_fails_alone_and_in_its_own_words(small: Bundle) -> None:
    batch, together, alone = batch_of(adjusted(small), len(FAULTS) + 2)
    good = np.array([351, -2], np.float32)
    for core in (*together, *alone):
        core.observe(good, 0, None)
        core.observe(good, SECOND, None)
    each = [(good, 2 * SECOND, None), *(fault[:3] for fault in FAULTS), (good, 2 * SECOND, None)]
    found = batch.step(together, *([row[i] for row in each] for i in range(3)))
    for answered, core, row in zip(found, alone, each, strict=True):
        assert equal(answered, answer(core, observe(*row)))
    assert [type(answered) for answered in found[1:-1]] == [fault[3] for fault in FAULTS]
    assert isinstance(found[-1], Output)
    assert all(same_state(a.save(), b.save()) for a, b in zip(together, alone, strict=True))


GOOD = np.array([351, -2], np.float32)


@pytest.mark.parametrize(
    ("x", "t", "mask"),
    [
        *(fault[:3] for fault in FAULTS),
        (GOOD.astype(np.float64), 2 * SECOND, None),
        (GOOD.astype(np.int16), np.int64(2 * SECOND), np.array([0, 1], bool)),
        (np.array([1e39, -2]), 2 * SECOND, np.array([0, 1], np.float32)),
        (np.array([1e39, -2]), 2 * SECOND, None),
        (np.array([1 << 60 | 1, -2]), 2 * SECOND, None),
        (GOOD.astype(complex), 2 * SECOND, None),
        (GOOD, 2.0 * SECOND, None),
        (GOOD, 1 << 70, None),
        (GOOD, True, None),
        (GOOD, 2 * SECOND, np.array([1 + 1e-12, 1])),
        (GOOD, 2 * SECOND, [1, 0]),
        (list(GOOD), 2 * SECOND, None),
    ],
)
def test_a_row_among_those_that_are_taken_at_once_does_what_it_does_alone(
    small: Bundle, x: Any, t: Any, mask: Any
) -> None:
    batch, together, alone = batch_of(adjusted(small), 3)
    for core in (*together, *alone):
        core.observe(GOOD, SECOND, None)
    each = [(GOOD, 2 * SECOND, None), (x, t, mask), (GOOD, 2 * SECOND, np.array([True, False]))]
    found = batch.step(together, *([row[i] for row in each] for i in range(3)))
    assert all(equal(a, answer(core, observe(*row))) for a, core, row in zip(found, alone, each, strict=True))
    assert all(same_state(a.save(), b.save()) for a, b in zip(together, alone, strict=True))


def test_bad_rows_of_arrays_fail_alone_too(small: Bundle) -> None:
    batch, together, alone = batch_of(adjusted(small), 4)
    x = np.array([[350, -2], [np.nan, -2], [350, -2], [np.nan, -2]], np.float32)
    t, mask = np.array([1, 1, 1, 1]), np.array([[1, 1], [1, 1], [1, 0.5], [0, 1]], np.float32)
    found = batch.step(together, x, t, mask)
    for i, core in enumerate(alone):
        assert equal(found[i], answer(core, observe(x[i], int(t[i]), mask[i])))
    assert [type(a).__name__ for a in found] == ["Output", "InputError", "InputError", "Output"]


def test_a_stream_that_is_in_a_batch_twice_or_of_another_model_is_refused_by_the_library(small: Bundle) -> None:
    """What `Batcher` checks before, a C program is told."""
    batch, (core, other), (stranger, _) = (*batch_of(adjusted(small), 2)[:2], batch_of(adjusted(small), 2)[1])
    found = batch.step([core, core, other], [[350, -2]] * 3, [1, 1, 1], [None] * 3)
    assert [type(a).__name__ for a in found] == ["Output", "InputError", "Output"]
    assert "the stream is of another model" in str(batch.step([stranger], [[350, -2]], [1], [None])[0])
    assert stranger.last is None


def test_what_a_stream_cannot_be_made_of_is_refused(small: Bundle) -> None:
    many = tuple(range(1, MAX_BUCKETS + 2))
    bundle = memory_bundle(random_cell(tiny_config()), many)
    with pytest.raises(CompatError, match="buckets are not one to 64.*; use the onnxruntime backend"):
        NativeEngine(load_library(), bundle).core()
    with pytest.raises(InputError, match="bucket 3 is not in the bundle"):
        NativeEngine(load_library(), small).core((3,))


def test_a_closed_engine_gives_no_streams_and_keeps_those_it_gave(small: Bundle) -> None:
    engine = NativeEngine(load_library(), small)
    core = engine.core()
    engine.close()
    assert core.observe([350, -2], 0, None).calls == 1
    with pytest.raises(StateError, match="closed; load the bundle again"):
        engine.core()
