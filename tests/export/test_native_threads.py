"""Streams of the C library that several threads reach for at once."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.export.conftest import Exported
from tests.export.test_native_streams import rows
from tests.helpers.clib import BUSY, OK, CStream, Refused, opened

pytestmark = pytest.mark.usefixtures("opening_library")


def test_a_snapshot_taken_while_a_thread_steps_is_whole_or_refused(exported: Exported) -> None:
    every = list(rows("forecast", 300, seed=4))
    bundle = exported("forecast")[1]
    with opened(bundle.path) as model:
        stream, found, done = model.stream(bundle.manifest), list[bytes](), threading.Event()
        size = len(stream.snapshot()) + 4096

        def watch() -> None:
            data, wrote = ctypes.create_string_buffer(size), ctypes.c_size_t()
            while not done.is_set():
                if model.library.odestream_snapshot(stream.pointer, data, size, ctypes.byref(wrote)) == OK:
                    found.append(data.raw[: wrote.value])

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                for row in every:
                    while (status := status_of_step(stream, row)) == BUSY:
                        pass
                    assert status == OK
            finally:
                done.set()
            watching.result()
        again, known = model.stream(bundle.manifest), set[bytes]()
        known.add(again.snapshot())
        for row in every:
            again.step(*row)
            known.add(again.snapshot())
        assert found
        assert set(found) <= known
        stream.close()
        again.close()


def status_of_step(stream: CStream, row: tuple[Any, ...]) -> int:
    try:
        stream.step(*row)
    except Refused as refusal:
        return refusal.status
    return OK
