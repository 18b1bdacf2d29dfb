"""Is every step right to tolerance, or flagged, on streams that nothing was chosen on? And is it worth it?

Coverage: three trained models of different tasks, each again with the field's weights × 4, stream fresh rows through
the deployed runtime: the rows of the test part as they came, with fresh random gaps, and with fresh bursts. The true
error of each step is that of h after the flow, exactly as deployed, against dopri5 at rtol 1e-9 in float64. Beside it,
torchdiffeq's dopri5 at the same tolerance over the same flows, batched. Falsified if less than 99 % of the unflagged
steps are within tolerance, if a step is over the factor and not flagged, or if a trained field has more than 5 %
flagged.

Quiet and bursts: over a fresh bursty stream the adaptive runtime against each bucket alone. Falsified if it takes more
evaluations than the smallest bucket that meets the same tolerance, is slower at the median or at the 99th percentile,
or runs more than 5 % of the steps again.

    python benchmarks/adaptive.py            trains what the cache lacks, a minute and a quarter for each model
    python benchmarks/adaptive.py --quick    a small random cell; checks the script, writes into runs/adaptive only

Writes results/adaptive.json and a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from adaptive_bursts import ADAPTIVE, PACES, PAUSE, TARGET, better, contest
from adaptive_coverage import coupled_summary, solver_of, summary, walk
from adaptive_models import KINDS, STRONGER, Made, bursty_series, fresh, make, random_model, subjects
from adaptive_probe import REFERENCE
from odestream.runtime import load
from results import circumstances_text, markdown_table, publish, write_json

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "adaptive"
FRESH_SEED = 7001  # calibration and training count from the run's own seed, which is 0
MOST_FLAGGED, MOST_RERUNS = 0.05, 0.05


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _options()
    torch.set_num_threads(1)
    result = quick() if options.quick else full(options)
    print(report(result))
    if options.quick:
        write_json(RUNS / "adaptive.json", result)
    else:
        publish("adaptive", result, report(result))


def full(options: argparse.Namespace) -> dict[str, Any]:
    """All models; the bursty one last, which then runs against the fixed buckets."""
    coverage, bursts = [], {}
    for subject in subjects(options.cache):
        for made in make(subject, options.cache, options.minutes):
            coverage.append(cover(made, options.steps))
            print(_line(coverage[-1]), flush=True)
            if made.name == "bursty forecast":
                bursts = against_fixed(made, options.burst_rows, options.repetitions)
    return {"reference": REFERENCE, "minutes": options.minutes, "coverage": coverage, "bursts": bursts}


def quick() -> dict[str, Any]:
    """The same with a small random cell and few rows."""
    with tempfile.TemporaryDirectory() as folder:
        made = random_model(Path(folder) / "bundle")
        return {
            "reference": REFERENCE,
            "minutes": 0.0,
            "coverage": [cover(made, 40)],
            "bursts": against_fixed(made, 60, 1),
        }


def cover(made: Made, steps: int) -> dict[str, Any]:
    """Coverage of one model by kind of stream, `steps` steps of each."""
    weights, kinds = made.cell.field.weights(), {}
    with load(made.bundle) as model:
        for place, kind in enumerate(KINDS):
            walked = walk(model, weights, fresh(made, kind, steps, FRESH_SEED + place))
            kinds[kind] = {**summary(walked), "dopri5": coupled_summary(walked, weights)}
        solver = solver_of(model)
    return {"model": made.name, "factor": solver.safety_factor, "stiffness": solver.stiffness, "kinds": kinds}


def against_fixed(made: Made, rows: int, repetitions: int) -> dict[str, Any]:
    """The contest over a fresh bursty record."""
    with load(made.bundle) as model:
        series = bursty_series(rows, FRESH_SEED, made.time)
        return contest(model, made.cell.field.weights(), series, repetitions)


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    return "\n\n".join(
        (
            "**Coverage on fresh streams.** Within: share of the unflagged steps whose true error is at most the "
            f"tolerance, against {result['reference']}; worst: of these steps, in tolerances. `streams` are the test "
            "rows as they came, `gaps` the same with gaps log-uniform from 0.05 to 5 model units, `bursts` with "
            "values off by 3 to 30 scales and gaps stretched or shrunk up to five times. Field × "
            f"{STRONGER:g}: A_h and B times {STRONGER:g}, exported as a bare cell. dopri5: torchdiffeq's, same "
            "tolerances, float32, 128 rows sharing a step size; it flags nothing.",
            markdown_table(COVERAGE_COLUMNS, [row for model in result["coverage"] for row in _coverage_rows(model)]),
            _coverage_verdict(result["coverage"]),
            "**Quiet and bursts.** One fresh bursty stream through the trained bursty model. Latencies of "
            f"`Stream.step` in µs, back to back and with {1000 * PAUSE:g} ms of sleep before each step; they take "
            "the same rows in turn, a block at a time; median of the repetitions.",
            markdown_table(BURST_COLUMNS, [_burst_row(*item) for item in result["bursts"]["rows"].items()]),
            _burst_verdict(result["bursts"]),
            circumstances_text(),
        )
    )


COVERAGE_COLUMNS = (
    "model, stream",
    "steps",
    "unflagged",
    "within",
    "worst",
    "flagged",
    "over, unflagged",
    "re-run",
    "split",
    "evaluations",
    "dopri5 within",
    "dopri5 worst",
)
BURST_COLUMNS = (
    "",
    "within, all",
    "within, unflagged",
    "flagged",
    "re-run",
    "evaluations",
    "p50",
    "p99",
    "p50, paced",
    "p99, paced",
)


def _coverage_rows(model: dict[str, Any]) -> list[list[str]]:
    title = f"{model['model']} (factor {model['factor']:.2g})"
    return [
        [
            f"{title}, {kind}",
            str(row["steps"]),
            str(row["accepted"]),
            _percent(row["within"]),
            f"{row['worst']:.2f}",
            _percent(row["flagged"]),
            str(row["over_unflagged"]),
            _percent(row["reruns"]),
            _percent(row["splits"]),
            f"{row['evaluations']:.1f}",
            _percent(row["dopri5"]["within"]),
            f"{row['dopri5']['worst']:.2g}",
        ]
        for kind, row in model["kinds"].items()
    ]


def _coverage_verdict(coverage: list[dict[str, Any]]) -> str:
    """Every promise that is broken, by name."""
    broken = []
    for model in coverage:
        for kind, row in model["kinds"].items():
            where = f"{model['model']}, {kind}"
            if row["within"] < TARGET:
                broken.append(f"{where}: {_percent(row['within'])} within tolerance")
            if row["over_unflagged"]:
                broken.append(f"{where}: {row['over_unflagged']} steps over the factor are not flagged")
            if "×" not in model["model"] and row["flagged"] > MOST_FLAGGED:
                broken.append(f"{where}: {_percent(row['flagged'])} flagged")
    said = "; ".join(broken)
    return f"Broken: {said}." if broken else "Every promise holds: 99 % within, none over and unflagged, flags ≤ 5 %."


def _burst_row(name: str, row: dict[str, Any]) -> list[str]:
    shares = [_percent(row[key]) for key in ("within_all", "within", "flagged", "reruns")]
    times = [f"{row[f'{pace}_{key}_us']:.0f}" for pace in PACES for key in ("p50", "p99")]
    return [name, *shares, f"{row['evaluations']:.1f}", *times]


def _burst_verdict(bursts: dict[str, Any]) -> str:
    rows, ours = bursts["rows"], bursts["rows"][ADAPTIVE]
    parts = []
    for meaning, rival in (("of all steps", "all"), ("of the unflagged steps, at most 1 % flagged", "unflagged")):
        name = bursts["smallest"][rival]
        said = []
        for pace, words in (("b2b", "back to back"), ("paced", "paced")):
            lost = better(rows, name, pace)
            said.append(f"{words} {'Pareto-better' if not lost else 'not better in ' + ' and '.join(lost)}")
        parts.append(
            f"The smallest bucket with 99 % {meaning} within tolerance is {name or 'none'}; against it the adaptive "
            f"runtime is {', '.join(said)}."
        )
    kept = "within" if ours["reruns"] <= MOST_RERUNS else "beyond"
    engine = "; ".join(
        f"{how} {', '.join(f'{label}: {value:.0f}' for label, value in times.items())}"
        for how, times in bursts["engine_us"].items()
    )
    return (
        f"{' '.join(parts)} Re-runs are {_percent(ours['reruns'])} of the steps, {kept} the {_percent(MOST_RERUNS)} "
        f"allowed. The engine's own call takes, by bucket, µs: {engine}. The difference is a graph that has gone cold."
    )


def _line(model: dict[str, Any]) -> str:
    return "\n".join(" | ".join(row) for row in _coverage_rows(model))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "adaptive", help="where trained runs are kept")
    parser.add_argument("--minutes", type=float, default=1.25, help="training of a model that the cache lacks")
    parser.add_argument("--steps", type=int, default=1300, help="of each model and kind of stream, at most")
    parser.add_argument("--burst-rows", type=int, default=2000, help="rows of the bursty contest")
    parser.add_argument("--repetitions", type=int, default=7, help="of its timing")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--full", action="store_true", help="measure and publish, which is the default")
    tier.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    return parser.parse_args()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


if __name__ == "__main__":
    main()
