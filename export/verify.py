"""Parity: the torch step and a backend run side by side, call by call and chained.

A chain runs on from its own states as long as the two can be compared. Some trained cells amplify rounding: torch's
own float32 then departs from float64 just as far as a graph does from torch, and says nothing about the graph. Where
that is so, and only there, the chain is cut by resets until it can be compared; a row's `steps` says how long it was.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from odestream.export.plan import BATCH, Plan, Source, make_plan, source
from odestream.export.precision import precision, rounded
from odestream.export.protocol import Tensors, initial_state
from odestream.export.threads import one_thread
from odestream.export.vectors import Recorder
from odestream.models.cell import Cell
from odestream.runtime.arena import Arena, Layout
from odestream.runtime.backends import Binding, Engine, open_engine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.contract.tolerances import Tolerances, tolerances
from odestream.runtime.contract.vectors import Vectors
from odestream.runtime.errors import InputError
from odestream.runtime.replay import CHAINED, MIXED, SHORTER_CHAINS, failures

Reference = Callable[[str, Tensors, Tensors], tuple[Tensors, Tensors]]
Ticker = Callable[[], None]

ONE_CALL = "one call"
NO_SINGLE_BUCKET = 0
STORED_MIXED_STEPS = 200
CALLS_A_BUCKET = 8
NARROW_STEPS, NARROW_CHAIN = 200, 20
ROUNDING = "torch in half precision"
ROUNDING_SHARE = 0.1  # of a difference: what torch's own departure from float64 must reach to explain it


@dataclass(frozen=True)
class Parity:
    """What a verification found, and the chain it ran with torch's answers, for replays without torch."""

    rows: tuple[ParityRow, ...]
    vectors: Vectors


