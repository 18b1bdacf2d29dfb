"""How long does one step take, by us and by what else could run it, and how far is that from what this core can do?

One nano cell (D = 64, X = 16, bosh32) with drawn weights, one thread, batch 1, at 1, 4 and 16 solver steps, on the
same weights and inputs everywhere. A subject is timed only after it has given the torch step's answers along a chain;
one that does not is reported instead. All are timed in one run of interleaved rounds, and compared by medians.

Beside it: the distance to reading every weight at this core's bandwidth, batch 64 against batch 1 and against its
rate of multiplying matrices, a stream a million steps old beside a fresh one, and the GRU that a user would otherwise
ship.

    pip install 'odestream[bench]'; python -m odestream.runtime.kernels.build
    python benchmarks/latency.py --prepare    exports, compiles, trains the GRU into runs/latency: 10 minutes, once
    python benchmarks/latency.py              5 minutes when prepared; the machine should have nothing else to do
    python benchmarks/latency.py --quick      seconds, without compilers; writes into runs/latency only

Writes results/latency.json, figures/latency.png and a section of RESULTS.md. Falsified where a row of the table of
criteria says "no".
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import latency_peers
from latency_flat import flatness
from latency_gru import Sweep, gru_on_co2
from latency_limits import product_rate, reader
from latency_measure import Parity, Timed, check, time_all
from latency_model import (
    Arrays,
    Inputs,
    drawn_cell,
    drawn_inputs,
    export_cell,
    matrix_floats,
    plain_graph,
    torch_answers,
    weight_floats,
)
from latency_report import criteria, draw, report
from latency_subjects import (
    Contender,
    bound_engine,
    plain_session,
    stream_step,
    torch_compiled,
    torch_eager,
    torchdiffeq_integrator,
)
from odestream.models.cell import Cell
from odestream.runtime import Model, load
from odestream.runtime.errors import CompatError
from odestream.runtime.replay import failures
from odestream.runtime.verbs.latency import summary
from results import FIGURES, HERE, publish, write_json

RUNS = HERE.parent / "runs" / "latency"
BATCH = 64
READ, PASSES = "reader", 50


@dataclass(frozen=True)
class Plan:
    """How much is measured. seconds, rounds: of each subject. calls: of the long stream. turns: of blocks that
    compare it. compilers: whether those that take long to build take part. gru: whether it is trained and timed."""

    steps: tuple[int, ...] = (1, 4, 16)
    rows: int = 32
    seconds: float = 1.0
    rounds: int = 15
    calls: int = 1_000_000
    turns: int = 400
    compilers: bool = True
    gru: bool = True


QUICK = Plan(steps=(1, 4), rows=8, seconds=0.02, rounds=2, calls=1000, turns=3, compilers=False, gru=False)


@dataclass(frozen=True)
class Bench:
    """What the contenders share. models: the bundle by backend, those that run here."""

    cell: Cell
    inputs: Inputs
    bundle: Path
    models: Mapping[str, Model]
    answers: Mapping[int, list[Arrays]]


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _options()
    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.ERROR)
    plan = QUICK if options.quick else Plan()
    result = measure(plan, RUNS / ("quick" if options.quick else "full"), timing=not options.prepare)
    if options.prepare:
        return
    text = report(result)
    print(text)
    if options.quick:
        write_json(RUNS / "latency.json", result)
        draw(result, RUNS / "latency.png")
    else:
        publish("latency", result, text)
        draw(result, FIGURES / "latency.png")


def measure(plan: Plan, folder: Path, timing: bool = True) -> dict[str, Any]:
    """All figures; bundles, compiled code and the trained GRU are made in `folder`, or found there."""
    with contextlib.ExitStack() as stack:
        bench = _bench(plan, folder, stack)
        contenders, parities, refused = _checked(bench, plan, folder)
        gru = gru_on_co2(folder, Sweep()) if plan.gru else None
        extra = [*_batches(bench), *([] if gru is None else _shipped(folder, stack, plan))]
        if not timing:
            return {}
        rate = product_rate()
        limit = _reader_contender(bench)
        time = time_all([*contenders, *extra, limit], plan.seconds, plan.rounds)
        native = bench.models.get("native")
        result: dict[str, Any] = {
            "cell": bench.cell.config.to_dict(),
            "subjects": [_row(c, time, parities) for c in contenders],
            "others": [_row(c, time, {}) for c in extra],
            "refused": refused,
            "absent": latency_peers.absent(),
            "versions": latency_peers.versions(),
            "limits": _limits(bench, plan, time, rate),
            "flat": None if native is None else flatness(native, bench.inputs, plan.calls, plan.turns),
            "gru": gru,
            "ratios": _ratios(time, plan),
        }
    return {**result, "criteria": criteria(result)}


def _bench(plan: Plan, folder: Path, stack: contextlib.ExitStack) -> Bench:
    cell, bundle = drawn_cell(), folder / "bundle"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        export_cell(cell, bundle, (1, 4, 16), verify_steps=20)
    models = {}
    for backend in ("native", "onnxruntime"):
        with contextlib.suppress(CompatError):
            models[backend] = stack.enter_context(load(bundle, backend=backend))
    inputs = drawn_inputs(models["onnxruntime"].manifest.time, plan.rows)
    answers = {steps: torch_answers(cell, inputs, steps) for steps in {*plan.steps, 16}}
    return Bench(cell, inputs, bundle, models, answers)


def _makers(bench: Bench, steps: int, plan: Plan, folder: Path) -> Iterator[tuple[str, Callable[[], Contender]]]:
    cell, inputs, graph = bench.cell, bench.inputs, plain_graph(bench.bundle, steps)
    titles = {"native": "native", "onnxruntime": "ONNX Runtime"}
    for backend, model in bench.models.items():
        call, stream = f"{titles[backend]}, one call", f"{titles[backend]}, Stream.step"
        yield call, partial(bound_engine, call, model, inputs, steps)
        yield stream, partial(stream_step, stream, model, inputs, steps)
        if backend == "native" and steps == plan.steps[0]:
            yield f"{stream} of a list", partial(stream_step, f"{stream} of a list", model, inputs, steps, lists=True)
    yield "ONNX Runtime, plain export", lambda: plain_session("ONNX Runtime, plain export", cell, graph, inputs, steps)
    yield "torch eager", lambda: torch_eager("torch eager", cell, inputs, steps, None)
    rk4 = torchdiffeq_integrator("rk4", steps)
    yield "torchdiffeq rk4", lambda: torch_eager("torchdiffeq rk4", cell, inputs, steps, rk4)
    if steps == 1:
        dopri5 = torchdiffeq_integrator("dopri5", None)
        yield "torchdiffeq dopri5", lambda: torch_eager("torchdiffeq dopri5", cell, inputs, None, dopri5)
    if plan.compilers:
        yield "torch.compile", lambda: torch_compiled("torch.compile", cell, inputs, steps)
        yield from latency_peers.peers(cell, graph, inputs, steps, folder).items()


def _checked(
    bench: Bench, plan: Plan, folder: Path
) -> tuple[list[Contender], dict[tuple[str, int | None], Parity], list[dict[str, str]]]:
    """The contenders that gave torch's answers, how near they came, and why others take no part."""
    contenders, parities, refused = [], {}, []
    for steps in plan.steps:
        for name, make in _makers(bench, steps, plan, folder):
            print(f"{name}, {steps} …", flush=True)
            try:
                contender = make()
                config = bench.cell.config
                parity = check(
                    contender, bench.inputs, bench.answers[steps], bench.answers[16], config.rtol, config.atol
                )
            except Exception as error:  # noqa: BLE001 (somebody else's compiler may raise anything)
                refused.append({"name": f"{name}, {steps} steps", "problem": f"{type(error).__name__}: {error}"[:200]})
                continue
            if parity.reached:
                contenders.append(contender)
                parities[contender.name, contender.steps] = parity
            else:
                problem = f"{parity.tensor} is off by {parity.error:.3g} of what is allowed ({parity.unit})"
                refused.append({"name": f"{name}, {steps} steps", "problem": problem})
    return contenders, parities, refused


