"""From a table or a text to a finished run on disk."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from odestream.models.cell import Cell
from odestream.models.checkpoint import (
    CONFIG_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    RunInfo,
    Settings,
    holds_run,
    save_checkpoint,
)
from odestream.models.config import PARTS, STORES, CellConfig, preset
from odestream.models.curve import draw_curve
from odestream.models.data import Dataset, Text, centre_and_scale, load_table, load_text
from odestream.models.distributed import World
from odestream.models.flow import integrator
from odestream.models.held_out import HELD_OUT_FILE, HeldOut, hold_out_rows, hold_out_text, save_held_out
from odestream.models.labelling import classify_report, tokens_report
from odestream.models.metrics import forecast_report
from odestream.models.model import OURS, Model, check_name, make_model
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.labels import classify_recipe, tokens_recipe
from odestream.models.training.loop import Budget, Report, Trainer
from odestream.models.training.recipe import Recipe
from odestream.models.training.regularity import Solving
from odestream.models.training.resume import TRAINING_FILE, resume_training, save_training
from odestream.runtime.atomic import refuse_existing, write_bytes
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError, PathError

CURVE_FILE = "curve.png"
AVERAGES = (0.5, 2.0, 8.0, 32.0)  # model units: 5 to 320 median gaps
ANCHOR = 1e4  # of one more, for a stationary record: it stays about the centre where it begins
DEFAULT_MINUTES = {"nano": 1.5, "small": 6.0, "base": 30.0}
DEPLOYED_METHOD = "bosh32"  # where torchdiffeq integrated the flow in training
OF_THE_CELL = ("solver", "consistency", "kinetic", "jacobian", "without", "episodic_sink")
PHASE = "phase"
LEFT_OUT = (*STORES, PHASE, *PARTS)
FORECAST_LANES, FORECAST_CHUNK = 48, 8
LABEL_LANES, LABEL_CHUNK = 32, 64
"""Lanes and calls of a chunk: short chunks change the weights more often in the same time."""


@dataclass(frozen=True)
class Job:
    """What to train on and where to put it. resume: go on with an unfinished run. force: replace an existing one."""

    source: Path
    task: TaskSpec
    settings: Settings
    out: Path
    resume: bool = False
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """A cell, how it is trained, what is set on validation rows after, and how it is judged in the end.

    info: of the run, without metrics. hold_out: validation rows that stay with the run, to calibrate its export on.
    """

    cell: Model
    recipe: Recipe
    info: RunInfo
    calibrate: Callable[[Model], None]
    judge: Callable[[Model], dict[str, Any]]
    hold_out: Callable[[], HeldOut | None]
    loss_name: str
    score_name: str


def train_run(
    job: Job, world: World, watch: Callable[[Report], None], stop: Callable[[], bool] = lambda: False
) -> RunInfo | None:
    """Train and write the run; None if `stop` ended it before, in which case `resume` goes on with it.

    watch: told after every step. Raises InputError, PathError and CheckpointError before anything is written; a run
    that `force` replaces stays until the new one has made its first steps.
    """
    if world.leads:  # the others would meet the folder that the leader makes
        _refuse(job)
    plan = prepare(job, world)
    trainer = Trainer(plan.cell, plan.recipe, budget(plan.info.settings, plan.recipe), job.settings.seed, world)
    identity = _identity(plan.info)
    if job.resume:
        resume_training(job.out, trainer, identity)
    with _folder(job.out, world):
        finished = trainer.run(watch, stop, lambda: _keep(job, trainer, identity))
        if not finished:
            _keep(job, trainer, identity)
            return None
    return _finish(job, plan, trainer) if world.leads else plan.info


def prepare(job: Job, world: World) -> Plan:
    """Read the data and make the cell, with the seed's first weights, and its recipe."""
    settings = job.settings
    check_settings(settings, job.task)
    settings = with_budget(settings)
    torch.manual_seed(settings.seed)
    if job.task.kind == "tokens":
        return _plan_tokens(load_text(job.source, settings), settings, world)
    data = load_table(job.source, job.task, settings)
    if PHASE in settings.without:
        data = dataclasses.replace(data, time=msgspec.structs.replace(data.time, frequencies=()))
    return (_plan_forecast if job.task.kind == "forecast" else _plan_classify)(data, settings, world)


def with_budget(settings: Settings) -> Settings:
    """The settings with the preset's minutes where neither minutes nor epochs are given."""
    if settings.minutes is not None or settings.epochs is not None:
        return settings
    return msgspec.structs.replace(settings, minutes=DEFAULT_MINUTES[settings.preset])


