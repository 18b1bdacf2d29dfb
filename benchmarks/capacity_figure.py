"""The figure: error over the gap, then over the number of pairs, a panel for each part and size of state."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib.axes
import matplotlib.figure

from capacity_models import CEILING, CONTENDERS
from odestream.models.model import OURS

TITLES = {
    "reach": "8 pairs",
    "pairs": "many pairs",
    "rewritten": "each key written 3 times",
    "patient": "many pairs, 3 × the training",
}
HUES = ("C3", "C0", "C9", "C1", "C8", "C2", "gold", "C4", "navy", "C5", "C6", "0.35")
COLORS = dict(zip(CONTENDERS, HUES, strict=True))


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each part and size."""
    panels = [(name, budget, at) for name, sizes in result["parts"].items() for budget, at in sizes.items()]
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = matplotlib.figure.Figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, budget, at) in zip(grid, panels, strict=False):
        reach = name == "reach"
        _curves(axes, at, list(range(len(at["points"]))) if reach else at["points"])
        axes.axhline(at["floor"], color="grey", linestyle=":", label="least possible error")
        axes.set(title=f"{TITLES[name]}, {int(budget) // 1024} KiB", ylim=(0, 1.15))
        if reach:
            axes.set_xticks(range(len(at["points"])), [f"{gap:,}" for gap in at["points"]])
            axes.set_xlabel("noise rows between pairs and questions")
        else:
            if 2 * at["width"] <= max(at["points"]):
                axes.axvline(2 * at["width"], color="grey", linewidth=0.8, label="twice the square matrix's width")
            axes.set_xlabel("distinct keys")
    for axes in grid[::columns]:
        axes.set_ylabel("squared error / variance")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    named: dict[str, Any] = {}
    for axes in grid:
        lines, labels = axes.get_legend_handles_labels()
        named.update(zip(labels, lines, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _curves(axes: matplotlib.axes.Axes, at: dict[str, Any], places: list[int]) -> None:
    """Median and range of the seeds; ours drawn last, on top."""
    for name in sorted(at["models"], key=lambda name: name == OURS):
        columns = list(zip(*at["models"][name]["errors"], strict=True))
        color, label = COLORS[name], CONTENDERS[name].label
        (line,) = axes.plot(places, [statistics.median(c) for c in columns], marker="o", markersize=3.5, label=label)
        line.set(color=color, linestyle="--" if name == CEILING else "-", linewidth=2.4 if name == OURS else 1.4)
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
