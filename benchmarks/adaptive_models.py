"""The models that the promise is tested on, trained once into a cache, and the streams that they have never seen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_data import COLUMNS, bursty_record, write_table
from odestream.export import export_bundle
from odestream.models.cell import Cell
from odestream.models.checkpoint import RunInfo, load_checkpoint
from odestream.models.config import CellConfig, Sizes
from odestream.models.data import load_table
from odestream.models.rivals import select_rows
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.table import Series

STRONGER = 4.0
"""A_h and B times this: the field's bound on its Jacobian grows sixteenfold, beyond what training allows."""
TABLE_SEED, ROWS = 0, 8000  # of the bursty record that is trained on
KINDS = ("streams", "gaps", "bursts")
SHORTEST, LONGEST = 0.05, 5.0  # model units, of the kind `gaps`
BURST_BEGINS, BURST_ROWS = 0.04, 7  # chance at a row; rows that it lasts
BURST_LOW, BURST_HIGH = 3.0, 30.0  # amplitudes in scales of a channel, log-uniform
BURST_TURN = 2.1  # rad from a row to the next
STRETCH, STRETCHED = 5.0, 2.0  # gaps of bursts: times a factor up to this, to at most so many units

SMALL = Sizes(hidden=13, field=21, content=11, head=15, gate=9, window=4, slots=5, heads=2, keys=6, values=7)

_CO2 = Path(__file__).parent / "data" / "co2_weekly.csv"


@dataclass(frozen=True)
class Subject:
    """A task to train on: `odestream train TABLE OPTIONS`. write: makes the table where it is not there yet."""

    name: str
    table: Path
    options: str
    write: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Made:
    """A cell, its bundle, its clock and the streams of its test part."""

    name: str
    cell: Cell
    bundle: Path
    time: TimeSpec
    streams: tuple[Series, ...]


def subjects(cache: Path) -> tuple[Subject, ...]:
    """The three tasks; tables that are made lie in the cache."""
    return (
        Subject("CO₂ forecast", _CO2, "--time time --inputs co2_ppm --period 365.25"),
        Subject(
            "digits classify",
            cache / "digits.csv",
            "--time time --time-unit step --stream image --task classify --targets digit",
            _write_digits,
        ),
        Subject(
            "bursty forecast", cache / "bursty.csv", f"--time time --inputs {','.join(COLUMNS[1:])}", _write_bursty
        ),
    )


def make(subject: Subject, cache: Path, minutes: float) -> Iterator[Made]:
    """The trained cell and the one with a stronger field, exported anew; training is skipped where a run is there."""
    folder = cache / subject.name.split()[0].replace("₂", "2")
    if subject.write is not None and not subject.table.exists():
        subject.write(subject.table)
    if not (folder / "run" / "config.json").exists():
        _train(subject, folder / "run", minutes)
    cell, info = load_checkpoint(folder / "run")
    streams = unseen(subject.table, info)
    for name, module, bundle in (
        (subject.name, cell, folder / "bundle"),
        (f"{subject.name}, field × {STRONGER:g}", stronger(cell), folder / "stronger"),
    ):
        given: Any = folder / "run" if module is cell else module
        export_bundle(given, bundle, task=info.task, time=info.time, force=True, allow_uncalibrated=True)
        yield Made(name, module, bundle, info.time, streams)


def stronger(cell: Cell, factor: float = STRONGER) -> Cell:
    """A copy whose A_h and B are `factor` times as large."""
    copy = Cell(cell.config)
    copy.load_state_dict(cell.state_dict())
    with torch.no_grad():
        copy.field.hidden.mul_(factor)
        copy.field.output.mul_(factor)
    return copy.eval()


def unseen(table: Path, info: RunInfo) -> tuple[Series, ...]:
    """The test rows of every stream that has some."""
    data = load_table(table, info.task, info.settings)
    return tuple(
        select_rows(part.series, slice(part.test, None))
        for part in data.parts
        if part.test < len(part.series.ticks) - 1
    )


