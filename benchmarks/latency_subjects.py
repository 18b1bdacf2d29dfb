"""What is timed in latency.py: a step of one stream by us, by ONNX Runtime, and by torch in several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from latency_model import Arrays, Inputs, new_state
from odestream.models.cell import Cell
from odestream.models.flow import Integrator, integrate
from odestream.models.hybrid import content
from odestream.runtime import Model
from odestream.runtime.arena import Layout
from odestream.runtime.verbs.latency import Subject

Tensors = dict[str, Tensor]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


@dataclass(frozen=True)
class Contender:
    """One way to make the step, chained on one stream or on `batch`.

    prepare(i): hand over call i's inputs and the state of the call before, not timed. call(): the step, timed.
    found(): outputs and new state of the last call, as far as they can be seen. exact: by the bundle's own solver, so
    that it must equal the torch step; else it is held to the solver's tolerance. steps: of the solver, None for
    solvers that choose.
    """

    name: str
    steps: int | None
    prepare: Callable[[int], None]
    call: Callable[[], object]
    found: Callable[[], Arrays]
    exact: bool = True
    batch: int = 1

    def subject(self) -> Subject:
        """For `measure`."""
        return Subject(self.name, self.batch, None, self.prepare, self.call, self.steps)


def bound_engine(name: str, model: Model, inputs: Inputs, steps: int | None, batch: int = 1) -> Contender:
    """The engine of an open bundle through its binding; one row's inputs are made before, in all T rows."""
    binding, spec = model.bind(batch), model.manifest.spec
    layout, label = Layout(spec.state, batch), model.manifest.default_graph if steps is None else str(steps)
    rows = [inputs.row(i, batch) for i in range(inputs.rows)]

    def prepare(i: int) -> None:
        for key, values in rows[i % len(rows)].items():
            np.copyto(binding.inputs[key], values)

    def call() -> None:
        binding.run(label)
        binding.swap()

    return Contender(
        name,
        steps,
        prepare,
        call,
        lambda: {**binding.outputs, **layout.views(binding.arena)},
        batch=batch,
    )


def stream_step(name: str, model: Model, inputs: Inputs, steps: int, lists: bool = False) -> Contender:
    """`Stream.step` as a user calls it, held to one number of solver steps. lists: x as a list of Python's floats."""
    stream = model.stream(buckets=(steps,))
    rows: list[Any] = inputs.x.tolist() if lists else list(inputs.x)
    gap = int(inputs.ticks[1] - inputs.ticks[0])
    given: list[Any] = []
    results: list[Any] = []

    def prepare(i: int) -> None:
        last = stream.last_tick
        given[:] = rows[i % inputs.rows], int(inputs.ticks[0]) if last is None else last + gap

    def call() -> None:
        results[:] = [stream.step(*given)]

    def found() -> Arrays:
        (out,) = results
        return {"y": out.y[None], "gates": out.gates[None], **{k: v[None] for k, v in stream.state().items()}}

    return Contender(name, steps, prepare, call, found)


def plain_session(name: str, cell: Cell, graph: onnx.ModelProto, inputs: Inputs, steps: int) -> Contender:
    """ONNX Runtime as most programs use it: one `session.run` with a dictionary, state copied in and out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return by_name(name, cell, graph, inputs, steps, partial(session.run, None))


def by_name(
    name: str,
    cell: Cell,
    graph: onnx.ModelProto,
    inputs: Inputs,
    steps: int,
    run: Callable[[Arrays], Sequence[Any]],
    read: Callable[[Any], Any] = np.asarray,
) -> Contender:
    """A graph that is run on a dictionary of arrays: outputs in the graph's order, each made an array by `read`."""
    names = [port.name for port in graph.graph.output]
    feeds = new_state(cell)
    results: list[Any] = []

    def prepare(i: int) -> None:
        feeds.update(inputs.row(i))
        if results:
            feeds.update(states(dict(zip(names, map(read, results), strict=True))))

    def call() -> None:
        results[:] = run(feeds)

    return Contender(name, steps, prepare, call, lambda: visible(dict(zip(names, map(read, results), strict=True))))


def states(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The new state under the names of the next call's inputs."""
    return {k.replace("state_out_", "state_in_"): v for k, v in outputs.items() if k.startswith("state_out_")}


def visible(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """A graph's outputs by the names of the specification."""
    return {name.removeprefix("state_out_"): value for name, value in outputs.items()}


def torch_eager(name: str, cell: Cell, inputs: Inputs, steps: int | None, integrator: Integrator | None) -> Contender:
    """The torch step, its weights folded once; another integrator replaces the unrolled solver."""
    return _torch(name, cell, inputs, steps, stepper(cell, steps, integrator), integrator is None)


def torch_compiled(name: str, cell: Cell, inputs: Inputs, steps: int) -> Contender:
    """The same under torch.compile: inductor, shapes fixed, the whole step one graph.

    torch.export traces it first, since the compiler's own tracer does not follow the tableaus' exact fractions.
    """
    given = {key: torch.from_numpy(value) for key, value in inputs.row(0).items()}
    with torch.no_grad():
        traced = torch.export.export(_Step(stepper(cell, steps, None)), (given, cell.initial_state(1))).module()
        compiled = torch.compile(traced, dynamic=False, fullgraph=True)
    return _torch(name, cell, inputs, steps, compiled, exact=True)


def torchdiffeq_integrator(method: str, steps: int | None) -> Integrator:
    """torchdiffeq's method: at the cell's tolerance, or with a fixed number of steps."""
    if steps is None:
        return partial(integrate, method=method, rtol=1e-3, atol=1e-4)
    return partial(integrate, method=method, options={"step_size": 1.0 / steps})


def stepper(cell: Cell, steps: int | None, integrator: Integrator | None) -> Step:
    """`Cell.step` with weights folded beforehand."""
    with torch.no_grad():
        w = cell.weights()

    def step(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        seen = cell.observe(inputs, state)
        said = content(seen.features, w.memory, cell.config)
        outputs, after, _ = cell.step_with(inputs, state, seen, said, w, steps, integrator)
        return outputs, after

    return step


class _Step(torch.nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return self.step(inputs, state)


def _torch(
    name: str,
    cell: Cell,
    inputs: Inputs,
    steps: int | None,
    step: Step,
    exact: bool,
) -> Contender:
    rows = [{key: torch.from_numpy(v) for key, v in inputs.row(i).items()} for i in range(inputs.rows)]
    with torch.no_grad():
        held: list[Any] = [rows[0], ({}, cell.initial_state(1))]

    def prepare(i: int) -> None:
        held[0] = rows[i % len(rows)]

    def call() -> None:
        with torch.no_grad():
            held[1] = step(held[0], held[1][1])

    def found() -> Arrays:
        outputs, state = held[1]
        return {key: value.numpy() for key, value in {**outputs, **state}.items()}

    return Contender(name, steps, prepare, call, found, exact)
