"""The training curve as a figure."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from odestream.models.training.loop import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 0.05  # share of a step's loss in the line that is shown


def draw_curve(curve: Curve, loss_name: str, score_name: str) -> bytes:
    """A PNG: training loss by step, and below it the validation score of the averaged weights, the best one marked.

    loss_name, score_name: what the loss and the score are, with their units.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_loss(upper, curve)
    _draw_validation(lower, curve)
    upper.set_ylabel(f"training loss\n({loss_name})")
    lower.set_ylabel(f"validation\n({score_name})")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.3, which="both")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw_loss(axes: Axes, curve: Curve) -> None:
    axes.plot(curve.step, curve.loss, color="0.8", linewidth=0.8, label="each step")
    axes.plot(curve.step, _smoothed(curve.loss), color="tab:blue", label="smoothed")
    axes.legend(frameon=False)


def _draw_validation(axes: Axes, curve: Curve) -> None:
    points = [(s, v) for s, v in zip(curve.validation_step, curve.validation, strict=True) if math.isfinite(v)]
    if not points:
        return
    best = min(points, key=lambda point: point[1])
    axes.plot([s for s, _ in points], [v for _, v in points], marker="o", color="tab:orange", label="averaged weights")
    axes.plot(*best, marker="*", markersize=14, linestyle="none", color="tab:red", label=f"kept: {best[1]:.4g}")
    axes.legend(frameon=False)


def _smoothed(values: Sequence[float]) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(value if not smooth else smooth[-1] + SMOOTHING * (value - smooth[-1]))
    return smooth
