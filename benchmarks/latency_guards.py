"""What the guards cost: the checks of x and its time before a call, of outputs and new state after it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from latency_model import Inputs
from latency_paired import Side, in_turn, interval, median_of
from odestream.runtime import Model
from odestream.runtime.arena import aligned
from odestream.runtime.backends import Binding
from odestream.runtime.backends.native import NativeEngine
from odestream.runtime.clock import Clock
from odestream.runtime.intake import Intake
from odestream.runtime.kernels.library import Call, load_library


def guards(models: Mapping[str, Model], inputs: Inputs, turns: int) -> dict[str, dict[str, Any]]:
    """Backend → µs of a call at batch 1 and one solver step, without guards and with them, and the difference.

    Both sides copy x into a buffer and make one call. On native both are calls of the library, of one model: the bare
    one is `odestream_step`, again and again from one state. The guards lie inside `odestream_stream_step`, which also
    keeps time, phases and buckets: the difference is at least what the guards cost. Where they are Python,
    `alone_us` is what they take right after themselves, less a copy of x: a call that streams through its engine's code
    and weights leaves them cold, and a good part of the difference is the way back into the caches.
    """
    found = {}
    for backend, model in models.items():
        binding, rows = model.bind(1), _Rows(inputs)
        for name, values in inputs.row(1).items():
            np.copyto(binding.inputs[name], values)
        calls = (_Native if backend == "native" else _InPython)(model, binding, rows)
        sides = {"bare": calls.bare, "guarded": calls.guarded}
        if isinstance(calls, _InPython):
            sides |= {"copied": calls.copied, "alone": calls.alone}
        medians = in_turn({name: Side(lambda: None, rows.prepare, call) for name, call in sides.items()}, turns)
        found[backend] = {
            "bare_us": median_of(medians, "bare"),
            "guarded_us": median_of(medians, "guarded"),
            "cost_us": interval(lambda m: median_of(m, "guarded") - median_of(m, "bare"), medians),
        }
        if "alone" in sides:
            alone = interval(lambda m: median_of(m, "alone") - median_of(m, "copied"), medians)
            found[backend]["alone_us"] = alone
    return found


class _Rows:
    """Hands out observations whose time goes on through both sides' calls."""

    def __init__(self, inputs: Inputs) -> None:
        self._x, self._gap = list(inputs.x), int(inputs.ticks[1] - inputs.ticks[0])
        self.x, self.tick = self._x[0], int(inputs.ticks[0])

    def prepare(self, i: int) -> None:
        self.x = self._x[i % len(self._x)]
        self.tick += self._gap


class _InPython:
    """A call of the engine, and the same with the guards of `odestream.runtime.core` around it."""

    def __init__(self, model: Model, binding: Binding, rows: _Rows) -> None:
        self._binding, self._rows, self._x = binding, rows, binding.inputs["x"][0]
        self._clock, self._intake = Clock(model.manifest.time), Intake(model.manifest, binding.inputs)
        self._last = -1

    def bare(self) -> None:
        self._x[...] = self._rows.x
        self._binding.run("1")
        self._binding.swap()

    def copied(self) -> None:
        self._x[...] = self._rows.x

    def alone(self) -> None:
        self._before()
        self._after()

    def guarded(self) -> None:
        self._before()
        self._binding.run("1")
        self._after()
        self._binding.swap()

    def _before(self) -> None:
        now = self._clock.tick(self._rows.tick)
        if now <= self._last:
            raise RuntimeError("time stands still")
        self._intake.observe(self._rows.x, None)
        self._last = now

    def _after(self) -> None:
        if not self._binding.finite():
            raise RuntimeError("the cell left finite numbers")


class _Native:
    """A call of the library's step over the binding's buffers, and one of its stream's step; holds what both need."""

    def __init__(self, model: Model, binding: Binding, rows: _Rows) -> None:
        self._rows, self._x = rows, binding.inputs["x"][0]
        self._core = NativeEngine(load_library(), model.bundle).core((1,))
        self._model, library = self._core.model, self._core.model.library
        self._step, self._stream_step = library.odestream_step, library.odestream_stream_step
        scratch = aligned((self._model.scratch_bytes,), np.uint8)
        states = {"state": binding.arena, "next_state": binding.next_arena}
        self._arrays = {**binding.inputs, **binding.outputs, **states, "scratch": scratch}
        self._call = Call(batch=1, **{name: array.ctypes.data for name, array in self._arrays.items()})
        self._flat = np.zeros(self._core.reader.width, np.float32)
        self._given = self._core.reader.place(self._flat.ctypes.data)
        self._call_at, self._given_at = ctypes.addressof(self._call), ctypes.addressof(self._given)
        self._stream_x_at = self._core.x.ctypes.data

    def bare(self) -> None:
        self._x[...] = self._rows.x
        if self._step(self._model.pointer, self._call_at, 1):
            raise RuntimeError("the library refused a call")

    def guarded(self) -> None:
        core, rows = self._core, self._rows
        now = core.tick(rows.tick)
        seen = core.take(now, rows.x, None)
        if self._stream_step(core.pointer, now, self._stream_x_at, seen, self._given_at):
            raise RuntimeError("the library refused a step")
