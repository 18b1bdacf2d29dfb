"""What the demo came to: forecasts beside naive rivals, parity, latency, and a figure of forecast against record.

python benchmarks/demo_report.py runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import rich
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.table import Table

from odestream.runtime import Model, load
from odestream.runtime.contract.manifest import Manifest
from walk_forward import (
    HORIZON_WEEKS,
    Floats,
    Record,
    bundle_forecaster,
    figures,
    load_record,
    rivals,
    score,
    stream_forecasts,
    thin,
)

LONGEST_WEEKS = HORIZON_WEEKS[-1]
FAN_WEEKS = 104
NANOSECONDS_A_YEAR = 365.25 * 86_400e9


def main() -> None:
    """Report on the demo's folder, named on the command line."""
    folder = Path(sys.argv[1])
    record = load_record()
    with load(folder / "bundle") as model:
        rich.print(_errors(model, record))
        rich.print(_parity(model.manifest))
        rich.print(_latency(json.loads((folder / "bench.json").read_text(encoding="utf-8"))))
        _draw(model, record, folder / "forecast.png")
    print(f"Forecast against record: {folder / 'forecast.png'}")


def _errors(model: Model, record: Record) -> Table:
    table = Table(title="Mean absolute error in the last fifth of the record, ppm", title_justify="left")
    table.add_column("")
    for weeks in HORIZON_WEEKS:
        table.add_column(f"{weeks} week{'s' if weeks > 1 else ''}", justify="right")
    forecasters = {"this bundle": bundle_forecaster(model), **rivals(record)}
    for title, shown in (("every row", record.series), ("half of the rows", thin(record, 0.5, seed=0))):
        for name, errors in score(forecasters, record, shown).items():
            table.add_row(f"{name}, {title}", *figures(errors), end_section=name == list(forecasters)[-1])
    return table


def _parity(manifest: Manifest) -> Table:
    table = Table(title="Parity with the trained model, relative to each tensor's scale", title_justify="left")
    for column in ("check", "worst tensor", "error", "allowed"):
        table.add_column(column, justify="right" if column in ("error", "allowed") else "left")
    for check in dict.fromkeys((row.check, row.steps) for row in manifest.parity):
        worst = max((r for r in manifest.parity if (r.check, r.steps) == check), key=lambda r: r.error / r.tolerance)
        name = check[0] if check[1] == 1 else f"{check[0]}, {check[1]} steps"
        table.add_row(name, worst.tensor, f"{worst.error:.1e}", f"{worst.tolerance:.0e}")
    return table


def _latency(bench: dict[str, Any]) -> Table:
    table = Table(title="Latency of one call, µs", title_justify="left")
    percentiles = {"p50_us": "p50", "p90_us": "p90", "p99_us": "p99", "p99.9_us": "p99.9"}
    for name in ("", "batch", "pace", *percentiles.values(), "missed"):
        table.add_column(name, justify="left" if name in ("", "pace") else "right")
    for row in bench["measurements"]:
        pace = row["mode"] if row["rate_hz"] is None else f"{row['rate_hz']:g} a second"
        missed = "" if row["deadline_misses"] is None else f"{row['deadline_misses']}"
        name = row["name"] if row["steps"] is None else f"{row['name']}, {row['steps']} step{'s' * (row['steps'] != 1)}"
        times = ["" if row[key] is None else f"{row[key]:.0f}" for key in percentiles]
        table.add_row(name, str(row["batch"]), pace, *times, missed)
    return table


def _draw(model: Model, record: Record, path: Path) -> None:
    """Above, half a year ahead all along the test part; below, one forecast of the next two years."""
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    _draw_walk(above, model, record)
    _draw_fan(below, model, record)
    for axes in (above, below):
        axes.set_ylabel("CO₂, ppm")
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=130)


def _draw_walk(axes: Axes, model: Model, record: Record) -> None:
    series = record.series
    origins = np.arange(record.first, len(series.ticks) - LONGEST_WEEKS)
    targets = origins + LONGEST_WEEKS
    mean, deviation = stream_forecasts(model, series, origins, series.ticks[targets])
    _draw_record(axes, record, record.first, len(series.ticks))
    _draw_band(axes, _years(series.ticks[targets]), mean, deviation)
    axes.set_title(f"Forecasts made {LONGEST_WEEKS} weeks ahead, with two of the stated deviations")


def _draw_fan(axes: Axes, model: Model, record: Record) -> None:
    series = record.series
    origin = record.first + (len(series.ticks) - record.first) // 3
    targets = series.ticks[origin] + record.week * np.arange(FAN_WEEKS + 1)
    mean, deviation = stream_forecasts(model, series, np.full(len(targets), origin), targets)
    _draw_record(axes, record, origin - FAN_WEEKS // 2, origin + FAN_WEEKS)
    _draw_band(axes, _years(targets), mean, deviation)
    axes.axvline(float(_years(series.ticks[origin])), color="black", linewidth=0.8, linestyle=":")
    axes.set_title(f"One forecast of the next {FAN_WEEKS} weeks, made at the dotted line")


def _draw_record(axes: Axes, record: Record, begin: int, end: int) -> None:
    rows = np.arange(begin, end)[record.series.mask[begin:end, 0] > 0]
    axes.plot(
        _years(record.series.ticks[rows]), record.series.x[rows, 0], ".", color="black", markersize=3, label="record"
    )


def _draw_band(axes: Axes, years: Floats, mean: Floats, deviation: Floats) -> None:
    axes.plot(years, mean, color="tab:red", linewidth=1.2, label="forecast")
    axes.fill_between(years, mean - 2 * deviation, mean + 2 * deviation, color="tab:red", alpha=0.2, linewidth=0)


def _years(ticks: NDArray[np.int64]) -> Floats:
    return 1970 + ticks / NANOSECONDS_A_YEAR


if __name__ == "__main__":
    main()
