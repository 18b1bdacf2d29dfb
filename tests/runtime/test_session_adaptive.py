"""A stream that chooses its buckets: re-runs, splits and flags, against fixed streams that do by hand what it did."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import InputError, Model, StateError, Stream, load, restore
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.rule import Verdict
from odestream.runtime.solving import GapSolver
from tests.helpers.adaptive import ADAPTIVE, BEYOND, BURST, FACTOR, OUTBURST, QUIET, after, bursts, half_a_second_later
from tests.helpers.streams import SECOND, continues_like, forged, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("adaptive") / "b", ADAPTIVE)


@pytest.fixture(scope="module")
def adaptive(path: Path) -> Iterator[Model]:
    with load(path) as model:
        yield model


def test_bursts_bring_out_every_verdict(adaptive: Model) -> None:
    """What the other tests rely on."""
    outputs = adaptive.stream().steps(*bursts(200))
    assert {output.bucket for output in outputs} == {1, 2, 4, 8}
    for kind in (lambda o: o.reruns == 1 == o.calls, lambda o: o.calls > 1 and not o.flagged, lambda o: o.flagged):
        assert sum(map(kind, outputs)) >= 3
    ways = {size: half_a_second_later(after(adaptive, size)) for size in (QUIET, BURST, OUTBURST, BEYOND)}
    assert [(o.reruns > 0, o.calls > 1, o.flagged) for o in ways.values()] == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


def test_every_unsplit_step_is_that_of_a_fixed_stream_in_the_bucket_it_ended_in(adaptive: Model) -> None:
    stream, compared = adaptive.stream(), 0
    for row in zip(*bursts(300), strict=True):
        before = stream.snapshot()
        output = stream.step(*row)
        if output.calls > 1:
            continue
        fixed = adaptive.restore(before, buckets=(output.bucket or 0,))
        by_hand = fixed.step(*row)
        assert (output.y.tobytes(), output.err, output.flagged) == (by_hand.y.tobytes(), by_hand.err, by_hand.flagged)
        assert stream.save().arena.tobytes() == fixed.save().arena.tobytes()
        compared += output.reruns > 0
    assert compared >= 3


def test_every_run_of_a_step_begins_from_the_same_untouched_state(
    adaptive: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = after(adaptive, BURST)
    binding, seen = stream._core.binding, []
    run, before = binding.run, stream.save().arena.tobytes()

    def spy(label: str) -> None:
        seen.append((label, binding.arena.tobytes()))
        run(label)

    monkeypatch.setattr(binding, "run", spy)
    output = half_a_second_later(stream)
    assert [label for label, _ in seen] == ["1", "8"]
    assert {arena for _, arena in seen} == {before}
    assert (output.bucket, output.reruns, output.calls) == (8, 1, 1)


def test_a_rerun_copies_no_state_and_a_split_one(tmp_path: Path) -> None:
    tiny = Tiny(buckets=ADAPTIVE.buckets, err_scale=1.0, safety_factor=FACTOR, members={"m": (512, 512)})
    with load(write_tiny(tmp_path / "b", tiny)) as model:
        size = model.stream().save().arena.nbytes
        peaks = {}
        for observed in (QUIET, BURST, OUTBURST):
            stream = after(model, observed)
            stream._core.binding.run("8")  # its buffers are bound at first use
            tracemalloc.start()
            output = half_a_second_later(stream)
            peaks[observed] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert (output.reruns > 0, output.calls > 1) == (observed > QUIET, observed > BURST)
    assert peaks[BURST] < 1.1 * peaks[QUIET] + 4096
    assert peaks[QUIET] < size / 2, "the test of finiteness takes a quarter"
    assert peaks[OUTBURST] > size


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Verdict]]:
    """(gap, bucket, verdict) of each run, in order, of all streams."""
    found: list[tuple[int, int, Verdict]] = []
    weigh = GapSolver.weigh

    def spy(
        solver: GapSolver, crossing: Any, gap: int, steps: int, reruns: int, halvings: int = 0
    ) -> tuple[Verdict, int]:
        decided = weigh(solver, crossing, gap, steps, reruns, halvings)
        found.append((gap, steps, decided[0]))
        return decided

    monkeypatch.setattr(GapSolver, "weigh", spy)
    return found


@pytest.mark.parametrize("size", [OUTBURST, BEYOND])
def test_split_halves_equal_halves_by_hand_in_which_nothing_is_observed(
    adaptive: Model, size: float, pieces: list[tuple[int, int, Verdict]]
) -> None:
    stream = after(adaptive, size)
    blob, now = stream.snapshot(), stream.last_tick or 0
    pieces.clear()
    output = half_a_second_later(stream)
    done = [(gap, steps) for gap, steps, verdict in pieces if verdict in (Verdict.ACCEPT, Verdict.FLAG)]
    verdicts = [verdict for _, _, verdict in pieces]
    assert Verdict.RERUN not in verdicts[verdicts.index(Verdict.SPLIT) :], "the whole's err tells where halves begin"
    assert output.calls == len(done) > 1
    assert sum(gap for gap, _ in done) == SECOND // 2
    assert {gap for gap, _ in done} <= {SECOND // 2 >> halvings for halvings in (1, 2, 3)}
    errs = []
    for index, (gap, steps) in enumerate(done):
        fixed = adaptive.restore(blob, buckets=(steps,))
        now, last = now + gap, index == len(done) - 1
        by_hand = fixed.step([1, 2, 3] if last else [0, 0, 0], now, None if last else [0, 0, 0])
        blob, errs = fixed.snapshot(), [*errs, by_hand.err]
    assert output.y.tobytes() == by_hand.y.tobytes()
    assert output.err == max(errs)
    assert stream.save().arena.tobytes() == fixed.save().arena.tobytes()


def test_a_gap_of_one_tick_cannot_be_split(tmp_path: Path) -> None:
    tiny = Tiny(buckets=(1, 2), err_scale=1e6, time=TimeSpec(frequencies=(), ticks_per_model_unit=2.0))
    with load(write_tiny(tmp_path / "b", tiny)) as model:
        outputs = [model.stream().step([1, 1, 1], 0)]
        for gap in (1, 2, 3):
            stream = model.stream()
            stream.step([1, 1, 1], 0)
            outputs.append(stream.step([1, 1, 1], gap))
    assert [(output.calls, output.flagged) for output in outputs] == [(1, False), (1, True), (2, True), (3, True)]


def test_only_a_result_above_the_factor_is_flagged_and_only_after_everything_was_tried(
    adaptive: Model, pieces: list[tuple[int, int, Verdict]]
) -> None:
    stream, flagged = adaptive.stream(), 0
    for row in zip(*bursts(200), strict=True):
        pieces.clear()
        gap = 0 if stream.last_tick is None else int(row[1]) - stream.last_tick
        output = stream.step(*row)
        assert output.flagged == (output.err is not None and output.err > FACTOR)
        flags = [(part, steps) for part, steps, verdict in pieces if verdict is Verdict.FLAG]
        assert bool(flags) == output.flagged
        assert all(steps == 8 and part in (gap // 8, gap // 8 + 1) for part, steps in flags)
        flagged += output.flagged
    assert stream.counters.flagged == flagged >= 3


def test_counters_and_histograms_add_up_to_the_outputs(adaptive: Model, pieces: list[tuple[int, int, Verdict]]) -> None:
    stream = adaptive.stream()
    outputs = stream.steps(*bursts(200))
    counters = stream.counters
    rejected = [steps for _, steps, verdict in pieces if verdict in (Verdict.RERUN, Verdict.SPLIT)]
    accepted = [steps for _, steps, verdict in pieces if verdict in (Verdict.ACCEPT, Verdict.FLAG)]
    assert counters.rejected == {str(n): rejected.count(n) for n in ADAPTIVE.buckets}
    assert counters.buckets == {str(n): accepted.count(n) for n in ADAPTIVE.buckets}
    assert min(counters.buckets.values()) > 0
    assert sum(output.reruns for output in outputs) == len(rejected) > 0
    assert sum(output.calls for output in outputs) == len(accepted)
    assert counters.rerun == sum(output.reruns > 0 for output in outputs)
    assert counters.split == sum(output.calls > 1 for output in outputs)
    stream.predict(int(bursts(200)[1][-1]) + SECOND)
    assert stream.counters == counters


class Fault:
    """Makes the run number `at` of a stream's binding fail in one of three ways."""

    def __init__(self, stream: Stream, at: int, kind: str) -> None:
        self._binding, self._run, self._left, self._kind = stream._core.binding, stream._core.binding.run, at, kind
        self.struck = False

    def __call__(self, label: str) -> None:
        self._run(label)
        self._left -= 1
        if self._left < 0:
            self.struck = True
            if self._kind == "interrupt":
                raise KeyboardInterrupt
            if self._kind == "engine":
                raise StateError("the engine failed; the step was discarded")
            self._binding.next_arena[:] = np.nan


