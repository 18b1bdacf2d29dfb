"""Streams on native under the bucket rule, against streams on onnxruntime from the same states."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from odestream.runtime import Batcher, Output, Stream, load
from odestream.runtime.backends.native_stream import NativeCore
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.core import EngineCore
from odestream.runtime.records import StreamState
from tests.export.conftest import Exported
from tests.helpers.streams import SECOND, same, same_state

pytestmark = pytest.mark.usefixtures("native_library")

CALLS = 150

Row = tuple[list[float], int, list[bool]]


def rows(seed: int = 4) -> list[Row]:
    """Gaps from 50 ms to 20 s, one call in five with an observation, some of them far off."""
    rng = np.random.default_rng(seed)
    gaps = np.exp(rng.uniform(math.log(0.05), math.log(20.0), CALLS)) * SECOND
    ticks = (17 * 10**17 + np.cumsum(gaps.astype(np.int64))).tolist()
    x = np.array([350.0, -1.0]) + rng.normal(size=(CALLS, 2)) * np.where(np.arange(CALLS) % 25, 1.0, 3.0)[:, None]
    return [(values, tick, [i % 5 == 0] * 2) for i, (values, tick) in enumerate(zip(x.tolist(), ticks, strict=True))]


def with_factor(stream: Stream, factor: float) -> Stream:
    """The same stream, its rule's safety factor times `factor`."""
    core = stream._core
    if isinstance(core, EngineCore):
        core.solver.rule = dataclasses.replace(core.solver.rule, factor=core.solver.rule.factor * factor)
    if isinstance(core, NativeCore):
        rule = dataclasses.replace(core.rule, factor=core.rule.factor * factor)
        stream._core = NativeCore(core.model, stream.model.manifest, rule)
    return stream


def step_from(stream: Stream, state: StreamState, row: Row) -> Output:
    stream._core.load(state)
    return stream.step(*row)


def decisions(output: Output) -> tuple[Any, ...]:
    return output.bucket, output.calls, output.reruns, output.flagged


def agree(found: Output, expected: Output) -> bool:
    """Whether values and err are as near to onnxruntime's as native must be to the stored answers."""
    limits = tolerances("fp32", "native")
    assert found.gates is not None
    assert expected.gates is not None
    for ours, theirs in ((found.y, expected.y), (found.gates, expected.gates)):
        scale = max(float(np.abs(theirs).max()), limits.values.floor)
        if np.abs(ours - theirs).max() > limits.values.limit * scale:
            return False
    assert found.err is not None
    assert expected.err is not None
    return abs(found.err - expected.err) <= limits.err.limit * max(expected.err, limits.err.floor)


@pytest.mark.parametrize(("factor", "tie"), [(1.0, 0.01), (0.1, 0.02), (1e-3, 0.1)])
def test_an_adaptive_stream_decides_and_answers_as_on_onnxruntime(
    factor: float, tie: float, exported: Exported
) -> None:
    """Every call from onnxruntime's state; its buckets, splits, re-runs and flags are compared away from ties.

    A tie is what a factor higher or lower by `tie` of it would decide otherwise: err's rounding weighs more against a
    small factor, a fifth of each `tie` here.
    """
    _, bundle = exported("forecast")
    compared = []
    with load(bundle.path, "native") as ours, load(bundle.path, "onnxruntime") as theirs:
        stream, native = with_factor(theirs.stream(), factor), with_factor(ours.stream(), factor)
        around = [with_factor(theirs.stream(), factor * near) for near in (1 - tie, 1 + tie)]
        for row in rows():
            state = stream.save()
            expected = stream.step(*row)
            nearby = {decisions(step_from(other, state, row)) for other in around}
            if nearby == {decisions(expected)}:
                found = step_from(native, state, row)
                assert decisions(found) == decisions(expected), row
                assert agree(found, expected), row
                compared.append(expected)
    assert len(compared) >= 0.8 * CALLS
    assert len({output.bucket for output in compared}) >= 3
    assert max(output.calls for output in compared) > 1
    assert factor == 1.0 or any(output.reruns for output in compared)
    assert factor != 1e-3 or sum(output.flagged for output in compared) > 0


def test_an_adaptive_stream_on_native_stays_beside_one_on_onnxruntime(exported: Exported) -> None:
    """Each from its own state, as far as the first tie: from there on they may take other steps."""
    _, bundle = exported("forecast")
    together = 0
    with load(bundle.path, "native") as ours, load(bundle.path, "onnxruntime") as theirs:
        native, stream = ours.stream(), theirs.stream()
        for row in rows(5):
            found, expected = native.step(*row), stream.step(*row)
            if decisions(found) != decisions(expected):
                break
            assert agree(found, expected), row
            together += 1
    assert together >= 50


def test_streams_batched_on_native_equal_each_alone_bit_for_bit(exported: Exported) -> None:
    """Sums run in one order whatever the number of rows, so that not even a tie is decided otherwise."""
    _, bundle = exported("forecast")
    with load(bundle.path, "native") as model:
        together, alone = ([with_factor(model.stream(), 0.1) for _ in range(7)] for _ in range(2))
        batcher, outputs = Batcher(model), []
        for each in zip(*(rows(seed)[:60] for seed in range(7)), strict=True):
            found = batcher.step(together, *(list(column) for column in zip(*each, strict=True)))
            for answer, stream, row in zip(found, alone, each, strict=True):
                assert isinstance(answer, Output)
                assert same(answer, stream.step(*row))
                outputs.append(answer)
        assert all(same_state(a.save(), b.save()) for a, b in zip(together, alone, strict=True))
    assert len({output.bucket for output in outputs}) >= 3
    assert any(output.reruns for output in outputs)
    assert max(output.calls for output in outputs) > 1
