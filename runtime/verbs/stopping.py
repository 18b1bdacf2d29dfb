"""Ending a loop over rows between two of them when a signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Stopper:
    """Turns SIGINT and SIGTERM into the end of an iteration, so that the row in hand is finished.

    signal: the signal that came, None while none has. A second one acts at once. For the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def until_stopped(self, items: Iterator[T]) -> Generator[T, None, None]:
        """The items until a signal comes. Waiting for the next item is broken off; working on one is not."""
        while self.signal is None:
            try:
                try:
                    self._waiting = True
                    item = next(items)
                finally:
                    self._waiting = False  # a signal that comes just before this is still caught below
            except (StopIteration, _StoppedError):
                return
            yield item

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        self._restore()
        if self._waiting:
            raise _StoppedError

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _StoppedError(BaseException):
    """Breaks off a read; no `except Exception` on the way may take it for a failure."""
