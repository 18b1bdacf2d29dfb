"""Does the adjoint method train in constant memory, and are its gradients right?

One flow of the nano preset's field (64 wide, with time features), 32 rows over gaps of 0.1 to 2 model units, solved
with 8 to 512 steps of a fourth-order Runge-Kutta method and differentiated in four ways: back-propagation through our
unrolled solver, the same with checkpoints every √N steps, back-propagation through torchdiffeq's odeint, and its
odeint_adjoint. Then a chain of 1 to 32 flows, for memory over outputs.

Memory is what autograd keeps: bytes of the tensors that it saved, each storage once and the weights not at all, at
their highest between the start of the forward and the end of the backward pass, counted by saved-tensor hooks.
Gradients are compared with those of dopri5 at a tolerance of 1e-10 in float64. Falsified if the adjoint's bytes grow
with the solver's steps, grow other than linearly with the outputs, or wherever its gradients are off by more than 1e-4.

    python benchmarks/adjoint_memory.py            two minutes
    python benchmarks/adjoint_memory.py --quick    a small field and few steps; its figures mean nothing

Writes results/adjoint_memory.json, figures/adjoint_memory.png and a section of RESULTS.md; with --quick into
runs/adjoint_memory only. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from claim import judged, run
from odestream.models.config import CellConfig, Sizes, preset
from odestream.models.field import Field, FieldWeights, rotate
from odestream.models.flow import integrate, unrolled_flow
from results import circumstances_text, markdown_table
from saved_bytes import SavedBytes
from sweep import Sweep

METHOD = "rk4"
EXACT = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-12}
FLAT, GRADIENT = 1.05, 1e-4
STEPS_OF_CHAIN = 32
BACKPROP, CHECKPOINTS, ODEINT, ADJOINT = (
    "back-propagation",
    "checkpointing",
    "torchdiffeq odeint",
    "torchdiffeq adjoint",
)
WAYS = (BACKPROP, CHECKPOINTS, ODEINT, ADJOINT)

Solve = Callable[[Tensor, Tensor, Tensor, Tensor, FieldWeights], Tensor]


@dataclass(frozen=True)
class Plan:
    """Sizes of the field, rows, solver steps, outputs of a chain, and how often a time is taken."""

    sizes: Sizes
    rows: int
    steps: tuple[int, ...]
    outputs: tuple[int, ...]
    repetitions: int


FULL = Plan(preset("nano"), 32, (8, 16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32), 5)
QUICK = Plan(Sizes(6, 8, 4, 4, 4, 2, 2, 1, 2, 2), 4, (8, 32), (1, 2, 4), 1)


@dataclass(frozen=True)
class Problem:
    """A flow to differentiate: h, u [B, D], phase [B, 2K], gaps [B, 1] and a field; the loss is cᵀh' over all rows."""

    h: Tensor
    u: Tensor
    phase: Tensor
    dt: Tensor
    field: Field
    weighting: Tensor

    def run(self, solve: Solve, outputs: int = 1) -> list[Tensor]:
        """Gradients of the loss after a chain of `outputs` flows, each from where the last one ended."""
        leaves = [self.h.clone().requires_grad_(), self.u.clone().requires_grad_()]
        h, weights = leaves[0], self.field.weights()
        for _ in range(outputs):
            h = solve(h, leaves[1], self.phase, self.dt, weights)
        torch.autograd.backward(torch.sum(h * self.weighting))
        gradients = [leaf.grad for leaf in (*leaves, *self.field.parameters())]
        self.field.zero_grad()
        return [g for g in gradients if g is not None]

    def double(self) -> Problem:
        """The same problem in float64."""
        field = Field(self.field_config).double()
        field.load_state_dict(self.field.state_dict())
        h, u, phase, dt, weighting = (t.double() for t in (self.h, self.u, self.phase, self.dt, self.weighting))
        return Problem(h, u, phase, dt, field, weighting)

    @property
    def field_config(self) -> CellConfig:
        """Of a field as wide as this one."""
        width, inner = self.field.output.shape
        return configuration(Sizes(width, inner, 1, 1, 1, 1, 1, 1, 1, 1))


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Every way at every number of steps, then the adjoint and back-propagation over outputs."""
    task = problem(plan)
    exact = task.double().run(partial(integrate, **EXACT))  # type: ignore[arg-type]
    work = [(way, n) for way in WAYS for n in plan.steps]
    points: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for way, n in track(work, "solver steps"):
        points[way].append(sweep.get(f"{way}/{n}", partial(one, task, way, n, exact, plan.repetitions)))
    chains = {
        way: [sweep.get(f"{way}/outputs/{n}", partial(peak_bytes, task, way, STEPS_OF_CHAIN, n)) for n in plan.outputs]
        for way in (BACKPROP, ADJOINT)
    }
    return {
        "seed": 0,
        "rows": plan.rows,
        "steps": plan.steps,
        "outputs": plan.outputs,
        "ways": points,
        "chains": chains,
    }


def one(task: Problem, way: str, steps: int, exact: list[Tensor], repetitions: int) -> dict[str, float]:
    """Bytes, time and gradient error of one way at one number of steps."""
    found, seconds = task.run(solver(way, steps)), []  # the first time is not counted
    for _ in range(repetitions):
        start = time.perf_counter()
        found = task.run(solver(way, steps))
        seconds.append(time.perf_counter() - start)
    return {
        "bytes": peak_bytes(task, way, steps, 1),
        "ms": 1e3 * statistics.median(seconds),
        "gradient_error": relative_error(found, exact),
    }


def peak_bytes(task: Problem, way: str, steps: int, outputs: int) -> int:
    """Most bytes that autograd held at a time, forward and backward."""
    with SavedBytes(ignored=list(task.field.parameters())) as saved:
        task.run(solver(way, steps), outputs)
    return saved.peak


def solver(way: str, steps: int) -> Solve:
    """How h flows, by the way's name."""
    if way == BACKPROP:
        return partial(unrolled, steps=steps)
    if way == CHECKPOINTS:
        return partial(checkpointed, steps=steps)
    return partial(integrate, method=METHOD, adjoint=way == ADJOINT, options={"step_size": 1 / steps})


