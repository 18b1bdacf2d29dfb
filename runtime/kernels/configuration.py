"""A bundle's manifest as the CPU library wants it: the cell's configuration, checked, as a C struct."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_double, c_float
from typing import Literal

import msgspec

from odestream.runtime.contract.manifest import Manifest, SolverSpec
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.errors import CompatError
from odestream.runtime.kernels.library import MAX_STORES, Config

ELSEWHERE = "use the onnxruntime backend"

_TASKS = ("forecast", "classify", "tokens")
_STORES = ("working", "longterm", "episodic")
_WIDEST = (1 << 31) - 1  # of an int32; the library's own limits are lower


class _Sizes(msgspec.Struct, frozen=True):
    hidden: int
    field: int
    content: int
    head: int
    gate: int
    window: int
    slots: int
    heads: int
    keys: int
    values: int


class _Cell(msgspec.Struct, frozen=True):
    """What the kernels need of the cell's configuration (`odestream.models.config.CellConfig`)."""

    task: Literal["forecast", "classify", "tokens"]
    channels: int
    sizes: _Sizes
    scale: tuple[float, ...]
    centre: tuple[float, ...]
    outputs: int
    averages: tuple[float, ...]
    frequencies: tuple[float, ...]
    stores: tuple[Literal["working", "longterm", "episodic"], ...]
    surprise_gate: bool
    age_limit: float
    episodic_sink: bool = False


def native_config(manifest: Manifest) -> Config:
    """The C struct of a bundle's cell and solver; CompatError where the bundle holds another kind of module.

    ctypes keeps the arrays alive as long as the struct.
    """
    if manifest.solver is None or not {"task", "sizes"} <= set(manifest.config):
        raise CompatError(f"native runs odestream's own cells, which {manifest.name} is not; {ELSEWHERE}")
    try:
        cell = msgspec.convert(manifest.config, _Cell)
    except msgspec.ValidationError as cause:
        raise CompatError(
            f"native cannot read the configuration of {manifest.name} ({cause}); export it again"
        ) from cause
    _check(cell, manifest.name)
    config = Config(**_integers(cell), age_limit=cell.age_limit, rtol=manifest.solver.rtol, atol=manifest.solver.atol)
    config.scale, config.centre = _floats(cell.scale), _floats(cell.centre)
    config.average, config.frequency = _floats(cell.averages), _floats(cell.frequencies)
    _set_method(config, manifest.solver)
    return config


def layout_text(spec: StepSpec) -> str:
    """The spec in the words of `odestream_layout`."""
    groups = (spec.inputs, spec.outputs, spec.state)
    return " | ".join(" ".join(f"{tensor.name}:{tensor.size}" for tensor in group) for group in groups)


def _check(cell: _Cell, name: str) -> None:
    """What would not survive the way into a C struct; the library checks the rest."""
    sizes = msgspec.structs.asdict(cell.sizes)
    widths = {**sizes, "channels": cell.channels, "outputs": cell.outputs}
    beyond = [f"{key} {value}" for key, value in widths.items() if not 0 <= value <= _WIDEST]
    if len(cell.scale) != cell.channels or len(cell.centre) != cell.channels:
        beyond.append(f"{len(cell.scale)} scales and {len(cell.centre)} centres for {cell.channels} channels")
    if not 1 <= len(cell.stores) <= MAX_STORES:
        beyond.append(f"{len(cell.stores)} stores")
    if beyond:
        raise CompatError(f"native does not support {name}: {', '.join(beyond)}; {ELSEWHERE}")


def _integers(cell: _Cell) -> dict[str, object]:
    return {
        **msgspec.structs.asdict(cell.sizes),
        "task": _TASKS.index(cell.task),
        "channels": cell.channels,
        "outputs": cell.outputs,
        "stores": len(cell.stores),
        "store": tuple(_STORES.index(store) for store in cell.stores),
        "surprise_gate": int(cell.surprise_gate),
        "episodic_sink": int(cell.episodic_sink),
        "averages": len(cell.averages),
        "frequencies": len(cell.frequencies),
    }


def _set_method(config: Config, solver: SolverSpec) -> None:
    table = tableau(solver.method)
    square = [float(a) for row in table.a for a in (*row, *[0] * (table.stages - len(row)))]
    config.stages, config.fsal, config.estimates = table.stages, int(table.fsal), int(table.error is not None)
    config.a, config.b, config.c = _doubles(square), _doubles(table.b), _doubles(table.c)
    config.error = _doubles(table.error or ())


def _floats(values: Sequence[float]) -> object:
    return (c_float * max(1, len(values)))(*values)


def _doubles(values: Sequence[object]) -> object:
    return (c_double * max(1, len(values)))(*map(float, values))  # type: ignore[arg-type]
