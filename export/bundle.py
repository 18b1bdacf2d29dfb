"""Export: from a training run, a cell, or any step module, to a verified bundle."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from torch import nn

from odestream.export.calibrate import calibrate, refuse_uncalibrated
from odestream.export.card import model_card
from odestream.export.deployment import Deployment, deploy
from odestream.export.foreign import trace_module
from odestream.export.graph import build_graphs, graph_file, set_metadata
from odestream.export.half import PRECISION, float_bundle, measure_half, memory_bundle, verify_half
from odestream.export.precision import FULL, Precision, narrow_products, precision, rounded
from odestream.export.protocol import check_module
from odestream.export.solver_card import FIGURE_NAME
from odestream.export.traced import trace_cell
from odestream.export.verify import NARROW_CHAIN, Parity, verify
from odestream.export.weights import encode_weights
from odestream.models.baselines import Baseline
from odestream.models.calibration_figure import Cloud, draw_calibration
from odestream.models.cell import Cell
from odestream.models.checkpoint import encode_tensors, load_model
from odestream.models.held_out import HeldOut, describe_misfit, load_held_out
from odestream.models.hybrid import gate_names
from odestream.models.model import to_dict
from odestream.runtime.atomic import new_directory, refuse_existing
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.checks import NO_SOLVER, check_manifest
from odestream.runtime.contract.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    VECTORS_NAME,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
    ParityRow,
    SolverSpec,
    TaskSpec,
    TimeSpec,
    WeightEntry,
    encode_manifest,
    model_identity,
)
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.contract.vectors import encode_vectors
from odestream.runtime.errors import ExportError, InputError, PathError
from odestream.runtime.replay import failures

VERIFY_STEPS = 1000
BACKEND = "onnxruntime"
# How a flow is solved does not change what a state means, so snapshots outlive another choice.
SOLVER_FIELDS = ("method", "steps", "rtol", "atol")

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def export_bundle(
    module_or_run: nn.Module | str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    task: TaskSpec | None = None,
    time: TimeSpec | None = None,
    method: str | None = None,
    buckets: Sequence[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    slots: int | None = None,
    dtype: str = "fp32",
    metrics: Mapping[str, Any] | None = None,
    held_out: HeldOut | None = None,
    allow_uncalibrated: bool = False,
    force: bool = False,
    verify_steps: int = VERIFY_STEPS,
    progress: Progress = _silent,
) -> Manifest:
    """Export a run's folder or a step module to the directory `out`, verified against the torch step.

    name: of the model, the directory's unless given. task, time: what columns and times mean; a run brings its own.
    method, buckets, rtol, atol, slots: see `Deployment`; for cells alone. dtype: `fp32`, or `fp16` or `bf16` for a
    cell's matrices and their products, see `export.precision`. metrics: for the model card. held_out: streams that the
    cell's safety factor is calibrated on; a run brings its own, and without any they are made up.
    allow_uncalibrated: export even where no factor keeps its promise, or the method estimates no error; the manifest
    and the card then say so. verify_steps: length of the verified chains. progress: called with stage, done, total.

    The bundle appears whole or not at all. Raises PathError where `out` exists and `force` is not given,
    CheckpointError for a run that cannot be read or weights that are not finite, InputError for options that do not
    fit, ExportError where the module does not follow the protocol, the graphs differ from it, or no factor is found.
    """
    final = Path(out).absolute()
    _refuse_target(final, force)
    source = _source(module_or_run, task, time, metrics, held_out)
    _check_phase(source)
    deployment = Deployment(method, None if buckets is None else tuple(buckets), rtol, atol, slots)
    module, steps = deploy(source.module, deployment)
    made = _Export(dataclasses.replace(source, module=module), name or final.name, steps, precision(dtype), progress)
    with new_directory(final, force) as directory:
        return made.write(directory, verify_steps, allow_uncalibrated)


def _refuse_target(final: Path, force: bool) -> None:
    """PathError unless `final` is free, or `force` is given and it is a bundle: never replace somebody's folder."""
    refuse_existing(final, force)
    replaceable = (final / MANIFEST_NAME).is_file() or (final.is_dir() and not any(final.iterdir()))
    if os.path.lexists(final) and not replaceable:
        raise PathError(f"{final} is no bundle, and --force replaces nothing else; choose another path")


def _check_phase(source: _Source) -> None:
    phase, pairs = source.module.spec().input("phase"), len(source.time.frequencies)  # type: ignore[operator]
    if phase is not None and phase.shape != (2 * pairs,):
        raise InputError(
            f"phase has shape {list(phase.shape)}, but times have {pairs} frequencies, a sine and a cosine each; "
            "pass export_bundle a TimeSpec with the frequencies"
        )


@dataclass(frozen=True)
class _Source:
    """A module and what is known of it. sha256: of the weights that it was made from. held_out: see `export_bundle`."""

    module: nn.Module
    task: TaskSpec
    time: TimeSpec
    metrics: Mapping[str, Any]
    training: Mapping[str, Any]
    sha256: str
    held_out: HeldOut | None


