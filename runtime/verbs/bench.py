"""`odestream bench`: a bundle's latency on this machine."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from odestream.runtime import Counters, Model, load
from odestream.runtime.backends import Binding
from odestream.runtime.contract.vectors import Vectors
from odestream.runtime.timestamps import MAX_TICKS
from odestream.runtime.verbs.console import (
    machine,
    progress_bar,
    refuse_outputs,
    save_json,
    show_table,
    versions,
    whole_numbers,
)
from odestream.runtime.verbs.latency import PERCENTILES, Measured, Subject, measure, summary, warm_up_text
from odestream.runtime.verbs.latency_plot import plot_latency, require_format
from odestream.runtime.verbs.tally import as_json, sentence, total

GAPS_PER_UNIT = 10  # a model's time unit is ten of its training gaps


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    backend: Annotated[str, typer.Option(help="The engine to use; auto takes onnxruntime.")] = "auto",
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
    the others. Times are of the call alone.
    """
    refuse_outputs(force, json_path, plot)
    if plot is not None:
        require_format(plot)
    batches = whole_numbers("--batch", batch, "1,8,64")
    chosen = None if buckets is None else whole_numbers("--buckets", buckets, "1,4")
    with load(bundle, backend=backend) as model, progress_bar() as bar:
        walks = [_Walk(model, chosen), _Walk(model, chosen)]
        subjects = _subjects(model, walks, batches, chosen, rate)
        task = bar.add_task("Measuring", total=seconds * len(subjects))
        results = measure(subjects, seconds, lambda passed: bar.advance(task, passed))
        engine, name = model.backend, model.manifest.name
    title = f"{name} on {engine}, {machine()['processor']}, one thread"
    counts = [walk.counters for walk in walks]
    _show(title, results, counts)
    if json_path is not None:
        save_json(json_path, _report(name, engine, seconds, results, counts), force)
    if plot is not None:
        plot_latency(results, title, plot, force)


class _Walk:
    """A stream on the vectors' first stream, over and over, at the usual gap.

    Weekly steps fill a clock of nanoseconds within seconds, so the stream begins anew before its clock ends.
    """

    def __init__(self, model: Model, buckets: Sequence[int] | None) -> None:
        self._model, self._buckets = model, buckets
        self._vectors = model.bundle.vectors()
        self._gap = max(1, round(model.manifest.time.ticks_per_model_unit / GAPS_PER_UNIT))
        self._stream = model.stream(buckets)
        self._ended = Counters()
        self._arguments: list[Any] = []

    @property
    def counters(self) -> Counters:
        """What the solver did, warm-up included."""
        return total([self._ended, self._stream.counters])

    def prepare(self, i: int) -> None:
        """The next observation and its time."""
        vectors, row = self._vectors, i % self._vectors.steps
        last = self._stream.last_tick
        if last is not None and last > MAX_TICKS - self._gap:
            self._ended, self._stream, last = self.counters, self._model.stream(self._buckets), None
        now = self._model.manifest.time.origin if last is None else last + self._gap
        mask = vectors.inputs.get("mask")
        self._arguments[:] = [vectors.inputs["x"][row, 0], now, None if mask is None else mask[row, 0]]

    def step(self) -> object:
        """The call that is timed."""
        return self._stream.step(*self._arguments)


def _subjects(
    model: Model, walks: Sequence[_Walk], batches: Sequence[int], buckets: Sequence[int] | None, rate: float
) -> list[Subject]:
    """Stream.step at both paces; the engine for each batch in its usual bucket, and for one row in every other."""
    solver, vectors = model.manifest.solver, model.bundle.vectors()
    streams = [
        Subject("Stream.step", 1, pace, walk.prepare, walk.step) for walk, pace in zip(walks, (None, rate), strict=True)
    ]
    if solver is None:
        return streams + [_engine_subject(model, vectors, batch, None) for batch in batches]
    among = tuple(buckets or solver.buckets)
    usual = solver.default_bucket if solver.default_bucket in among else among[0]
    sizes = [(usual, batch) for batch in batches] + [(bucket, 1) for bucket in among if bucket != usual]
    return streams + [_engine_subject(model, vectors, batch, bucket) for bucket, batch in sizes]


def _engine_subject(model: Model, vectors: Vectors, batch: int, steps: int | None) -> Subject:
    """The engine alone, on `batch` streams taken from the vectors' in turn; each result is accepted."""
    binding = model.bind(batch)
    columns = np.arange(batch) % vectors.batch
    inputs = {name: values[:, columns] for name, values in vectors.inputs.items()}

    def prepare(i: int) -> None:
        for name, values in inputs.items():
            np.copyto(binding.inputs[name], values[i % vectors.steps])

    label = model.manifest.default_graph if steps is None else str(steps)
    return Subject("engine", batch, None, prepare, _engine_call(binding, label), steps)


def _engine_call(binding: Binding, label: str) -> Callable[[], None]:
    def call() -> None:
        binding.run(label)
        binding.swap()

    return call


def _show(title: str, results: Sequence[Measured], counts: Sequence[Counters]) -> None:
    columns = ("what", "batch", "pace", "p50 µs", "p90", "p99", "p99.9", "missed", "rows/s")
    rows = [_row(measured.subject.title, summary(measured)) for measured in results]
    show_table(title, columns, rows, numbers=columns[1:2] + columns[3:])
    for measured, counters in zip(results, counts, strict=False):
        print(f"{measured.subject.name}, {_pace(measured.subject.rate)}: {sentence(counters)}.")
    print(f"Warm-up: {warm_up_text()}. Rounds are interleaved; a percentile of too few calls is left out.")


def _pace(rate: float | None) -> str:
    return "back-to-back" if rate is None else f"paced at {rate:g} Hz"


def _row(title: str, figures: dict[str, Any]) -> tuple[str, ...]:
    paced = figures["rate_hz"] is not None
    return (
        title,
        str(figures["batch"]),
        f"{figures['rate_hz']:g} Hz" if paced else "none",
        *(f"{figures[f'p{q:g}_us']:.1f}" if figures["calls"] * (1 - q / 100) >= 1 else "" for q in PERCENTILES),
        str(figures["deadline_misses"]) if paced else "",
        "" if paced else f"{figures['rows_per_second']:,.0f}",
    )


def _report(
    name: str, backend: str, seconds: float, results: Sequence[Measured], counts: Sequence[Counters]
) -> dict[str, Any]:
    """The figures; `solver` of a Stream.step is what the stream did, warm-up included."""
    measurements = [summary(measured) for measured in results]
    for figures, counters in zip(measurements, counts, strict=False):
        figures["solver"] = as_json(counters)
    return {
        "bundle": name,
        "backend": backend,
        "threads": 1,
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds_each": seconds,
        "warm_up": warm_up_text(),
        "machine": machine(),
        "versions": versions("odestream", "numpy", backend),
        "measurements": measurements,
    }
