"""A solver's calibration as a figure: what it estimated beside what it really erred, and which buckets ran."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("tab:blue", "tab:orange", "tab:green")
_FLOOR = 1e-6  # of the tolerance: what is smaller, or zero, is drawn there


class Cloud(NamedTuple):
    """Calls of one kind: err and true error [N], in units of the tolerance; accepted: runs by bucket."""

    kind: str
    err: NDArray[np.float64]
    error: NDArray[np.float64]
    accepted: Counter[int]


def draw_calibration(measured: Sequence[Cloud], factor: float, estimates: bool) -> bytes:
    """A PNG: true error against err of the measured calls, and how often each bucket's result was accepted.

    estimates: whether the method has an estimate; without one there is nothing on the first axis but the errors.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    if estimates:
        _draw_errors(left, measured, factor)
    else:
        _draw_distribution(left, measured)
    _draw_buckets(right, measured)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def _draw_errors(axes: Axes, measured: Sequence[Cloud], factor: float) -> None:
    for cloud, colour in zip(measured, COLOURS, strict=False):
        err, error = np.maximum(cloud.err, _FLOOR), np.maximum(cloud.error, _FLOOR)
        axes.scatter(err, error, s=5, color=colour, alpha=0.5, linewidths=0, label=cloud.kind)
    axes.axvline(factor, color="0.3", linestyle="--", linewidth=1, label=f"factor {factor:g}: flagged beyond")
    axes.axhline(1.0, color="tab:red", linewidth=1, label="tolerance")
    axes.set(xscale="log", yscale="log", xlabel="err, the solver's estimate (tolerances)")
    axes.set_ylabel("true error of the call (tolerances)")
    axes.legend(frameon=False, fontsize="small", loc="upper left", markerscale=3)
    axes.grid(alpha=0.3)


def _draw_distribution(axes: Axes, measured: Sequence[Cloud]) -> None:
    for cloud, colour in zip(measured, COLOURS, strict=False):
        shares = np.arange(1, len(cloud.error) + 1) / max(1, len(cloud.error))
        axes.plot(np.maximum(np.sort(cloud.error), _FLOOR), shares, color=colour, label=cloud.kind)
    axes.axvline(1.0, color="tab:red", linewidth=1, label="tolerance")
    axes.set(xscale="log", xlabel="true error of a call (tolerances)", ylabel="share of calls below")
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3)


def _draw_buckets(axes: Axes, measured: Sequence[Cloud]) -> None:
    buckets = sorted({steps for cloud in measured for steps in cloud.accepted})
    places, width = np.arange(len(buckets)), 0.8 / max(1, len(measured))
    for i, (cloud, colour) in enumerate(zip(measured, COLOURS, strict=False)):
        shares = [cloud.accepted[steps] / max(1, cloud.accepted.total()) for steps in buckets]
        axes.bar(places + (i + 0.5) * width - 0.4, shares, width, color=colour, label=cloud.kind)
    axes.set_xticks(places, [str(steps) for steps in buckets])
    axes.set(xlabel="bucket (solver steps)", ylabel="share of accepted runs")
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3, axis="y")
