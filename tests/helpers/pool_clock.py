"""A clock that stands still until a test moves it, for everything of a pool that waits or looks at the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from odestream.runtime import fleet, member, pool

PATIENCE = 20
"""Real seconds that a test waits for what must come; nothing that passes takes them."""


class PoolClock:
    """The time of every pool, fleet and stream that is made after `install`.

    asked: for how long the pool's own thread has asked to wait, call by call: first for a row, then for others to share
    its call, and so on. callers: the same for all other threads. None: for ever.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[float | None] = []
        self.callers: list[float | None] = []
        self._changed = threading.Condition()
        self._conditions: list[threading.Condition] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the modules' own clocks and conditions."""
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        for module in (pool, fleet, member):
            patch.setattr(module, "time", clock)
        names = {name: getattr(threading, name) for name in ("Lock", "Thread", "current_thread")}
        patch.setattr(pool, "threading", SimpleNamespace(**names, Condition=self._condition))

    def advance(self, seconds: float) -> None:
        """Let time pass, and let everybody look at the clock."""
        self.now += seconds
        for condition in self._conditions:
            with condition:
                condition.notify_all()

    def until(self, count: int, asked: list[float | None] | None = None) -> list[float | None]:
        """What was asked for, once the pool's thread (or who else it is) has asked `count` times."""
        found = self.asked if asked is None else asked
        with self._changed:
            assert self._changed.wait_for(lambda: len(found) >= count, PATIENCE), found
            return found[:]

    def note(self, timeout: float | None) -> None:
        """The current thread asks to wait."""
        with self._changed:
            ours = threading.current_thread().name == "odestream-pool"
            (self.asked if ours else self.callers).append(timeout)
            self._changed.notify_all()

    def _condition(self, lock: Any) -> threading.Condition:
        self._conditions.append(_Condition(self, lock))
        return self._conditions[-1]


class _Condition(threading.Condition):
    def __init__(self, clock: PoolClock, lock: Any) -> None:
        super().__init__(lock)
        self._clock = clock

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        self._clock.note(timeout)
        end = None if timeout is None else self._clock.now + timeout
        while not (found := predicate()) and (end is None or self._clock.now < end):
            assert self.wait(PATIENCE), "nobody comes"
        return found
