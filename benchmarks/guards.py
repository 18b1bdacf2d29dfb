"""What do the guards cost a step: the checks of x and its time before a call, of outputs and new state after it?

One nano cell (D = 64, X = 16, bosh32) with drawn weights, batch 1, one solver step, one thread. On ONNX Runtime every
call is timed but for the engine's own: what stands before and after it, with the guards and with a mere copy of x in
their place, in blocks that take turns. So the guards are as cold as they are in a stream, whose engine streams through
its code and weights between them, and the engine's noise, a hundred times their cost, is left out. Numpy's guards, for
machines that could not compile any, stand beside the compiled ones. A machine that others share is slowed down by half
for seconds at a time: what counts is the quarter of the turns in which the engine was quickest. On native the guards
lie inside the library's step of a stream, which also keeps time, phases and buckets: its cost over a bare call is at
least what the guards take.

    python -m odestream.runtime.kernels.build
    python benchmarks/guards.py            two minutes; the machine should have nothing else to do
    python benchmarks/guards.py --quick    seconds; its figures mean nothing

Writes results/guards.json and a section of RESULTS.md; with --quick into runs/guards only. Falsified where the upper
end of a 95 % interval is above the bound.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claim import judged, run
from latency_model import Inputs, drawn_cell, drawn_inputs, export_cell
from latency_paired import CALLS, Medians, Side, in_turn, interval, median_of
from odestream.models.config import PRESETS, Sizes
from odestream.runtime import CompatError, Model, intake, load
from odestream.runtime.arena import aligned
from odestream.runtime.backends import host
from odestream.runtime.backends.native import NativeEngine
from odestream.runtime.guards import BY_NUMPY, GUARDS, Guards
from odestream.runtime.intake import Intake
from odestream.runtime.kernels.library import Call, load_library
from results import circumstances_text, markdown_table
from sweep import Sweep

BOUND_US = 2.0
QUARTER = 4
SHORT = 16  # calls of native that take as long as one of ONNX Runtime: each meets as many moods of the machine
NATIVE, COMPILED, NUMPY = "native", "ONNX Runtime", "ONNX Runtime, numpy's guards"


@dataclass(frozen=True)
class Plan:
    """Sizes of the cell, the rows that it is given again and again, and the turns in which the sides are timed."""

    sizes: Sizes
    rows: int
    turns: int


FULL = Plan(PRESETS["nano"], 256, 1500)
QUICK = Plan(Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4), 8, 3)


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """µs of a call and of its guards for each engine that runs here."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        time_spec = export_cell(drawn_cell(plan.sizes), bundle, (1,), verify_steps=20)
        inputs = drawn_inputs(time_spec, plan.rows)
        with load(bundle, backend="onnxruntime") as model:
            found |= around_calls(model, inputs, plan.turns)
        try:
            with load(bundle, backend="native") as model:
                found[NATIVE] = inside_the_library(model, inputs, SHORT * plan.turns)
        except CompatError as error:
            print(f"native takes no part: {error}")
    return {"turns": plan.turns, "engines": found}


def around_calls(model: Model, inputs: Inputs, turns: int) -> dict[str, Any]:
    """The compiled guards where they are, and numpy's, around ONNX Runtime's call."""
    kinds = {COMPILED: GUARDS, NUMPY: BY_NUMPY} if GUARDS.compiled else {NUMPY: BY_NUMPY}
    around = {name: _Around(model, inputs, guards) for name, guards in kinds.items()}
    bare = _Around(model, inputs, GUARDS)
    sides = {name: side.block(side.before, side.after) for name, side in around.items()}
    sides["bare"] = bare.block(bare.copy, bare.nothing)
    medians = in_turn(sides, turns)
    use(GUARDS)
    engine = np.median(np.reshape(bare.engine_ns, (turns, CALLS)), axis=1) / 1000
    medians, engine = _undisturbed(medians, engine), np.sort(engine)[: _kept(turns)]
    row = {"call_us": float(np.median(engine))}
    return {name: row | {"cost_us": _difference(medians, name, "bare")} for name in kinds}


