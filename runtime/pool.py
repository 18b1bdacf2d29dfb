"""Many streams over one model, for many callers: rows are gathered and stepped together by a thread of the pool.

Rows of different streams share an engine call; of one stream they are stepped in the order in which they came. Every
round takes at most one row of a stream, and streams take turns, so that a busy one holds up no other. Where more rows
wait than the pool takes, `submit` waits, then refuses: whoever sends too fast is told so.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.errors import InputError, SessionBusy
from odestream.runtime.fleet import Fleet
from odestream.runtime.generations import write_generation
from odestream.runtime.member import Observation, check_name
from odestream.runtime.pending import Answer, ForFuture, ForLoop, ForThread, Pending, wake_loops
from odestream.runtime.records import Output

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Pool:
    """Serves a fleet to any number of threads and coroutines; use it as a context manager.

    wait_us: how long a row may wait for others to share its call, in µs, and anew where a full call left it over; a
    call also starts when `fleet.largest` streams have rows, and when no more rows may wait. most: rows that may wait
    before `submit` holds its caller up. idle: seconds after which a stream without rows is put away
    (`Fleet.evict_idle`); None: never. The fleet is the pool's until it is closed.
    """

    def __init__(self, fleet: Fleet, wait_us: float = 200, most: int = 4096, idle: float | None = None) -> None:
        if wait_us < 0 or most < 1 or (idle is not None and not idle > 0):
            raise InputError(
                f"wait_us {wait_us}, most {most}, idle {idle}; give a wait from 0, at least one row, and a time above 0"
            )
        self._fleet = fleet
        self._using = threading.Lock()
        self._wait = wait_us / 1e6
        self._most = most
        self._idle = idle
        self._lock = threading.Lock()
        self._came, self._left = threading.Condition(self._lock), threading.Condition(self._lock)
        self._next: dict[str, Pending] = {}  # each stream's next row, by turns
        self._later: dict[str, deque[Pending]] = {}  # the rows behind it
        self._line: deque[Pending] = deque()  # the rows before the door, while as many wait as may
        self._waiting = 0
        self._running = 0
        self._oldest = self._next_look = 0.0
        self._closed = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="odestream-pool", daemon=True)
        self._thread.start()

    def submit(
        self,
        stream: str,
        x: ArrayLike,
        t: int | None = None,
        mask: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> Future[Output]:
        """Hand in a row; the future gives its Output, or raises its error, which no other row has.

        The values are copied. timeout: seconds to wait for room, None for as long as it takes. SessionBusy where there
        is no room in time, where the pool is closed, and where a future's callback would have to wait. InputError for a
        name that is none.
        """
        pending = ForFuture(_observation(stream, x, t, mask))
        self._hand_in(pending, timeout)
        return pending.future

    def step(self, stream: str, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """Hand in a row and wait for its answer."""
        self._refuse_own_thread("step")
        pending = ForThread(_observation(stream, x, t, mask))
        self._hand_in(pending)
        return pending.wait()

    async def astep(self, stream: str, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """The same for coroutines: neither the answer nor a full pool blocks the event loop.

        Rows that wait for room keep the order in which they were handed in.
        """
        import asyncio  # costs what half of this package costs to import; whoever calls this has it

        pending = ForLoop(_observation(stream, x, t, mask), asyncio.get_running_loop())
        with self._lock:
            self._line_up(pending)
        return await pending.wait()

    def predict(self, stream: str, t: int) -> Output:
        """What the model expects of a stream after the rows that were answered; the stream is unchanged."""
        return self._with_fleet(lambda fleet: fleet.predict(stream, t))

    def save(self, path: Path) -> None:
        """Write a snapshot of all streams between two calls, and keep the one before (see `generations`)."""
        data = self._with_fleet(lambda fleet: fleet.snapshot())
        write_generation(path, data)

    def drain(self) -> None:
        """Wait until every row that was handed in is answered."""
        self._refuse_own_thread("drain")
        with self._lock:
            self._left.wait_for(lambda: not self._waiting and not self._running)

    def close(self, snapshot: Path | None = None) -> None:
        """Refuse new rows, answer those that wait, then save and end the streams. Closing twice is allowed.

        Where the snapshot cannot be written the streams live on: close again, with another path or without one.
        """
        self._refuse_own_thread("close")
        with self._lock:
            self._closed = True
            before_the_door = [pending for pending in self._line if isinstance(pending, ForLoop)]
            self._line.clear()
            self._came.notify_all()
            self._left.notify_all()
        for pending in before_the_door:
            pending.settle(_closed())
        wake_loops(before_the_door)
        self._thread.join()
        if self._ended:
            return
        if snapshot is not None:
            self.save(snapshot)
        self._ended = True
        self._with_fleet(lambda fleet: fleet.close())

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hand_in(self, pending: Pending, timeout: float | None = None) -> None:
        with self._lock:
            if self._line_up(pending):
                return
            try:
                self._wait_at_the_door(pending, timeout)
            finally:  # where the wait was interrupted too
                if not pending.entered and pending in self._line:
                    self._line.remove(pending)

    def _wait_at_the_door(self, pending: Pending, timeout: float | None) -> None:
        if threading.current_thread() is self._thread or not self._left.wait_for(
            lambda: pending.entered or self._closed, timeout
        ):
            raise SessionBusy(f"{self._waiting} rows wait already, the most that the pool takes; send rows slower")
        if not pending.entered:
            raise _closed()

    def _line_up(self, pending: Pending) -> bool:
        """Let a row in, or have it wait before the door, behind those that came earlier."""
        if self._closed:
            raise _closed()
        if self._waiting >= self._most:
            self._line.append(pending)
        else:
            self._enter(pending)
        return pending.entered

    def _enter(self, pending: Pending) -> None:
        pending.entered = True
        stream = pending.row.stream
        if not self._waiting:
            self._oldest = time.monotonic()
        if stream in self._next:
            self._later.setdefault(stream, deque()).append(pending)
        else:
            self._next[stream] = pending
        self._waiting += 1
        if self._waiting in (1, self._most) or len(self._next) >= self._fleet.largest:
            self._came.notify_all()  # rows in between would only wake the thread to wait on

    def _refuse_own_thread(self, call: str) -> None:
        """A future's callback runs in the pool's thread, which cannot wait for itself."""
        if threading.current_thread() is self._thread:
            raise SessionBusy(f"{call} waits for the thread that it was called from; call it from another thread")

    def _with_fleet(self, use: Callable[[Fleet], T]) -> T:
        with self._using:
            return use(self._fleet)

    def _work(self) -> None:
        while True:
            with self._lock:
                rows = self._gather()
            if rows is None:
                return
            if rows:
                self._answer(rows)
            self._put_idle_away()

    def _put_idle_away(self) -> None:
        """Look at all streams, four times in the time that makes one idle."""
        idle, now = self._idle, time.monotonic()
        if idle is not None and now >= self._next_look:
            self._next_look = now + idle / 4
            try:
                self._with_fleet(lambda fleet: fleet.evict_idle(idle))
            except Exception as error:  # noqa: BLE001 (a full disk must not end the thread that callers wait for)
                _LOG.warning("idle streams stay awake (%s); look at the shelf's disk", error)

    def _gather(self) -> list[Pending] | None:
        """The rows of the next call; none where streams may have become idle, None where the pool is done."""
        look = None if self._idle is None else self._idle / 4
        if not self._came.wait_for(lambda: self._waiting or self._closed, look):
            return []
        if not self._waiting:
            return None
        enough = self._fleet.largest
        left = self._oldest + self._wait - time.monotonic()
        full = self._most  # no row could join
        self._came.wait_for(lambda: len(self._next) >= enough or self._waiting >= full or self._closed, max(left, 0))
        rows = self._take(enough)
        self._waiting -= len(rows)
        self._running = len(rows)
        self._oldest = time.monotonic()
        while self._line and self._waiting < self._most:
            self._enter(self._line.popleft())
        self._left.notify_all()
        return rows

    def _take(self, most: int) -> list[Pending]:
        """A row of each of the streams whose turn it is; their next rows go behind those of the others."""
        if len(self._next) <= most:
            taken, self._next = self._next, {}
        else:
            taken = {stream: self._next.pop(stream) for stream in list(islice(self._next, most))}
        for stream in taken if self._later else ():
            if later := self._later.get(stream):
                self._next[stream] = later.popleft()
                if not later:
                    del self._later[stream]
        return [*taken.values()]

    def _answer(self, rows: Sequence[Pending]) -> None:
        live = [row for row in rows if row.begin()]
        answers: Sequence[Answer]
        try:
            answers = self._with_fleet(lambda fleet: fleet.step([row.row for row in live]))
        except BaseException as error:  # noqa: BLE001 (whoever waits must hear of it; the thread must go on)
            answers = [error] * len(live)
        for row, answer in zip(live, answers, strict=True):
            row.settle(answer)
        wake_loops(live)
        with self._lock:
            self._running = 0
            self._left.notify_all()


def _observation(stream: str, x: ArrayLike, t: int | None, mask: ArrayLike | None) -> Observation:
    """A row of its own; a name that is none is refused here, where no other row shares its call."""
    check_name(stream)
    return Observation(stream, _own(x), t, None if mask is None else _own(mask))


def _closed() -> SessionBusy:
    return SessionBusy("the pool is closed; make a new one over an open model")


def _own(values: ArrayLike) -> ArrayLike:
    """A copy that the caller cannot change; the stream judges what it is."""
    if isinstance(values, np.ndarray) and not values.dtype.hasobject:
        copied: NDArray[Any] = values.copy()  # in a tenth of the time
        return copied
    try:
        return copy.deepcopy(values)
    except TypeError:
        return np.array(values)  # a view of memory