def budget(settings: Settings, recipe: Recipe) -> Budget:
    """By epochs where they are given, else by minutes."""
    if settings.epochs is not None:
        return Budget(None, settings.epochs * recipe.epoch)
    return Budget(60.0 * (settings.minutes or 0.0), None)


def _plan_forecast(data: Dataset, settings: Settings, world: World) -> Plan:
    averages = (*AVERAGES, ANCHOR) if settings.stationary else AVERAGES
    cell = make_model(settings.model, _config(data.task, data.time, settings, centre_and_scale(data), averages))
    lanes = _lanes(FORECAST_LANES, world)
    recipe = ForecastRecipe(cell, data, settings, lanes, FORECAST_CHUNK, Solving.of(settings))

    def judge(best: Model) -> dict[str, Any]:
        return forecast_report(best, data, settings.horizons, settings.period, settings.seed)

    error = "mean absolute error / scale"
    info = RunInfo(data.task, data.time, settings, data.info)
    hold_out = _hold_out(cell, partial(hold_out_rows, data=data, seed=settings.seed))
    return Plan(cell, recipe, info, recipe.calibrate, judge, hold_out, error, error)


def _plan_classify(data: Dataset, settings: Settings, world: World) -> Plan:
    if len(data.task.labels) < 2:
        raise InputError(f"column {data.task.targets[0]!r} holds one label only; a classifier needs at least two")
    cell = make_model(settings.model, _config(data.task, data.time, settings, centre_and_scale(data), ()))
    recipe = classify_recipe(cell, data, _lanes(LABEL_LANES, world), LABEL_CHUNK, Solving.of(settings))
    info = RunInfo(data.task, data.time, settings, data.info)
    judge = partial(classify_report, data=data)
    hold_out = _hold_out(cell, partial(hold_out_rows, data=data, seed=settings.seed))
    return Plan(cell, recipe, info, _leave, judge, hold_out, *["cross-entropy, nats"] * 2)


def _plan_tokens(text: Text, settings: Settings, world: World) -> Plan:
    cell = make_model(settings.model, _config(text.task, text.time, settings, ((0.0,), (1.0,)), ()))
    lanes, solving = _lanes(LABEL_LANES, world), Solving.of(settings)
    recipe = tokens_recipe(cell, text.training, text.validation, lanes, LABEL_CHUNK, solving)

    def judge(best: Model) -> dict[str, Any]:
        return tokens_report(best, text.training, text.validation, text.test)

    info = RunInfo(text.task, text.time, settings, text.info)
    hold_out = _hold_out(cell, lambda _: hold_out_text(text, settings.seed))
    return Plan(cell, recipe, info, _leave, judge, hold_out, *["cross-entropy, nats a byte"] * 2)


def _hold_out(cell: Model, read: Callable[[Cell], HeldOut | None]) -> Callable[[], HeldOut | None]:
    """What stays with the run for the calibration of a solver; nothing without one."""
    return partial(read, cell) if isinstance(cell, Cell) else lambda: None


def _leave(cell: Model) -> None:
    """Probabilities stay as they were trained."""


def _config(
    task: TaskSpec,
    time: TimeSpec,
    settings: Settings,
    centre_scale: tuple[tuple[float, ...], tuple[float, ...]],
    averages: tuple[float, ...],
) -> CellConfig:
    return CellConfig(
        task=task.kind,  # type: ignore[arg-type]
        channels=max(1, len(task.inputs)),
        sizes=preset(settings.preset),
        centre=centre_scale[0],
        scale=centre_scale[1],
        outputs=len(task.labels),
        averages=averages,
        stationary=settings.stationary,
        frequencies=time.frequencies,
        stores=tuple(store for store in STORES if store not in settings.without),
        episodic_sink=settings.episodic_sink,
        without=tuple(part for part in PARTS if part in settings.without),
        method=DEPLOYED_METHOD if ":" in settings.solver else settings.solver,
    )


def _lanes(count: int, world: World) -> int:
    """Every process has as many lanes as every other."""
    return math.ceil(count / world.size) * world.size


