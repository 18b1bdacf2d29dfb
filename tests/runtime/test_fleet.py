"""Named streams under policies, against plain streams that get by hand what the policy should make of a row."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from odestream.runtime import (
    GapError,
    InputError,
    Model,
    OdestreamError,
    Output,
    SessionBusy,
    SnapshotError,
    TimeError,
    load,
)
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.history import STRIDE
from odestream.runtime.policies import Policies
from odestream.runtime.shelf import Shelf
from odestream.runtime.telemetry import Telemetry
from tests.helpers.streams import SECOND, continues_like, forged, irregular, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny
from tests.runtime.test_batch import close

NAN = float("nan")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model without a mask."""
    with load(write_tiny(tmp_path_factory.mktemp("blind") / "b", Tiny(mask=False))) as model:
        yield model


def one(fleet: Fleet, *row: Any) -> Output:
    """The answer to a row of stream `a`."""
    (answer,) = fleet.step([Observation("a", *row)])
    assert isinstance(answer, Output), answer
    return answer


def error(fleet: Fleet, *row: Any) -> OdestreamError:
    (answer,) = fleet.step([Observation("a", *row)])
    assert isinstance(answer, OdestreamError)
    return answer


@pytest.mark.parametrize(
    ("policy", "x", "mask", "seen_x", "seen_mask"),
    [
        ("mask", [1, NAN, 3], None, [1, 0, 3], [1, 0, 1]),
        ("mask", [1, NAN, np.inf], [1, 1, 0], [1, 0, 0], [1, 0, 0]),
        ("mask", [NAN, NAN, NAN], None, [0, 0, 0], [0, 0, 0]),
        ("hold", [1, NAN, 3], None, [1, 7, 3], [1, 1, 1]),
        ("hold", [1, 2, -np.inf], None, [1, 2, 0], [1, 1, 0]),
        ("hold", [NAN, NAN, NAN], [0, 1, 1], [0, 7, 0], [0, 1, 0]),
        ("hold", [1, 2, 3], [1, 0, 1], [1, 2, 3], [1, 0, 1]),
    ],
)
def test_missing_values_become_what_the_policy_says(
    model: Model, policy: str, x: Any, mask: Any, seen_x: Any, seen_mask: Any
) -> None:
    """Channel 1 was 7 before, channel 2 was never seen."""
    fleet, twin = Fleet(model, Policies(on_missing=policy)), model.stream()
    first = ([5, 7, 0], 0, [1, 1, 0])
    one(fleet, *first)
    twin.step(*first)
    given_x = np.array(x, np.float32)
    answer = one(fleet, given_x, SECOND, mask)
    assert same(answer, twin.step(seen_x, SECOND, seen_mask))
    np.testing.assert_array_equal(given_x, np.array(x, np.float32))


def test_held_values_survive_a_snapshot_and_the_shelf(model: Model) -> None:
    fleet = Fleet(model, Policies(on_missing="hold"))
    one(fleet, [0.1, 7, 0], 0, [1, 1, 0])
    other = Fleet(model, Policies(on_missing="hold"))
    other.restore(fleet.snapshot())
    fleet.evict(["a"])
    answers = [one(each, [NAN, NAN, NAN], SECOND) for each in (fleet, other)]
    assert same(*answers)
    assert same(answers[0], _after(model).step([0.1, 7, 0], SECOND, [1, 1, 0]))


def test_values_are_held_of_streams_that_share_a_call(model: Model) -> None:
    fleet = Fleet(model, Policies(on_missing="hold"))
    fleet.step([Observation(name, [1, 2, i], 0) for i, name in enumerate("ab")])
    assert [fleet.states()[name].held for name in "ab"] == [(1, 2, 0), (1, 2, 1)]
    assert fleet.state("b") is not None
    assert fleet.state("c") is None


def test_a_fleet_takes_hundreds_of_streams_a_call(model: Model) -> None:
    """More than the small integers that are one object each, and than the batcher's largest call."""
    fleet, twin = Fleet(model), model.stream()
    expected = twin.step([1, 2, 3], 0)
    answers = fleet.step([Observation(f"s{i}", [1, 2, 3], 0) for i in range(300)])
    assert all(isinstance(answer, Output) and close(answer, expected) for answer in answers)