def _batches(bench: Bench) -> list[Contender]:
    return [
        bound_engine(backend, model, bench.inputs, 1, batch)
        for backend, model in bench.models.items()
        for batch in (1, BATCH)
    ]


def _shipped(folder: Path, stack: contextlib.ExitStack, plan: Plan) -> list[Contender]:
    """The GRU on ONNX Runtime and our cell of one channel on both engines: what the CO2 record would be served with."""
    ours = folder / "one_channel"
    if not ours.exists():
        export_cell(drawn_cell(channels=1), ours, (1, 4), verify_steps=20)
    made = []
    for name, path, backends in (("GRU", folder / "gru", ["onnxruntime"]), ("ours", ours, ["onnxruntime", "native"])):
        for backend in backends:
            try:
                model = stack.enter_context(load(path, backend=backend))
            except CompatError:
                continue
            if failures(model.verify()):
                raise RuntimeError(f"{path} does not reproduce its stored vectors on {backend}")
            inputs = drawn_inputs(model.manifest.time, plan.rows, channels=1)
            title = f"{name} on {backend}, one channel"
            chosen = (None,) if name == "GRU" else (1, 4)
            made += [bound_engine(title, model, inputs, steps) for steps in chosen]
    return made


def _reader_contender(bench: Bench) -> Contender:
    """Reads as many bytes as the cell has weights; passes are many, so that the call itself costs nothing."""
    block = reader(matrix_floats(bench.cell))
    return Contender(READ, None, lambda _: None, block.call(PASSES), dict)


