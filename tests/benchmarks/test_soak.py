"""The soak's parts on a small cell for a moment each: they find nothing, and would find a difference."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soak
import soak_kills
from odestream.runtime import Model, TimeError, load
from odestream.runtime.fleet import Fleet
from odestream.runtime.recorder import Recorder
from results import circumstances
from soak_rows import BLOCK, Rows, answered
from tests.helpers.tiny_bundle import Tiny, write_tiny

PARTS: dict[str, dict[str, Any]] = {
    "streams": {"streams": 1, "hours_each": 2.0, "rows": 9, "interruptions": 1, "differing_bytes": 0},
    "kills": {
        "kills": 5,
        "stepping": 4,
        "calls": 7,
        "lost": 0,
        "snapshots": 2,
        "previous_generation": 1,
        "differing_bytes": 0,
    },
    "clocks": {"days": soak.DAYS, "steps": 3, "differing_bytes": 0},
    "memory": {"steps": 3, "growth_bytes": 0, "slope_bytes_per_million_steps": 0.0},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 5)
    monkeypatch.setattr(soak_kills, "LANES", 2)
    monkeypatch.setattr(soak_kills, "LONGEST_LIFE", 0.2)  # so that a child gets to finish something on a busy machine


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


def test_killed_children_leave_logs_and_snapshots_that_hold_all_that_was_finished(model: Model, tmp_path: Path) -> None:
    found = soak.kills(model, tmp_path, 13, 30)
    assert found["kills"] == 13
    assert 0 < found["stepping"] <= 13
    assert found["calls"] > 0
    assert (found["lost"], found["differing_bytes"]) == (0, 0)


def test_calls_that_a_log_does_not_keep_are_noticed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that hands a hundred frames to the kernel together, as one with a buffer of its own would."""
    write, held = Recorder._write, []

    def late(recorder: Recorder, data: bytes) -> None:
        held.append(data)
        if len(held) == 100:
            write(recorder, b"".join(held))
            held.clear()

    monkeypatch.setattr(Recorder, "_write", late)
    assert soak.kills(model, tmp_path, 10, 30)["lost"] > 0


def test_a_child_that_fails_ends_the_soak(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_kills, "write_generation", None)
    monkeypatch.setattr(soak_kills, "SNAPSHOT_EVERY", 1)
    with pytest.raises(EOFError):
        soak.kills(model, tmp_path, 10, 30)


def test_clocks_and_memory_are_measured(model: Model) -> None:
    clocks, memory = soak.far_clocks(model, 0.2), soak.memory(model, 0.2)
    assert clocks["differing_bytes"] == 0
    assert clocks["steps"] > 0
    assert memory["steps"] > 0


def test_the_table_says_what_was_finished_and_lost() -> None:
    about = {"bundle": "b", "backend": "e", "minutes": 2, "circumstances": circumstances()}
    other = {"circumstances": circumstances() | {"commit": "another"}}
    text = soak.section({name: part | about | (other if name == "memory" else {}) for name, part in PARTS.items()})
    assert "| kill −9 | 7 calls and 2 snapshots finished, 0 lost, the generation before read 1 times | 5 | 0 |" in text
    assert "streams 2 minutes, kills 2 minutes or 10,000 kills, clocks 2 minutes: b on e." in text
    assert "memory 2 minutes: b on e." in text
    assert "commit another." in text
    assert "4 children were killed while they stepped, 1 while they began." in text
    assert soak.UNNEEDED not in text
    assert not soak.failed(PARTS)


def test_a_generation_that_was_never_needed_is_said_to_be_held_by_unit_tests_alone() -> None:
    about = {"bundle": "b", "backend": "e", "minutes": 2, "circumstances": circumstances()}
    kills = {**PARTS["kills"], "previous_generation": 0}
    del kills["stepping"]  # as in results from before it was counted
    text = soak.section({name: part | about for name, part in (PARTS | {"kills": kills}).items()})
    assert soak.UNNEEDED in text
    assert "while they stepped" not in text


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("streams", "differing_bytes", 1), ("kills", "lost", 1), ("kills", "calls", 0), ("clocks", "differing_bytes", 1)],
)
def test_what_must_not_be_makes_the_soak_fail(part: str, name: str, value: int) -> None:
    assert soak.failed(PARTS | {part: PARTS[part] | {name: value}})


def test_rows_are_the_same_from_any_call_on(model: Model) -> None:
    first, rows = BLOCK - 2, Rows(model, 2)
    for ours, number in zip(islice(rows.calls(first), 4), range(first, first + 4), strict=True):
        x, t = Rows(model, 2).arrays(number)
        assert [row.t for row in ours] == [t, t]
        assert np.array_equal([row.x for row in ours], x)


def test_an_answer_that_is_an_error_is_raised(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny())) as model:
        fleet, rows = Fleet(model), Rows(model, 2)
        assert answered(fleet.step(rows.call(1))).any()
        with pytest.raises(TimeError, match="does not advance"):
            answered(fleet.step(rows.call(0)))