def test_a_fleet_counts_on_in_another_telemetry(model: Model) -> None:
    fleet, telemetry = Fleet(model), Telemetry()
    one(fleet, [1, 2, 3], 0)
    fleet.continue_with(None, telemetry)
    start = time.perf_counter()
    one(fleet, [1, 2, 3], SECOND)
    assert (fleet.telemetry.rows, telemetry.rows) == (1, 1)
    assert 0 < telemetry.seconds <= time.perf_counter() - start
    fleet.continue_with(None)
    assert fleet.telemetry.rows == 0


def _after(model: Model) -> Any:
    twin = model.stream()
    twin.step([0.1, 7, 0], 0, [1, 1, 0])
    return twin


def test_a_value_that_was_refused_is_not_held(model: Model) -> None:
    fleet, twin = Fleet(model, Policies(on_missing="hold")), model.stream()
    one(fleet, [1, 2, 3], 5)
    twin.step([1, 2, 3], 5)
    assert isinstance(error(fleet, [9, 9, 9], 5), TimeError)
    assert same(one(fleet, [NAN, 1, 1], SECOND), twin.step([1, 1, 1], SECOND))


def test_a_policy_leaves_to_the_stream_what_only_it_can_judge(model: Model, blind: Model) -> None:
    for policy in ("mask", "hold"):
        fleet = Fleet(model, Policies(on_missing=policy))
        for row in (
            ([1, 2], 0),
            (["a"] * 3, 0),
            ([[1], [1, 2], 3], 0),
            ([NAN, 1, 1], 0, [1, 1, 2]),
            ([1, 2, 3], 0, "x"),
        ):
            assert isinstance(error(fleet, *row), InputError)
        assert fleet.names == []
        assert isinstance(error(Fleet(blind, Policies(on_missing=policy)), [NAN, 1, 1], 0), InputError)


@pytest.mark.parametrize("field", ["on_missing", "on_gap", "on_late"])
def test_unknown_policies_are_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is 'zero'; choose one of error, "):
        Policies(**{field: "zero"})
    with pytest.raises(InputError, match="window is 0 rows"):
        Policies(window=0)


def test_a_row_that_fails_makes_no_stream_and_changes_none(model: Model) -> None:
    fleet = Fleet(model)
    good, bad = fleet.step([Observation("a", [1, 2, 3], 0), Observation("b", [1, 2], 0)])
    assert isinstance(good, Output)
    assert isinstance(bad, InputError)
    assert fleet.names == ["a"]
    assert isinstance(error(fleet, [1, 2, 3], 0), TimeError)
    with pytest.raises(InputError, match="one is named twice"):
        fleet.step([Observation("a", [1, 2, 3], 5)] * 2)
    twin = model.stream()
    twin.step([1, 2, 3], 0)
    assert continues_like(fleet._members["a"].stream, twin)


def test_predictions_change_nothing_and_keep_no_new_stream(model: Model) -> None:
    fleet, twin = Fleet(model), model.stream()
    one(fleet, [1, 2, 3], 0)
    twin.step([1, 2, 3], 0)
    assert same(fleet.predict("a", SECOND), twin.predict(SECOND))
    fleet.predict("b", SECOND)
    fleet.evict(["a"])
    assert same(fleet.predict("a", SECOND), twin.predict(SECOND))
    assert fleet.names == ["a"]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_fleet_s_snapshot_holds_streams_that_were_put_away(model: Model, tmp_path: Path, on_disk: bool) -> None:
    fleet = Fleet(model, shelf=Shelf(tmp_path if on_disk else None))
    fleet.step([Observation(name, [1, 2, i], i) for i, name in enumerate(("a", "../b", "ä\0"))])
    before = fleet.states()
    fleet.evict(["../b", "ä\0"])
    assert len(list(tmp_path.glob("*.snapshot"))) == 2 * on_disk
    other = Fleet(model)
    other.restore(fleet.snapshot())
    assert set(other.names) == set(before)
    assert all(same_state(state, before[name]) for name, state in other.states().items())
    fleet.close()
    with pytest.raises(SnapshotError, match="no streams to save"):
        Fleet(model).snapshot()


