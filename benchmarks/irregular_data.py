"""Series at irregular times, of which the truth is known whenever it is asked for.

Families of damped oscillators, chirps, Lotka-Volterra and Lorenz orbits: each stream has its own parameters, a Poisson
process says when it is observed, and each channel misses its own share of the rows. At the lowest rate a channel still
comes twice in the shortest period, on average. Beside them the weekly CO2 record,
thinned at random. All are trained on at one rate and tested at others: the same orbits, the same questions, other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from odestream.models.checkpoint import DataInfo
from odestream.models.data import Dataset, Part, Rows, complete_time
from odestream.models.rivals import horizon_pairs, select_rows
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.table import Series
from walk_forward import PERIOD_DAYS, load_record

Floats = NDArray[np.float64]
Truth = Callable[[Floats], Floats]
"""Times [T] in s -> noise-free values [T, X]."""

SECOND = 1_000_000_000  # ticks; the mean gap of a family's training rows
DURATION = 96.0  # s, of a stream
JUDGED = 0.6  # of it, of a stream that validation walks
RATES = (0.25, 1.0, 4.0)  # of the training rate
HORIZONS = (1.0, 2.0, 4.0, 8.0)  # mean training gaps
LEAST_MASKED, MOST_MASKED = 0.3, 0.8
NOISE = 0.02
MOMENTS = 12  # of a stream at which it is asked
FIRST_MOMENT, LAST_MOMENT = 0.4, 0.9  # of the duration
CO2 = "weekly CO₂"
CO2_KEPT, CO2_VIEWS, CO2_JUDGED, CO2_DRAWS = 0.25, 16, 4, 3
CO2_WARM = 0.6  # of the record lies before what a test stream begins with
CO2_FIT = 0.8  # of the rows before the test part


class Questions(NamedTuple):
    """What is asked: of which stream [Q], from what it brought until `known` [Q], for `asked` [Q] (ticks), the truth
    [Q, X]."""

    stream: Rows
    known: Rows
    asked: Rows
    truth: Floats


@dataclass(frozen=True)
class Problem:
    """data: what is trained and chosen on, at rate 1. tests: rate -> streams. mean [X]: of the fit values. spread [X]:
    the unit of errors, the fit values' deviation where nothing else is said."""

    data: Dataset
    tests: Mapping[float, tuple[Series, ...]]
    questions: Questions
    mean: Floats
    spread: Floats


@dataclass(frozen=True)
class Count:
    """Streams to train on, to choose on, and to test on."""

    training: int
    validation: int
    test: int


def problem(kind: str, count: Count, seed: int) -> Problem:
    """The family `kind`, one of KINDS, or the CO2 record; another seed draws other streams."""
    return co2(seed) if kind == CO2 else family(FAMILIES[kind], count, seed)


def family(draw: Callable[[np.random.Generator], Truth], count: Count, seed: int) -> Problem:
    """Streams of a family, each drawn anew."""
    random = np.random.default_rng(seed)
    fitted = [observe(draw(random), 1.0, random) for _ in range(count.training)]
    judged = [observe(draw(random), 1.0, random, JUDGED * DURATION) for _ in range(count.validation)]
    truths = [draw(random) for _ in range(count.test)]
    tests = {rate: tuple(observe(truth, rate, random) for truth in truths) for rate in RATES}
    parts = [Part(s, len(s.ticks), len(s.ticks)) for s in fitted] + [Part(s, 0, len(s.ticks)) for s in judged]
    return Problem(_dataset(parts, TimeSpec(), None), tests, ask(truths), *_moments(fitted))


def observe(truth: Truth, rate: float, random: np.random.Generator, duration: float | None = None) -> Series:
    """Noisy rows of a stream, the first at 0 and `rate` a second on average; one that would show nothing shows a
    channel."""
    duration = DURATION if duration is None else duration
    gaps = random.exponential(1 / rate, int(2 * rate * duration) + 64)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    times = times[times < duration]
    values = truth(times)
    masked = random.uniform(LEAST_MASKED, MOST_MASKED, values.shape[1])
    seen = random.random(values.shape) >= masked
    shown = random.integers(0, values.shape[1], len(times))
    seen[np.arange(len(times)), shown] |= ~seen.any(axis=1)
    x = values + NOISE * random.standard_normal(values.shape)
    ticks = np.rint(times * SECOND).astype(np.int64)
    return _series(ticks, np.where(seen, x, 0.0), seen)


def ask(truths: Sequence[Truth]) -> Questions:
    """The same moments of every stream, and all horizons from each."""
    moments = np.repeat(np.linspace(FIRST_MOMENT, LAST_MOMENT, MOMENTS) * DURATION, len(HORIZONS))
    asked = moments + np.tile(HORIZONS, MOMENTS)
    return Questions(
        np.repeat(np.arange(len(truths)), len(asked)),
        np.tile(np.rint(moments * SECOND).astype(np.int64), len(truths)),
        np.tile(np.rint(asked * SECOND).astype(np.int64), len(truths)),
        np.concatenate([truth(asked) for truth in truths]),
    )


def oscillator(random: np.random.Generator) -> Truth:
    """Four mixtures of two damped oscillations."""
    return damped(random, (20.0, 60.0))


def damped(random: np.random.Generator, periods: tuple[float, float]) -> Truth:
    """Four mixtures of two damped oscillations with periods log-uniform within limits, in s."""
    shortest, longest = np.log(periods)
    turn = 2 * np.pi / np.exp(random.uniform(shortest, longest, 2))
    leak = 1 / random.uniform(60.0, 200.0, 2)
    height, angle = random.normal(0, 1, (4, 2)), random.uniform(0, 2 * np.pi, (4, 2))

    def at(times: Floats) -> Floats:
        t = times[:, None, None]
        values: Floats = np.sum(height * np.exp(-leak * t) * np.cos(turn * t + angle), axis=-1)
        return values

    return at