def torch_reference(module: nn.Module) -> Reference:
    """The eager step as a function of the graph's label: a cell takes as many solver steps as the label says."""
    made: dict[str, nn.Module] = {}

    def step(label: str, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        if label not in made:
            made[label] = _for_label(module, label)
        with torch.inference_mode():
            outputs, after = made[label].step(inputs, state)  # type: ignore[operator]
        return dict(outputs), dict(after)

    return step


def verify(
    engine: Engine,
    manifest: Manifest,
    module: nn.Module,
    steps: int,
    tick: Ticker = lambda: None,
    recorded: int | None = None,
) -> Parity:
    """Run `steps` chained steps in the default graph, as many through mixed graphs, and single calls in each.

    recorded: the chain that is kept for replays starts anew every so many rows; None keeps it as it was compared.
    """
    with one_thread():
        return _verify(engine, manifest, module, steps, tick, recorded)


def verify_rounding(engine: Engine, manifest: Manifest, module: nn.Module, tick: Ticker) -> tuple[ParityRow, ...]:
    """Compare an engine in half precision with torch in half precision, over `NARROW_STEPS` in short chains.

    A rounding now and then decides which slot of the episodic memory gives way; from there on two streams have two
    histories, and say nothing about each other.
    """
    with one_thread():
        origin = source(module, manifest.spec, manifest.solver, manifest.time)
        run = _Run(manifest.spec, torch_reference(module), engine.bind(BATCH), tick)
        limits = tolerances(manifest.dtype, ROUNDING)
        plan = make_plan(origin, [manifest.default_graph] * NARROW_STEPS, seed=1)
        bucket = _bucket(manifest.default_graph)
        rows = run.chain(plan, 0, NARROW_CHAIN).rows(f"{CHAINED}, half precision", bucket, NARROW_CHAIN, limits)
        for label in manifest.graphs:
            rows += _single_calls(run, origin, label, limits, f"{ONE_CALL}, half precision")
    return tuple(rows)


def verify_bundle(
    bundle: str | Path, module: nn.Module, steps: int = 1000, backend: str = "onnxruntime"
) -> tuple[ParityRow, ...]:
    """Compare a finished bundle with the module that it was exported from; a row passes where error <= tolerance."""
    loaded = read_bundle(bundle)
    return _verify_loaded(loaded, module, steps, backend)


def verify_against_run(
    bundle: str | Path, run: str | Path, steps: int = 1000, backend: str = "onnxruntime"
) -> tuple[ParityRow, ...]:
    """Compare a finished bundle with the training run that it was exported from; see `verify_bundle`.

    Raises InputError where the bundle was not exported from a run of such a model.
    """
    from odestream.models.checkpoint import load_model
    from odestream.models.model import from_dict

    loaded = read_bundle(bundle)
    trained, _ = load_model(run)
    if not loaded.manifest.config:
        raise InputError(f"{bundle} was exported from a module, not from a training run; verify it without --run")
    cell = from_dict(loaded.manifest.config)
    own, theirs = cell.state_dict(), trained.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
        raise InputError(f"{bundle} was not exported from {run}: the weights' shapes differ; name its own run")
    cell.load_state_dict(theirs)
    return _verify_loaded(loaded, cell.eval(), steps, backend)


def _verify(
    engine: Engine, manifest: Manifest, module: nn.Module, steps: int, tick: Ticker, recorded: int | None
) -> Parity:
    spec, labels = manifest.spec, list(manifest.graphs)
    origin = source(module, spec, manifest.solver, manifest.time)
    run = _Run(spec, torch_reference(module), engine.bind(BATCH), tick)
    limits = tolerances(manifest.dtype, engine.name)
    twin = _Twin(spec, module)
    default = make_plan(origin, [manifest.default_graph] * steps, seed=1)
    check = _Check(CHAINED, _bucket(manifest.default_graph), limits, recorded)
    rows = _chained(run, twin, default, steps, check)
    rows += [row for label in labels for row in _single_calls(run, origin, label, limits)]
    if len(labels) > 1:
        mixed = make_plan(origin, _mixture(labels, steps), seed=2)
        check = _Check(MIXED, NO_SINGLE_BUCKET, limits, recorded)
        rows += _chained(run, twin, mixed, STORED_MIXED_STEPS, check)
    return Parity(tuple(rows), run.record.vectors())


def _verify_loaded(bundle: Bundle, module: nn.Module, steps: int, backend: str) -> tuple[ParityRow, ...]:
    """Compare with the module as the bundle holds it: a narrow bundle's matrices were rounded when it was exported."""
    held = rounded(module, precision(bundle.manifest.dtype))
    engine = open_engine(backend, bundle, threads=1)
    try:
        return verify(engine, bundle.manifest, held, steps).rows
    finally:
        engine.close()


def _for_label(module: nn.Module, label: str) -> nn.Module:
    """A shallow copy of a cell, which shares its weights, with another number of solver steps."""
    if label == NO_SOLVER or not isinstance(module, Cell):
        return module
    clone = copy.copy(module)
    clone.config = dataclasses.replace(module.config, steps=int(label))
    return clone


def _mixture(labels: Sequence[str], steps: int) -> list[str]:
    """Every step in another graph than the one before, each pair of graphs in turn."""
    order = [labels[(i * stride) % len(labels)] for stride in range(1, len(labels)) for i in range(len(labels))]
    return [order[i % len(order)] for i in range(steps)]


def _bucket(label: str) -> int:
    return NO_SINGLE_BUCKET if label == NO_SOLVER else int(label)


@dataclass(frozen=True)
class _Check:
    """What rows of a chain are called, and what they may differ by. recorded: see `verify`."""

    name: str
    bucket: int
    limits: Tolerances
    recorded: int | None


def _chained(run: _Run, twin: _Twin, plan: Plan, store: int, check: _Check) -> list[ParityRow]:
    """Rows of the longest chain that can be compared."""
    before, rows = len(run.record), list[ParityRow]()
    for length in (len(plan.labels), *SHORTER_CHAINS):
        run.record.truncate(before)
        rows = run.chain(plan, store, length).rows(check.name, check.bucket, length, check.limits)
        bad = failures(rows)
        if not bad or not twin.explains(bad, run, plan, length, check.limits):
            break
    if check.recorded is not None and not failures(rows):
        run.record.truncate(before)
        run.chain(plan.head(NARROW_STEPS), store, check.recorded)
    return rows


def _single_calls(run: _Run, origin: Source, label: str, limits: Tolerances, name: str = ONE_CALL) -> list[ParityRow]:
    """A few calls of one graph, each from the state that the default chain left."""
    plan = make_plan(origin, [label] * CALLS_A_BUCKET, seed=3)
    return run.calls(plan).rows(name, _bucket(label), 1, limits)


class _Run:
    """Torch and a binding side by side, over flat arrays: one comparison a call, whatever the number of tensors."""

    def __init__(self, spec: StepSpec, reference: Reference, binding: Binding, tick: Ticker) -> None:
        self.spec, self.reference, self.binding, self.tick = spec, reference, binding, tick
        self.layouts = Layout(spec.outputs, BATCH), Layout(spec.state, BATCH)
        self.state = initial_state(spec, BATCH)
        self.record = Recorder(spec)

    def chain(self, plan: Plan, store: int, length: int) -> _Differences:
        """Follow the plan, each side from its own state, which is reset every `length` rows; record `store` rows."""
        found = _Differences(*self.layouts)
        for i, label in enumerate(plan.labels):
            if i % length == 0:
                self.state = initial_state(self.spec, BATCH)
                self._set_state()
            self.state = self._call(plan, i, label, found)
            self.binding.swap()
            if i < store:
                self.record.add(plan, i, i % length == 0, *found.expected)
            self.tick()
        return found

    def calls(self, plan: Plan) -> _Differences:
        """Each row of the plan from the same state, which stays as it is."""
        found = _Differences(*self.layouts)
        self._set_state()
        for i, label in enumerate(plan.labels):
            self._call(plan, i, label, found)
        return found

    def _call(self, plan: Plan, i: int, label: str, found: _Differences) -> Tensors:
        for name, values in plan.inputs.items():
            self.binding.inputs[name][...] = values[i]
        outputs, after = self.reference(label, _inputs(plan, i), self.state)
        self.binding.run(label)
        found.add(outputs, after, self.binding.flat_outputs, self.binding.next_arena)
        return after

    def _set_state(self) -> None:
        arena = self.binding.arena
        for name, view in self.layouts[1].views(arena).items():
            view[...] = self.state[name].numpy()
        self.binding.set_state(arena)


class _Twin:
    """The same module in float64, made when it is first asked for: how far torch's own rounding goes."""

    def __init__(self, spec: StepSpec, module: nn.Module) -> None:
        self.spec, self.module = spec, module

    def explains(self, bad: list[ParityRow], run: _Run, plan: Plan, length: int, limits: Tolerances) -> bool:
        """Whether torch's float32 departs from float64 about as far as the graph from torch, wherever these differ."""
        exact = torch_reference(copy.deepcopy(self.module).double())
        found = _Differences(*run.layouts)
        flat = [layout.empty() for layout in run.layouts]
        state = wide = initial_state(self.spec, BATCH)
        for i, label in enumerate(plan.labels):
            if i % length == 0:
                state = initial_state(self.spec, BATCH)
                wide = {name: value.double() for name, value in state.items()}
            inputs = _inputs(plan, i)
            outputs, state = run.reference(label, inputs, state)
            exact_inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
            exact_outputs, wide = exact(label, exact_inputs, wide)
            for layout, array, tensors in zip(run.layouts, flat, (exact_outputs, wide), strict=True):
                for name, view in layout.views(array).items():
                    view[...] = tensors[name].numpy()
            found.add(outputs, state, *flat)
        own = {row.tensor: row for row in found.rows("", 0, length, limits)}
        return all(own[row.tensor].error >= ROUNDING_SHARE * row.error for row in bad)


def _inputs(plan: Plan, i: int) -> Tensors:
    return {name: torch.from_numpy(np.asarray(values[i])) for name, values in plan.inputs.items()}


class _Differences:
    """Largest differences and largest values, element by element, until `rows` sums them up by tensor."""

    def __init__(self, outputs: Layout, state: Layout) -> None:
        self.sides = [_Side(outputs), _Side(state)]

    @property
    def expected(self) -> tuple[Mapping[str, NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]:
        """The reference's last outputs and state."""
        return self.sides[0].views, self.sides[1].views

    def add(self, outputs: Tensors, state: Tensors, found_outputs: Arena, found_state: Arena) -> None:
        self.sides[0].add(outputs, found_outputs)
        self.sides[1].add(state, found_state)

    def rows(self, check: str, bucket: int, steps: int, limits: Tolerances) -> list[ParityRow]:
        found: list[ParityRow] = []
        for side in self.sides:
            errors, values = side.layout.views(side.errors), side.layout.views(side.values)
            for name in errors:
                limit = limits.of(name)
                scale = max(float(values[name].max()), limit.floor)
                found.append(ParityRow(check, bucket, name, steps, float(errors[name].max()) / scale, limit.limit))
        return found


class _Side:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.expected, self.errors, self.values = layout.empty(), layout.empty(), layout.empty()
        self.views = layout.views(self.expected)

    def add(self, tensors: Tensors, found: Arena) -> None:
        for name, view in self.views.items():
            view[...] = tensors[name].numpy()
        # np.maximum keeps NaN, so a NaN anywhere fails the check in the end.
        np.maximum(self.errors, np.abs(found - self.expected), out=self.errors)
        np.maximum(self.values, np.abs(self.expected), out=self.values)
