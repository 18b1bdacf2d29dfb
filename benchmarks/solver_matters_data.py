"""Records on which a solver may matter: smooth, stiff and bursty, sampled at random times, two channels each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from adaptive_data import Record, bursty_record

Floats = NDArray[np.float64]

MEAN_GAP, NOISE, MISSING = 1.0, 0.02, 0.2
PERIODS = (17.0, 31.0, 73.0)
STIFFNESS, SLOWNESS = 10.0, 2.0  # of the van der Pol oscillator, and how much slower than its own time it runs


def record(kind: str, rows: int, seed: int) -> Record:
    """A record of `rows` observations; kind: smooth, stiff or bursty."""
    return _KINDS[kind](rows, seed)


def smooth(rows: int, seed: int) -> Record:
    """Two mixtures of the same three slow sinusoids."""
    random = np.random.default_rng(seed)
    times = _poisson(rows, random)
    angles = 2 * np.pi * times[:, None] / np.asarray(PERIODS) + random.uniform(0, 2 * np.pi, len(PERIODS))
    values = np.sin(angles) @ random.normal(0, 1, (len(PERIODS), 2))
    return _observed(times, values, random)


def stiff(rows: int, seed: int) -> Record:
    """Position and velocity of a van der Pol oscillator: long creeping, then a jump within a fraction of a gap."""
    random = np.random.default_rng(seed)
    times = _poisson(rows, random)

    def field(_: float, state: Floats) -> list[float]:
        position, velocity = state
        return [velocity / SLOWNESS, (STIFFNESS * (1 - position**2) * velocity - position) / SLOWNESS]

    begin = [random.uniform(-2, 2), 0.0]
    solved = solve_ivp(field, (0.0, times[-1]), begin, method="LSODA", t_eval=times, rtol=1e-8, atol=1e-8)
    return _observed(times, solved.y.T / np.array([1.0, STIFFNESS]), random)


def _poisson(rows: int, random: np.random.Generator) -> Floats:
    times: Floats = np.cumsum(random.exponential(MEAN_GAP, rows) + 1e-3)
    return times


def _observed(times: Floats, values: Floats, random: np.random.Generator) -> Record:
    noisy = values + NOISE * random.standard_normal(values.shape)
    return Record(times, noisy, random.random(values.shape) >= MISSING, np.zeros(len(times)))


_KINDS: dict[str, Callable[[int, int], Record]] = {"smooth": smooth, "stiff": stiff, "bursty": bursty_record}
KINDS = tuple(_KINDS)
