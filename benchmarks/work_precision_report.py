"""The section of RESULTS.md that work_precision.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results import circumstances_text, markdown_table
from work_precision_points import Point, cheapest, families, points_of

COLUMNS = (
    "",
    "as stated: evaluations",
    "within",
    "flagged",
    "µs p50",
    "≥ 99 % within: setting",
    "evaluations",
    "worst",
    "µs p50",
    "µs p99",
)
NOTES = """\
Within: share of gaps whose true error is at most one tolerance (of the unflagged, where there are flags); worst: the
largest. As stated: at the bundle's own safety factor or at the stated tolerance, nothing chosen by hindsight. ≥ 99 %:
the cheapest setting that reaches it on these very gaps, so chosen by hindsight for every rival alike. Evaluations of
the field for one gap, mean, rejected calls and steps included. An adaptive stream's and a bucket's time is that of
the whole exported call (intake, memory and heads too, in float32 on ONNX Runtime at batch 1); a peer's is that of the
flow alone, divided by the number of rows where many are solved at once. Medians of interleaved rounds on two noisy
cores. Neither bucket nor adaptive stream ever takes a step beyond the stability bound, which holds for every state;
peers do, and where the bound is far above what the error asks for (weights × 4), they need fewer evaluations."""


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    parts = []
    for name, scenario in result["scenarios"].items():
        parts.append(_scenario_text(name, scenario))
    parts += [NOTES, _exponential_text(result["exponential"]), _metric_text(result["task_metric"])]
    if result["missing"]:
        parts.append(f"Not installed here, and so not compared: {', '.join(result['missing'])}.")
    versions = ", ".join(f"{package} {version}" for package, version in result["peers"].items())
    parts += [
        f"{circumstances_text()} Peers: {versions}.",
        "![Error over evaluations and over time](figures/work_precision.png)",
    ]
    return "\n\n".join(parts)


def _scenario_text(name: str, scenario: Mapping[str, Any]) -> str:
    least, median, most = scenario["gap_units"]
    rows = [_row(family, points) for family, points in families(points_of(scenario)).items()]
    return "\n\n".join(
        (
            f"**{name[0].upper()}{name[1:]}**: {scenario['about']}; {scenario['gaps']} gaps of {least:.2g} "
            f"to {most:.2g} model units "
            f"(median {median:.2g}), stiffness bound {scenario['stiffness']:.3g}. Re-runs: "
            + ", ".join(f"{method} {share:.1%}" for method, share in scenario["rerun"].items() if " " not in method)
            + " of the gaps.",
            markdown_table(COLUMNS, rows),
            _verdict(points_of(scenario)),
        )
    )


def _verdict(points: Sequence[Point]) -> str:
    """Who needs the fewest evaluations, win or loss; the deployed streams against rivals chosen by hindsight."""
    deployed = [p for p in points if p.stated and p.family.endswith("adaptive")]
    said = [f"{p.family} {p.evaluations:.1f}{'' if p.calibrated else ' (short of 99 %)'}" for p in deployed]
    buckets = {p.family.replace("adaptive", "fixed") for p in deployed}
    fixed = cheapest([p for p in points if p.family in buckets])
    others = cheapest([p for p in points if not p.family.endswith(("adaptive", " fixed"))])
    rivals = [
        f"{title} {'none' if p is None else f'{p.evaluations:.1f} ({p.family}, {p.setting})'}"
        for title, p in (("the cheapest single bucket of a pair", fixed), ("the cheapest peer", others))
    ]
    return f"Evaluations as deployed: {', '.join(said)}; at ≥ 99 % by hindsight: {', '.join(rivals)}."


def _row(family: str, points: Sequence[Point]) -> list[str]:
    stated = next((p for p in points if p.stated), None)
    best = cheapest(points)
    left = ["", "", "", ""]
    if stated is not None:
        flagged = "" if stated.flagged is None else f"{stated.flagged:.1%}"
        left = [f"{stated.evaluations:.1f}", f"{stated.within:.1%}", flagged, _number(stated.p50_us)]
    nearest = max(points, key=lambda p: p.within)
    right = [f"none ({nearest.setting}: {nearest.within:.1%})", "", "", "", ""]
    if best is not None:
        right = [
            best.setting,
            f"{best.evaluations:.1f}",
            f"{best.worst:.2f}",
            _number(best.p50_us),
            _number(best.p99_us),
        ]
    return [family, *left, *right]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _exponential_text(found: Mapping[str, Any]) -> str:
    rows = []
    for leak, methods in found.items():
        for method in methods:
            best = method["cheapest"]
            rows.append(
                [
                    f"{leak}, {method['method']}",
                    "none" if best is None else f"{best['setting']}: {best['evaluations']:.1f}",
                    f"{method['solved']:.1%}",
                    "" if method["oracle_evaluations"] is None else f"{method['oracle_evaluations']:.1f}",
                ]
            )
    columns = (
        "",
        "evaluations of the smallest bucket ≥ 99 % within",
        "gaps that some bucket solves",
        "evaluations, best bucket for each gap",
    )
    text = (
        "**An exponential method on trial**: ETD-RK2/1 (Cox & Matthews 2002) against the Runge-Kutta pairs on the gaps "
        "of the trained field, with the faster half of the leaks raised. Beyond 16 steps gaps are halved. The clamp of "
        "λ is 4 unless it is configured higher."
    )
    compared = [_comparison(leak, methods) for leak, methods in found.items()]
    return "\n\n".join(
        (text, markdown_table(columns, rows), "With the best bucket for each gap: " + "; ".join(compared) + ".")
    )


def _comparison(leak: str, methods: Sequence[Mapping[str, Any]]) -> str:
    """ETD against the cheapest pair that solves as many gaps, in evaluations."""
    *pairs, trial = methods
    able = [m for m in pairs if m["solved"] >= trial["solved"] and m["oracle_evaluations"] is not None]
    if trial["oracle_evaluations"] is None or not able:
        return f"{leak} cannot be compared"
    best = min(able, key=lambda m: m["oracle_evaluations"])
    ratio = trial["oracle_evaluations"] / best["oracle_evaluations"]
    return f"{leak}, {trial['method']} takes {ratio:.2f} times the evaluations of {best['method']}"


def _metric_text(metric: Mapping[str, Any]) -> str:
    if not metric:
        return "The run says nothing of its metric by solver steps."
    values, text = metric["values"], "**Does a finer solver change the task metric at all?** From the run's own metrics"
    if metric["from"] == "solver_gate":
        solved = {**values["by_steps"], "dopri5": values["dopri5"]}
        rows = [[name, "not stable" if value is None else f"{value:.5f}"] for name, value in solved.items()]
        text += f", deployed with {values['deployed_steps']} steps; its gate is {_passed(values['passed'])}.\n\n"
        return text + markdown_table(("solver steps", values["metric"]), rows)
    rows = [[steps, *_flat(value)] for steps, value in values.items()]
    text += f": mean absolute error on validation rows, deployed with {metric['deployed']} steps.\n\n"
    return text + markdown_table(("solver steps", *_names(next(iter(values.values())))), rows)


def _passed(passed: bool | None) -> str:
    return {True: "passed", False: "failed", None: "undecided"}[passed]


def _flat(value: Mapping[str, Any]) -> list[str]:
    return [f"{number:.4f}" for group in value.values() for number in group.values()]


def _names(value: Mapping[str, Any]) -> list[str]:
    return [f"{name}, horizon {horizon}" for name, group in value.items() for horizon in group]
