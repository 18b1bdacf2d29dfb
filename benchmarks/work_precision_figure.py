"""The figure of work_precision.py: error over evaluations and over time, a column for each scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from work_precision_points import Point, families, points_of

_AXES = (("evaluations", "field evaluations a gap"), ("p50_us", "µs a gap, median"))
_DIVERGED = 1e4
_LEFT_OUT = ("euler fixed", "midpoint fixed", "heun fixed")  # heun21 stands for the last; the others are far off
_MARKERS = "os^vD*PX"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the 99th percentile of the error: over evaluations above, over time below.

    Ours adaptive drawn through, fixed dashed; peers dotted.
    """
    found = result["scenarios"]
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(found) + 2.4, 7.5), layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    for column, (name, scenario) in enumerate(found.items()):
        shown = {family: p for family, p in families(points_of(scenario)).items() if family not in _LEFT_OUT}
        for axes, (axis, label) in zip(panels[:, column], _AXES, strict=True):
            _draw_panel(axes, shown, axis)
            axes.set_xlabel(label)
        panels[0][column].set_title(name)
    for axes in panels[:, 0]:
        axes.set_ylabel("error, 99th percentile, in tolerances")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_panel(axes: Any, found: Mapping[str, Sequence[Point]], axis: str) -> None:
    for place, (family, points) in enumerate(found.items()):
        shown = [(getattr(p, axis), p.p99) for p in points if getattr(p, axis) is not None and p.p99 < _DIVERGED]
        style = {"linestyle": _line(family), "marker": _MARKERS[place % len(_MARKERS)], "color": f"C{place % 10}"}
        axes.plot([x for x, _ in shown], [y for _, y in shown], markersize=4, linewidth=1, label=family, **style)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 1e3))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7)


def _line(family: str) -> str:
    return "-" if family.endswith("adaptive") else "--" if family.endswith(" fixed") else ":"
