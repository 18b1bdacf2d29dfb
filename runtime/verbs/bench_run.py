"""The run of `odestream bench`: one backend, or several side by side in interleaved rounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odestream.runtime import load
from odestream.runtime.errors import InputError
from odestream.runtime.model import AUTO
from odestream.runtime.verbs.bench_subjects import Walk, subjects
from odestream.runtime.verbs.console import progress_bar
from odestream.runtime.verbs.latency import Measured, measure, median_ratio, summary
from odestream.runtime.verbs.tally import as_json


@dataclass(frozen=True)
class Result:
    """One subject on one backend. why: it was chosen. walk: the stream that was stepped, None for the bare engine.

    ratio: of its median to the first backend's, the median over the rounds; None where one backend was measured.
    """

    backend: str
    why: str
    measured: Measured
    walk: Walk | None
    ratio: float | None

    def as_json(self) -> dict[str, Any]:
        """The figures; `solver` of a Stream.step is what the stream did, warm-up included."""
        figures = summary(self.measured)
        if self.ratio is not None:
            figures |= {"backend": self.backend, "p50_ratio": float(f"{self.ratio:.5g}")}
        return figures if self.walk is None else {**figures, "solver": as_json(self.walk.counters)}


@dataclass(frozen=True)
class Plan:
    """What is measured. batches: of the bare engine. buckets: to choose among, None for the bundle's. rate: calls a
    second of the paced stream. seconds: of each measurement. engines: folder of tensorrt's, None for the usual one."""

    batches: Sequence[int]
    buckets: Sequence[int] | None
    rate: float
    seconds: float
    engines: Path | None = None


def backend_names(backend: str, against: str | None) -> tuple[str, ...]:
    """The one that `--backend` names, or those of `--compare`; InputError for both, or for names that do not differ."""
    if against is None:
        return (backend,)
    if backend != AUTO:
        raise InputError(f"--backend {backend} and --compare {against} exclude each other; leave one of them out")
    names = tuple(name.strip() for name in against.split(","))
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"--compare is {against!r}, expected two backends or more, each once; write them as onnxruntime,native"
        )
    return names


def run_bench(bundle: Path, backends: Sequence[str], plan: Plan) -> tuple[str, list[Result]]:
    """The bundle's name, and every subject on every backend, those of one subject one after another.

    Each round measures all of them. CompatError where a backend cannot run here.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(load(bundle, name, engines=plan.engines)) for name in backends]
        walks = [[Walk(model, plan.buckets), Walk(model, plan.buckets)] for model in models]
        columns = [
            subjects(model, own, plan.batches, plan.buckets, plan.rate)
            for model, own in zip(models, walks, strict=True)
        ]
        order = [(place, i) for i in range(len(columns[0])) for place in range(len(models))]
        chosen = [columns[place][i] for place, i in order]
        if len(models) > 1:
            chosen = [
                replace(s, name=f"{s.name}, {models[place].backend}")
                for s, (place, _) in zip(chosen, order, strict=True)
            ]
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("Measuring", total=plan.seconds * len(chosen))
        results = measure(chosen, plan.seconds, lambda passed: bar.advance(task, passed))
        first = results[:: len(models)]
        return models[0].manifest.name, [
            Result(
                models[place].backend,
                models[place].why,
                measured,
                walks[place][i] if i < len(walks[place]) else None,
                median_ratio(measured, first[i]) if len(models) > 1 else None,
            )
            for (place, i), measured in zip(order, results, strict=True)
        ]
