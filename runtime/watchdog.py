"""Telling systemd that the service is ready, alive and ending, by the protocol of sd_notify(3).

A thread sends the pings, but only while the loop that does the work goes on, or waits for input: where the work hangs,
pings stop, and systemd restarts the service.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from odestream.runtime.errors import InputError

T = TypeVar("T")


class Watchdog:
    """Sends states to the socket that the environment names; does nothing where it names none. A context manager.

    NOTIFY_SOCKET: the socket (`@` begins an abstract name). WATCHDOG_USEC: how long systemd waits for a ping.
    WATCHDOG_PID: the process that is to ping, this one unless given. InputError where one of them cannot be read.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        if path and path[0] not in "@/":
            raise InputError(f"NOTIFY_SOCKET is {path!r}, expected a path or @name; let systemd set it")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        wanted = bool(path) and environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._interval = _microseconds(environment.get("WATCHDOG_USEC", "")) / 2e6 if wanted else 0.0
        self._waiting = False
        self._done = self._told = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="odestream-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Tell that the service is ready, and begin to ping."""
        self._send("READY=1")
        if self._interval:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send("STOPPING=1")
        self._end.set()
        if self._interval:
            self._thread.join()

    def watched(self, items: Iterator[T]) -> Iterator[T]:
        """The items; waiting for one counts as being alive, and so does having done one."""
        try:
            while True:
                self._waiting = True
                item = next(items, self)
                self._waiting = False
                if item is self:
                    return
                yield item  # type: ignore[misc]
                self.done()
        finally:
            self._waiting = False

    def done(self) -> None:
        """Some of the work is done; for items that are worked on together, long after they came."""
        self._done += 1

    def _watch(self) -> None:
        while True:
            if self._waiting or self._done != self._told:
                self._told = self._done
                self._send("WATCHDOG=1")
            if self._end.wait(self._interval):
                return

    def _send(self, state: str) -> None:
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(state.encode(), self._address)  # that nobody listens must not end the work


def _microseconds(text: str) -> int:
    try:
        value = int(text or 0)
    except ValueError:
        value = -1
    if value < 0:
        raise InputError(f"WATCHDOG_USEC is {text!r}, expected microseconds; let systemd set it")
    return value
