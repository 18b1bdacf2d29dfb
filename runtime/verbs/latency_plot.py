"""The latency figure of `odestream bench`: latency against percentile, one curve a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odestream.runtime.atomic import new_file
from odestream.runtime.errors import CompatError, InputError
from odestream.runtime.verbs.latency import Measured

_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_POINTS = 400
# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def require_format(path: Path) -> None:
    """InputError where matplotlib cannot draw to a file with this suffix; CompatError where it is missing."""
    known = require_matplotlib().Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise InputError(f"--plot {path}: no image format is called {path.suffix!r}; use one of {', '.join(known)}")


def require_matplotlib() -> Any:
    """matplotlib.figure, without a display; CompatError names the extra where it is missing."""
    try:
        import matplotlib.figure
    except ImportError as cause:
        raise CompatError(f"--plot needs matplotlib ({cause}); pip install 'odestream[bench]'") from cause
    return matplotlib.figure


def plot_latency(results: Sequence[Measured], title: str, path: Path, force: bool) -> None:
    """Draw the results to an image file that appears whole; its suffix names the format (png, svg, pdf)."""
    figure = require_matplotlib().Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for measured, colour in zip(results, _cycle(len(results)), strict=True):
        _draw(axes, measured, colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([_place(q) for q in _TICKS], [f"{q:g}" for q in _TICKS])
    axes.minorticks_off()
    axes.set_xlim(_place(_TICKS[0]), _place(_TICKS[-1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(_one_two_five(results))
    axes.set_xlabel("percentile of calls")
    axes.set_ylabel("latency of a call, µs")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with new_file(path, force) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=150)


def _draw(axes: Any, measured: Measured, colour: str) -> None:
    times = np.sort(measured.times) / 1000.0
    last = 100.0 * (1.0 - 1.0 / len(times))  # beyond it lies no observation
    quantiles = 100.0 - np.geomspace(100.0, max(100.0 - last, 1e-3), _POINTS)
    subject = measured.subject
    pace = "back-to-back" if subject.rate is None else f"paced at {subject.rate:g} Hz"
    label = f"{subject.title}, batch {subject.rows}, {pace} (p50 {np.median(times):.3g} µs)"
    style = "-" if subject.rate is None else "--"
    axes.plot(_place(quantiles), np.percentile(times, quantiles), style, color=colour, linewidth=1.8, label=label)


def _place(percentile: Any) -> Any:
    """Percentiles by their nines: 0 at 1, 90 at 10, 99 at 100."""
    return 100.0 / (100.0 - np.asarray(percentile))


def _one_two_five(results: Sequence[Measured]) -> Any:
    from matplotlib.ticker import FixedLocator

    top = max(float(measured.times.max()) for measured in results) / 1000.0
    bottom = min(float(measured.times.min()) for measured in results) / 1000.0
    decades = range(int(np.floor(np.log10(max(bottom, 1e-3)))), int(np.ceil(np.log10(max(top, 1e-3)))) + 1)
    return FixedLocator([step * 10.0**decade for decade in decades for step in (1, 2, 5)])


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