def unrolled(h: Tensor, u: Tensor, phase: Tensor, dt: Tensor, w: FieldWeights, steps: int) -> Tensor:
    """Our solver, as it is deployed."""
    return unrolled_flow(h, u, phase, dt, w, method=METHOD, steps=steps, rtol=1e-3, atol=1e-4)[0]


def checkpointed(h: Tensor, u: Tensor, phase: Tensor, dt: Tensor, w: FieldWeights, steps: int) -> Tensor:
    """The same in about √N pieces, each of which is computed again in the backward pass (Chen et al. 2016)."""
    pieces = 2 ** ((steps.bit_length() - 1) // 2)
    part = dt / pieces
    frequencies = w.frequencies if w.frequencies is not None else part.new_zeros(0)

    def flow(h: Tensor, u: Tensor, start: Tensor, *weights: Tensor) -> Tensor:
        return unrolled(h, u, start, part, FieldWeights(*weights), steps // pieces)

    for i in range(pieces):
        start = rotate(phase, i * part * frequencies)
        h = checkpoint(flow, h, u, start, *w, use_reentrant=True)
    return h


def problem(plan: Plan, seed: int = 0) -> Problem:
    """A random field at its limits of stiffness, random rows, and gaps spread over their logarithm."""
    torch.manual_seed(seed)
    field, width = Field(configuration(plan.sizes)), plan.sizes.hidden
    with torch.no_grad():
        field.output.normal_(std=0.3)
        field.constrain()
    angle = 6.28 * torch.rand(plan.rows, 2)
    dt = 0.1 * 20 ** torch.rand(plan.rows, 1)
    phase = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
    h, u, weighting = (torch.randn(plan.rows, width) for _ in range(3))
    return Problem(h, torch.tanh(u), phase, dt, field, weighting)


def configuration(sizes: Sizes) -> CellConfig:
    """Of the field: two frequencies of time."""
    return CellConfig("forecast", 1, sizes, (1.0,), (0.0,), averages=(1.0,), frequencies=(0.7, 1.9))


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest of the gradients' distances, each in units of its own length."""
    distances = [
        torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b)
        for a, b in zip(found, exact, strict=True)
    ]
    return float(torch.stack(distances).max())


def verdicts(result: dict[str, Any]) -> list[str]:
    """What of the claim stands and what falls, falls first."""
    adjoint, outputs = result["ways"][ADJOINT], result["chains"][ADJOINT]
    growth = adjoint[-1]["bytes"] / adjoint[0]["bytes"]
    each = [
        (b - outputs[0]) / max(1, n - result["outputs"][0])
        for n, b in zip(result["outputs"][1:], outputs[1:], strict=True)
    ]
    linear = max(each) <= FLAT * min(each)
    errors = {n: point["gradient_error"] for n, point in zip(result["steps"], adjoint, strict=True)}
    off = ", ".join(f"{error:.1e} at {n} steps" for n, error in errors.items() if error > GRADIENT)
    said = [
        (
            growth <= FLAT,
            f"bytes of the adjoint from {result['steps'][0]} to {result['steps'][-1]} solver steps: × {growth:.3g}",
        ),
        (linear, f"bytes of the adjoint for each further output: {min(each):,.0f} to {max(each):,.0f}"),
        (not off, f"gradients of the adjoint within {GRADIENT:g} of float64; over it {off or 'nowhere'}"),
    ]
    return judged(said)


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    columns = ["", *(f"{n} steps" for n in result["steps"])]
    tables = []
    for key, title, form, unit in (
        ("bytes", "KiB held by autograd", ",.0f", 1024),
        ("ms", "ms, forward and backward", ".1f", 1),
        ("gradient_error", "gradient error", ".1e", 1),
    ):
        rows = [[way, *(f"{point[key] / unit:{form}}" for point in points)] for way, points in result["ways"].items()]
        tables.append(markdown_table([title, *columns[1:]], rows))
    chain = [[way, *(f"{b / 1024:,.0f}" for b in found)] for way, found in result["chains"].items()]
    costs = result["ways"]
    ratio = costs[ADJOINT][-1]["ms"] / costs[BACKPROP][-1]["ms"]
    return "\n\n".join(
        (
            *verdicts(result),
            f"The adjoint takes {ratio:.1f} times as long as back-propagation through our solver at "
            f"{result['steps'][-1]} steps.",
            f"One flow of {result['rows']} rows, fourth-order Runge-Kutta (classical in our solver, the 3/8 rule in "
            "torchdiffeq), float32; gradients of h, u and all weights, the worst of them, against dopri5 in float64. "
            "The adjoint finds h again by solving backwards from its last value; what the field contracts forwards "
            "grows backwards, and with it the error of few steps (Gholami et al. 2019, ANODE). Half the step size on "
            "the way back was tried and does not cure that; more steps forwards do.",
            *tables,
            f"Chains of flows of {STEPS_OF_CHAIN} steps:",
            markdown_table(["KiB held by autograd", *(f"{n} outputs" for n in result["outputs"])], chain),
            circumstances_text(),
            "![Memory and gradient error over solver steps](figures/adjoint_memory.png)",
        )
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Bytes over steps, gradient error over steps, bytes over outputs."""
    figure = matplotlib.figure.Figure(figsize=(11, 3.6), layout="constrained")
    bytes_, error, chain = figure.subplots(1, 3)
    for way, points in result["ways"].items():
        style = {"marker": "o", "color": f"C{WAYS.index(way)}", "label": way}
        bytes_.plot(result["steps"], [p["bytes"] for p in points], **style)
        error.plot(result["steps"], [p["gradient_error"] for p in points], **style)
    for way, found in result["chains"].items():
        chain.plot(result["outputs"], found, marker="o", color=f"C{WAYS.index(way)}")
    error.axhline(GRADIENT, color="grey", linestyle=":")
    bytes_.set(xscale="log", yscale="log", xlabel="solver steps", ylabel="bytes held by autograd")
    error.set(xscale="log", yscale="log", xlabel="solver steps", ylabel="gradient error")
    chain.set(xscale="log", yscale="log", xlabel="outputs", ylabel="bytes held by autograd")
    bytes_.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run("adjoint_memory", __doc__, (FULL, QUICK), measure, report, draw)
