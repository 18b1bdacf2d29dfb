"""Differential equations with closed-form answers, written as weights of the cell's own field."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odestream.models.config import CellConfig, Sizes
from odestream.models.field import FieldWeights

TINY = Sizes(hidden=6, field=7, content=5, head=9, gate=8, window=3, slots=4, heads=2, keys=3, values=5)


def pure_decay(rates: Tensor) -> FieldWeights:
    """dh/dt = −λ ⊙ h, so that h(t) = h(0)·exp(−λt)."""
    d = len(rates)
    zeros = torch.zeros(3, d, dtype=rates.dtype)
    return FieldWeights(rates, zeros, zeros, zeros[:, 0], zeros.T.contiguous(), None, None)


def saturated_oscillation(omega: float, dtype: torch.dtype) -> FieldWeights:
    """dh/dt = tanh(B·SiLU(A·φ)) with φ = (sin ωt, cos ωt): a quadrature in time alone, since nothing depends on h."""
    zeros = torch.zeros(2, 1, dtype=dtype)
    return FieldWeights(
        torch.zeros(1, dtype=dtype),
        zeros,
        zeros,
        zeros[:, 0],
        torch.tensor([[1.0, -0.5]], dtype=dtype),
        torch.eye(2, dtype=dtype),
        torch.tensor([omega], dtype=dtype),
    )


def tanh_of_drift(slope: float, drift: float) -> FieldWeights:
    """dh/dt = tanh(slope·h + drift·t) in float64: the field's own tanh and SiLU, nonlinear in h and moving in time.

    SiLU is the identity, to the last digit, at the offset of 50 that A adds and B takes away; t is sin(ωt)/ω of a
    phase that begins at 0, with ω so small that ω²t²/6 is below rounding. With z = slope·h + drift·t,
    dz/dt = slope·tanh(z) + drift, which `tanh_of_drift_time` solves.
    """
    omega, offset = 1e-8, 50.0
    one = torch.ones(1, 1, dtype=torch.float64)
    return FieldWeights(
        decay=torch.zeros(1, dtype=torch.float64),
        hidden=torch.tensor([[slope], [0.0]], dtype=torch.float64),
        drive=torch.zeros(2, 1, dtype=torch.float64),
        bias=torch.full((2,), offset, dtype=torch.float64),
        output=torch.cat([one, -one], dim=1),
        time=torch.tensor([[drift / omega, 0.0], [0.0, 0.0]], dtype=torch.float64),
        frequencies=torch.tensor([omega], dtype=torch.float64),
    )


def tanh_of_drift_time(slope: float, drift: float, z: float) -> float:
    """The antiderivative in z of 1 / (drift + slope·tanh z): between two z lies the time that the flow takes."""
    speed = drift * math.cosh(z) + slope * math.sinh(z)
    return (drift * z - slope * math.log(abs(speed))) / (drift**2 - slope**2)


def tiny_config(task: str = "forecast", **changes: object) -> CellConfig:
    """A cell whose every width differs, so that a swapped axis cannot go unnoticed."""
    values: dict[str, object] = {
        "task": task,
        "channels": 1 if task == "tokens" else 2,
        "sizes": TINY,
        "scale": (1.5, 0.5)[: 1 if task == "tokens" else 2],
        "centre": (350.0, -2.0)[: 1 if task == "tokens" else 2],
        "outputs": 3,
        "averages": () if task == "tokens" else (1.0, 5.0),
        "frequencies": () if task == "tokens" else (0.7, 1.9),
        "steps": 2,
    }
    return CellConfig(**{**values, **changes})  # type: ignore[arg-type]
