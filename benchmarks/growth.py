"""Does a step cost the same after a million of them?

Ours: a nano cell with all memories, exported and streamed through the deployed runtime, snapshots taken at 10² … 10⁶
steps; then the streams go on from their snapshots, a block of steps each in turn, so that a noisy machine is noisy to
all. The rival: full attention of as many parameters with a cache of keys and values, filled to the same marks; its time
is that of looking at the cache in torch, all layers, also in turn. The copy of the cache that a pure step makes is left
out, in its favour. Two engines, so compare slopes, not levels. A slope is the exponent p of time ∝ steps^p, by
least squares over all marks; falsified if our state grows at all, if our p is above 0.02, or if the rival's is not
above ours.

    python benchmarks/growth.py            10² to 10⁶ steps, ten minutes
    python benchmarks/growth.py --quick    10² and 10³ steps of a small cell; its figures mean nothing

Writes results/growth.json, figures/growth.png and a section of RESULTS.md; with --quick into runs/growth only. An
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib.figure
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from claim import judged, run
from odestream.export import export_bundle
from odestream.models.baselines import Frame, footprint, matched
from odestream.models.baselines.full_attention import FullAttention, FullAttentionSizes, cache_bytes
from odestream.models.cell import Cell
from odestream.models.config import CellConfig, Sizes, preset
from odestream.runtime import Stream, load
from results import circumstances_text, markdown_table
from sweep import Sweep

LARGEST_SLOPE = 0.02
GAP = 10**8  # ticks of a nanosecond: a tenth of a model unit
OURS, RIVAL = "odestream, streamed", "full attention, reading its cache"


@dataclass(frozen=True)
class Plan:
    """Sizes of the cell, the marks at which a step is timed, and the rounds in which they take turns, steps each."""

    sizes: Sizes
    marks: tuple[int, ...]
    rounds: int
    steps: int


FULL = Plan(preset("nano"), (100, 1_000, 10_000, 100_000, 1_000_000), 40, 50)
QUICK = Plan(Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4), (100, 1_000), 3, 10)


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Microseconds and state bytes at every mark, ours and the rival's."""
    torch.manual_seed(0)
    cell = Cell(configuration(plan.sizes)).eval()
    return {
        "seed": 0,
        "steps": plan.marks,
        "rounds": plan.rounds,
        "models": {
            OURS: sweep.get(OURS, partial(stream, cell, plan)),
            RIVAL: sweep.get(RIVAL, partial(look_back, cell, plan)),
        },
        "parameters": {OURS: footprint(cell).parameters, RIVAL: footprint(rival_of(cell, 2)).parameters},
    }


