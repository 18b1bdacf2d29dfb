"""Streams stepped together against the same streams stepped one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime import (
    Batcher,
    GapError,
    InputError,
    Model,
    OdestreamError,
    Output,
    SessionBusy,
    StateError,
    Stream,
    TimeError,
    load,
)
from odestream.runtime.backends.onnxruntime import OnnxBinding
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.engine_batch import _size
from tests.helpers.adaptive import ADAPTIVE, BEYOND, BURST, OUTBURST, QUIET, after, bursts
from tests.helpers.streams import SECOND, continues_like, same, same_state
from tests.helpers.tiny_bundle import NANO_MEMBERS, Tiny, write_tiny


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A bound of two model units in the largest bucket, so that some gaps are cut for stability."""
    tiny = Tiny(
        buckets=ADAPTIVE.buckets,
        err_scale=1.0,
        safety_factor=ADAPTIVE.safety_factor,
        stiffness=8.0,
        max_calls=4,
        members=NANO_MEMBERS,
    )
    with load(write_tiny(tmp_path_factory.mktemp("batch") / "b", tiny)) as model:
        yield model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(rows, label) of each call of the engine."""
    found: list[tuple[int, str]] = []
    run = OnnxBinding.run

    def spy(binding: OnnxBinding, label: str) -> None:
        found.append((binding.batch, label))
        run(binding, label)

    monkeypatch.setattr(OnnxBinding, "run", spy)
    return found


def close(a: Output | OdestreamError, b: Output) -> bool:
    """The same decisions, and values within the backend's tolerance."""
    assert isinstance(a, Output), a
    allowed = tolerances("fp32", "onnxruntime")
    values, err = allowed.of("y"), allowed.of("err")
    scale = max(float(np.abs(b.y).max()), values.floor)
    decided = (a.bucket, a.flagged, a.calls, a.reruns) == (b.bucket, b.flagged, b.calls, b.reruns)
    near = np.abs(a.y - b.y).max() <= values.limit * scale
    return decided and bool(near) and abs((a.err or 0) - (b.err or 0)) <= err.limit * max(b.err or 0, err.floor)


def test_streams_stepped_together_do_what_each_does_alone(adaptive: Model) -> None:
    """Each with its own clock, past and buckets; re-runs, splits, cut gaps and flags among them."""
    limits: list[Any] = [None] * 5 + [(8,), (1, 4)]
    together, alone = ([adaptive.stream(buckets=b) for b in limits] for _ in range(2))
    rows = [bursts(100, seed) for seed in range(7)]
    batcher = Batcher(adaptive)
    for i in range(100):
        x, t, mask = ([part[k][i] for part in rows] for k in range(3))
        answers = batcher.step(together, np.array(x), np.array(t), np.array(mask))
        expected = [stream.step(*row) for stream, *row in zip(alone, x, t, mask, strict=True)]
        assert all(close(a, b) for a, b in zip(answers, expected, strict=True))
    for stream, twin in zip(together, alone, strict=True):
        assert stream.counters == twin.counters
        assert stream.last_tick == twin.last_tick
        for name, value in stream.state().items():
            np.testing.assert_allclose(value, twin.state()[name], rtol=1e-5, atol=1e-5)
    seen = [stream.counters for stream in together]
    assert min(c.steps for c in seen) == 100
    for count in ("rerun", "split", "flagged"):
        assert sum(getattr(c, count) for c in seen) >= 5


@pytest.mark.parametrize(
    "tiny",
    [Tiny(tokens=True), Tiny(buckets=(), mask=False), Tiny(dt=False, frequencies=()), Tiny(channels=1, gates=False)],
    ids=["tokens", "no solver", "no time", "one channel"],
)
def test_any_kind_of_model_can_be_stepped_together(tiny: Tiny, tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", tiny)) as model:
        together, alone = ([model.stream() for _ in range(5)] for _ in range(2))
        rng, batcher = np.random.default_rng(0), Batcher(model, largest=4)
        for i in range(10):
            x = rng.integers(0, 256, 5) if tiny.tokens else rng.normal(size=(5, tiny.channels))
            answers = batcher.step(together, x, [i * SECOND] * 5)
            assert all(close(a, s.step(row, i * SECOND)) for a, s, row in zip(answers, alone, x, strict=True))


def test_tokens_may_be_batched_without_times(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(tokens=True))) as model:
        together, alone = ([model.stream() for _ in range(3)] for _ in range(2))
        for tokens in ([1, 2, 3], [4, 5, 6]):
            answers = Batcher(model, largest=1).step(together, np.array(tokens))
            assert all(close(a, s.step(token)) for a, s, token in zip(answers, alone, tokens, strict=True))


