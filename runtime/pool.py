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
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from odestream.runtime.errors import InputError, SessionBusy
from odestream.runtime.fleet import Fleet
from odestream.runtime.generations import write_generation
from odestream.runtime.member import Observation
from odestream.runtime.records import Output

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_Job = tuple[Observation, "Future[Output]"]


class Pool:
    """Serves a fleet to any number of threads and coroutines; use it as a context manager.

    wait_us: how long a row may wait for others to share its call, in µs; a call also starts when `fleet.largest`
    streams have rows. most: rows that may wait before `submit` holds its caller up. idle: seconds after which a stream
    without rows is put away (`Fleet.evict_idle`); None: never. The fleet is the pool's until it is closed.
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
        self._changed = threading.Condition()
        self._jobs: dict[str, deque[_Job]] = {}
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
        is no room in time, and where the pool is closed.
        """
        row = Observation(stream, _own(x), t, None if mask is None else _own(mask))
        future: Future[Output] = Future()
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._waiting < self._most, timeout):
                raise SessionBusy(f"{self._waiting} rows wait already, the most that the pool takes; send rows slower")
            if self._closed:
                raise SessionBusy("the pool is closed; make a new one over an open model")
            if not self._waiting:
                self._oldest = time.monotonic()
            self._jobs.setdefault(stream, deque()).append((row, future))
            self._waiting += 1
            if self._waiting == 1 or len(self._jobs) >= self._fleet.largest:
                self._changed.notify_all()  # rows in between would only wake the thread to wait on
        return future

    def step(self, stream: str, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """Hand in a row and wait for its answer."""
        return self.submit(stream, x, t, mask).result()

    async def astep(self, stream: str, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """The same for coroutines: neither the answer nor a full pool blocks the event loop."""
        import asyncio  # costs what half of this package costs to import; whoever calls this has it

        try:
            future = self.submit(stream, x, t, mask, timeout=0)
        except SessionBusy:
            future = await asyncio.to_thread(self.submit, stream, x, t, mask)
        return await asyncio.wrap_future(future)

    def predict(self, stream: str, t: int) -> Output:
        """What the model expects of a stream after the rows that were answered; the stream is unchanged."""
        return self._with_fleet(lambda fleet: fleet.predict(stream, t))

    def save(self, path: Path) -> None:
        """Write a snapshot of all streams between two calls, and keep the one before (see `generations`)."""
        data = self._with_fleet(lambda fleet: fleet.snapshot())
        write_generation(path, data)

    def drain(self) -> None:
        """Wait until every row that was handed in is answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._running)

    def close(self, snapshot: Path | None = None) -> None:
        """Refuse new rows, answer those that wait, then save and end the streams. Closing twice is allowed.

        Where the snapshot cannot be written the streams live on: close again, with another path or without one.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
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

    def _with_fleet(self, use: Callable[[Fleet], T]) -> T:
        with self._using:
            return use(self._fleet)

    def _work(self) -> None:
        while True:
            with self._changed:
                jobs = self._gather()
            if jobs is None:
                return
            if jobs:
                self._answer(jobs)
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

    def _gather(self) -> list[_Job] | None:
        """The rows of the next call; none where streams may have become idle, None where the pool is done."""
        look = None if self._idle is None else self._idle / 4
        if not self._changed.wait_for(lambda: self._waiting or self._closed, look):
            return []
        if not self._waiting:
            return None
        enough = self._fleet.largest
        left = self._oldest + self._wait - time.monotonic()
        self._changed.wait_for(lambda: len(self._jobs) >= enough or self._closed, max(left, 0))
        jobs = []
        for stream in list(self._jobs)[:enough]:
            waiting = self._jobs.pop(stream)
            jobs.append(waiting.popleft())
            if waiting:
                self._jobs[stream] = waiting  # at the end: the others have their turn first
        self._waiting -= len(jobs)
        self._running = len(jobs)
        self._oldest = time.monotonic()
        self._changed.notify_all()
        return jobs

    def _answer(self, jobs: Sequence[_Job]) -> None:
        live = [(row, future) for row, future in jobs if future.set_running_or_notify_cancel()]
        try:
            answers = self._with_fleet(lambda fleet: fleet.step([row for row, _ in live]))
        except BaseException as error:  # noqa: BLE001 (whoever waits must hear of it; the thread must go on)
            for _, future in live:
                future.set_exception(error)
        else:
            for (_, future), answer in zip(live, answers, strict=True):
                if isinstance(answer, Output):
                    future.set_result(answer)
                else:
                    future.set_exception(answer)
        finally:
            with self._changed:
                self._running = 0
                self._changed.notify_all()


def _own(values: ArrayLike) -> ArrayLike:
    """A copy that the caller cannot change; the stream judges what it is."""
    if isinstance(values, np.ndarray) and not values.dtype.hasobject:
        return np.array(values)  # in a tenth of the time
    try:
        return copy.deepcopy(values)
    except TypeError:
        return np.array(values)  # a view of memory