def test_a_restored_stream_takes_the_place_of_one_that_was_put_away(model: Model) -> None:
    fleet = Fleet(model)
    one(fleet, [1, 2, 3], 0)
    blob = fleet.snapshot()
    one(fleet, [3, 2, 1], 5)
    fleet.evict(["a"])
    fleet.restore(blob)
    assert fleet.names == ["a"]
    assert fleet.states()["a"].tick == 0


def test_a_snapshot_that_does_not_fit_leaves_the_fleet_as_it_was(model: Model, tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "other", Tiny(seed=4))) as other:
        foreign = Fleet(other)
        foreign.step([Observation("z", [1, 2, 3], 0)])
        blob = foreign.snapshot()
    fleet = Fleet(model)
    one(fleet, [1, 2, 3], 0)
    before = fleet.snapshot()
    with pytest.raises(SnapshotError, match="made by model"):
        fleet.restore(blob)
    assert fleet.snapshot() == before


def rows_of(count: int, seed: int = 0) -> list[Observation]:
    x, t, mask = irregular(count, seed=seed)
    return [Observation("a", x[i], int(t[i]), mask[i]) for i in range(count)]


def shuffled(rows: list[Observation], window: int, seed: int) -> list[Observation]:
    """Each row at most `window` places from its own."""
    keys = np.arange(len(rows)) + np.random.default_rng(seed).uniform(0, window, len(rows))
    return [rows[i] for i in np.argsort(keys)]


def replayed_like_in_order(model: Model, count: int, window: int, seed: int) -> bool:
    rows = rows_of(count)
    late, ordered = Fleet(model, Policies(on_late="replay")), Fleet(model)
    late_rows = shuffled(rows, window, seed)
    assert [row.t for row in late_rows] != [row.t for row in rows]
    answers = [late.step([row])[0] for row in late_rows]
    assert all(isinstance(answer, Output) for answer in answers)
    for row in rows:
        ordered.step([row])
    return late.snapshot() == ordered.snapshot()


@settings(max_examples=10)
@given(window=st.integers(2, 60), seed=st.integers(0, 1000))
def test_rows_that_come_late_and_are_replayed_give_the_bytes_of_the_ordered_run(
    model: Model, window: int, seed: int
) -> None:
    assert replayed_like_in_order(model, 120, window, seed)


@pytest.mark.slow
def test_10_000_rows_shuffled_within_50_rows_give_the_bytes_of_the_ordered_run(model: Model) -> None:
    assert replayed_like_in_order(model, 10_000, 50, 3)


def test_the_answer_to_a_late_row_is_that_of_its_place(model: Model) -> None:
    rows = rows_of(40)
    fleet, twin = Fleet(model, Policies(on_late="replay")), model.stream()
    for row in rows[:20] + rows[21:]:
        fleet.step([row])
    assert isinstance(error(fleet, [1, 2, 3], True), InputError)
    (late,) = fleet.step([replace(rows[20], t=np.int64(rows[20].t or 0))])
    expected = [twin.step(row.x, row.t, row.mask) for row in rows]
    assert isinstance(late, Output)
    assert same(late, expected[20])


def test_held_values_are_those_of_the_right_order(model: Model) -> None:
    """The late row brings a value that later ones must then hold."""
    fleet, ordered = (Fleet(model, Policies(on_late="replay", on_missing="hold")) for _ in range(2))
    rows = [Observation("a", x, t) for t, x in enumerate(([1, 2, 3], [5, 6, 7], [NAN, 1, NAN], [1, NAN, 1]))]
    for i in (0, 2, 3, 1):
        fleet.step([rows[i]])
    for row in rows:
        ordered.step([row])
    assert fleet.snapshot() == ordered.snapshot()


