"""Accuracy of recall over the gap, as a figure and as cells of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure

from recall_task import CHANCE
from recall_training import LONGEST_TRAINED_GAP


class Curve(NamedTuple):
    """accuracy: at each of the gaps, a list for every seed."""

    gaps: Sequence[int]
    accuracy: Sequence[Sequence[float]]

    def columns(self) -> list[tuple[float, ...]]:
        """Accuracies of the seeds, by gap."""
        return list(zip(*self.accuracy, strict=True))

    def cells(self) -> list[str]:
        """Median and range at every gap."""
        return [told(column) for column in self.columns()]

    def at(self, gap: int) -> tuple[float, ...]:
        """Accuracies of the seeds at one gap."""
        return self.columns()[list(self.gaps).index(gap)]


def told(values: Sequence[float]) -> str:
    """Median (lowest – highest)."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """A line for each curve, its range over seeds, chance and the end of the training range."""
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        columns = curve.columns()
        axes.plot(curve.gaps, [statistics.median(c) for c in columns], marker="o", markersize=4, label=name)
        axes.fill_between(curve.gaps, [min(c) for c in columns], [max(c) for c in columns], alpha=0.2)
    axes.axhline(CHANCE, color="grey", linestyle=":", label="chance")
    axes.axvline(LONGEST_TRAINED_GAP, color="grey", linestyle="--", label="longest gap in training")
    axes.set(xscale="log", xlabel="noise rows between events and questions", ylabel="accuracy", ylim=(0, 1.03))
    axes.legend(loc="center right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
