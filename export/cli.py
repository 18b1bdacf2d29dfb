"""`odestream export`: a training run or any step module in, a verified bundle out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from odestream.runtime.atomic import refuse_existing
from odestream.runtime.contract.rule import check_buckets
from odestream.runtime.errors import CheckpointError, CompatError, ExportError, InputError
from odestream.runtime.replay import cut_short
from odestream.runtime.verbs.console import progress_bar

if TYPE_CHECKING:
    from torch import nn

    from odestream.export.bundle import Progress
    from odestream.runtime.contract.manifest import Manifest

DEFAULT_BUCKETS = "1,2,4,8,16"
FLAGGED_LIMIT = 0.05
"""Share of flagged calls from which the export says what would lessen them."""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODULE:FACTORY",
            help="A finished training run, or what makes a torch module with spec() and step().",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle's directory.", show_default=False)],
    weights: Annotated[
        Path | None, typer.Option(help="MODULE:FACTORY only: its state dict, a safetensors file.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Solver method; the trained one by default.")] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            help=f"Solver steps, a graph each; {DEFAULT_BUCKETS}, or the trained number without an error estimate.",
            show_default=False,
        ),
    ] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance, unit of err.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance, unit of err.")] = None,
    slots: Annotated[int | None, typer.Option(help="Slots of the episodic memory; as trained by default.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, or fp16 or bf16 for the matrices and their products.")] = "fp32",
    allow_uncalibrated: Annotated[
        bool, typer.Option("--allow-uncalibrated", help="Export even if the solver's errors are not kept in check.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle where it exists.")] = False,
) -> None:
    """Export to ONNX, one graph for each number of solver steps, verified against torch before it appears."""
    refuse_existing(out, force)
    steps = None if buckets is None else _parse_buckets(buckets)
    try:
        from odestream.export.bundle import export_bundle
    except ImportError as cause:
        raise CompatError(f"export cannot start here ({cause}); pip install 'odestream[train]'") from cause

    given = _factory_module(source, weights) if ":" in source and not Path(source).exists() else _run(source, weights)
    with _progress() as progress:
        manifest = export_bundle(
            given,
            out,
            method=method,
            buckets=steps,
            rtol=rtol,
            atol=atol,
            slots=slots,
            dtype=dtype,
            allow_uncalibrated=allow_uncalibrated,
            force=force,
            progress=progress,
        )
    print(f"{out}: {'; '.join(closing_words(manifest))}")


def closing_words(manifest: Manifest) -> list[str]:
    """The graphs, how near they are to torch and why over shorter chains, what is promised of their solver.

    Last what to do about its flags.
    """
    values = max(row.error for row in manifest.parity if row.tensor != "err")
    said = [", ".join(manifest.graphs.values()), f"largest difference from torch {values:.1e} of a tensor's scale"]
    if shorter := cut_short(manifest.parity):
        said.append(shorter)
    solver = manifest.solver
    if solver is None or solver.calibration is None:
        return said
    rows = solver.calibration.rows
    calls, flagged, within = (sum(getattr(row, name) for row in rows) for name in ("calls", "flagged", "within"))
    share = f"{within / max(1, calls - flagged):.2%} of {calls - flagged:,} unflagged calls within tolerance"
    factor = f"safety factor {solver.safety_factor:g}" if solver.error_estimate else "no error estimate"
    doubt = "" if solver.calibration.reached else ", uncalibrated"
    said.append(f"{factor}{doubt}: {share}, {flagged:,} flagged")
    if flagged > FLAGGED_LIMIT * calls:
        said.append(
            f"of such calls {flagged / calls:.0%} are flagged: export more --buckets, or a looser --rtol and --atol"
        )
    return said


def _parse_buckets(text: str) -> tuple[int, ...]:
    try:
        buckets = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--buckets is {text!r}; give numbers of solver steps, such as {DEFAULT_BUCKETS}") from None
    check_buckets(buckets)
    return buckets


def _run(source: str, weights: Path | None) -> Path:
    if weights is not None:
        raise InputError(f"--weights belongs to MODULE:FACTORY; {source} brings its own weights: leave it out")
    return Path(source)


def _factory_module(source: str, weights: Path | None) -> nn.Module:
    """Import MODULE with the current directory in the path, call FACTORY, load the weights."""
    module = _make(source)
    from torch import nn

    if not isinstance(module, nn.Module):
        raise ExportError(f"{source} made a {type(module).__name__}; let it return a torch module")
    if weights is not None:
        _load_weights(module, weights)
    return module


def _make(source: str) -> Any:
    name, _, attribute = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except ImportError as cause:
        raise InputError(f"{source}: cannot import {name} ({cause}); run from the directory that holds it") from cause
    except AttributeError as cause:
        raise InputError(
            f"{source}: {name} has no {attribute!r}; name a class or function without arguments"
        ) from cause
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        return factory()
    except TypeError as cause:
        raise ExportError(f"{source}: {cause}; FACTORY must be a class or function without arguments") from cause


def _load_weights(module: nn.Module, path: Path) -> None:
    from odestream.models.checkpoint import decode_tensors

    try:
        data = path.read_bytes()
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); name a safetensors file") from cause
    try:
        module.load_state_dict(decode_tensors(data, str(path)))
    except RuntimeError as cause:
        reason = " ".join(str(cause).split())
        raise CheckpointError(
            f"{path}: does not fit {type(module).__name__} ({reason}); give its own state dict"
        ) from cause


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error for the stage that runs."""
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show