def test_late_rows_that_cannot_be_replayed_are_refused_and_change_nothing(model: Model) -> None:
    fleet = Fleet(model, Policies(on_late="replay", window=2 * STRIDE))
    rows = rows_of(10 * STRIDE)
    for row in rows[1:]:
        fleet.step([row])
    before = fleet.snapshot()
    assert "far back" in str(error(fleet, rows[0].x, rows[0].t, rows[0].mask))
    assert "was given before" in str(error(fleet, [1, 2, 3], rows[-5].t))
    assert isinstance(error(fleet, [NAN, 2, 3], (rows[-5].t or 0) + 1), InputError)
    assert isinstance(error(fleet, [[1], [2, 3]], (rows[-5].t or 0) + 1), InputError)
    assert fleet.snapshot() == before
    strict = Fleet(model)
    one(strict, [1, 2, 3], 5)
    assert "does not advance" in str(error(strict, [1, 2, 3], 4)), "what a late row gets by default"


def test_a_history_keeps_its_window_and_little_more(model: Model) -> None:
    fleet = Fleet(model, Policies(on_late="replay", window=64))
    rows = rows_of(400)
    for row in rows:
        fleet.step([row])
    kept = [row for block in fleet._members["a"]._history._blocks for row in block.rows]  # type: ignore[union-attr]
    assert 64 <= len(kept) <= 64 + 2 * STRIDE


def test_a_gap_is_an_error_or_a_new_stream(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=5.0, max_calls=2))) as model:
        strict, resetting = Fleet(model), Fleet(model, Policies(on_gap="reset"))
        for fleet in (strict, resetting):
            one(fleet, [1, 2, 3], 0)
        assert isinstance(error(strict, [1, 2, 3], 10**15), GapError)
        assert same(one(resetting, [4, 5, 6], 10**15), model.stream().step([4, 5, 6], 10**15))


def test_streams_that_ended_are_summed_up_by_name(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=5.0, max_calls=2))) as model:
        fleet = Fleet(model, Policies(on_gap="reset"))
        for i in range(40):
            for t in (0, 1, 2):
                one(fleet, [1, 2, 3], i * 10**15 + t)
        assert list(fleet.ended) == ["a"]
        ended, last = fleet.ended["a"], fleet.states()["a"].counters
        assert (ended.steps, last.steps) == (117, 3)
        assert sum(ended.buckets.values()) == 117
        fleet.rename("a", "b")
        assert list(fleet.ended) == ["b"]
        fleet.forget()
        assert fleet.ended == {}


def test_only_streams_without_rows_for_so_long_are_idle(model: Model) -> None:
    fleet = Fleet(model)
    fleet.step([Observation(name, [1, 2, 3], 0) for name in "ab"])
    assert fleet.evict_idle(60) == []
    fleet._members["a"].used -= 61
    assert fleet.evict_idle(60) == ["a"]
    assert (fleet.awake, fleet.names) == (["b"], ["b", "a"])


def test_a_closed_fleet_s_streams_take_no_more_rows(model: Model) -> None:
    fleet = Fleet(model)
    one(fleet, [1, 2, 3], 0)
    fleet.close()
    assert isinstance(error(fleet, [1, 2, 3], SECOND), SessionBusy)


def test_values_that_were_held_are_filled_in_only_where_they_are_to_be_held(model: Model) -> None:
    fleet = Fleet(model, Policies(on_missing="hold"))
    one(fleet, [1, 2, 3], 0)
    masked, twin = Fleet(model, Policies(on_missing="mask")), model.stream()
    masked.restore(fleet.snapshot())
    twin.step([1, 2, 3], 0)
    assert same(one(masked, [NAN, 2, 3], SECOND), twin.step([0, 2, 3], SECOND, [0, 1, 1]))


def test_a_snapshot_that_holds_too_few_values_is_refused(model: Model) -> None:
    fleet = Fleet(model, Policies(on_missing="hold"))
    one(fleet, [1, 2, 3], 0)
    short = forged(fleet.snapshot(), lambda _, info: info["streams"][0].update(held=[1.0]))
    with pytest.raises(SnapshotError, match="one for each"):
        Fleet(model).restore(short)


def test_a_name_that_a_log_cannot_hold_is_refused_before_any_row(model: Model) -> None:
    fleet = Fleet(model)
    with pytest.raises(InputError, match="16383 characters"):
        fleet.step([Observation("a", [1, 2, 3], 0), Observation("b" * 20_000, [1, 2, 3], 0)])
    assert fleet.names == []
