"""The state of odestream's own cell: carried from one backend to another, and read memory by memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from odestream.runtime import Model, Output, load
from odestream.runtime.arena import Layout
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.influence import influences
from odestream.runtime.member import Observation
from odestream.runtime.records import StreamState
from tests.export.conftest import Exported
from tests.helpers.streams import SECOND, same_state


def rows(count: int, seed: int = 1) -> list[tuple[Any, int]]:
    rng = np.random.default_rng(seed)
    ticks = (17 * 10**17 + seed * 10**13 + np.cumsum(rng.integers(SECOND // 10, 2 * SECOND, count))).tolist()
    values = np.array([350.0, -1.0]) + rng.normal(size=(count, 2)) * np.array([0.5, 3.0])
    return list(zip(values.astype(np.float32), ticks, strict=True))


@pytest.fixture(scope="module")
def models(exported: Exported, native_library: object) -> Any:
    path = exported("forecast")[1].path
    with load(path, "onnxruntime") as ours, load(path, "native") as theirs:
        yield {"onnxruntime": ours, "native": theirs}


@pytest.mark.parametrize("source", ["onnxruntime", "native"])
def test_a_snapshot_of_one_backend_goes_on_in_another(models: dict[str, Model], source: str) -> None:
    other = next(name for name in models if name != source)
    stream = models[source].stream()
    for row in rows(80):
        stream.step(*row)
    moved = models[other].restore(stream.snapshot())
    assert same_state(moved.save(), stream.save()), "the same bytes arrive"
    allowed = tolerances("fp32", "native").values
    for x, gap in ((x, t - 17 * 10**17) for x, t in rows(20, 2)):
        at = (stream.last_tick or 0) + gap % SECOND + 1
        ours, theirs = stream.step(x, at), moved.step(x, at)
        scale = max(float(np.abs(ours.y).max()), allowed.floor)
        assert np.abs(ours.y - theirs.y).max() <= allowed.limit * scale


def test_the_places_that_an_answer_read_are_those_whose_loss_changes_it(models: dict[str, Model]) -> None:
    """The forecast of a row knows what was read with the row before it."""
    model = models["onnxruntime"]
    stream = model.stream()
    data = rows(60)
    for row in data[:-2]:
        stream.step(*row)
    before, last = stream.save(), data[-2:]
    found = influences(model, before, [Observation("", x, t) for x, t in last])
    assert {each.member for each in found} == {"ws", "es", "m"}
    assert [each.change for each in found] == sorted((each.change for each in found), reverse=True)
    layout = Layout(model.manifest.spec.state, 1)
    assert all(layout.views(before.arena)[each.member][0, each.place].any() for each in found), "nothing reads nothing"
    strongest, arena = found[0], before.arena.copy()
    layout.views(arena)[strongest.member][0, strongest.place] = 0
    whole, without = (_from(model, state, last) for state in (before, replace(before, arena=arena)))
    change = np.abs(whole.y.astype(float) - without.y)[:2] / np.exp(0.5 * whole.y[2:].astype(float))
    assert strongest.change == pytest.approx(change.max())
    assert strongest.change > 0


def _from(model: Model, state: StreamState, data: list[tuple[Any, int]]) -> Output:
    stream = model.stream()
    stream.load(state)
    return [stream.step(*row) for row in data][-1]
