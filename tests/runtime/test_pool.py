"""Many callers over one fleet: every answer is that of the stream's own step, in the order in which its rows came."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import InputError, Model, Output, SessionBusy, TimeError
from odestream.runtime.fleet import Fleet
from odestream.runtime.generations import read_generation
from odestream.runtime.pool import Pool
from tests.helpers.streams import SECOND, irregular, same
from tests.runtime.test_batch import close


class Gate(Fleet):
    """A fleet whose calls wait until they are let through, and that remembers them."""

    def __init__(self, model: Model, largest: int = 64) -> None:
        super().__init__(model, largest=largest)
        self.inside, self.open = threading.Event(), threading.Event()
        self.calls: list[list[str]] = []

    def step(self, rows: Any) -> Any:
        self.calls.append([row.stream for row in rows])
        self.inside.set()
        self.open.wait(10)
        return super().step(rows)


def test_threads_get_the_answers_that_their_streams_give_alone(model: Model) -> None:
    data = {f"s{seed}": irregular(60, seed=seed) for seed in range(8)}
    answers: dict[str, list[Output]] = {}
    with Pool(Fleet(model), wait_us=100) as pool:

        def feed(name: str) -> None:
            answers[name] = [pool.step(name, *row) for row in zip(*by_row(data[name]), strict=True)]

        threads = [threading.Thread(target=feed, args=(name,)) for name in data]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool._fleet.telemetry.rows == 8 * 60
        assert pool._fleet.telemetry.calls < 8 * 60, "rows shared calls"
    for name, rows in data.items():
        twin = model.stream()
        expected = [twin.step(*row) for row in zip(*by_row(rows), strict=True)]
        assert all(close(a, b) for a, b in zip(answers[name], expected, strict=True))


def by_row(data: Any) -> tuple[Any, list[int], Any]:
    x, t, mask = data
    return x, t.tolist(), mask


def test_coroutines_can_wait_for_answers(model: Model) -> None:
    async def feed(pool: Pool, name: str) -> list[Output]:
        return [await pool.astep(name, [1, 2, 3], t * SECOND) for t in range(20)]

    async def main() -> list[list[Output]]:
        with Pool(Fleet(model), most=4) as pool:
            return await asyncio.gather(*(feed(pool, name) for name in "abcdefgh"))

    twin = model.stream()
    expected = [twin.step([1, 2, 3], t * SECOND) for t in range(20)]
    for answers in asyncio.run(main()):
        assert all(close(a, b) for a, b in zip(answers, expected, strict=True))


def test_a_row_that_fails_fails_alone(model: Model) -> None:
    with Pool(Fleet(model)) as pool:
        pool.step("a", [1, 2, 3], 5)
        futures = [pool.submit("a", [1, 2, 3], 4), pool.submit("b", [1, 2], 0), pool.submit("c", [1, 2, 3], 0)]
        with pytest.raises(TimeError):
            futures[0].result(10)
        with pytest.raises(InputError):
            futures[1].result(10)
        assert same(futures[2].result(10), model.stream().step([1, 2, 3], 0))


def test_a_busy_stream_does_not_hold_up_the_others_and_keeps_its_order(model: Model) -> None:
    fleet = Gate(model, largest=2)
    pool = Pool(fleet, wait_us=0)
    first = pool.submit("busy", [1, 2, 3], 0)
    fleet.inside.wait(10)
    futures = [pool.submit("busy", [1, 2, t], t) for t in range(1, 5)]
    futures += [pool.submit(name, [1, 2, 3], 0) for name in "ab"]
    fleet.open.set()
    pool.drain()
    assert fleet.calls == [["busy"], ["busy", "a"], ["b", "busy"], ["busy"], ["busy"]]
    assert all(isinstance(future.result(0), Output) for future in (first, *futures))
    pool.close()


def test_a_row_waits_for_others_until_the_call_is_full_or_its_wait_is_over(model: Model) -> None:
    fleet = Gate(model, largest=2)
    fleet.open.set()
    with Pool(fleet, wait_us=20e6) as pool:
        first = pool.submit("a", [1, 2, 3], 0)
        assert not fleet.inside.wait(0.05), "it waits for another"
        second = pool.submit("b", [1, 2, 3], 0)
        assert isinstance(first.result(10), Output)
        assert isinstance(second.result(10), Output)
    assert fleet.calls == [["a", "b"]]


def test_a_pool_without_rows_is_drained(model: Model) -> None:
    with Pool(Fleet(model)) as pool:
        for _ in range(2):
            thread = threading.Thread(target=pool.drain, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
            pool.step("a", [1, 2, 3], 0 if not pool._fleet.names else SECOND)


def test_a_full_pool_holds_callers_up_and_then_refuses(model: Model) -> None:
    fleet = Gate(model)
    pool = Pool(fleet, most=2)
    pool.submit("a", [1, 2, 3], 0)
    fleet.inside.wait(10)
    for t in (1, 2):
        pool.submit("a", [1, 2, 3], t)
    with pytest.raises(SessionBusy, match="2 rows wait already, the most that the pool takes; send rows slower"):
        pool.submit("b", [1, 2, 3], 0, timeout=0.01)
    waiting = threading.Thread(target=pool.step, args=("b", [1, 2, 3], 0))
    waiting.start()
    fleet.open.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert fleet.states()["b"].tick == 0
    pool.close()


def test_values_are_copied_when_they_are_handed_in(model: Model) -> None:
    fleet = Gate(model)
    with Pool(fleet) as pool:
        x, mask = np.array([1.0, 2, 3]), [1, 0, 1]
        future = pool.submit("a", x, 0, mask)
        x.fill(np.nan)
        mask[:] = [9, 9, 9]
        fleet.open.set()
        assert same(future.result(10), model.stream().step([1, 2, 3], 0, [1, 0, 1]))


class Reading(np.ndarray):
    """An array of a kind of its own."""


@pytest.mark.parametrize("kind", [np.asarray, memoryview, lambda array: array.view(Reading)])
def test_whatever_kind_the_values_are_they_are_copied(model: Model, kind: Callable[[Any], Any]) -> None:
    fleet, values = Gate(model), np.array([1.0, 2, 3])
    with Pool(fleet) as pool:
        future = pool.submit("a", kind(values), 0)
        values.fill(np.nan)
        fleet.open.set()
        assert same(future.result(10), model.stream().step([1, 2, 3], 0))


def test_closing_answers_what_waits_saves_the_streams_and_refuses_more(model: Model, tmp_path: Path) -> None:
    fleet = Gate(model)
    pool = Pool(fleet)
    futures = [pool.submit("a", [1, 2, 3], t) for t in range(5)]
    fleet.open.set()
    pool.close(tmp_path / "s")
    pool.close()
    assert all(future.done() for future in futures)
    with pytest.raises(SessionBusy, match="the pool is closed"):
        pool.submit("a", [1, 2, 3], 9)
    assert model.restore_streams(read_generation(tmp_path / "s").data)["a"].last_tick == 4


def test_a_row_that_was_cancelled_is_not_stepped(model: Model) -> None:
    fleet = Gate(model)
    with Pool(fleet) as pool:
        pool.submit("a", [1, 2, 3], 0)
        fleet.inside.wait(10)
        cancelled = pool.submit("a", [1, 2, 3], 1)
        assert cancelled.cancel()
        fleet.open.set()
        pool.drain()
        assert fleet.states()["a"].tick == 0


def test_idle_streams_are_put_away_and_come_back(model: Model) -> None:
    fleet = Fleet(model)
    with Pool(fleet, idle=0.02) as pool:
        before = pool.step("a", [1, 2, 3], 0)
        deadline = threading.Event()
        for _ in range(300):  # it looks four times in that time, not every few seconds
            if not fleet._members:
                break
            deadline.wait(0.01)
        assert not fleet._members
        twin = model.stream()
        assert same(before, twin.step([1, 2, 3], 0))
        assert same(pool.predict("a", SECOND), twin.predict(SECOND))
        assert same(pool.step("a", [3, 2, 1], SECOND), twin.step([3, 2, 1], SECOND))


def test_a_fault_of_the_pool_itself_reaches_those_who_wait_and_ends_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(model)
    with Pool(fleet) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(fleet, "step", lambda rows: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                pool.step("a", [1, 2, 3], 0)
        assert isinstance(pool.step("a", [1, 2, 3], 0), Output)


def test_the_least_limits_make_a_pool(model: Model) -> None:
    with Pool(Fleet(model)) as pool:
        assert (pool._wait, pool._most) == (0.0002, 4096)
    with Pool(Fleet(model, largest=1), wait_us=0, most=1) as pool:
        assert isinstance(pool.step("a", [1, 2, 3], 0), Output)


@pytest.mark.parametrize("options", [{"wait_us": -1}, {"most": 0}, {"idle": 0.0}, {"idle": -1.0}])
def test_limits_that_make_no_sense_are_refused(model: Model, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give a wait from 0"):
        Pool(Fleet(model), **options)


def test_a_shelf_that_cannot_be_written_ends_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, tried = Fleet(model), threading.Event()

    def full(*_: object) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fleet._shelf, "put", full)
    with Pool(fleet, idle=0.02) as pool:
        pool.step("a", [1, 2, 3], 0)
        assert tried.wait(10)
        twin = model.stream()
        twin.step([1, 2, 3], 0)
        assert same(pool.step("a", [1, 2, 3], SECOND), twin.step([1, 2, 3], SECOND))


def test_a_snapshot_that_cannot_be_written_leaves_the_streams_for_another_close(model: Model, tmp_path: Path) -> None:
    pool = Pool(Fleet(model))
    pool.step("a", [1, 2, 3], 0)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        pool.close(tmp_path / "file" / "s")
    pool.close(tmp_path / "s")
    assert list(model.restore_streams(read_generation(tmp_path / "s").data)) == ["a"]
    pool.close()