def fresh(made: Made, kind: str, steps: int, seed: int) -> Iterator[Series]:
    """Streams of a kind until they have `steps` gaps together, or for `streams` until there are no more.

    streams: as they came. gaps: gaps drawn log-uniform. bursts: values that oscillate far off for some rows, and gaps
    stretched or shrunk.
    """
    random, config, unit = np.random.default_rng(seed), made.cell.config, made.time.ticks_per_model_unit
    count, rounds = 0, 0
    while count < steps and not (kind == "streams" and rounds):
        for place in random.permutation(len(made.streams)) if rounds or kind != "streams" else range(len(made.streams)):
            series = made.streams[place]
            if kind == "gaps":
                drawn = np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST), len(series.ticks) - 1))
                series = retimed(series, drawn * unit)
            elif kind == "bursts":
                series = outburst(series, config, unit, random)
            series = select_rows(series, slice(steps - count + 1))
            yield series
            count += len(series.ticks) - 1
            if count >= steps:
                return
        rounds += 1


def retimed(series: Series, gaps: NDArray[np.float64]) -> Series:
    """The same rows with other gaps, in ticks."""
    ticks = series.ticks[0] + np.concatenate([[0], np.cumsum(np.maximum(np.rint(gaps), 1).astype(np.int64))])
    return Series(series.name, ticks, series.x, series.mask, series.labels)


def outburst(series: Series, config: CellConfig, unit: float, random: np.random.Generator) -> Series:
    """The same rows with bursts."""
    count = len(series.ticks)
    begins = random.random(count) < BURST_BEGINS
    loud = np.convolve(begins, np.ones(BURST_ROWS), mode="full")[:count] > 0
    height = np.exp(random.uniform(np.log(BURST_LOW), np.log(BURST_HIGH), config.channels))
    turns = BURST_TURN * np.arange(count)[:, None] + random.uniform(0, 2 * np.pi, config.channels)
    x = series.x + (loud[:, None] * height * np.asarray(config.scale) * np.cos(turns)).astype(np.float32)
    gaps = np.diff(series.ticks) / unit
    stretched = gaps * np.exp(random.uniform(-np.log(STRETCH), np.log(STRETCH), len(gaps)))
    shown = Series(series.name, series.ticks, x, series.mask, series.labels)
    return retimed(shown, np.minimum(stretched, np.maximum(gaps, STRETCHED)) * unit)


def random_model(folder: Path, sizes: Sizes = SMALL, rows: int = 60) -> Made:
    """A cell with random weights, its bundle at `folder` and a bursty stream, for a check of a script."""
    torch.manual_seed(0)
    config = CellConfig("forecast", 2, sizes, (1.0, 1.0), (0.0, 0.0), averages=(1.0,), frequencies=(1.2, 2.4))
    cell = Cell(config).eval()
    with torch.no_grad():
        cell.field.output.normal_(std=0.3)
    cell.field.constrain()
    time = TimeSpec(ticks_per_model_unit=1e10, frequencies=config.frequencies)
    export_bundle(cell, folder, time=time, verify_steps=20, allow_uncalibrated=True, force=True)
    return Made("a random cell", cell, folder, time, (bursty_series(rows, TABLE_SEED, time),))


def bursty_series(rows: int, seed: int, time: TimeSpec) -> Series:
    """A bursty record as a runtime gets it."""
    record = bursty_record(rows, seed)
    ticks = np.rint(record.times * time.ticks_per_column_unit).astype(np.int64)
    x = np.where(record.observed, record.values, 0.0).astype(np.float32)
    return Series("", ticks, x, record.observed.astype(np.float32), np.full(rows, -1))


def _train(subject: Subject, run: Path, minutes: float) -> None:
    command = ["odestream", "train", str(subject.table), *subject.options.split(), "--minutes", str(minutes)]
    subprocess.run([*command, "--out", str(run), "--force"], check=True)


def _write_bursty(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, bursty_record(ROWS, TABLE_SEED))


def _write_digits(path: Path) -> None:
    from digits import labelled_digits, write_digits  # needs scikit-learn

    path.parent.mkdir(parents=True, exist_ok=True)
    write_digits(path, *labelled_digits())
