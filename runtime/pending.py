"""A row that waits in a pool, and where its answer goes: to a future, to a thread, or to a coroutine."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

from odestream.runtime.member import Observation
from odestream.runtime.records import Output

if TYPE_CHECKING:
    import asyncio

Answer = Output | BaseException

_LOG = logging.getLogger(__name__)


class Pending(ABC):
    """`row` on its way. entered: whether the pool counts it among those that wait, and no longer before its door."""

    entered = False

    def __init__(self, row: Observation) -> None:
        self.row = row

    def begin(self) -> bool:
        """Whether the row is to be stepped; from here on it cannot be withdrawn."""
        return True

    @abstractmethod
    def settle(self, answer: Answer) -> None:
        """Hand the answer over."""


class ForFuture(Pending):
    """Its answer goes to `future`, which may be cancelled until the row is stepped."""

    def __init__(self, row: Observation) -> None:
        super().__init__(row)
        self.future: Future[Output] = Future()

    def begin(self) -> bool:
        """See `Pending`."""
        return self.future.set_running_or_notify_cancel()

    def settle(self, answer: Answer) -> None:
        """See `Pending`; a callback of the future that would end the pool's thread is logged instead."""
        try:
            if isinstance(answer, Output):
                self.future.set_result(answer)
            else:
                self.future.set_exception(answer)
        except BaseException:  # noqa: BLE001 (SystemExit, say: all others wait for the thread)
            _LOG.exception("a callback raised; the pool goes on")


class ForThread(Pending):
    """Its answer goes to the one thread that calls `wait`: a lock, which costs a tenth of a future."""

    _answer: Answer

    def __init__(self, row: Observation) -> None:
        super().__init__(row)
        self._bell = Lock()
        self._bell.acquire()

    def settle(self, answer: Answer) -> None:
        """See `Pending`."""
        self._answer = answer
        self._bell.release()

    def wait(self) -> Output:
        """The Output, or the row's error raised."""
        self._bell.acquire()
        return _given(self._answer)


class ForLoop(Pending):
    """Its answer goes to the one coroutine that awaits `wait`, once `wake_loops` was called."""

    _answer: Answer

    def __init__(self, row: Observation, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(row)
        self.loop = loop
        self.ear: asyncio.Future[None] = loop.create_future()
        self._withdrawn = False

    def begin(self) -> bool:
        """See `Pending`."""
        return not self._withdrawn

    def settle(self, answer: Answer) -> None:
        """See `Pending`."""
        self._answer = answer

    async def wait(self) -> Output:
        """The Output, or the row's error raised; a row whose coroutine is cancelled before is not stepped."""
        try:
            await self.ear
        finally:
            self._withdrawn = True
        return _given(self._answer)


def wake_loops(rows: Iterable[Pending]) -> None:
    """Tell the coroutines among those that wait for settled rows, each event loop once."""
    ears: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for row in rows:
        if isinstance(row, ForLoop):
            ears.setdefault(row.loop, []).append(row.ear)
    for loop, found in ears.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_hear, found)


def _hear(ears: Iterable[asyncio.Future[None]]) -> None:
    for ear in ears:
        if not ear.done():  # cancelled meanwhile
            ear.set_result(None)


def _given(answer: Answer) -> Output:
    if isinstance(answer, Output):
        return answer
    raise answer
