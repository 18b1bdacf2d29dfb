"""What half precision saves, and how far its stream drifts.

A nano cell with drawn weights, none of them zero, is exported in each precision. The export lets the stream of a
half-precision cell and that of the float32 cell live through the same 10,000 steps, each from its own states; this
script adds the time of a step on the engines that run it on this CPU, and groups the drift by what a tensor is.

    python benchmarks/precision.py            a minute
    python benchmarks/precision.py --quick    a small cell and a few steps; its figures mean nothing

Writes results/precision.json and a section of RESULTS.md; with --quick into runs/precision only.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from claim import RUNS
from growth import in_turn
from latency_model import drawn_cell
from odestream.export import export_bundle, half
from odestream.export.precision import FULL, PRECISIONS
from odestream.models.config import Sizes, preset
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
from odestream.runtime.errors import CompatError
from results import circumstances_text, markdown_table, publish, write_json

BACKENDS = ("native", "onnxruntime")
CLASSES = {
    "hidden state h": ("h",),
    "slow state u": ("u",),
    "keys and values of the window": ("wk", "wv"),
    "linear memory m": ("m",),
    "keys and values of the episodes": ("ek", "ev"),
    "prediction y": ("y",),
}
"""What a drift is told of: its tensors; the largest counts."""


@dataclass(frozen=True)
class Plan:
    """The cell's sizes, the rounds in which the engines take turns, and the steps that the export checks."""

    sizes: Sizes
    rounds: int
    verify_steps: int


FULL_PLAN = Plan(preset("nano"), 2000, 1000)
QUICK_PLAN = Plan(Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4), 20, 20)


def main() -> None:
    """Measure and publish; with --quick the small cell, into its own folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    result = measure(QUICK_PLAN if quick else FULL_PLAN)
    print(report(result))
    if quick:
        write_json(RUNS / "precision" / "precision.json", result)
    else:
        publish("precision", result, report(result))


def measure(plan: Plan) -> dict[str, Any]:
    """Bytes of weights, microseconds of a step and drift, by precision."""
    cell = drawn_cell(plan.sizes)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in PRECISIONS}
        for name, path in paths.items():
            export_bundle(cell, path, dtype=name, buckets=(4,), allow_uncalibrated=True, verify_steps=plan.verify_steps)
        bundles = {name: read_bundle(path) for name, path in paths.items()}
        metrics = {n: b.manifest.metrics[half.PRECISION] for n, b in bundles.items() if n != FULL.name}
        return {
            "steps": half.DRIFT_STEPS,
            "rounds": plan.rounds,
            "weight_bytes": {n: sum(e.length for e in b.manifest.weights) for n, b in bundles.items()},
            "us": microseconds(paths, plan.rounds),
            "drift": {n: by_class(found["drift"]) for n, found in metrics.items()},
        }


def microseconds(paths: dict[str, Path], rounds: int) -> dict[str, dict[str, float | None]]:
    """Backend → precision → median of one call at batch 1, all of them in turn; None where it refuses the bundle."""
    found: dict[str, dict[str, float | None]] = {backend: dict.fromkeys(paths) for backend in BACKENDS}
    with ExitStack() as stack:
        calls = {}
        for backend in BACKENDS:
            for name, path in paths.items():
                bundle = read_bundle(path)
                try:
                    engine = open_engine(backend, bundle, threads=1)
                except CompatError:
                    continue
                stack.callback(engine.close)
                calls[backend, name] = partial(engine.bind(1).run, bundle.manifest.default_graph)
        for (backend, name), seconds in zip(calls, in_turn(list(calls.values()), rounds), strict=True):
            found[backend][name] = 1e6 * seconds
    return found


def by_class(drift: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The largest drift of each class, in the first and in the last steps."""
    return {
        title: {when: max(drift[name][when] for name in names) for when in ("first", "last")}
        for title, names in CLASSES.items()
    }


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    whole = result["weight_bytes"][FULL.name]
    rows = [
        [
            name,
            f"{size / 1024:,.0f} ({size / whole:.0%})",
            *("refused" if result["us"][b][name] is None else f"{result['us'][b][name]:,.0f}" for b in BACKENDS),
        ]
        for name, size in result["weight_bytes"].items()
    ]
    halves = list(result["drift"])
    drifts = [
        [title, *(f"{result['drift'][n][title][when]:.2g}" for n in halves for when in ("first", "last"))]
        for title in CLASSES
    ]
    return "\n\n".join(
        (
            markdown_table(["", "weights, KiB", *(f"{backend}, µs" for backend in BACKENDS)], rows),
            f"One call of the bare engine, batch 1, 4 solver steps, median of {result['rounds']:,} rounds in which all "
            "take turns. A CPU widens half-precision matrices before it multiplies, and ONNX Runtime's has no "
            "products in bf16; what a GPU gains is not measured.",
            markdown_table(
                ["drift from float32", *(f"{n}, {when}" for n in halves for when in ("first", "last"))], drifts
            ),
            f"Over {result['steps']:,} steps, each stream from its own states: root mean square of the difference over "
            "the tensor's own spread, in the first and in the last tenth. Products round as on tensor cores. Where "
            "rounding makes an episode take another slot, two streams remember other things, and that class says so.",
            circumstances_text(),
        )
    )


if __name__ == "__main__":
    main()