def _limits(bench: Bench, plan: Plan, time: Timed, rate: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes and operations of a step, what this core does with them at best, and how far each number of steps is."""
    block = 4 * matrix_floats(bench.cell)
    bandwidth = PASSES * block / (time.p50_us((READ, None, 1)) * 1e-6)
    used = {steps: weight_floats(bench.cell, steps) for steps in plan.steps}
    found: dict[str, Any] = {
        "block_bytes": block,
        "bytes_per_second": bandwidth,
        "bytes": {str(n): 4 * floats for n, floats in used.items()},
        "limit_us": {str(n): 4e6 * floats / bandwidth for n, floats in used.items()},
        "sgemm": rate,
        "flops": {str(n): 2 * floats for n, floats in used.items()},
    }
    if "native" in bench.models:
        found["distance"] = {
            str(n): time.p50_us(("native, one call", n, 1)) / found["limit_us"][str(n)] for n in plan.steps
        }
        rows = BATCH * 1e6 / time.p50_us(("native", 1, BATCH))
        found["batch_flops_share"] = rows * 2 * used[1] / rate["flops_per_second"]
    return found


def _row(contender: Contender, time: Timed, parities: Mapping[tuple[str, int | None], Parity]) -> dict[str, Any]:
    figures = summary(time.found[contender.name, contender.steps, contender.batch])
    parity = parities.get((contender.name, contender.steps))
    return {**figures, "parity": None if parity is None else asdict(parity)}


def _ratios(time: Timed, plan: Plan) -> dict[str, float]:
    """Ratios of medians that the criteria ask for, those whose both sides were measured."""
    call, first = "native, one call", plan.steps[0]
    asked = {
        "native / ONNX Runtime": ((call, first, 1), ("ONNX Runtime, one call", first, 1)),
        "native / IREE": ((call, first, 1), ("IREE", first, 1)),
        "native / torch eager": ((call, first, 1), ("torch eager", first, 1)),
        "16 steps / 1 step": ((call, 16, 1), (call, 1, 1)),
        "batch 64 / batch 1": (("native", 1, BATCH), ("native", 1, 1)),
        "batch 64, native / ONNX Runtime": (("native", 1, BATCH), ("onnxruntime", 1, BATCH)),
    }
    return {name: time.ratio(a, b) for name, (a, b) in asked.items() if a in time and b in time}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--prepare", action="store_true", help="make everything that takes long, time nothing")
    choice.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
