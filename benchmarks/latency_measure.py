"""How latency.py measures: parity first, then everything in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latency_model import CHECKED, Arrays, Inputs
from latency_subjects import Contender
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.verbs.latency import Measured, measure, median_ratio, summary

Key = tuple[str, int | None, int]
"""(name, solver steps, batch) of a contender."""


@dataclass(frozen=True)
class Parity:
    """error: the worst found, in units of what is allowed. tensor: where. unit: what was allowed."""

    error: float
    tensor: str
    unit: str

    @property
    def reached(self) -> bool:
        """Whether the contender may be timed."""
        return self.error <= 1.0


@dataclass(frozen=True)
class Timed:
    """What was measured, by key."""

    found: Mapping[Key, Measured]

    def p50_us(self, key: Key) -> float:
        """Median of all calls."""
        return float(summary(self.found[key])["p50_us"])

    def ratio(self, key: Key, to: Key) -> float:
        """See `median_ratio`."""
        return median_ratio(self.found[key], self.found[to])

    def __contains__(self, key: Key) -> bool:
        return key in self.found


def check(
    contender: Contender, inputs: Inputs, exact: Sequence[Arrays], fine: Sequence[Arrays], rtol: float, atol: float
) -> Parity:
    """Run the contender along all rows beside the torch step, each chained on its own state.

    exact: torch's answers with the same solver steps, which an exact contender must give within the tolerance of
    the project's table. fine: with the most steps, to which the h of any other solver is held, in the solver's
    tolerance.
    """
    worst = Parity(0.0, "", "")
    for i in range(inputs.rows):
        contender.prepare(i)
        contender.call()
        found = contender.found()
        row = _exact(found, exact[i]) if contender.exact else _solved(found, fine[i], rtol, atol)
        worst = max(worst, row, key=lambda parity: parity.error)
    return worst


def time_all(contenders: Sequence[Contender], seconds: float, rounds: int) -> Timed:
    """All contenders in interleaved rounds."""
    results = measure([c.subject() for c in contenders], seconds, lambda _: None, rounds)
    keys = [(c.name, c.steps, c.batch) for c in contenders]
    return Timed(dict(zip(keys, results, strict=True)))


def _exact(found: Arrays, wanted: Arrays) -> Parity:
    table, rows = tolerances("fp32", "onnxruntime"), []
    for name in CHECKED:
        if name in found:
            limit, expected = table.of(name), wanted[name].astype(np.float64)
            scale = max(float(np.abs(expected).max()), limit.floor) * limit.limit
            error = _finite(np.abs(found[name] - expected).max() / scale)
            rows.append(Parity(error, name, f"{limit.limit:g} of scale"))
    return max(rows, key=lambda parity: parity.error)


def _solved(found: Arrays, wanted: Arrays, rtol: float, atol: float) -> Parity:
    allowed = atol + rtol * np.abs(wanted["h"].astype(np.float64))
    ratio = (found["h"] - wanted["h"].astype(np.float64)) / allowed
    return Parity(_finite(np.sqrt(np.mean(ratio * ratio))), "h", f"solver tolerance, rtol {rtol:g}, atol {atol:g}")


def _finite(error: Any) -> float:
    return float(error) if np.isfinite(error) else math.inf
