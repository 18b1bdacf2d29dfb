"""When a pool waits, for how long, and when it stops: by a clock that moves only where a test moves it."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from odestream.runtime import Model, Output, SessionBusy
from odestream.runtime.fleet import Fleet
from odestream.runtime.pool import Pool
from tests.helpers.pool_clock import PATIENCE, PoolClock
from tests.runtime.test_pool import Gate

US = 1e-6
ROW = [1, 2, 3]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PoolClock:
    clock = PoolClock()
    clock.install(monkeypatch)
    return clock


class Watched(Fleet):
    """A fleet that notes when its pool looks for idle streams, by the pool's clock, and for how long they must be."""

    def __init__(self, model: Model, clock: PoolClock) -> None:
        super().__init__(model)
        self.looks: list[tuple[float, float]] = []
        self._clock = clock

    def evict_idle(self, seconds: float) -> list[str]:
        self.looks.append((self._clock.now, seconds))
        return super().evict_idle(seconds)


def us(seconds: float | None) -> float:
    assert seconds is not None
    return seconds / US


def answered(future: Future[Output]) -> bool:
    return isinstance(future.result(PATIENCE), Output)


def test_a_row_that_is_alone_waits_for_others_as_long_as_was_asked_for_and_no_longer(
    model: Model, clock: PoolClock
) -> None:
    fleet = Gate(model)
    fleet.open.set()
    with Pool(fleet, wait_us=300) as pool:
        first = pool.submit("a", ROW, 0)
        assert us(clock.until(2)[1]) == pytest.approx(300)
        clock.advance(200 * US)
        second = pool.submit("b", ROW, 0)
        clock.advance(99 * US)
        assert not fleet.inside.wait(0.02)
        assert not first.done()
        clock.advance(2 * US)
        assert answered(first)
        assert answered(second)
    assert fleet.calls == [["a", "b"]], "which came in time"


def test_rows_that_came_during_a_call_have_waited_since_the_first_of_them_came(model: Model, clock: PoolClock) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=300) as pool:
        pool.submit("a", ROW, 0)
        clock.until(2)
        clock.advance(300 * US)
        assert fleet.inside.wait(PATIENCE)
        clock.advance(1)
        pool.submit("b", ROW, 0)
        clock.advance(70 * US)
        pool.submit("c", ROW, 0)
        clock.advance(110 * US)
        fleet.open.set()
        assert us(clock.until(4)[3]) == pytest.approx(120, abs=0.1)
        clock.advance(121 * US)
        pool.drain()
    assert fleet.calls == [["a"], ["b", "c"]]


def test_a_row_that_has_waited_during_a_call_for_longer_than_it_may_waits_no_more(
    model: Model, clock: PoolClock
) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=0) as pool:
        pool.submit("a", ROW, 0)
        assert fleet.inside.wait(PATIENCE)
        later = pool.submit("a", ROW, 1)
        clock.advance(5)
        fleet.open.set()
        assert answered(later), "although nothing moves the clock"
        assert [clock.asked[1], clock.asked[3]] == [0, 0]


def test_a_row_that_a_full_call_left_over_waits_anew_from_the_begin_of_that_call(
    model: Model, clock: PoolClock
) -> None:
    fleet = Gate(model, largest=2)
    with Pool(fleet, wait_us=300) as pool:
        pool.submit("a", ROW, 0)
        pool.submit("a", ROW, 1)
        assert us(clock.until(2)[1]) == pytest.approx(300), "two rows of a stream do not share a call"
        clock.advance(250 * US)
        pool.submit("b", ROW, 0)
        assert fleet.inside.wait(PATIENCE), "a full call begins at once"
        clock.advance(80 * US)
        fleet.open.set()
        assert us(clock.until(4)[3]) == pytest.approx(220, abs=0.1)
        clock.advance(221 * US)
        pool.drain()
    assert fleet.calls == [["a", "b"], ["a"]]


def test_closing_does_not_sit_out_the_wait_of_a_row(model: Model, clock: PoolClock) -> None:
    pool = Pool(Fleet(model), wait_us=1e6)
    future = pool.submit("a", ROW, 0)
    clock.until(2)
    pool.close()
    assert answered(future)
    assert clock.now == 1000