def _source(
    given: nn.Module | str | Path,
    task: TaskSpec | None,
    time: TimeSpec | None,
    metrics: Mapping[str, Any] | None,
    held_out: HeldOut | None,
) -> _Source:
    if isinstance(given, nn.Module):
        module: nn.Module = given.eval()
        spec = check_module(module)
        task, time, metrics, training = task or _plain_task(spec), time or _plain_time(module), metrics or {}, {}
    else:
        module, info = load_model(given)
        check_module(module)
        task, time, metrics = task or info.task, time or info.time, metrics or info.metrics
        training = {"settings": msgspec.to_builtins(info.settings), "data": msgspec.to_builtins(info.data)}
        held_out = held_out or (load_held_out(given, module) if isinstance(module, Cell) else None)
    problem = describe_misfit(held_out, module) if held_out is not None and isinstance(module, Cell) else ""
    if problem:
        raise InputError(f"held_out: {problem}; give streams of this model's inputs")
    sha256 = hashlib.sha256(encode_tensors(module.state_dict())).hexdigest()
    return _Source(module, task, time, metrics, training, sha256, held_out)


def _plain_task(spec: StepSpec) -> TaskSpec:
    """Columns x0, x1, … for a module that comes without a table."""
    x = next(t for t in spec.inputs if t.name == "x")
    return TaskSpec("step", tuple(f"x{i}" for i in range(x.size)), time="time" if spec.input("dt") else None)


def _plain_time(module: nn.Module) -> TimeSpec:
    """Ticks of a nanosecond, a model unit of a second."""
    known = module.config if isinstance(module, Cell) else module.config.frame if isinstance(module, Baseline) else None
    return TimeSpec(frequencies=known.frequencies if known else ())


class _Export:
    """One export on its way: traces, verifies, writes."""

    def __init__(self, source: _Source, name: str, buckets: tuple[int, ...], to: Precision, progress: Progress) -> None:
        self.source, self.name, self.buckets, self.to, self.progress = source, name, buckets, to, progress
        self.module = rounded(source.module, to)
        self.spec: StepSpec = source.module.spec()  # type: ignore[operator]
        self.version = installed.version("odestream")

    def write(self, directory: Path, verify_steps: int, allow_uncalibrated: bool) -> Manifest:
        """Write all files into `directory` and check them there."""
        if not allow_uncalibrated:
            self._refuse_without_estimate()
        self.progress("tracing", 0, 1)
        module, narrow = self.module, self.to.narrow
        traced = trace_cell(module, narrow) if isinstance(module, Cell) else trace_module(module)
        weights, entries = encode_weights(traced.weights)
        graphs = build_graphs(traced, self.buckets, entries, self.version)
        draft, pictures = self._calibrated(self._draft(weights, entries), allow_uncalibrated)
        draft, parity = self._verified(draft, memory_bundle(draft, graphs, traced.weights), verify_steps)
        manifest = msgspec.structs.replace(draft, parity=parity.rows)
        files = {WEIGHTS_NAME: weights, VECTORS_NAME: encode_vectors(parity.vectors), **pictures}
        for label, graph in graphs.items():
            set_metadata(graph, _metadata(manifest, label))
            files[graph_file(label)] = graph.SerializeToString()
        files[CARD_NAME] = model_card(manifest, files, self.source.training).encode()
        manifest = msgspec.structs.replace(manifest, files={name: _entry(files[name]) for name in sorted(files)})
        check_manifest(manifest, MANIFEST_NAME)
        for name, data in {**files, MANIFEST_NAME: encode_manifest(manifest)}.items():
            (directory / name).write_bytes(data)
        return self._checked(directory)

    def _draft(self, weights: bytes, entries: tuple[WeightEntry, ...]) -> Manifest:
        """The manifest but for parity and files."""
        config = to_dict(self.module) if isinstance(self.module, Cell | Baseline) else {}
        identified = {key: value for key, value in config.items() if key not in SOLVER_FIELDS}
        solver = self._solver()
        labels = [str(bucket) for bucket in self.buckets] or [NO_SOLVER]
        return Manifest(
            schema=SCHEMA_VERSION,
            name=self.name,
            identity=model_identity(weights, self.spec, identified),
            dtype=self.to.name,
            spec=self.spec,
            task=self.source.task,
            time=self.source.time,
            solver=solver,
            default_graph=NO_SOLVER if solver is None else str(solver.default_bucket),
            graphs={label: graph_file(label) for label in labels},
            gate_names=gate_names(self.module.config) if isinstance(self.module, Cell) else self._plain_gates(),
            weights=entries,
            parity=(),
            config=config,
            metrics=dict(self.source.metrics),
            provenance=self._provenance(),
            files={},
        )

    def _plain_gates(self) -> tuple[str, ...]:
        gates = self.spec.output("gates")
        return tuple(f"gate{i}" for i in range(gates.size)) if gates else ()

    def _solver(self) -> SolverSpec | None:
        if not isinstance(self.module, Cell):
            return None
        config = self.module.config
        return SolverSpec(
            method=config.method,
            buckets=self.buckets,
            default_bucket=config.steps,
            rtol=config.rtol,
            atol=config.atol,
            error_estimate=tableau(config.method).error is not None,
            stiffness=self.module.field.stiffness(),
        )

    def _refuse_without_estimate(self) -> None:
        solver = self._solver()
        if solver is not None and not solver.error_estimate:
            raise ExportError(
                f"{solver.method} does not estimate its error, so no result could be flagged and nothing be promised; "
                "choose a method with an estimate such as --method bosh32, or pass --allow-uncalibrated"
            )

    def _calibrated(self, draft: Manifest, allow_uncalibrated: bool) -> tuple[Manifest, dict[str, bytes]]:
        """The draft with its safety factor, and the figure that shows how it was found."""
        if draft.solver is None or not isinstance(self.module, Cell):
            return draft, {}
        with narrow_products(self.to):
            found = calibrate(self.module, draft, self.source.held_out, partial(self.progress, "calibrating"))
        if not allow_uncalibrated:
            refuse_uncalibrated(found.factor, found.record)
        solver = msgspec.structs.replace(
            draft.solver, safety_factor=found.factor, error_ratios=found.ratios, calibration=found.record
        )
        clouds = [Cloud(o.kind, o.err, o.error, o.accepted) for o in found.measured]
        picture = draw_calibration(clouds, found.factor, solver.error_estimate)
        return msgspec.structs.replace(draft, solver=solver), {FIGURE_NAME: picture}

    def _provenance(self) -> dict[str, str]:
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "odestream": self.version,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "date": now.isoformat(timespec="seconds"),
            "source": type(self.module).__qualname__,
            "source_sha256": self.source.sha256,
        }

    def _verified(self, draft: Manifest, shipped: Bundle, steps: int) -> tuple[Manifest, Parity]:
        """The draft with what was measured of its precision, and its parity."""
        full = self.source.module
        if self.to is FULL or not isinstance(self.module, Cell) or not isinstance(full, Cell):
            return draft, self._compared(shipped, draft, steps)
        wide = float_bundle(self.module, draft, None)
        parity = self._compared(wide, wide.manifest, steps, NARROW_CHAIN)
        half = verify_half(self.module, draft, self.to, lambda: None)
        _refuse_differences(half)
        measured = measure_half(full, self.module, draft, shipped, self.to, self.progress)
        metrics = {**draft.metrics, PRECISION: measured}
        return msgspec.structs.replace(draft, metrics=metrics), Parity((*parity.rows, *half), parity.vectors)

    def _compared(self, bundle: Bundle, manifest: Manifest, steps: int, recorded: int | None = None) -> Parity:
        """Run the graphs as a backend will get them, beside the torch step."""
        total, done = steps * min(len(manifest.graphs), 2), 0

        def tick() -> None:
            nonlocal done
            done = min(done + 1, total)
            self.progress("verifying", done, total)

        engine = open_engine(BACKEND, bundle, threads=1)
        try:
            parity = verify(engine, manifest, self.module, steps, tick, recorded)
        finally:
            engine.close()
        _refuse_differences(parity.rows)
        return parity

    def _checked(self, directory: Path) -> Manifest:
        """Read the bundle as its users will, and let onnx check each file beside its weights."""
        self.progress("checking", 0, 1)
        loaded = read_bundle(directory)
        loaded.vectors()
        for file in loaded.manifest.graphs.values():
            _check_onnx(directory / file)
        return loaded.manifest


