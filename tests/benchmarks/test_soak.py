"""The soak's parts on a small cell for a moment each: they find nothing, and would find a difference."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soak
from odestream.runtime import Model
from odestream.runtime.fleet import Fleet


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 5)


def test_interrupted_streams_are_those_that_were_left_alone(model: Model, tmp_path: Path) -> None:
    found = soak.interrupted_streams(model, tmp_path, 3, 0.3)
    assert found["differing_bytes"] == 0
    assert found["interruptions"] >= 3, "each kind once"
    assert found["rows"] == 15 * found["interruptions"]


def test_a_stream_that_is_changed_on_the_way_is_noticed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(fleet: Fleet, *_: object) -> Fleet:
        state = fleet.states()["s0"]
        state.arena[0] += np.float32(1)
        fleet._members["s0"].stream.load(state)
        return fleet

    monkeypatch.setattr(soak, "_interrupt", spoil)
    assert soak.interrupted_streams(model, tmp_path, 3, 0.2)["differing_bytes"] > 0


def test_killed_children_leave_logs_and_snapshots_that_are_whole(model: Model, tmp_path: Path) -> None:
    found = soak.kills(model, tmp_path, 8, 30)
    assert found["kills"] == 8
    assert found["calls"] > 0
    assert found["differing_bytes"] == 0


def test_clocks_and_memory_are_measured(model: Model) -> None:
    clocks, memory = soak.far_clocks(model, 0.2), soak.memory(model, 0.2)
    assert clocks["differing_bytes"] == 0
    assert clocks["steps"] > 0
    assert memory["steps"] > 0
    parts: dict[str, Any] = {
        "streams": {"streams": 1, "hours_each": 2.0, "rows": 9, "interruptions": 1, "differing_bytes": 0},
        "kills": {"kills": 5, "calls": 7, "previous_generation": 1, "differing_bytes": 0},
        "clocks": clocks,
        "memory": memory,
    }
    text = soak.section({"bundle": "b", "backend": "e", "minutes": 1.0}, parts)
    assert "| kill −9 | 7 calls, the generation before read 1 times | 5 | 0 |" in text


def test_rows_are_the_same_from_any_call_on(model: Model) -> None:
    rows = soak.Rows(model, 2)
    for ours, theirs in zip(islice(rows.calls(3), 3), (rows.call(n) for n in (3, 4, 5)), strict=True):
        assert [row.t for row in ours] == [row.t for row in theirs]
        assert all(np.array_equal(a.x, b.x) for a, b in zip(ours, theirs, strict=True))
