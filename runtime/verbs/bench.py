"""`odestream bench`: a bundle's latency on this machine."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from odestream.runtime import Model, load
from odestream.runtime.backends import Binding
from odestream.runtime.contract.vectors import Vectors
from odestream.runtime.errors import InputError
from odestream.runtime.timestamps import MAX_TICKS
from odestream.runtime.verbs.console import (
    machine,
    progress_bar,
    refuse_outputs,
    save_json,
    show_table,
    versions,
)
from odestream.runtime.verbs.latency import PERCENTILES, Measured, Subject, measure, summary, warm_up_text
from odestream.runtime.verbs.latency_plot import plot_latency, require_format

GAPS_PER_UNIT = 10  # a model's time unit is ten of its training gaps


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes the fastest that works here.")] = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes for the bare engine, with commas.")] = "1,8,64",
    rate: Annotated[float, typer.Option(min=0.001, help="Calls a second of the paced measurement.")] = 100.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="Length of each measurement.")] = 2.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency against percentile to this image file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the written files where they exist.")] = False,
) -> None:
    """Measure a bundle's latency on this machine: one thread, inputs of the bundle's stored vectors.

    Stream.step takes one observation, checks included, back-to-back and paced (caches cool between paced calls);
    a paced call misses its deadline if it ends after the next one is due. The bare engine is called for each
    batch size. Times are of the call alone.
    """
    refuse_outputs(force, json_path, plot)
    if plot is not None:
        require_format(plot)
    batches = _batches(batch)
    with load(bundle, backend=backend) as model, progress_bar() as bar:
        subjects = _subjects(model, batches, rate)
        task = bar.add_task("Measuring", total=seconds * len(subjects))
        results = measure(subjects, seconds, lambda passed: bar.advance(task, passed))
        engine, name = model.backend, model.manifest.name
    title = f"{name} on {engine}, {machine()['processor']}, one thread"
    _show(title, results)
    if json_path is not None:
        save_json(json_path, _report(name, engine, seconds, results), force)
    if plot is not None:
        plot_latency(results, title, plot, force)


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise InputError(f"--batch is {text!r}, expected whole numbers from 1; write them as 1,8,64")
    return batches


def _subjects(model: Model, batches: Sequence[int], rate: float) -> list[Subject]:
    vectors = model.bundle.vectors()
    return [
        _stream_subject(model, vectors, None),
        _stream_subject(model, vectors, rate),
        *(_engine_subject(model, vectors, batch) for batch in batches),
    ]


def _stream_subject(model: Model, vectors: Vectors, rate: float | None) -> Subject:
    """Stream.step on the vectors' first stream, over and over, at the usual gap.

    Weekly steps fill a clock of nanoseconds within seconds, so the stream begins anew before its clock ends.
    """
    stream = model.stream()
    gap = max(1, round(model.manifest.time.ticks_per_model_unit / GAPS_PER_UNIT))
    mask = vectors.inputs.get("mask")
    arguments: list[Any] = []

    def prepare(i: int) -> None:
        nonlocal stream
        row = i % vectors.steps
        if stream.last_tick is not None and stream.last_tick > MAX_TICKS - gap:
            stream = model.stream()
        last = stream.last_tick
        now = model.manifest.time.origin if last is None else last + gap
        arguments[:] = [vectors.inputs["x"][row, 0], now, None if mask is None else mask[row, 0]]

    return Subject("Stream.step", 1, rate, prepare, lambda: stream.step(*arguments))


def _engine_subject(model: Model, vectors: Vectors, batch: int) -> Subject:
    """The engine alone, on `batch` streams taken from the vectors' in turn; each result is accepted."""
    binding = model.bind(batch)
    columns = np.arange(batch) % vectors.batch
    inputs = {name: values[:, columns] for name, values in vectors.inputs.items()}

    def prepare(i: int) -> None:
        for name, values in inputs.items():
            np.copyto(binding.inputs[name], values[i % vectors.steps])

    return Subject("engine", batch, None, prepare, _engine_call(binding, model.manifest.default_graph))


def _engine_call(binding: Binding, label: str) -> Callable[[], None]:
    def call() -> None:
        binding.run(label)
        binding.swap()

    return call


def _show(title: str, results: Sequence[Measured]) -> None:
    columns = ("what", "batch", "pace", "p50 µs", "p90", "p99", "p99.9", "missed", "rows/s")
    show_table(title, columns, [_row(summary(measured)) for measured in results], numbers=columns[1:2] + columns[3:])
    print(f"Warm-up: {warm_up_text()}. Rounds are interleaved; a percentile of too few calls is left out.")


def _row(figures: dict[str, Any]) -> tuple[str, ...]:
    paced = figures["rate_hz"] is not None
    return (
        figures["name"],
        str(figures["batch"]),
        f"{figures['rate_hz']:g} Hz" if paced else "none",
        *(f"{figures[f'p{q:g}_us']:.1f}" if figures["calls"] * (1 - q / 100) >= 1 else "" for q in PERCENTILES),
        str(figures["deadline_misses"]) if paced else "",
        "" if paced else f"{figures['rows_per_second']:,.0f}",
    )


def _report(name: str, backend: str, seconds: float, results: Sequence[Measured]) -> dict[str, Any]:
    return {
        "bundle": name,
        "backend": backend,
        "threads": 1,
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds_each": seconds,
        "warm_up": warm_up_text(),
        "machine": machine(),
        "versions": versions("odestream", "numpy", backend),
        "measurements": [summary(measured) for measured in results],
    }