def test_rows_of_one_bucket_are_one_call_and_so_are_their_reruns(adaptive: Model, calls: list[tuple[int, str]]) -> None:
    streams = [after(adaptive, size) for size in [QUIET] * 5 + [BURST] * 3]
    calls.clear()
    answers = Batcher(adaptive).step(streams, [[1, 2, 3]] * 8, [5 * SECOND + SECOND // 2] * 8)
    assert [answer.bucket for answer in answers if isinstance(answer, Output)] == [2] * 5 + [8] * 3
    assert calls == [(8, "2"), (3, "8")]


def test_rows_are_run_again_no_oftener_than_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that more steps do not satisfy: two re-runs, then a split, although larger buckets are left."""
    run = OnnxBinding.run

    def never_satisfied(binding: OnnxBinding, label: str) -> None:
        run(binding, label)
        binding.outputs["err"][:] = 1.1

    monkeypatch.setattr(OnnxBinding, "run", never_satisfied)
    monkeypatch.setattr("odestream.runtime.model.failures", lambda rows: [])
    with load(write_tiny(tmp_path / "b", Tiny(buckets=(1, 2, 4, 8, 16, 32, 64)))) as model:
        together, alone = ([model.stream() for _ in range(3)] for _ in range(2))
        batcher = Batcher(model)
        for t in (0, SECOND):
            for answer, twin in zip(batcher.step(together, [[1, 2, 3]] * 3, [t] * 3), alone, strict=True):
                assert close(answer, twin.step([1, 2, 3], t))
        assert [stream.counters for stream in together] == [twin.counters for twin in alone]
        assert together[0].counters.rejected["16"] > 0
        assert together[0].counters.split == 1


def test_a_group_larger_than_the_largest_takes_several_calls(adaptive: Model, calls: list[tuple[int, str]]) -> None:
    streams = [adaptive.stream() for _ in range(10)]
    assert len(Batcher(adaptive, largest=4).step(streams, [[1, 2, 3]] * 10, [0] * 10)) == 10
    assert calls == [(4, "1"), (4, "1"), (2, "1")]


def test_a_row_alone_in_its_bucket_is_that_of_its_own_step_bit_for_bit(adaptive: Model) -> None:
    rows = bursts(60)
    stream, twin, batcher = adaptive.stream(), adaptive.stream(), Batcher(adaptive)
    for x, t, mask in zip(*rows, strict=True):
        (answer,) = batcher.step([stream], [x], [t], [mask])
        assert isinstance(answer, Output)
        assert same(answer, twin.step(x, t, mask))
    assert same_state(stream.save(), twin.save())


@pytest.mark.parametrize("neighbour", [BURST, OUTBURST, BEYOND])
def test_what_becomes_of_one_row_changes_no_other(adaptive: Model, neighbour: float) -> None:
    answers = []
    for size in (QUIET, neighbour):
        streams = [after(adaptive, QUIET), after(adaptive, size), after(adaptive, BURST)]
        answers.append(Batcher(adaptive).step(streams, [[1, 2, 3]] * 3, [5 * SECOND + SECOND // 2] * 3))
    quiet, loud = answers
    for i in (0, 2):
        assert isinstance(quiet[i], Output)
        assert close(loud[i], quiet[i])  # type: ignore[arg-type]
    assert isinstance(loud[1], Output)
    assert loud[1].reruns > 0


FAULTS: dict[str, tuple[type[OdestreamError], Any, Any, Any]] = {
    "nan": (InputError, [1, np.nan, 3], 10, [1, 1, 1]),
    "shape": (InputError, [1, 2], 10, [1, 1, 1]),
    "time": (TimeError, [1, 2, 3], 5, [1, 1, 1]),
    "gap": (GapError, [1, 2, 3], 1 << 62, [1, 1, 1]),
    "no time": (InputError, [1, 2, 3], None, [1, 1, 1]),
    "mask": (InputError, [1, 2, 3], 10, [1, 1, 2]),
    "overflow": (StateError, [3.4e38, 2, 3], 10, [1, 1, 1]),
}


@pytest.mark.parametrize(("kind", "x", "t", "mask"), FAULTS.values(), ids=FAULTS.keys())
def test_a_row_that_fails_fails_alone_and_leaves_its_stream_as_it_was(
    kind: type[OdestreamError], x: Any, t: Any, mask: Any, tmp_path: Path
) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=1.0, gain=3.0))) as model:
        together, twins = ([model.stream() for _ in range(3)] for _ in range(2))
        for stream in (*together, *twins):
            stream.step([1, 1, 1], 5)
        good = ([1, 2, 3], 10, [1, 0, 1])
        batcher = Batcher(model)
        answers = batcher.step(together, [good[0], x, good[0]], [good[1], t, good[1]], [good[2], mask, good[2]])
        assert type(answers[1]) is kind
        for i in (0, 2):
            assert close(answers[i], twins[i].step(*good))
        for stream, twin in zip(together, twins, strict=True):
            assert same_state(stream.save(), twin.save())
            assert continues_like(stream, twin, count=20)


def test_a_stream_that_is_busy_or_closed_fails_alone(adaptive: Model) -> None:
    busy, closed, free = (adaptive.stream() for _ in range(3))
    closed.close()
    busy._enter()
    answers = Batcher(adaptive).step([busy, closed, free], [[1, 2, 3]] * 3, [0] * 3)
    busy._lock.release()
    assert [type(answer) for answer in answers] == [SessionBusy, SessionBusy, Output]
    assert busy.last_tick is None
    assert [s.counters.steps for s in (busy, free)] == [0, 1]
    assert isinstance(Batcher(adaptive).step([busy], [[1, 2, 3]], [0])[0], Output), "its lock was left as it was"


def test_rows_that_the_engine_refuses_together_run_alone(adaptive: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxBinding.run

    def only_alone(binding: OnnxBinding, label: str) -> None:
        if binding.batch > 1:
            raise StateError("the engine failed; the step was discarded")
        run(binding, label)

    monkeypatch.setattr(OnnxBinding, "run", only_alone)
    together, twins = ([after(adaptive, BURST) for _ in range(3)] for _ in range(2))
    answers = Batcher(adaptive).step(together, [[1, 2, 3]] * 3, [6 * SECOND] * 3)
    for answer, twin in zip(answers, twins, strict=True):
        assert isinstance(answer, Output)
        assert same(answer, twin.step([1, 2, 3], 6 * SECOND))


def test_an_interrupt_leaves_every_stream_as_it_was_or_a_whole_step_on(
    adaptive: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = OnnxBinding.run, [QUIET, BURST, OUTBURST, BURST]
    for at in range(12):
        streams, twins = ([after(adaptive, size) for size in sizes] for _ in range(2))
        left = at

        def interrupted(binding: OnnxBinding, label: str) -> None:
            nonlocal left
            run(binding, label)
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(OnnxBinding, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Batcher(adaptive).step(streams, [[1, 2, 3]] * 4, [6 * SECOND] * 4)
        for stream, twin in zip(streams, twins, strict=True):
            if stream.last_tick == 6 * SECOND:
                twin.step([1, 2, 3], 6 * SECOND)
            assert stream.counters == twin.counters
            np.testing.assert_allclose(stream.save().arena, twin.save().arena, rtol=1e-5, atol=1e-5)
            stream.step([1, 2, 3], 7 * SECOND)


@pytest.mark.parametrize(
    ("streams", "x", "t", "message"),
    [
        ("aa", 2, 2, "one is given twice; step it once now and again in the next call$"),
        ("ao", 2, 2, r"one is not of this model \(tiny\); batch it with its own$"),
        ("ab", 3, 3, "x: received 3 rows for 2 streams; give one for each$"),
        ("ab", 2, 1, "t: received 1 rows, expected 2 as x; give one per observation$"),
    ],
)
def test_what_cannot_be_a_batch_is_refused_before_any_row(
    adaptive: Model, model: Model, streams: str, x: int, t: int, message: str
) -> None:
    known = {"a": adaptive.stream(), "b": adaptive.stream(), "o": model.stream()}
    with pytest.raises(InputError, match=message):
        Batcher(adaptive).step([known[name] for name in streams], [[1, 2, 3]] * x, [0] * t)
    assert {stream.last_tick for stream in known.values()} == {None}


def test_an_empty_batch_is_no_answers_and_no_rows_a_call_is_refused(adaptive: Model) -> None:
    assert Batcher(adaptive).step([], [], []) == []
    with pytest.raises(InputError, match="largest is 0, expected at least 1 row; leave it out for 64"):
        Batcher(adaptive, largest=0)


def test_a_batcher_in_use_is_busy(adaptive: Model) -> None:
    class Reenters:
        """An observation that is only read while the batcher is at work."""

        def __init__(self, batcher: Batcher, stream: Stream) -> None:
            self.batcher, self.stream = batcher, stream

        def __array__(self, *args: object, **kwargs: object) -> Any:
            with pytest.raises(SessionBusy, match="the batcher is in use"):
                self.batcher.step([self.stream], [[1, 2, 3]], [0])
            return np.array([1.0, 2.0, 3.0])

    batcher = Batcher(adaptive)
    x: Any = [Reenters(batcher, adaptive.stream())]
    assert isinstance(batcher.step([adaptive.stream()], x, [0])[0], Output)


@given(st.integers(1, 4096))
def test_a_binding_has_room_for_the_rows_and_few_to_spare(count: int) -> None:
    assert count <= _size(count) < 3 * count / 2 or count == _size(count)


def test_64_rows_need_buffers_of_a_dozen_sizes_at_most() -> None:
    assert len({_size(count) for count in range(1, 65)}) <= 12