class _Around:
    """A call of ONNX Runtime, what stands around it timed by itself."""

    def __init__(self, model: Model, inputs: Inputs, guards: Guards) -> None:
        self._guards, self._rows = guards, _Rows(inputs)
        use(guards)
        self._binding = model.bind(1)
        self._x = self._binding.inputs["x"][0]
        for name, values in inputs.row(1).items():
            np.copyto(self._binding.inputs[name], values)
        self._intake = Intake(model.manifest, self._binding.inputs)
        self._last = -1
        self.engine_ns: list[int] = []

    def block(self, before: Callable[[], None], after: Callable[[], None]) -> Side:
        """A side whose calls stand between `before` and `after`."""
        return Side(partial(use, self._guards), self._rows.prepare, partial(self._call, before, after), own_clock=True)

    def copy(self) -> None:
        """What the bare call does in place of the guards, which copy too."""
        self._x[...] = self._rows.x

    def nothing(self) -> None:
        """What follows a bare call."""

    def before(self) -> None:
        """The guards of `EngineCore.arrive`."""
        intake, tick = self._intake, self._rows.tick
        if not self._guards.advance(self._rows.x, intake.row, tick, self._last):
            raise RuntimeError("time stands still, or a value is not finite")
        if not intake.mask_is_ones:
            intake.see_all()
        self._last = tick

    def after(self) -> None:
        """That of `GapSolver`."""
        if not self._binding.finite():
            raise RuntimeError("the cell left finite numbers")

    def _call(self, before: Callable[[], None], after: Callable[[], None]) -> int:
        start = time.perf_counter_ns()
        before()
        ready = time.perf_counter_ns()
        self._binding.run("1")
        done = time.perf_counter_ns()
        after()
        end = time.perf_counter_ns()
        self._binding.swap()
        self.engine_ns.append(done - ready)
        return ready - start + end - done


def use(guards: Guards) -> None:
    """Put these guards where the runtime looks its own up."""
    for module in (intake, host):
        for name in ("finite", "held"):
            if hasattr(module, name):
                setattr(module, name, getattr(guards, name))


def inside_the_library(model: Model, inputs: Inputs, turns: int) -> dict[str, Any]:
    """A call of the library's step over a binding's buffers, and one of its stream's step."""
    native = _Native(model, inputs)
    sides = {name: Side(_nothing, native.rows.prepare, call) for name, call in native.calls.items()}
    medians = in_turn(sides, turns)
    medians = _undisturbed(medians, medians["bare"] + medians["guarded"])  # both, so that neither is favoured
    return {"call_us": median_of(medians, "bare"), "cost_us": _difference(medians, "guarded", "bare")}


class _Native:
    """Holds what both calls need. The bare one goes again and again from one state."""

    def __init__(self, model: Model, inputs: Inputs) -> None:
        binding, self.rows = model.bind(1), _Rows(inputs)
        for name, values in inputs.row(1).items():
            np.copyto(binding.inputs[name], values)
        self._x = binding.inputs["x"][0]
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
        self.calls = {"bare": self.bare, "guarded": self.guarded}

    def bare(self) -> None:
        """A copy of x and a step."""
        self._x[...] = self.rows.x
        if self._step(self._model.pointer, self._call_at, 1):
            raise RuntimeError("the library refused a call")

    def guarded(self) -> None:
        """The same as a stream makes it."""
        core, rows = self._core, self.rows
        now = core.tick(rows.tick)
        seen = core.take(now, rows.x, None)
        if self._stream_step(core.pointer, now, self._stream_x_at, seen, self._given_at):
            raise RuntimeError("the library refused a step")


class _Rows:
    """Hands out observations whose time goes on through all calls."""

    def __init__(self, inputs: Inputs) -> None:
        self._x, self._gap = list(inputs.x), int(inputs.ticks[1] - inputs.ticks[0])
        self.x, self.tick = self._x[0], int(inputs.ticks[0])

    def prepare(self, i: int) -> None:
        """The next one."""
        self.x = self._x[i % len(self._x)]
        self.tick += self._gap


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    engines = result["engines"]
    said = [
        (row["cost_us"][2] <= BOUND_US, f"{name}: at most {BOUND_US:g} µs a step; {_of(row['cost_us'])}")
        for name, row in engines.items()
        if name != NUMPY
    ]
    table = [[name, f"{row['call_us']:.1f}", _of(row["cost_us"])] for name, row in engines.items()]
    return "\n\n".join(
        [
            *judged(said),
            f"µs a step at batch 1 and one solver step, medians with their 95 % interval. {result['turns']:,} blocks "
            "took turns; the quarter counts in which the engine was quickest, since others share the machine.",
            markdown_table(["", "the engine's call", "its guards"], table),
            circumstances_text(),
        ]
    )


def _of(ends: list[float]) -> str:
    low, middle, high = ends
    return f"{middle:.2f} ({low:.2f} – {high:.2f})"


def _difference(medians: Medians, name: str, other: str) -> list[float]:
    return interval(lambda m: median_of(m, name) - median_of(m, other), medians)


def _undisturbed(medians: Medians, engine: NDArray[np.float64]) -> Medians:
    """Those of the turns in which the engine was quickest."""
    kept = np.argsort(engine, kind="stable")[: _kept(len(engine))]
    return {name: values[kept] for name, values in medians.items()}


def _kept(turns: int) -> int:
    return max(turns // QUARTER, 1)


def _nothing() -> None:
    """Nothing to begin with."""


def _no_figure(result: dict[str, Any], path: Path) -> None:
    """Three figures are a table."""


if __name__ == "__main__":
    run("guards", __doc__, (FULL, QUICK), measure, report, _no_figure)