@pytest.mark.parametrize("kind", ["engine", "interrupt", "nan"])
@pytest.mark.parametrize("size", [BURST, OUTBURST, BEYOND])
@pytest.mark.parametrize("predicts", [False, True])
def test_a_fault_in_any_run_of_a_step_leaves_the_stream_as_it_was(
    adaptive: Model, kind: str, size: float, predicts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck, at = 0, 0
    while True:
        stream, twin = after(adaptive, size), after(adaptive, size)
        fault = Fault(stream, at, kind)
        with monkeypatch.context() as patch:
            patch.setattr(stream._core.binding, "run", fault)
            try:
                stream.predict(6 * SECOND) if predicts else half_a_second_later(stream)
            except (StateError, KeyboardInterrupt):
                assert fault.struck
        if not fault.struck:
            break
        assert same_state(stream.save(), twin.save())
        assert continues_like(stream, twin, count=50)
        struck, at = struck + 1, at + 1
    assert struck >= (2 if size == BURST else 8)


def test_a_result_that_is_not_finite_is_tried_again_with_more_steps(
    adaptive: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a coarse step of a stiff field may overflow where a finer one does not."""
    stream, fixed = after(adaptive, QUIET), adaptive.restore(after(adaptive, QUIET).snapshot(), buckets=(8,))
    binding, run = stream._core.binding, stream._core.binding.run

    def coarse_steps_overflow(label: str) -> None:
        run(label)
        if label != "8":
            binding.next_arena[0] = np.inf

    monkeypatch.setattr(binding, "run", coarse_steps_overflow)
    output = half_a_second_later(stream)
    assert (output.bucket, output.reruns, output.flagged) == (8, 1, False)
    assert output.y.tobytes() == half_a_second_later(fixed).y.tobytes()


@pytest.mark.parametrize("size", [QUIET, BURST, OUTBURST, BEYOND])
def test_predict_goes_by_the_rule_and_changes_nothing(adaptive: Model, size: float) -> None:
    stream, twin = after(adaptive, size), after(adaptive, size)
    times = [5 * SECOND + part * SECOND // 4 for part in (1, 2, 4, 12, 0)]
    outputs = stream.predict(times)
    for time, output in zip(times[:-1], outputs, strict=False):
        fork = adaptive.restore(twin.snapshot())
        assert same(output, fork.step([0, 0, 0], time, [0, 0, 0]))
    assert len({output.bucket for output in outputs}) > 1
    assert same_state(stream.save(), twin.save())
    assert continues_like(stream, twin)


def test_a_resumed_stream_chooses_as_one_that_was_never_saved(path: Path, adaptive: Model) -> None:
    x, t, mask = bursts(120)
    whole = adaptive.stream().steps(x, t, mask)
    stream = adaptive.stream()
    for row in range(0, 120, 8):
        part = slice(row, row + 8)
        outputs = stream.steps(x[part], t[part], mask[part])
        assert all(same(a, b) for a, b in zip(outputs, whole[part], strict=True))
        stream = adaptive.restore(stream.snapshot())
    with load(path) as again:
        assert same_state(again.restore(stream.snapshot()).save(), stream.save())


def test_a_snapshot_from_before_adaptive_solving_begins_in_the_default_bucket(adaptive: Model) -> None:
    stream = after(adaptive, BURST)
    assert stream.save().previous is not None

    def without(tensors: dict[str, Any], info: dict[str, Any]) -> None:
        for name in ("rerun", "rejected", "previous"):
            del info["streams"][0][name]

    old = adaptive.restore(forged(stream.snapshot(), without))
    assert old.counters.steps == stream.counters.steps
    assert (old.counters.rerun, old.counters.rejected) == (0, dict.fromkeys("1248", 0))
    assert old.save().previous is None
    assert old.predict(5 * SECOND + 1).bucket == ADAPTIVE.default_bucket
    assert stream.predict(5 * SECOND + 1).bucket == 1


def test_a_stream_of_one_bucket_runs_once_and_flags(adaptive: Model) -> None:
    for bucket in ADAPTIVE.buckets:
        stream = adaptive.stream(buckets=[bucket])
        outputs = stream.steps(*bursts(60))
        assert {(output.bucket, output.calls, output.reruns) for output in outputs} == {(bucket, 1, 0)}
        assert [o.flagged for o in outputs] == [o.err is not None and o.err > FACTOR for o in outputs]
        assert 0 < stream.counters.flagged < 60


def test_a_stream_of_some_buckets_uses_no_other_and_does_so_again_when_resumed(path: Path, adaptive: Model) -> None:
    x, t, mask = bursts(100)
    stream = adaptive.stream(buckets=np.array([2, 8]))
    outputs = stream.steps(x[:50], t[:50], mask[:50])
    resumed = restore(stream.snapshot(), path, buckets=(2, 8))
    outputs += resumed.steps(x[50:], t[50:], mask[50:])
    (several,) = resumed.model.restore_streams(stream.snapshot(), buckets=(2, 8)).values()
    assert all(same(a, b) for a, b in zip(outputs[50:], several.steps(x[50:], t[50:], mask[50:]), strict=True))
    resumed.model.close()
    assert {output.bucket for output in outputs} == {2, 8}


BAD_BUCKETS: dict[str, tuple[Any, str]] = {
    "unknown": ((1, 3), "bucket 3 is not in the bundle; choose among 1, 2, 4, 8$"),
    "decreasing": ((4, 1), r"buckets are \(4, 1\); give increasing numbers of solver steps, from 1$"),
    "repeated": ((4, 4), "give increasing numbers of solver steps, from 1$"),
    "none": ((), "give increasing numbers of solver steps, from 1$"),
    "number": (4, r"buckets: received 4, expected whole numbers; give them as \(1, 4\)$"),
    "text": ("14", "expected whole numbers; give them as"),
    "fraction": ((1.0, 4.0), "expected whole numbers; give them as"),
    "nan": ((float("nan"),), "expected whole numbers; give them as"),
}


@pytest.mark.parametrize(("buckets", "message"), BAD_BUCKETS.values(), ids=BAD_BUCKETS.keys())
def test_buckets_that_the_bundle_does_not_have_are_refused(adaptive: Model, buckets: Any, message: str) -> None:
    blob = adaptive.stream().snapshot()
    makers: tuple[Callable[[], object], ...] = (
        lambda: adaptive.stream(buckets=buckets),
        lambda: adaptive.restore(blob, buckets=buckets),
        lambda: adaptive.restore_streams(blob, buckets=buckets),
    )
    for make in makers:
        with pytest.raises(InputError, match=message):
            make()


def test_a_method_without_an_estimate_cannot_be_asked_to_choose(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(error_estimate=False))) as model:
        with pytest.raises(InputError, match="give a single bucket, or a method with an estimate such as bosh32$"):
            model.stream(buckets=(1, 4))
        assert model.stream().step([1, 2, 3], 0).bucket == 1
        assert model.stream(buckets=(4,)).step([1, 2, 3], 0).bucket == 4
    with load(write_tiny(tmp_path / "none", Tiny(buckets=()))) as model, pytest.raises(InputError, match="no solver"):
        model.stream(buckets=(1,))
