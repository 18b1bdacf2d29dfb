"""Does the way from a table to an exported bundle forecast better than naive rivals, on weekly CO2 at Mauna Loa?

Trains with three seeds by the command line, exports each, streams the record through each bundle, and compares mean
absolute errors at 1, 4, 13 and 26 weeks in the last fifth of the record; again with half of the test rows dropped.
Falsified if the median of the seeds is not below last value and seasonal naive at each horizon.

    python benchmarks/co2.py            writes results/co2.json, figures/co2.png and a section of RESULTS.md
    python benchmarks/co2.py --quick    one seed, six seconds of training, writes into runs/co2 only
"""

import argparse
import statistics
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.figure

from odestream.runtime import load
from results import FIGURES, circumstances_text, markdown_table, publish, write_json
from walk_forward import (
    DATA,
    HORIZON_WEEKS,
    PERIOD_DAYS,
    Forecaster,
    Record,
    bundle_forecaster,
    figures,
    load_record,
    rivals,
    score,
    thin,
)

OURS = "odestream"
RUNS = Path(__file__).parents[1] / "runs" / "co2"
DROPPED_SHARE = 0.5
ERROR_TICKS = (0.3, 0.4, 0.5, 1, 2, 4)  # of the figure, ppm
Errors = dict[str, list[list[float]]]
"""Name -> one row of errors by horizon for each seed; one row alone for a rival, which has no seed."""


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _options()
    seeds = (0,) if options.quick else tuple(range(options.seeds))
    minutes = 0.1 if options.quick else options.minutes
    bundles = [_train_and_export(seed, minutes) for seed in seeds]
    result = measure(bundles, seeds)
    print(_report(result))
    if options.quick:
        write_json(RUNS / "co2.json", result)
        _draw(result, RUNS / "co2.png")
    else:
        publish("co2", result, _report(result))
        _draw(result, FIGURES / "co2.png")


def measure(bundles: list[Path], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Errors on all rows, and with half of the test rows dropped: a draw of its own for each seed."""
    record = load_record()
    naive = rivals(record)
    errors = {"all rows": Errors(), "half of the test rows": Errors()}
    for bundle, seed in zip(bundles, seeds, strict=True):
        with load(bundle) as model:
            forecasters: dict[str, Forecaster] = {OURS: bundle_forecaster(model), **naive}
            _append(errors["all rows"], score(forecasters, record, record.series))
            _append(errors["half of the test rows"], score(forecasters, record, thin(record, DROPPED_SHARE, seed)))
    return {"seeds": seeds, "horizon_weeks": HORIZON_WEEKS, "test_rows": _test_rows(record), "errors_ppm": errors}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds to train")
    parser.add_argument("--minutes", type=float, help="training budget of a seed; default: the trainer's own")
    parser.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    return parser.parse_args()


def _train_and_export(seed: int, minutes: float | None) -> Path:
    run, bundle = RUNS / f"seed{seed}", RUNS / f"seed{seed}.bundle"
    budget = [] if minutes is None else ["--minutes", str(minutes)]
    columns = ["--time", "time", "--inputs", "co2_ppm", "--period", str(PERIOD_DAYS)]
    _odestream("train", str(DATA), *columns, "--seed", str(seed), *budget, "--out", str(run), "--force")
    _odestream("export", str(run), "--out", str(bundle), "--force")
    return bundle


def _odestream(*arguments: str) -> None:
    subprocess.run(["odestream", *arguments], check=True)  # noqa: S607 (the command that a user types)


def _append(collected: Errors, errors: dict[str, list[float]]) -> None:
    for name, row in errors.items():
        collected.setdefault(name, []).append(row)


def _test_rows(record: Record) -> int:
    return len(record.series.ticks) - record.first


def _report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    weeks = [f"{h} week{'s' if h > 1 else ''}" for h in HORIZON_WEEKS]
    parts = [
        f"Mean absolute error in ppm, forecasts made from the last {result['test_rows']} weeks walking forward; median "
        f"of {len(result['seeds'])} seeds (lowest – highest), each its own draw where rows are dropped.",
    ]
    for title, errors in result["errors_ppm"].items():
        rows = [[name, *map(_cell, zip(*by_seed, strict=True))] for name, by_seed in errors.items()]
        parts += [f"**{title.capitalize()}**", markdown_table(["", *weeks], rows), _verdict(errors)]
    return "\n\n".join([*parts, circumstances_text()])


def _cell(values: tuple[float, ...]) -> str:
    median, low, high = figures([statistics.median(values), min(values), max(values)])
    return median if low == high else f"{median} ({low} – {high})"


def _verdict(errors: Errors) -> str:
    """Which rivals are beaten at every horizon, win or loss."""
    medians = {name: [statistics.median(v) for v in zip(*rows, strict=True)] for name, rows in errors.items()}
    ours = medians.pop(OURS)
    said = []
    for name, theirs in medians.items():
        lost = [str(h) for h, a, b in zip(HORIZON_WEEKS, ours, theirs, strict=True) if a >= b]
        said.append(
            f"{name} {'beaten at every horizon' if not lost else 'not beaten at ' + ', '.join(lost) + ' weeks'}"
        )
    return "Against " + "; ".join(said) + "."


def _draw(result: dict[str, Any], path: Path) -> None:
    """Error over horizon, one panel for all rows and one for the thinned record."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(result["errors_ppm"]), sharey=True, squeeze=False)[0]
    for axes, (title, errors) in zip(panels, result["errors_ppm"].items(), strict=True):
        for name, by_seed in errors.items():
            columns = list(zip(*by_seed, strict=True))
            axes.plot(HORIZON_WEEKS, [statistics.median(c) for c in columns], marker="o", markersize=4, label=name)
            axes.fill_between(HORIZON_WEEKS, [min(c) for c in columns], [max(c) for c in columns], alpha=0.2)
        axes.set(title=title, xlabel="weeks ahead", xscale="log", yscale="log")
        axes.set_xticks(HORIZON_WEEKS, [str(h) for h in HORIZON_WEEKS])
        axes.set_yticks(ERROR_TICKS, [str(e) for e in ERROR_TICKS])
        axes.minorticks_off()
    panels[0].set_ylabel("mean absolute error, ppm")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
