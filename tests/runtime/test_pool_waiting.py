"""Who waits for a pool, and where: threads, futures and coroutines, before its door and for its answers."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from odestream.runtime import InputError, Model, Output, SessionBusy, TimeError
from odestream.runtime.fleet import Fleet
from odestream.runtime.member import Observation
from odestream.runtime.pool import Pool
from tests.helpers.pool_clock import PATIENCE
from tests.helpers.streams import SECOND, same
from tests.runtime.test_pool import Gate

ROW = [1, 2, 3]


def test_rows_of_coroutines_keep_their_order_however_full_the_pool_is(model: Model) -> None:
    async def main() -> list[Output]:
        with Pool(Fleet(model), most=2, wait_us=0) as pool:
            return await asyncio.gather(*(pool.astep("a", [t, 2, 3], t * SECOND) for t in range(200)))

    twin = model.stream()
    assert all(same(y, twin.step([t, 2, 3], t * SECOND)) for t, y in enumerate(asyncio.run(main())))


def test_whoever_waits_before_the_door_is_let_in_by_turns(model: Model) -> None:
    """A thread and coroutines: nobody who came later overtakes."""
    fleet = Gate(model)

    async def main(pool: Pool) -> None:
        tasks = [asyncio.ensure_future(pool.astep(name, ROW, 0)) for name in "ab"]
        await asyncio.to_thread(fleet.inside.wait, PATIENCE)
        tasks += [asyncio.ensure_future(pool.astep(name, ROW, 0)) for name in "cd"]
        await asyncio.sleep(0)
        thread = threading.Thread(target=pool.step, args=("e", ROW, 0))
        thread.start()
        while len(pool._line) < 3:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.ensure_future(pool.astep("f", ROW, 0)))
        await asyncio.sleep(0)
        fleet.open.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(thread.join, PATIENCE)

    with Pool(fleet, wait_us=0, most=1) as pool:
        asyncio.run(main(pool))
    assert [name for call in fleet.calls for name in call] == list("abcdef")


def test_rows_of_a_full_pool_wait_for_no_others(model: Model) -> None:
    with Pool(Fleet(model), wait_us=3600e6, most=2) as pool:
        rows = [pool.submit(name, ROW, 0) for name in "ab"]
        assert all(isinstance(row.result(PATIENCE), Output) for row in rows)


def test_a_row_that_was_refused_at_a_full_door_is_not_stepped_and_holds_up_nobody(model: Model) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=0, most=1) as pool:
        pool.submit("a", ROW, 0)
        assert fleet.inside.wait(PATIENCE)
        pool.submit("b", ROW, 0)
        with pytest.raises(SessionBusy, match="1 rows wait already"):
            pool.submit("c", ROW, 0, timeout=0.01)
        fleet.open.set()
        assert isinstance(pool.submit("d", ROW, 0, timeout=PATIENCE).result(PATIENCE), Output)
    assert [name for call in fleet.calls for name in call] == list("abd")


def test_a_wait_for_room_that_is_interrupted_takes_its_row_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=0, most=1) as pool:
        pool.submit("a", ROW, 0)
        assert fleet.inside.wait(PATIENCE)
        pool.submit("b", ROW, 0)

        def interrupted(*_: object) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pool._left, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.submit("c", ROW, 0)
        fleet.open.set()
        pool.drain()
    assert [name for call in fleet.calls for name in call] == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_ends_nothing(model: Model, error: type[BaseException]) -> None:
    fleet = Gate(model)

    def raises(_: object) -> None:
        raise error

    with Pool(fleet, wait_us=0) as pool:
        first = pool.submit("a", ROW, 0)
        first.add_done_callback(raises)
        fleet.open.set()
        assert isinstance(first.result(PATIENCE), Output)
        assert isinstance(pool.submit("b", ROW, 0).result(PATIENCE), Output)


def test_closing_refuses_whoever_waits_before_the_door(model: Model) -> None:
    fleet = Gate(model)
    refused: list[BaseException] = []

    def hand_in(pool: Pool) -> None:
        try:
            pool.step("thread", ROW, 0)
        except SessionBusy as error:
            refused.append(error)

    async def main(pool: Pool) -> Any:
        first, inside = (asyncio.ensure_future(pool.astep(name, ROW, 0)) for name in "ab")
        await asyncio.to_thread(fleet.inside.wait, PATIENCE)
        outside = asyncio.ensure_future(pool.astep("c", ROW, 0))
        thread = threading.Thread(target=hand_in, args=(pool,))
        thread.start()
        while len(pool._line) < 2:
            await asyncio.sleep(0.001)
        closing = threading.Thread(target=pool.close)
        closing.start()
        with pytest.raises(SessionBusy, match="the pool is closed; make a new one"):
            await outside
        fleet.open.set()
        await asyncio.to_thread(thread.join, PATIENCE)
        await asyncio.to_thread(closing.join, PATIENCE)
        return await asyncio.gather(first, inside)

    answers = asyncio.run(main(Pool(fleet, wait_us=0, most=1)))
    assert all(isinstance(answer, Output) for answer in answers)
    assert [str(error) for error in refused] == ["the pool is closed; make a new one over an open model"]


def test_a_callback_may_hand_in_rows_and_may_not_wait_for_the_thread_that_it_runs_in(
    model: Model, tmp_path: Path
) -> None:
    fleet = Gate(model)
    found: list[object] = []

    def attempt(call: Any) -> None:
        try:
            found.append(call())
        except SessionBusy as error:
            found.append(str(error))

    with Pool(fleet, wait_us=0, most=1) as pool:

        def answered(_: Future[Output]) -> None:
            attempt(lambda: pool.submit("full", ROW, 0))
            attempt(lambda: pool.step("b", ROW, 1))
            attempt(pool.drain)
            attempt(pool.close)
            attempt(lambda: pool.save(tmp_path / "snapshot"))

        first = pool.submit("a", ROW, 0)
        first.add_done_callback(answered)
        assert fleet.inside.wait(PATIENCE)
        second = pool.submit("b", ROW, 0)
        fleet.open.set()
        assert isinstance(second.result(PATIENCE), Output)
        pool.drain()
    waits = "waits for the thread that it was called from; call it from another thread"
    assert found == [
        "1 rows wait already, the most that the pool takes; send rows slower",
        *(f"{call} {waits}" for call in ("step", "drain", "close")),
        None,
    ]


@pytest.mark.parametrize(
    "name", ["x" * 20_000, "\ud800", 5, None, ["a"]], ids=["long", "surrogate", "5", "None", "list"]
)
def test_a_name_that_is_none_is_refused_alone(model: Model, name: Any, tmp_path: Path) -> None:
    with Pool(Fleet(model), wait_us=50_000) as pool:
        good = pool.submit("good", ROW, 0)
        with pytest.raises(InputError, match="^streams: (a|the) name .*; give "):
            pool.submit(name, ROW, 0)
        assert isinstance(good.result(PATIENCE), Output)
        pool.save(tmp_path / "snapshot")
        with pytest.raises(InputError, match="^streams: (a|the) name "):
            pool._fleet.step([Observation("good", ROW, 1), Observation(name, ROW, 1)])
        assert pool._fleet.names == ["good"]
        assert isinstance(pool.step("good", ROW, 1), Output)


def test_a_future_can_be_cancelled_until_its_row_is_stepped_and_listened_to_at_any_time(model: Model) -> None:
    fleet, heard = Gate(model), []
    with Pool(fleet, wait_us=0) as pool:
        running = pool.submit("a", ROW, 0)
        assert fleet.inside.wait(PATIENCE)
        waiting = pool.submit("b", ROW, 0)
        assert waiting.cancel()
        assert not running.cancel()
        running.add_done_callback(heard.append)
        fleet.open.set()
        assert isinstance(running.result(PATIENCE), Output)
        failing = pool.submit("a", ROW, 0)
        assert isinstance(failing.exception(PATIENCE), TimeError)
        failing.add_done_callback(heard.append)
        pool.drain()
    assert heard == [running, failing]
    assert fleet.awake == ["a"]


def test_a_call_wakes_an_event_loop_once(model: Model) -> None:
    async def main(pool: Pool) -> tuple[list[Output], list[object]]:
        loop, calls = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **rest: (calls.append(args), wake(*args, **rest))[1]  # type: ignore
        return await asyncio.gather(*(pool.astep(name, ROW, 0) for name in "abcdefgh")), calls

    with Pool(Fleet(model, largest=8), wait_us=60e6) as pool:
        answers, calls = asyncio.run(main(pool))
    assert len(calls) == 1
    assert len(answers) == 8
    assert all(answer.y.tobytes() == answers[0].y.tobytes() for answer in answers)


def test_a_coroutine_that_is_cancelled_takes_its_row_back(model: Model) -> None:
    fleet = Gate(model)

    async def main(pool: Pool) -> None:
        first = asyncio.ensure_future(pool.astep("a", ROW, 0))
        await asyncio.to_thread(fleet.inside.wait, PATIENCE)
        waits, kept_out = (asyncio.ensure_future(pool.astep(name, ROW, 0)) for name in "bc")
        await asyncio.sleep(0.02)
        for task in (waits, kept_out, first):
            task.cancel()
        found = await asyncio.gather(waits, kept_out, first, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        fleet.open.set()

    with Pool(fleet, wait_us=0, most=1) as pool:
        asyncio.run(main(pool))
        pool.drain()
        assert fleet.awake == ["a"], "its row was being stepped"


def test_a_failing_row_of_a_coroutine_raises_there(model: Model) -> None:
    async def main(pool: Pool) -> list[Any]:
        return await asyncio.gather(pool.astep("a", [1, 2], 0), pool.astep("b", ROW, 0), return_exceptions=True)

    with Pool(Fleet(model)) as pool:
        bad, good = asyncio.run(main(pool))
    assert isinstance(bad, InputError)
    assert same(good, model.stream().step(ROW, 0))


def test_a_loop_that_was_closed_holds_up_nobody(model: Model) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=0) as pool:
        loop = asyncio.new_event_loop()
        gone = loop.create_task(pool.astep("a", ROW, 0))
        loop.run_until_complete(asyncio.sleep(0))
        assert fleet.inside.wait(PATIENCE)
        gone._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        other = pool.submit("b", ROW, 0)
        fleet.open.set()
        assert isinstance(other.result(PATIENCE), Output)
        assert isinstance(pool.step("a", ROW, 1), Output)
    gone.get_coro().close()  # type: ignore[union-attr]
