"""Runs the stored vectors of a bundle through an engine and compares: verification without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Layout, initial
from odestream.runtime.backends import Binding, Engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.contract.vectors import Vectors
from odestream.runtime.errors import InputError

CHECK = "stored vectors"
CHAINED, MIXED = "chained", "chained, mixed buckets"
SHORTER_CHAINS = (100, 20)
"""Over which a model that amplifies rounding is compared with torch, in the checks above."""


def verify_vectors(engine: Engine, bundle: Bundle, steps: int | None = None) -> list[ParityRow]:
    """Compare the first `steps` rows of the stored chain (all by default) with what `engine` makes of them.

    The chain runs on from the engine's own states. One row for each output and each state member; `bucket` is 0
    where the chain mixes buckets. A row passes where `error <= tolerance`. Raises BundleError where the vectors
    do not fit the manifest, InputError where `steps` is below 1.
    """
    vectors = bundle.vectors()
    count = vectors.steps if steps is None else min(steps, vectors.steps)
    if count < 1:
        raise InputError(f"steps is {steps}, expected at least 1; leave it out for all {vectors.steps}")
    found = _run(engine, bundle.manifest, vectors, count)
    return _compare(bundle.manifest, engine.name, vectors, found, count)


def failures(rows: list[ParityRow]) -> list[ParityRow]:
    """The rows that do not pass; an error that is NaN fails too."""
    return [row for row in rows if not row.error <= row.tolerance]


def cut_short(rows: Iterable[ParityRow], asked: int | None = None) -> str:
    """Why a comparison with torch ran shorter chains than the number of steps that was asked for; empty where none."""
    cut = {row.steps for row in rows if row.check in (CHAINED, MIXED) and row.steps in SHORTER_CHAINS} - {asked}
    if not cut:
        return ""
    return (
        "this model amplifies rounding: over longer chains torch's own float32 departs from float64 about as far as "
        f"the graphs from torch, so chains are compared over {min(cut)} steps at a time"
    )


@dataclass(frozen=True)
class _Found:
    outputs: dict[str, NDArray[np.float32]]
    state: dict[str, NDArray[np.float32]]


def _run(engine: Engine, manifest: Manifest, vectors: Vectors, count: int) -> _Found:
    binding = engine.bind(vectors.batch)
    layout = Layout(manifest.spec.state, vectors.batch)
    start = initial(manifest.spec.state, vectors.batch)
    outputs: dict[str, list[NDArray[np.float32]]] = {name: [] for name in binding.outputs}
    state: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layout.shapes}
    checkpoints = set(vectors.checkpoints.tolist())
    for row in range(count):
        if vectors.reset[row]:
            binding.set_state(start)
        _fill(binding, vectors, row)
        binding.run(vectors.labels[row])
        binding.swap()
        for name, value in binding.outputs.items():
            outputs[name].append(value.copy())
        if row in checkpoints:
            for name, view in layout.views(binding.arena).items():
                state[name].append(view.copy())
    return _Found(_stacked(outputs), _stacked(state))


def _fill(binding: Binding, vectors: Vectors, row: int) -> None:
    for name, values in vectors.inputs.items():
        np.copyto(binding.inputs[name], values[row])


def _stacked(lists: dict[str, list[NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.stack(values) for name, values in lists.items() if values}


def _compare(manifest: Manifest, backend: str, vectors: Vectors, found: _Found, count: int) -> list[ParityRow]:
    table = tolerances(manifest.dtype, backend)
    labels = set(vectors.labels[:count])
    bucket = int(labels.pop()) if len(labels) == 1 and manifest.solver is not None else 0
    rows = []
    for group, expected in ((found.outputs, vectors.outputs), (found.state, vectors.state)):
        for name, actual in group.items():
            allowed = table.of(name)
            error = _error(actual, expected[name][: len(actual)], allowed.floor)
            rows.append(ParityRow(CHECK, bucket, name, count, error, allowed.limit))
    return rows


def _error(actual: NDArray[np.float32], expected: NDArray[np.generic], floor: float) -> float:
    """Largest |difference| over the scale of `expected`; infinite where `actual` is not finite."""
    if not np.isfinite(actual).all():
        return float("inf")
    wanted = expected.astype(np.float64)
    return float(np.abs(actual - wanted).max() / max(np.abs(wanted).max(), floor))
