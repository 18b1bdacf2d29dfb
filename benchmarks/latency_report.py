"""What is said of latency.py's figures: the criteria, the section of RESULTS.md, the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure

from results import HERE, circumstances_text, markdown_table
from walk_forward import HORIZON_WEEKS

FLAT_SHARE = 0.01  # of the time of a fresh stream's step
FLAT_BYTES = 65536
Result = Mapping[str, Any]


def criteria(result: Result) -> list[dict[str, Any]]:
    """Every bound with what was measured; those whose sides were not measured here are left out."""
    ratios, limits, flat = result["ratios"], result["limits"], result["flat"]
    rows = [
        _at_most("native / ONNX Runtime, I/O binding, 1 solver step", 0.1, ratios.get("native / ONNX Runtime")),
        _at_most("native / IREE, 1 solver step", 0.35, ratios.get("native / IREE")),
        _at_most("native / torch eager, 1 solver step", 1 / 60, ratios.get("native / torch eager")),
        *(
            _at_most(f"native / reading the weights, {n} solver step{'s' * (n != '1')}", 2.0, distance)
            for n, distance in limits.get("distance", {}).items()
        ),
        _at_most("native, 16 solver steps / 1", 7.0, ratios.get("16 steps / 1 step")),
        _at_most("Stream.step − one call, native, µs", 5.0, _over_call(result, "native, Stream.step")),
        _at_most(
            "Stream.step of a list − one call, native, µs", 5.0, _over_call(result, "native, Stream.step of a list")
        ),
        _at_least("native, rows a second at batch 64 / batch 1", 2.0, _inverse(ratios, "batch 64 / batch 1", 64)),
        _at_least("native at batch 64, share of this core's sgemm rate", 0.6, limits.get("batch_flops_share")),
        _at_least(
            "rows a second at batch 64, native / ONNX Runtime",
            2.0,
            _inverse(ratios, "batch 64, native / ONNX Runtime", 1),
        ),
    ]
    if flat is not None:
        off = max(abs(end - 1.0) for row in flat["at"].values() for end in row.get("to_fresh", ()))
        rows += [
            _at_most("step of an aged stream / of a fresh one, farthest from 1", FLAT_SHARE, off),
            _at_most("growth of resident memory in the last nine tenths, bytes", FLAT_BYTES, flat["grown_bytes"]),
        ]
    return [row for row in rows if row["measured"] is not None]


def report(result: Result) -> str:
    """The section of RESULTS.md."""
    parts = [
        "µs of one step, median of interleaved rounds; nano (D = 64, X = 16, bosh32), one thread, batch 1, the same "
        "weights and inputs. Parity: the worst tensor along the chain, in units of what is allowed (1e-5 of each "
        "tensor's scale, 1e-3 for err; for solvers other than the bundle's, the solver's tolerance on h).",
        _subjects_table(result),
        _absent(result),
        "**Criteria**",
        _criteria_table(result),
        _limits_text(result),
        _flat_text(result),
        *_gru(result),
        circumstances_text() + " Peers: " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + ".",
        "![Time of one step by subject](figures/latency.png)",
    ]
    return "\n\n".join(part for part in parts if part)


def draw(result: Result, path: Path) -> None:
    """A bar for each subject and number of solver steps, the shortest first; the limit of bandwidth as a line."""
    times = _times(result)
    names = sorted(times, key=lambda name: min(times[name].values()), reverse=True)
    steps = sorted({n for own in times.values() for n in own if n is not None})
    figure = matplotlib.figure.Figure(figsize=(9, 0.42 * len(names) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(steps)
    for place, n in enumerate(steps):
        shown = [(i, times[name].get(n)) for i, name in enumerate(names)]
        ys = [i + 0.4 - (place + 0.5) * height for i, value in shown if value is not None]
        widths = [value for _, value in shown if value is not None]
        axes.barh(ys, widths, height=0.9 * height, color=f"C{place}", label=f"{n} solver step{'s' * (n != 1)}")
    own = [(i, times[name][None]) for i, name in enumerate(names) if None in times[name]]
    axes.barh([i for i, _ in own], [v for _, v in own], height=height, color="0.5", label="steps of its own choice")
    limit = result["limits"]["limit_us"][str(steps[0])]
    axes.axvline(limit, color="black", linestyle=":", linewidth=1, label="reading the weights, 1 step")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("µs of one step, batch 1, one thread")
    axes.grid(visible=True, axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _times(result: Result) -> dict[str, dict[int | None, float]]:
    times: dict[str, dict[int | None, float]] = {}
    for row in result["subjects"]:
        times.setdefault(row["name"], {})[row["steps"]] = row["p50_us"]
    return times


def _subjects_table(result: Result) -> str:
    times = _times(result)
    steps = sorted({n for own in times.values() for n in own if n is not None})
    least = times.get("native, one call", {})
    parity: dict[str, float] = {}
    for row in result["subjects"]:
        parity[row["name"]] = max(parity.get(row["name"], 0.0), row["parity"]["error"])
    columns = ["", *(f"{n} step{'s' * (n != 1)}" for n in steps), "× native", "parity"]
    rows = []
    for name, own in sorted(times.items(), key=lambda item: min(item[1].values())):
        chosen = own.get(None)
        cells = [f"{own[n]:.1f}" if n in own else f"({chosen:.1f})" if chosen and n == steps[0] else "" for n in steps]
        ratio = f"{(chosen or own[steps[0]]) / least[steps[0]]:.1f}" if least and (chosen or steps[0] in own) else ""
        rows.append([name, *cells, ratio, f"{parity[name]:.2g}"])
    return markdown_table(columns, rows) + "\n\nIn brackets: a solver that chooses its own steps."


def _absent(result: Result) -> str:
    said = [f"{name} is not installed ({command})" for name, command in result["absent"].items()]
    said += [f"{row['name']} took no part: {row['problem']}" for row in result["refused"]]
    return "; ".join(said) + "." if said else ""


def _criteria_table(result: Result) -> str:
    met = {True: "yes", False: "no"}
    rows = [
        [row["criterion"], f"{row['sense']} {row['bound']:.3g}", f"{row['measured']:.3g}", met[row["met"]]]
        for row in result["criteria"]
    ]
    return markdown_table(["", "bound", "measured", "met"], rows)


def _limits_text(result: Result) -> str:
    limits = result["limits"]
    per_step = ", ".join(f"{int(v):,} ({n})" for n, v in limits["bytes"].items())
    rate = limits["sgemm"]
    return (
        f"Bytes of weights a step uses, each counted once a use, by solver steps: {per_step}. Reading a block of "
        f"{limits['block_bytes']:,} bytes, all weights once, this core takes {limits['bytes_per_second'] / 1e9:.0f} "
        "GB/s with vector sums; the limit is the first over the second. "
        f"sgemm of numpy ({rate['kernel']}): {rate['flops_per_second'] / 1e9:.0f} Gflop/s; a step of one row is "
        f"{limits['flops']['1'] / 1e3:,.0f} kflop of products with weights."
    )


def _flat_text(result: Result) -> str:
    flat = result["flat"]
    if flat is None:
        return ""
    at = "; ".join(f"{int(n):,}: {', '.join(_at_age(row))}" for n, row in flat["at"].items())
    return (
        f"One stream over {flat['calls']:,} steps, Stream.step on native, in turn with a fresh one; after n: median "
        "time, the median of each turn's ratio to the fresh one over that at the beginning (95 % interval, bootstrap "
        "over the turns of both, which are more where it is wide), resident memory — "
        f"{at}. Memory grew by {flat['grown_bytes']:,} bytes in the last nine tenths."
    )


def _at_age(row: Result) -> list[str]:
    ratio = [_interval(row["to_fresh"], 4)] if "to_fresh" in row else []
    return [f"{row['p50_us']:.1f} µs", *ratio, f"{row['resident_bytes'] / 2**20:.1f} MiB"]


def _interval(ends: Sequence[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in ends)
    return f"{middle} ({low}–{high})"


def _gru(result: Result) -> list[str]:
    """The GRU beside our cell: time of a step and error on the record."""
    gru = result["gru"]
    if gru is None:
        return []
    times = {(row["name"], row["steps"]): row["p50_us"] for row in result["others"]}
    served = {
        f"GRU, hidden {gru['hidden']}, ONNX Runtime": ("GRU on onnxruntime, one channel", None),
        "odestream, 1 solver step, ONNX Runtime": ("ours on onnxruntime, one channel", 1),
        "odestream, 1 solver step, native": ("ours on native, one channel", 1),
        "odestream, 4 solver steps, native": ("ours on native, one channel", 4),
    }
    ours = _our_errors()
    rows = []
    for name, key in served.items():
        errors = gru["errors_ppm"] if name.startswith("GRU") else ours
        if key in times:
            rows.append([name, f"{times[key]:.1f}", *(f"{error:.3f}" for error in errors)])
    weeks = [f"{h} week{'s' * (h > 1)}, ppm" for h in HORIZON_WEEKS]
    return [
        "**What a user would otherwise ship**: a GRU with the gap as an input and a head for each horizon, "
        f"hidden size and learning rate chosen on validation rows among {len(gru['sweep'])} trials, then median of "
        f"{len(gru['errors_ppm_by_seed'])} seeds ({gru['parameters']:,} parameters). Mean absolute error in the last "
        "fifth of the weekly CO2 record, walking forward, at the same origins; ours from the section on CO2.",
        markdown_table(["", "µs a step", *weeks], rows),
    ]


def _our_errors() -> list[float]:
    found = json.loads((HERE / "results" / "co2.json").read_text(encoding="utf-8"))
    by_seed = found["errors_ppm"]["all rows"]["odestream"]
    return [sorted(column)[len(column) // 2] for column in zip(*by_seed, strict=True)]


def _over_call(result: Result, name: str) -> float | None:
    times = _times(result)
    stream, call = times.get(name), times.get("native, one call")
    return None if stream is None or call is None else stream[1] - call[1]


def _inverse(ratios: Mapping[str, float], name: str, factor: int) -> float | None:
    return factor / ratios[name] if name in ratios else None


def _at_most(criterion: str, bound: float, measured: float | None) -> dict[str, Any]:
    met = None if measured is None else measured <= bound
    return {"criterion": criterion, "sense": "≤", "bound": bound, "measured": measured, "met": met}


def _at_least(criterion: str, bound: float, measured: float | None) -> dict[str, Any]:
    met = None if measured is None else measured >= bound
    return {"criterion": criterion, "sense": "≥", "bound": bound, "measured": measured, "met": met}
