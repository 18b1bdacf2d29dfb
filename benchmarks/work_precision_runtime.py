"""Exported bundles on ONNX Runtime: the adaptive runtime and single buckets, probed for accuracy and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from adaptive_probe import Flow, Probe
from odestream.export import export_bundle
from odestream.models.cell import Cell
from odestream.models.config import BUCKETS
from odestream.models.held_out import HeldOut
from odestream.runtime import Model
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.records import Counters
from odestream.runtime.session import Stream
from work_precision_points import Floats
from work_precision_scenarios import Row

BACKEND = "onnxruntime"


@dataclass(frozen=True)
class Played:
    """What an adaptive stream did at each gap: the flows, field evaluations (rejected ones too), flags and re-runs."""

    flows: list[Flow]
    evaluations: Floats
    flagged: NDArray[np.bool_]
    rerun: NDArray[np.bool_]


@dataclass(frozen=True)
class Deployed:
    """Bundles of one run's cells in a folder.

    task, time: of the run; held_out: streams that they are calibrated on. verify_steps: length of a verified chain.
    """

    folder: Path
    task: TaskSpec
    time: TimeSpec
    held_out: HeldOut | None
    verify_steps: int

    def bundle(self, cell: Cell, field: str, method: str) -> Path:
        """The cell's bundle with all buckets of `method`, made when first asked for; calibrated if possible."""
        out = self.folder / f"{field}_{method}"
        if out.exists():
            return out
        export_bundle(
            cell,
            out,
            task=self.task,
            time=self.time,
            method=method,
            buckets=BUCKETS,
            verify_steps=self.verify_steps,
            held_out=self.held_out,
            allow_uncalibrated=True,
        )
        return out


def opened(bundle: Path, factor: float | None = None) -> Model:
    """The bundle on ONNX Runtime, with another safety factor than its own if one is given."""
    read = read_bundle(bundle)
    if factor is not None and read.manifest.solver is not None:
        solver = msgspec.structs.replace(read.manifest.solver, safety_factor=factor)
        read = dataclasses.replace(read, manifest=msgspec.structs.replace(read.manifest, solver=solver))
    return Model(read, open_engine(BACKEND, read, 1), "the benchmark asks for it")


def play(model: Model, rows: Sequence[Row]) -> Played:
    """Stream the rows, and probe each gap beside it: the probe starts where the stream is, and takes the same calls."""
    solver = model.manifest.solver
    if solver is None:
        raise ValueError("a bundle without a solver has no gaps to cross")
    probe, table, stream = Probe(model), tableau(solver.method), model.stream()
    flows, evaluations, flagged, rerun = [], [], [], []
    for row in rows:
        if row.first:
            stream = model.stream()
        else:
            flows.append(probe.cross(stream.save(), row.tick))
        before = stream.counters
        output = stream.step([row.x], t=row.tick)
        if not row.first:
            calls = _calls(before, stream.counters)
            evaluations.append(sum(count * table.evaluations(steps) for steps, count in calls.items()))
            flagged.append(output.flagged)
            rerun.append(output.reruns > 0)
    return Played(flows, np.array(evaluations, np.float64), np.array(flagged), np.array(rerun))


class Timed:
    """Steps a stream of its own through the rows, one a call; row 0 begins anew. buckets: see `Model.stream`."""

    def __init__(self, model: Model, rows: Sequence[Row], buckets: Sequence[int] | None = None) -> None:
        self._model, self._rows, self._buckets = model, rows, buckets
        self._stream: Stream = model.stream(buckets)

    def __call__(self, place: int) -> None:
        """Take row `place`."""
        row = self._rows[place]
        if row.first:
            self._stream = self._model.stream(self._buckets)
        self._stream.step([row.x], t=row.tick)


def _calls(before: Counters, after: Counters) -> dict[int, int]:
    """Calls by bucket between two moments, accepted and rejected."""
    return {
        int(label): after.buckets[label]
        - before.buckets[label]
        + after.rejected.get(label, 0)
        - before.rejected.get(label, 0)
        for label in after.buckets
    }