def test_a_pool_that_puts_nothing_away_waits_for_rows_for_ever(model: Model, clock: PoolClock) -> None:
    fleet = Watched(model, clock)
    with Pool(fleet, wait_us=0) as pool:
        pool.step("a", ROW, 0)
        assert clock.until(3) == [None, 0, None]
        clock.advance(1e9)
        pool.step("a", ROW, 1)
    assert not fleet.looks
    assert fleet.awake == ["a"]


def test_idle_streams_are_looked_for_four_times_in_their_time_and_put_away_when_it_is_over(
    model: Model, clock: PoolClock
) -> None:
    fleet = Watched(model, clock)
    with Pool(fleet, wait_us=0, idle=10.0) as pool:
        pool.step("a", ROW, 0)
        assert clock.until(3) == [2.5, 0, 2.5]
        for count in range(4, 8):
            clock.advance(2.25)
            clock.advance(0.25)
            clock.until(count)
        assert [now for now, _ in fleet.looks] == pytest.approx([1000, 1002.5, 1005, 1007.5, 1010])
        assert {seconds for _, seconds in fleet.looks} == {10}
        assert fleet.awake == ["a"], "its time is over now, and no sooner"
        clock.advance(2.5)
        clock.until(8)
        assert not fleet.awake
        assert fleet.names == ["a"]
    assert set(clock.asked) == {2.5, 0}


def test_a_busy_pool_looks_for_idle_streams_no_more_often(model: Model, clock: PoolClock) -> None:
    fleet = Watched(model, clock)
    with Pool(fleet, wait_us=0, idle=10.0) as pool:
        pool.step("quiet", ROW, 0)
        for t in range(36):
            pool.step("busy", ROW, t)
            clock.until(5 + 2 * t)  # it has looked, or not, and waits for the next row
            clock.advance(0.5)
        assert [now for now, _ in fleet.looks] == pytest.approx([1000 + 2.5 * count for count in range(8)])
        assert fleet.awake == ["busy"]


def test_a_full_pool_refuses_a_row_when_the_time_to_wait_for_room_is_over(model: Model, clock: PoolClock) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=0, most=1) as pool:
        running = pool.submit("a", ROW, 0)
        assert fleet.inside.wait(PATIENCE)
        waiting = pool.submit("a", ROW, 1)
        with pytest.raises(SessionBusy, match="1 rows wait already"):
            pool.submit("b", ROW, 0, timeout=0)
        refused: list[BaseException] = []

        def hand_in(timeout: float | None) -> None:
            try:
                pool.step("c", ROW, 0) if timeout is None else pool.submit("b", ROW, 0, timeout=timeout)
            except SessionBusy as error:
                refused.append(error)

        patient, hasty = (threading.Thread(target=hand_in, args=(timeout,)) for timeout in (None, 3.0))
        patient.start()
        hasty.start()
        assert {*clock.until(3, clock.callers)} == {0, None, 3.0}
        clock.advance(2.75)
        hasty.join(0.02)
        assert hasty.is_alive()
        clock.advance(0.25)
        hasty.join(PATIENCE)
        assert len(refused) == 1
        clock.advance(1e6)
        patient.join(0.02)
        assert patient.is_alive()
        fleet.open.set()
        patient.join(PATIENCE)
        assert answered(running)
        assert answered(waiting)
    assert len(refused) == 1
    assert set(fleet.awake) == {"a", "c"}


def test_a_pool_is_drained_only_when_no_row_waits_and_none_is_being_stepped(model: Model, clock: PoolClock) -> None:
    fleet = Gate(model)
    with Pool(fleet, wait_us=300) as pool:
        pool.submit("a", ROW, 0)
        drain = threading.Thread(target=pool.drain)
        drain.start()
        clock.until(1, clock.callers)
        drain.join(0.02)
        assert drain.is_alive(), "the row waits for others"
        clock.until(2)
        clock.advance(301 * US)
        assert fleet.inside.wait(PATIENCE)
        drain.join(0.02)
        assert drain.is_alive(), "it is being stepped"
        fleet.open.set()
        drain.join(PATIENCE)
        assert not drain.is_alive()
