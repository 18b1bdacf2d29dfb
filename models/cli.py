"""`odestream train`: a table or a text in, a finished run out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from odestream.models.checkpoint import RunInfo, Settings
from odestream.models.config import Task
from odestream.models.data import number_columns
from odestream.models.distributed import World, joined
from odestream.models.remarks import remarks
from odestream.models.train import Job, train_run
from odestream.models.training.loop import Report
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import InputError
from odestream.runtime.verbs.console import progress_bar, show_table
from odestream.runtime.verbs.stopping import Stopper

DEFAULTS = Settings()


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A CSV with a header; a text for --task tokens.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder to write the run to.")],
    time: Annotated[
        str | None, typer.Option(metavar="COL", help="Times: numbers or ISO dates. None: rows count.")
    ] = None,
    inputs: Annotated[str | None, typer.Option(metavar="A,B", help="Input columns; all that hold numbers.")] = None,
    targets: Annotated[
        str | None, typer.Option(metavar="Y", help="Forecast columns (all inputs), or the label.")
    ] = None,
    stream: Annotated[str | None, typer.Option(metavar="COL", help="Names the stream of each row.")] = None,
    task: Annotated[str, typer.Option(help="forecast, classify or tokens.")] = "forecast",
    preset: Annotated[str, typer.Option(help="nano, small or base.")] = DEFAULTS.preset,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="cell, or a rival with as many parameters; a wrong name lists them.")
    ] = DEFAULTS.model,
    solver: Annotated[
        str, typer.Option(metavar="METHOD", help="A tableau; or odeint: or odeint_adjoint: and a torchdiffeq method.")
    ] = DEFAULTS.solver,
    minutes: Annotated[float | None, typer.Option(help="Training time; by preset 1.5, 6 or 30.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows, instead of --minutes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights, the batches and the splits.")] = DEFAULTS.seed,
    time_unit: Annotated[str, typer.Option(help="Of a time column of numbers: ns us ms s min h day week year.")] = "s",
    period: Annotated[float | None, typer.Option(help="Season, in the time column's units; days for dates.")] = None,
    stationary: Annotated[
        bool, typer.Option("--stationary", help="Forecast inputs come back to their mean: no trend.")
    ] = False,
    episodic_sink: Annotated[
        bool, typer.Option("--episodic-sink", help="The cell's episodic read may stay silent about what it has lost.")
    ] = False,
    horizons: Annotated[str, typer.Option(metavar="N,N", help="Forecast horizons, in median gaps.")] = "1,4,13,26",
    test_fraction: Annotated[float, typer.Option(help="Share that is never trained on.")] = DEFAULTS.test_fraction,
    consistency: Annotated[
        float, typer.Option(metavar="W", help="Weight of N against 2N solver steps; 0: off.")
    ] = DEFAULTS.consistency,
    kinetic: Annotated[
        float, typer.Option(metavar="W", help="Weight of the field's mean square, which keeps flows slow.")
    ] = DEFAULTS.kinetic,
    jacobian: Annotated[
        float, typer.Option(metavar="W", help="Weight of its Jacobian's mean square, which keeps flows smooth.")
    ] = DEFAULTS.jacobian,
    without: Annotated[
        str | None, typer.Option(metavar="A,B", help="Parts of the cell to leave out; a wrong name lists them.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
) -> None:
    """Train on your data, and judge the model on rows that it never saw, beside naive rivals.

    RUN gets the weights, a configuration, metrics.json and the training curve. Ctrl-C keeps what was trained so far;
    --resume goes on with it. Under torchrun the work is shared among its processes.
    """
    if resume and force:
        raise InputError("--resume and --force exclude each other; give one of them")
    settings = Settings(
        preset=preset,
        model=model,
        solver=solver,
        seed=seed,
        minutes=minutes,
        epochs=epochs,
        time_unit=time_unit,
        period=period,
        horizons=_whole_numbers(horizons),
        test_fraction=test_fraction,
        consistency=consistency,
        kinetic=kinetic,
        jacobian=jacobian,
        without=_names(without),
        stationary=stationary,
        episodic_sink=episodic_sink,
    )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # the matrices are small: a second thread waits for the first more than it helps
    with joined() as world, Stopper() as stopper:
        described = task_of(data, task, time, _names(inputs), _names(targets), stream)
        with _progress(world, resume) as watch:
            job = Job(data, described, settings, out, resume, force)
            info = train_run(job, world, watch, lambda: stopper.signal is not None)
    if stopper.signal is not None and info is None:
        if world.leads:
            typer.echo(f"Stopped; the same command with --resume goes on with {out}.", err=True)
        raise typer.Exit(128 + stopper.signal)
    if info is not None and world.leads:
        _show(info, out)


def task_of(
    path: Path,
    kind: str,
    time: str | None,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    stream: str | None,
) -> TaskSpec:
    """The task that the options describe, with its inputs and targets filled in; InputError where they do not fit."""
    if kind not in get_args(Task):
        raise InputError(f"--task {kind}: choose one of {', '.join(get_args(Task))}")
    if kind == "tokens":
        if time or inputs or targets or stream:
            raise InputError("--task tokens reads a text, which has no columns; leave the column options out")
        return TaskSpec("tokens")
    if kind == "classify" and len(targets) != 1:
        raise InputError(f"--task classify with {len(targets)} targets; name one column of labels with --targets")
    excluded = {time, stream, *(targets if kind == "classify" else ())}
    inputs = inputs or number_columns(path, excluded)
    unusable = [name for name in inputs if name in excluded]
    if unusable:
        raise InputError(f"column {unusable[0]!r} is the time, the stream or the label; take it out of --inputs")
    if kind == "forecast":
        inputs += tuple(target for target in targets if target not in inputs)
        targets = targets or inputs
    return TaskSpec(kind, inputs, targets, (), time, stream)  # type: ignore[arg-type]


def _names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as cause:
        raise InputError(f"--horizons {text!r}: give whole numbers with commas between, such as 1,4,13,26") from cause


@contextmanager
def _progress(world: World, resumed: bool) -> Generator[Callable[[Report], None], None, None]:
    """A bar with loss and estimate, on the leader's standard error; a line at every tenth where that is no terminal."""
    if not world.leads:
        yield lambda report: None
        return
    with progress_bar() as bar:
        line, tenths = bar.add_task("resuming" if resumed else "training", total=1.0), 0

        def watch(report: Report) -> None:
            nonlocal tenths
            best = f", best validation {report.best:.4f}" if math.isfinite(report.best) else ""
            said = f"step {report.step}, loss {report.loss:.4f}{best}"
            bar.update(line, completed=report.progress, description=said)
            done = int(10 * report.progress + 1e-9)
            if bar.disable and done > tenths:
                tenths = done
                typer.echo(f"{report.progress:.0%}: {said}", err=True)

        yield watch