def check_settings(settings: Settings, task: TaskSpec) -> None:
    """InputError for an option that cannot be used."""
    preset(settings.preset)
    integrator(settings.solver)
    _check_model(settings)
    if settings.minutes is not None and settings.epochs is not None:
        raise InputError("--minutes and --epochs exclude each other; give one of them")
    if settings.minutes is not None and not (math.isfinite(settings.minutes) and settings.minutes > 0):
        raise InputError(f"--minutes {settings.minutes}: give a number above 0")
    if settings.epochs is not None and settings.epochs < 1:
        raise InputError(f"--epochs {settings.epochs}: give a whole number above 0")
    for name in ("consistency", "kinetic", "jacobian"):
        weight = getattr(settings, name)
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"--{name} {weight}: give a weight, 0 or above")
    if settings.seed < 0:
        raise InputError(f"--seed {settings.seed}: give a whole number, 0 or above")
    if not 0 < settings.test_fraction < 0.9:
        raise InputError(f"--test-fraction {settings.test_fraction}: give a share above 0 and below 0.9")
    if task.kind != "forecast" and settings.stationary:
        raise InputError(f"--stationary is for a forecast, and a task of {task.kind} is none; leave it out")
    if task.kind == "forecast" and (not settings.horizons or min(settings.horizons) < 1):
        raise InputError(f"--horizons {settings.horizons}: give whole numbers of median gaps, 1 or above")


def _check_model(settings: Settings) -> None:
    """InputError for a model or a part of the cell that is not known, or an option that a rival has no use for."""
    check_name(settings.model)
    given = [name for name in OF_THE_CELL if getattr(settings, name) != getattr(Settings(), name)]
    if settings.model != OURS and given:
        raise InputError(f"--{given[0].replace('_', '-')} is for a cell, and {settings.model} is none; leave it out")
    unknown = [part for part in settings.without if part not in LEFT_OUT]
    if unknown or set(STORES) <= set(settings.without):
        raise InputError(
            f"--without {','.join(settings.without)}: name parts of {', '.join(LEFT_OUT)}, not all memories"
        )
    if settings.episodic_sink and "episodic" in settings.without:
        raise InputError("--episodic-sink needs the memory that --without episodic leaves out; give one of them")


def _identity(info: RunInfo) -> dict[str, Any]:
    """What a resumed training must agree in; how long it trains may not change either, since the rate follows it."""
    settings: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(info.settings))
    return {**settings, "data (sha256)": info.data.sha256, "task": msgspec.json.encode(info.task).decode()}


def _refuse(job: Job) -> None:
    """PathError unless `out` is free, or `resume` or `force` is given for a folder that it may be given for."""
    if job.resume and (job.out / CONFIG_FILE).exists():
        raise PathError(f"{job.out} is a finished run; leave --resume out and choose another --out, or pass --force")
    if job.resume:
        return
    refuse_existing(job.out, job.force)
    if os.path.lexists(job.out) and not _replaceable(job.out):
        raise PathError(f"{job.out} is no training run, and --force replaces nothing else; choose another --out")


def _replaceable(out: Path) -> bool:
    """Whether a folder is empty or a run, finished or not: never replace somebody's files."""
    if not out.is_dir() or not any(out.iterdir()):
        return out.is_dir()
    return holds_run(out) or ((out / TRAINING_FILE).is_file() and not (out / CONFIG_FILE).exists())


@contextmanager
def _folder(out: Path, world: World) -> Iterator[None]:
    """The run's folder, made early so that a path that cannot be written fails early; removed if nothing came."""
    if not world.leads:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def _keep(job: Job, trainer: Trainer, identity: dict[str, Any]) -> None:
    """Store the unfinished training; what an older run left is removed once the first one is stored."""
    save_training(job.out, trainer, identity)
    if trainer.world.leads:
        for name in (CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, CURVE_FILE, HELD_OUT_FILE):
            (job.out / name).unlink(missing_ok=True)


def _finish(job: Job, plan: Plan, trainer: Trainer) -> RunInfo:
    """Judge the best weights, write the run, and remove what was kept for resuming."""
    plan.calibrate(trainer.best)
    metrics = {
        "task": plan.info.task.kind,
        **plan.judge(trainer.best.eval()),
        "best_validation_score": trainer.best_score if math.isfinite(trainer.best_score) else None,
        "parameters": sum(p.numel() for p in trainer.best.parameters()),
        "seconds": round(trainer.seconds, 3),
        "steps": trainer.step,
        "seed": job.settings.seed,
        "data_sha256": plan.info.data.sha256,
    }
    info = RunInfo(plan.info.task, plan.info.time, plan.info.settings, plan.info.data, metrics)
    write_bytes(job.out / CURVE_FILE, draw_curve(trainer.curve, plan.loss_name, plan.score_name))
    save_held_out(job.out, plan.hold_out())
    save_checkpoint(job.out, trainer.best, info)
    (job.out / TRAINING_FILE).unlink(missing_ok=True)
    return info
