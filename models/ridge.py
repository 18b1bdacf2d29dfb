"""Ridge regression, one for each horizon: the strongest simple rival on a regular record.

It forecasts the change x(t + h) − x(t) from the differences to the last `lags` rows and from sines and cosines of the
season at t + h. Unlike the model it needs a regular grid, so a missing value is interpolated first, and a
thinned record would need another regression for every pattern of holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.errors import InputError

Floats = NDArray[np.float64]

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 3))
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class RidgeDesign:
    """What the regression sees: `lags` rows back, `harmonics` of a season of `period` rows."""

    period: float
    lags: int
    harmonics: int = 4


@dataclass(frozen=True)
class Ridge:
    """A fitted regression for one horizon, in rows.

    penalty: chosen on a validation part of the training rows; validation_error: its mean absolute error there, by
    which designs can be compared.
    """

    design: RidgeDesign
    horizon: int
    penalty: float
    validation_error: float
    weights: Floats
    offset: float

    def forecast(self, x: Floats, origins: NDArray[np.int64]) -> Floats:
        """Forecasts [Q] of the value `horizon` rows after each of the rows `origins` [Q] of the record `x` [T].

        NaN where the origin itself is missing or fewer than `lags` rows precede it. Holes before an observed origin
        are interpolated between values that are known by then.
        """
        filled = _interpolate(x)
        change = _features(filled, self.design, self.horizon, origins) @ self.weights + self.offset
        usable = (origins >= self.design.lags) & ~np.isnan(x[origins])
        return np.where(usable, filled[origins] + change, np.nan)


def fit_ridge(x: Floats, design: RidgeDesign, horizon: int, end: int) -> Ridge:
    """Fit on the rows before `end` of a record `x` [T] on a regular grid, NaN where missing.

    The penalty is the one with the least mean absolute error on the last fifth of these rows, forecast from a fit
    on the rest; the weights then come from all of them.
    """
    rows = np.arange(design.lags, end - horizon)
    rows = rows[~np.isnan(x[rows + horizon])]
    split = int((1 - VALIDATION_SHARE) * end)
    early, late = rows[rows + horizon < split], rows[rows >= split]
    if len(early) < 2 or len(late) == 0:
        raise InputError(
            f"ridge: {len(rows)} training rows at horizon {horizon} with {design.lags} lags; "
            "give a longer record or fewer lags"
        )
    past = _interpolate(x[:end])
    features = _features(past, design, horizon, np.arange(end))
    change = x[horizon : end + horizon][: end - horizon] - past[: end - horizon]

    def error(penalty: float) -> float:
        weights, offset = _solve(features[early], change[early], penalty)
        return float(np.abs(features[late] @ weights + offset - change[late]).mean())

    errors = [error(penalty) for penalty in PENALTIES]
    best = int(np.argmin(errors))
    weights, offset = _solve(features[rows], change[rows], PENALTIES[best])
    return Ridge(design, horizon, PENALTIES[best], errors[best], weights, offset)


def _features(filled: Floats, design: RidgeDesign, horizon: int, origins: NDArray[np.int64]) -> Floats:
    """Differences to the lagged rows, then the season at the target, shape [Q, lags + 2·harmonics]."""
    back = np.maximum(origins[:, None] - np.arange(1, design.lags + 1), 0)
    angle = 2 * np.pi * (origins + horizon)[:, None] / design.period * np.arange(1, design.harmonics + 1)
    return np.concatenate([filled[back] - filled[origins, None], np.sin(angle), np.cos(angle)], axis=1)


def _solve(features: Floats, change: Floats, penalty: float) -> tuple[Floats, float]:
    """Weights and offset minimising the mean squared error plus `penalty`·|w|² in units of each feature's deviation."""
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    z = (features - centre) / scale
    gram = z.T @ z + penalty * len(z) * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, z.T @ (change - change.mean())) / scale
    return weights, float(change.mean() - centre @ weights)


def _interpolate(x: Floats) -> Floats:
    """The record with its holes filled from both sides."""
    seen = np.flatnonzero(~np.isnan(x))
    return np.interp(np.arange(len(x)), seen, x[seen])