def _show(info: RunInfo, out: Path) -> None:
    """The test part's figures, for people; `metrics.json` has all of them."""
    test = info.metrics["test"]
    if info.task.kind == "forecast":
        for target, horizons in test.items():
            names = sorted({name for figures in horizons.values() for name in figures["rivals"]})
            rows = [_forecast_row(horizon, figures, names) for horizon, figures in horizons.items()]
            columns = ["gaps ahead", "this model", *(name.replace("_", " ") for name in names), "bias", "within 1σ"]
            show_table(f"Mean absolute error of {target} on the test part", columns, rows, columns)
    else:
        flat = {**{k: v for k, v in test.items() if k != "rivals"}, **test.get("rivals", {})}
        show_table("Test part", ["", "value"], [(k.replace("_", " "), _text(v)) for k, v in flat.items()], ["value"])
    seconds = info.metrics["seconds"]
    typer.echo(f"{out}: {info.metrics['parameters']} parameters, {info.metrics['steps']} steps in {seconds:.0f} s")
    for remark in remarks(info):
        typer.echo(remark)


def _forecast_row(horizon: str, figures: dict[str, Any], rivals: list[str]) -> list[str]:
    others = [_text(figures["rivals"].get(name)) for name in rivals]
    return [horizon, _text(figures["mae"]), *others, _text(figures["bias"]), _text(figures["coverage_1"])]


def _text(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
