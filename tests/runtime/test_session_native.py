"""Streams on native as a caller sees them: many rows, many threads, batches; what they give is the caller's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import Batcher, InputError, Model, Output, SessionBusy, TimeError, load
from tests.helpers.streams import irregular, same, same_state

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.fixture(scope="module")
def native(cell_path: Path) -> Iterator[Model]:
    with load(cell_path, "native") as model:
        yield model


def table(count: int) -> tuple[list[Any], list[int], list[Any]]:
    x, t, mask = irregular(count, 2)
    return list(np.add(x, [350, -2])), t.tolist(), list(mask)


def test_steps_in_one_call_are_those_one_by_one_and_all_or_nothing(native: Model) -> None:
    x, t, mask = table(40)
    together, alone = native.stream(), native.stream()
    found = together.steps(x, t, mask)
    assert all(same(a, b) for a, b in zip(found, map(alone.step, x, t, mask), strict=True))
    before = together.save()
    with pytest.raises(InputError, match="row 2: x: received nan in channel 0"):
        together.steps([x[0], x[1], [np.nan, 0]], [t[-1] + i for i in (1, 2, 3)])
    assert same_state(together.save(), before)


def test_a_list_of_floats_gives_what_an_array_of_them_gives(native: Model) -> None:
    x, t, _ = table(20)
    rows = [[float(value) / 3 for value in row] for row in x]
    lists, arrays = native.stream(), native.stream()
    for row, time in zip(rows, t, strict=True):
        assert same(lists.step(row, time), arrays.step(np.array(row), time))


ODD: list[list[Any]] = [
    [math.nan, 0.0],
    [0.0, -math.inf],
    [1e39, 0.0],
    [],
    [1.0],
    [1.0, 2.0, 3.0],
    [[1.0], [2.0]],
    ["1", 2.0],
    [None, 1.0],
    [Decimal(1), 2.0],
    [np.array([1.0]), 2.0],
    [16777217, 2],
    [-16777217, 1 << 62],
]


@pytest.mark.parametrize("x", ODD, ids=str)
def test_a_list_is_refused_as_on_any_backend_and_after_its_time(x: list[Any], native: Model, cell_path: Path) -> None:
    with load(cell_path, "onnxruntime") as other, pytest.raises(InputError) as expected:
        other.stream().step(x, 10)
    stream = native.stream()
    with pytest.raises(InputError) as found:
        stream.step(x, 10)
    assert str(found.value) == str(expected.value)
    assert same(stream.step([350.0, -2.0], 10), native.stream().step([350.0, -2.0], 10))
    with pytest.raises(TimeError, match="does not advance"):
        stream.step(x, 10)


def test_streams_of_one_model_in_many_threads_do_not_disturb_each_other(native: Model) -> None:
    x, t, mask = table(60)
    expected = native.stream().steps(x, t, mask)
    found: dict[int, list[Output]] = {}

    def work(index: int) -> None:
        found[index] = native.stream().steps(x, t, mask)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(same(a, b) for outputs in found.values() for a, b in zip(outputs, expected, strict=True))


def test_a_batch_answers_for_each_row_and_a_closed_stream_is_busy(native: Model) -> None:
    x, t, _ = table(3)
    streams = [native.stream() for _ in range(4)]
    streams[2].close()
    rows = [x[0], [np.inf, 0], x[0], x[0]]
    answers = Batcher(native).step(streams, rows, [t[0]] * 4, [None] * 4)
    assert [type(answer) for answer in answers] == [Output, InputError, SessionBusy, Output]
    assert isinstance(answers[3], Output)
    assert same(answers[3], native.stream().step(x[0], t[0]))
    assert [stream.last_tick for stream in (streams[0], streams[1], streams[3])] == [t[0], None, t[0]]
    with pytest.raises(InputError, match="one is given twice"):
        Batcher(native).step([streams[0]] * 2, [x[1]] * 2, [t[1]] * 2)


def test_integers_that_float32_cannot_hold_are_refused_in_a_batch_too(native: Model) -> None:
    streams = [native.stream() for _ in range(3)]
    rows = [np.array([16777216, -2]), np.array([16777217, -2]), np.array([1 << 40, -16777218])]
    answers = Batcher(native).step(streams, rows, [10] * 3, [None] * 3)
    assert [type(answer) for answer in answers] == [Output, InputError, Output]
    for answer, row in ((answers[0], rows[0]), (answers[2], rows[2])):
        assert isinstance(answer, Output)
        assert same(answer, native.stream().step(row.astype(np.float32), 10))


def test_an_output_s_arrays_are_the_callers_own(native: Model) -> None:
    x, t, mask = table(2)
    stream = native.stream()
    first = stream.step(x[0], t[0], mask[0])
    kept = first.y.copy()
    stream.step(x[1], t[1], mask[1])
    assert first.y.tobytes() == kept.tobytes()
    first.y[:] = np.nan
    assert np.isfinite(stream.predict(t[1] + 1).y).all()
