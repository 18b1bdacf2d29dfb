"""`odestream verify`: a bundle's stored vectors replayed on this machine, or the training framework beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from odestream.runtime.backends import AUTOMATIC, Engine, open_engine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.manifest import ParityRow
from odestream.runtime.errors import CompatError
from odestream.runtime.model import AUTO
from odestream.runtime.replay import cut_short, failures, verify_vectors
from odestream.runtime.verbs.console import (
    engine_versions,
    machine,
    refuse_engines,
    refuse_outputs,
    save_json,
    show_table,
)

GROUP = "odestream.verify"
FRAMEWORK = "torch"

Comparison = Callable[..., Sequence[ParityRow]]


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    run: Annotated[Path | None, typer.Option(help="Compare with the training run that it was exported from.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to check; all stored ones by default.")] = None,
    backend: Annotated[str, typer.Option(help="The engine to check; auto takes native where it can run.")] = "auto",
    engines: Annotated[
        Path | None, typer.Option(help="Folder of the engines of --backend tensorrt; BUNDLE.engines by default.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --json where it exists.")] = False,
) -> None:
    """Check that a bundle computes what it was exported to compute: its stored vectors are replayed here.

    Every output and every state member is compared; an error is the largest difference over the tensor's scale. Shown
    are the worst tensor of each check and all that are wrong; --json has every one.
    With --run, fresh inputs are compared with the run's own step, which needs the training extra.
    Exit status 1 where a tensor is beyond its tolerance.
    """
    refuse_outputs(force, json_path)
    refuse_engines(engines, (backend,))
    compare = None if run is None else _framework()
    loaded = read_bundle(bundle, engines)
    engine = _open(backend, loaded)
    try:
        if compare is None:
            rows: Sequence[ParityRow] = verify_vectors(engine, loaded, steps)
        else:
            rows = compare(bundle, run, **({} if steps is None else {"steps": steps}), backend=engine.name)
    finally:
        engine.close()
    wrong = failures(list(rows))
    _show(f"{loaded.manifest.name} on {engine.name}", rows, wrong)
    if shorter := cut_short(rows, steps):
        print(shorter)
    if json_path is not None:
        save_json(json_path, _report(loaded.manifest.name, engine.name, rows, wrong), force)
    if wrong:
        raise typer.Exit(1)


def _open(backend: str, bundle: Bundle) -> Engine:
    """The engine that is named, or the first of auto that can run the bundle.

    Not `load`: its self-test would refuse the very engine whose differences are to be shown.
    """
    refusals = []
    for name in AUTOMATIC if backend == AUTO else (backend,):
        try:
            engine = open_engine(name, bundle, threads=1)
        except CompatError as error:
            refusals.append(str(error))
            continue
        return engine
    raise CompatError("; ".join(refusals))


def _framework() -> Comparison:
    """The comparison that the export layer registers; CompatError where it is not installed."""
    entries = entry_points(group=GROUP, name=FRAMEWORK)
    try:
        comparison: Comparison = next(iter(entries)).load()
    except (StopIteration, ImportError) as cause:
        raise CompatError(f"verify --run needs the training extra ({cause}); pip install 'odestream[train]'") from cause
    return comparison


def _show(title: str, rows: Sequence[ParityRow], wrong: Sequence[ParityRow]) -> None:
    columns = ("check", "bucket", "tensor", "steps", "error", "tolerance", "")
    worst: dict[tuple[str, int, int], ParityRow] = {}
    for row in rows:
        key = (row.check, row.bucket, row.steps)
        worst[key] = max(worst.get(key, row), row, key=lambda r: r.error / r.tolerance)
    shown = [row for row in rows if row in wrong or row in worst.values()]
    show_table(title, columns, [_row(row, row in wrong) for row in shown], numbers=columns[1:2] + columns[3:6])
    if wrong:
        print(f"{len(wrong)} of {len(rows)} tensors are wrong; export the bundle again, or choose another backend")
    else:
        print(f"all {len(rows)} tensors are within their tolerance")


def _row(row: ParityRow, wrong: bool) -> tuple[str, ...]:
    verdict = "WRONG" if wrong else "ok"
    bucket = str(row.bucket or "all")
    return (row.check, bucket, row.tensor, str(row.steps), f"{row.error:.1e}", f"{row.tolerance:.0e}", verdict)


def _report(name: str, backend: str, rows: Sequence[ParityRow], wrong: Sequence[ParityRow]) -> dict[str, Any]:
    return {
        "bundle": name,
        "backend": backend,
        "passed": not wrong,
        "machine": machine(),
        "versions": engine_versions(backend),
        "rows": [_finite(msgspec.to_builtins(row)) for row in rows],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity; an output that is not finite reads `null`."""
    return row | {"error": row["error"] if row["error"] < float("inf") else None}
