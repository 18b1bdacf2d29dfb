"""What the guards cost: the checks of x and its time before a call, of outputs and new state after it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from latency_model import Inputs
from latency_paired import Side, in_turn, interval, median_of
from odestream.runtime import Model
from odestream.runtime.backends import Binding
from odestream.runtime.backends.native import NativeEngine
from odestream.runtime.clock import Clock
from odestream.runtime.intake import Intake
from odestream.runtime.kernels.library import load_library


def guards(models: Mapping[str, Model], inputs: Inputs, turns: int) -> dict[str, dict[str, Any]]:
    """Backend → µs of a call at batch 1 and one solver step, without guards and with them, and the difference.

    On native the guards lie inside the library's `odestream_stream_step`, which also keeps time, phases and buckets:
    the difference to the bare `odestream_step` is at least what the guards cost.
    """
    found = {}
    for backend, model in models.items():
        binding = model.bind(1)
        for name, values in inputs.row(1).items():
            np.copyto(binding.inputs[name], values)
        rows = _Rows(inputs)
        guarded = _native(model, rows) if backend == "native" else _in_python(model, binding, rows)
        sides = {"bare": _bare(binding, rows), "guarded": Side(lambda: None, rows.prepare, guarded)}
        medians = in_turn(sides, turns)
        found[backend] = {
            "bare_us": median_of(medians, "bare"),
            "guarded_us": median_of(medians, "guarded"),
            "cost_us": interval(lambda m: median_of(m, "guarded") - median_of(m, "bare"), medians),
        }
    return found


class _Rows:
    """Hands out observations whose time goes on through both sides' calls."""

    def __init__(self, inputs: Inputs) -> None:
        self._x, self._gap = list(inputs.x), int(inputs.ticks[1] - inputs.ticks[0])
        self.x, self.tick = self._x[0], int(inputs.ticks[0])

    def prepare(self, i: int) -> None:
        self.x = self._x[i % len(self._x)]
        self.tick += self._gap


def _bare(binding: Binding, rows: _Rows) -> Side:
    x = binding.inputs["x"][0]

    def call() -> None:
        x[...] = rows.x
        binding.run("1")
        binding.swap()

    return Side(lambda: None, rows.prepare, call)


def _in_python(model: Model, binding: Binding, rows: _Rows) -> Callable[[], None]:
    """The guards of `odestream.runtime.core`, around the call that the other side makes."""
    clock, intake, last = Clock(model.manifest.time), Intake(model.manifest, binding.inputs), -1

    def call() -> None:
        nonlocal last
        now = clock.tick(rows.tick)
        if now <= last:
            raise RuntimeError("time stands still")
        intake.observe(rows.x, None)
        binding.run("1")
        if not binding.finite():
            raise RuntimeError("the cell left finite numbers")
        binding.swap()
        last = now

    return call


def _native(model: Model, rows: _Rows) -> Callable[[], None]:
    core = NativeEngine(load_library(), model.bundle).core((1,))
    step, x = core.model.library.odestream_stream_step, core.x.ctypes.data
    flat = np.zeros(core.reader.width, np.float32)
    given = core.reader.place(flat.ctypes.data)

    def call() -> None:
        now = core.tick(rows.tick)
        if step(core.pointer, now, x, core.take(now, rows.x, None), ctypes.addressof(given)):
            raise RuntimeError("the library refused a step")

    return call