def stream(cell: Cell, plan: Plan) -> list[dict[str, float]]:
    """Our stream from its first step to the last mark; then all marks in turn, each from its own snapshot."""
    x = np.random.default_rng(0).standard_normal((1024, cell.config.channels)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(cell, bundle, buckets=(1,), allow_uncalibrated=True, verify_steps=50)
        with load(bundle) as model:
            one, blobs, sizes = model.stream(), [], []
            for step in track(range(1, plan.marks[-1] + 1), OURS):
                one.step(x[step % len(x)], step * GAP)
                if step in plan.marks:
                    blobs.append(one.snapshot())
                    sizes.append(sum(value.nbytes for value in one.state().values()))
            streams = [model.restore(blob) for blob in blobs]
            times = in_turn([partial(_some_steps, s, x, plan.steps) for s in streams], plan.rounds)
    return [{"us": 1e6 * t / plan.steps, "bytes": size} for t, size in zip(times, sizes, strict=True)]


def look_back(cell: Cell, plan: Plan) -> list[dict[str, float]]:
    """The rival's look at a cache of each mark's length, all layers; all marks in turn."""
    models = [rival_of(cell, mark) for mark in plan.marks]
    with torch.inference_mode():
        times = in_turn(
            [partial(_look, model, *_cache(model, mark)) for model, mark in zip(models, plan.marks, strict=True)],
            plan.rounds,
        )
    sizes = [cache_bytes(_sizes(model), mark) for model, mark in zip(models, plan.marks, strict=True)]
    return [{"us": 1e6 * t, "bytes": size} for t, size in zip(times, sizes, strict=True)]


def in_turn(calls: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of each call, all of them once a round."""
    took = []
    for _ in range(rounds):
        for call in calls:
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
    medians: list[float] = np.median(np.reshape(took, (rounds, len(calls))), axis=0).tolist()
    return medians


def _some_steps(one: Stream, x: NDArray[np.float32], steps: int) -> None:
    tick = one.last_tick or 0
    for i in range(steps):
        one.step(x[i], tick + (i + 1) * GAP)


def _cache(model: FullAttention, mark: int) -> tuple[Tensor, list[Tensor]]:
    """A query [1, H, 1, d] and, for each layer, keys and values [2, 1, H, mark, d]."""
    sizes = _sizes(model)
    each = sizes.width // sizes.heads
    caches = [torch.randn(2, 1, sizes.heads, mark, each) for _ in range(sizes.layers)]
    return torch.randn(1, sizes.heads, 1, each), caches


def _look(model: FullAttention, query: Tensor, caches: Sequence[Tensor]) -> None:
    there = torch.ones(1, 1, 1, caches[0].shape[-2], dtype=torch.bool)
    for (keys, values), mixer in zip(caches, model.mixers, strict=True):
        mixer.attend(query, keys, values, there)  # type: ignore[operator]


def _sizes(model: FullAttention) -> FullAttentionSizes:
    return cast(FullAttentionSizes, model.config.sizes)


def rival_of(cell: Cell, length: int) -> FullAttention:
    """Full attention of the cell's number of parameters, with a cache of `length` observations."""
    sizes = FullAttentionSizes(length=max(2, length))
    model = matched("full-attention", Frame.of(cell.config), footprint(cell).parameters, sizes)
    if not isinstance(model, FullAttention):
        raise TypeError(type(model).__name__)
    return model.eval()


def configuration(sizes: Sizes) -> CellConfig:
    """A forecaster of three channels."""
    return CellConfig("forecast", 3, sizes, (1.0,) * 3, (0.0,) * 3, averages=(0.5, 2.0, 8.0, 32.0))


def slope(result: dict[str, Any], name: str, key: str) -> float:
    """p of key ∝ steps^p, by least squares of the logarithms."""
    values = [point[key] for point in result["models"][name]]
    return float(np.polyfit(np.log(result["steps"]), np.log(values), 1)[0])


def verdicts(result: dict[str, Any]) -> list[str]:
    """What of the claim stands and what falls, falls first."""
    sizes = {point["bytes"] for point in result["models"][OURS]}
    ours, rival = (slope(result, name, "us") for name in (OURS, RIVAL))
    said = [
        (len(sizes) == 1, f"our state takes {' to '.join(f'{size:,}' for size in sorted(sizes))} bytes at every mark"),
        (ours <= LARGEST_SLOPE, f"our step's time grows as steps^{ours:.3f}, allowed is {LARGEST_SLOPE}"),
        (
            rival > ours,
            f"the rival's time grows as steps^{rival:.3f}, its cache as steps^{slope(result, RIVAL, 'bytes'):.3f}",
        ),
    ]
    return judged(said)


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    columns = ["", *(f"{n:,} steps" for n in result["steps"])]
    rows = []
    for name, points in result["models"].items():
        rows.append([f"{name}: µs", *(f"{p['us']:,.0f}" for p in points)])
        rows.append([f"{name}: KiB", *(f"{p['bytes'] / 1024:,.1f}" for p in points)])
    parameters = ", ".join(f"{name} {count:,}" for name, count in result["parameters"].items())
    return "\n\n".join(
        (
            *verdicts(result),
            f"Median of {result['rounds']} rounds in which all marks take turns, batch 1, one thread. Ours "
            "is the whole deployed step, the rival's its look at the cache alone, in torch: only the slopes compare.",
            markdown_table(columns, rows),
            f"Parameters: {parameters}. {circumstances_text()}",
            "![Time and state over steps](figures/growth.png)",
        )
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and bytes over steps."""
    figure = matplotlib.figure.Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(panels, ("us", "bytes"), ("µs a step", "bytes of state"), strict=True):
        for name, points in result["models"].items():
            axes.plot(result["steps"], [point[key] for point in points], marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel=label)
    panels[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run("growth", __doc__, (FULL, QUICK), measure, report, draw)
