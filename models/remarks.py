"""What a person should hear at the end of a training, in words: rivals that were not beaten, and the solver gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odestream.models.checkpoint import RunInfo

MORE = "train longer with --minutes, give more rows or inputs, or use the rival"
LEAST_CONSISTENCY = 0.01


def remarks(info: RunInfo) -> list[str]:
    """Sentences on a finished run, each with a remedy where something is wrong."""
    test = info.metrics["test"]
    beaten = _forecast_losses(test) if info.task.kind == "forecast" else _label_losses(test)
    gate = info.metrics.get("solver_gate")
    return beaten if gate is None else [*beaten, _gate(gate, info.settings.consistency)]


def _forecast_losses(test: Mapping[str, Any]) -> list[str]:
    said = []
    for target, horizons in test.items():
        lost: dict[str, list[str]] = {}
        for horizon, figures in horizons.items():
            for rival, theirs in figures["rivals"].items():
                if not _better(figures["mae"], theirs):
                    lost.setdefault(rival, []).append(horizon)
        for rival, where in lost.items():
            said.append(
                f"{target} is forecast no better than by {_plain(rival)} at {', '.join(where)} gaps ahead on the test "
                f"part; {MORE}."
            )
    return said


def _label_losses(test: Mapping[str, Any]) -> list[str]:
    """A rival's name ends in the figure that it rivals; accuracies are turned, so that less is always better."""
    said = []
    for name, theirs in test.get("rivals", {}).items():
        figure = next(f for f in ("accuracy_at_stream_end", "accuracy", "log_loss", "bits_per_byte") if f in name)
        sign = -1.0 if figure.startswith("accuracy") else 1.0
        if not _better(sign * test[figure], sign * theirs):
            rival = _plain(name.removesuffix(f"_{figure}"))
            said.append(
                f"{_plain(figure).capitalize()} is {test[figure]:.4g} on the test part, no better than {theirs:.4g} by "
                f"{rival}; {MORE}."
            )
    return said


def _better(ours: float | None, theirs: float | None) -> bool:
    """Whether we win, or there is nothing to compare."""
    return ours is None or theirs is None or ours < theirs


def _gate(gate: Mapping[str, Any], consistency: float) -> str:
    if gate["passed"] is None:
        return "The solver gate was not judged, for want of a validation score; give more rows."
    by_steps, deployed = gate["by_steps"], gate["deployed_steps"]
    finest = max(map(int, by_steps))
    figures = (
        f"{gate['metric']} {by_steps[str(deployed)]:.4g} at {deployed} solver steps as deployed, "
        f"{by_steps[str(finest)]:.4g} at {finest}, {gate['dopri5']:.4g} under dopri5"
    )
    if gate["passed"]:
        return f"Solver gate passed: {figures}."
    larger = max(2 * consistency, LEAST_CONSISTENCY)
    return (
        f"Solver gate failed: {figures}. The model has learnt its solver's error, and a better solver makes it worse; "
        f"train again with --consistency {larger:g}, or longer."
    )


def _plain(name: str) -> str:
    return name.replace("_", " ")