def _check_onnx(path: Path) -> None:
    """By path, since the weights lie outside the file."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as cause:
        raise ExportError(
            f"{path.name}: onnx refuses it ({cause}); report it with the model's configuration"
        ) from cause


def _refuse_differences(rows: Sequence[ParityRow]) -> None:
    bad = failures(list(rows))
    if bad:
        worst = bad[0]
        bucket = f" in bucket {worst.bucket}" if worst.bucket else ""
        raise ExportError(
            f"{worst.tensor} differs from the torch step by {worst.error:.1e} of its scale ({worst.check}{bucket}), "
            f"allowed is {worst.tolerance:.0e}, and {len(bad)} of {len(rows)} checks failed; a step that amplifies "
            "rounding or depends on ties cannot be exported: simplify it"
        )


def _entry(data: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def _metadata(manifest: Manifest, label: str) -> dict[str, str]:
    """What a graph says of itself to tools that know nothing of bundles."""
    worst = {row.tensor: max(r.error for r in manifest.parity if r.tensor == row.tensor) for row in manifest.parity}
    solver = manifest.solver and msgspec.structs.replace(manifest.solver, calibration=None)
    return {
        "description": f"One step of {manifest.name}; state_in_* and state_out_* pair by name.",
        "author": "odestream",
        "date": manifest.provenance["date"],
        "version": manifest.provenance["odestream"],
        "license": "unspecified",
        "odestream.schema": str(manifest.schema),
        "odestream.state": msgspec.json.encode(manifest.spec.state).decode(),
        "odestream.solver": msgspec.json.encode(solver).decode(),
        "odestream.bucket": label,
        "odestream.source_sha256": manifest.provenance["source_sha256"],
        "odestream.parity": json.dumps(worst),
    }