def chirp(random: np.random.Generator) -> Truth:
    """Three phases and heights of one tone whose frequency moves steadily, up or down."""
    first, last = random.permutation([1 / random.uniform(50.0, 80.0), 1 / random.uniform(20.0, 25.0)])
    height, angle = random.uniform(0.5, 1.5, 3), random.uniform(0, 2 * np.pi, 3)

    def at(times: Floats) -> Floats:
        t = times[:, None]
        turns = first * t + 0.5 * (last - first) * t * t / DURATION
        values: Floats = height * np.sin(2 * np.pi * turns + angle)
        return values

    return at


def lotka_volterra(random: np.random.Generator) -> Truth:
    """Prey and predators about the equilibrium (1, 1)."""
    grow, die = 2 * np.pi / random.uniform(25.0, 50.0, 2)

    def field(_: float, state: Floats) -> list[float]:
        prey, hunter = state
        return [grow * prey * (1 - hunter), die * hunter * (prey - 1)]

    return _solved(field, random.uniform(0.4, 0.9, 2))


def lorenz(random: np.random.Generator) -> Truth:
    """An orbit on the attractor, tenfold smaller; a second is a 40th of the equations' unit, in which errors grow
    e-fold in about one."""

    def field(_: float, state: Floats) -> list[float]:
        x, y, z = 10 * state
        return [0.025 * 0.1 * f for f in (10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z)]

    begin = random.normal(0, 1, 3) + np.array([0.0, 0.0, 2.5])
    settled = solve_ivp(field, (0.0, 500.0), begin, method="LSODA", rtol=1e-6, atol=1e-6).y[:, -1]
    return _solved(field, settled)


def co2(seed: int) -> Problem:
    """The weekly record: trained on random quarters of its first rows, tested on its last fifth, at a sixteenth, a
    quarter and all of the weeks."""
    random, record = np.random.default_rng(seed), load_record()
    whole, test = record.series, record.first
    past = select_rows(whole, slice(test))
    views = [_thin(past, CO2_KEPT, random) for _ in range(CO2_VIEWS)]
    fit = whole.ticks[int(CO2_FIT * test)]
    ends = [int(np.searchsorted(v.ticks, fit)) for v in views]
    parts = [
        Part(v, end, len(v.ticks) if i < CO2_JUDGED else end)
        for i, (v, end) in enumerate(zip(views, ends, strict=True))
    ]
    data = _dataset(parts, TimeSpec(kind="iso", unit="s"), PERIOD_DAYS)
    recent = select_rows(whole, slice(int(CO2_WARM * len(whole.ticks)), None))
    tests = {rate: tuple(_thin(recent, CO2_KEPT * rate, random) for _ in range(CO2_DRAWS)) for rate in RATES}
    asked = [horizon_pairs(whole.ticks, whole.ticks, int(h / CO2_KEPT) * record.week) for h in HORIZONS]
    known, targets = (np.concatenate([pair[i][pair[0] >= test] for pair in asked]) for i in range(2))
    questions = Questions(
        np.repeat(np.arange(CO2_DRAWS), len(known)),
        np.tile(whole.ticks[known], CO2_DRAWS),
        np.tile(whole.ticks[targets], CO2_DRAWS),
        np.tile(whole.x[targets].astype(np.float64), (CO2_DRAWS, 1)),
    )
    mean, _ = _moments([select_rows(whole, slice(int(CO2_FIT * test)))])
    return Problem(data, tests, questions, mean, np.ones(1))  # ppm: the deviation of a rising record says little


def _thin(series: Series, kept: float, random: np.random.Generator) -> Series:
    return select_rows(series, random.random(len(series.ticks)) < kept)


def _solved(field: Callable[[float, Floats], list[float]], begin: Floats) -> Truth:
    until = DURATION + max(HORIZONS)
    dense = solve_ivp(field, (0.0, until), begin, method="LSODA", dense_output=True, rtol=1e-8, atol=1e-8).sol
    return lambda times: np.asarray(dense(times).T, np.float64)


def _dataset(parts: Sequence[Part], time: TimeSpec, period: float | None) -> Dataset:
    gap = float(np.median(np.concatenate([np.diff(p.series.ticks[: p.validation]) for p in parts])))
    names = tuple(f"x{i}" for i in range(parts[0].series.x.shape[1]))
    complete = complete_time(time, gap, min(int(p.series.ticks[0]) for p in parts), period)
    rows = sum(len(p.series.ticks) for p in parts)
    return Dataset(
        TaskSpec("forecast", names, names), complete, gap, tuple(parts), DataInfo("made up", "", rows, len(parts), gap)
    )


def _moments(fitted: Sequence[Series]) -> tuple[Floats, Floats]:
    x, seen = (np.concatenate([getattr(s, name) for s in fitted]).astype(np.float64) for name in ("x", "mask"))
    mean = np.sum(x * seen, axis=0) / seen.sum(axis=0)
    return mean, np.sqrt(np.sum(seen * (x - mean) ** 2, axis=0) / seen.sum(axis=0))


def _series(ticks: Rows, x: Floats, seen: NDArray[np.bool_]) -> Series:
    return Series("", ticks, x.astype(np.float32), seen.astype(np.float32), np.full(len(ticks), -1))


FAMILIES: dict[str, Callable[[np.random.Generator], Truth]] = {
    "oscillators": oscillator,
    "chirps": chirp,
    "Lotka–Volterra": lotka_volterra,
    "Lorenz": lorenz,
}
KINDS = (*FAMILIES, CO2)
