"""`odestream bench`: a bundle's latency on this machine."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from odestream.runtime.verbs.bench_run import Plan, Result, backend_names, run_bench
from odestream.runtime.verbs.console import (
    engine_versions,
    machine,
    refuse_engines,
    refuse_outputs,
    save_json,
    show_table,
    whole_numbers,
)
from odestream.runtime.verbs.latency import PERCENTILES, summary, warm_up_text
from odestream.runtime.verbs.latency_plot import plot_latency, require_format
from odestream.runtime.verbs.tally import sentence


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes native where it can run.")] = "auto",
    against: Annotated[
        str | None, typer.Option("--compare", help="Several engines side by side, with commas; the first is 1.")
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(help="Folder of the engines of --backend tensorrt; BUNDLE.engines by default.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes for the bare engine, with commas.")] = "1,8,64",
    buckets: Annotated[
        str | None, typer.Option(help="Solver steps to choose among, with commas; one alone fixes them.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Calls a second of the paced measurement.")] = 100.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="Length of each measurement.")] = 2.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency against percentile to this image file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the written files where they exist.")] = False,
) -> None:
    """Measure a bundle's latency on this machine: one thread, inputs of the bundle's stored vectors.

    Stream.step takes one observation, checks included, back-to-back and paced (caches cool between paced calls);
    a paced call misses its deadline if it ends after the next one is due. It chooses its solver steps as in use, and
    what it chose is told. The bare engine is called for each batch size with the default steps, and for one row with
    the others. Times are of the call alone. With --compare all of this is measured on each of the engines in turn,
    round by round, and each median is also given as a ratio to the first engine's.
    """
    refuse_outputs(force, json_path, plot)
    if plot is not None:
        require_format(plot)
    batches = whole_numbers("--batch", batch, "1,8,64")
    chosen = None if buckets is None else whole_numbers("--buckets", buckets, "1,4")
    backends = backend_names(backend, against)
    refuse_engines(engines, backends)
    name, results = run_bench(bundle, backends, Plan(batches, chosen, rate, seconds, engines))
    engine = ", ".join(dict.fromkeys(result.backend for result in results))
    title = f"{name} on {engine}, {machine()['processor']}, one thread"
    _show(title, results)
    if json_path is not None:
        save_json(json_path, _report(name, engine, seconds, results), force)
    if plot is not None:
        plot_latency([result.measured for result in results], title, plot, force)


def _show(title: str, results: Sequence[Result]) -> None:
    columns: tuple[str, ...] = ("what", "batch", "pace", "p50 µs", "p90", "p99", "p99.9", "missed", "rows/s")
    rows = [_row(result.measured.subject.title, summary(result.measured)) for result in results]
    if results[0].ratio is not None:
        columns = (*columns, "× first")
        rows = [(*row, f"{result.ratio:.3g}") for row, result in zip(rows, results, strict=True)]
    show_table(title, columns, rows, numbers=columns[1:2] + columns[3:])
    for result in results:
        if result.walk is not None:
            subject = result.measured.subject
            print(f"{subject.name}, {_pace(subject.rate)}: {sentence(result.walk.counters)}.")
    for why in dict.fromkeys(result.why for result in results):
        print(f"{why}.")
    print(f"Warm-up: {warm_up_text()}. Rounds are interleaved; a percentile of too few calls is left out.")


def _pace(rate: float | None) -> str:
    return "back-to-back" if rate is None else f"paced at {rate:g} Hz"


def _row(title: str, figures: dict[str, Any]) -> tuple[str, ...]:
    paced = figures["rate_hz"] is not None
    return (
        title,
        str(figures["batch"]),
        f"{figures['rate_hz']:g} Hz" if paced else "none",
        *("" if time is None else f"{time:.1f}" for time in (figures[f"p{q:g}_us"] for q in PERCENTILES)),
        str(figures["deadline_misses"]) if paced else "",
        "" if paced else f"{figures['rows_per_second']:,.0f}",
    )


def _report(name: str, engine: str, seconds: float, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "bundle": name,
        "backend": engine,
        "threads": 1,
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds_each": seconds,
        "warm_up": warm_up_text(),
        "machine": machine(),
        "versions": engine_versions(*(result.backend for result in results)),
        "measurements": [result.as_json() for result in results],
    }
