"""A cell as it is deployed: its solver, its tolerances, its episodic slots. No weight depends on any of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from odestream.models.cell import Cell
from odestream.models.config import BUCKETS, CellConfig
from odestream.runtime.contract.rule import check_buckets, check_tolerances
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.errors import InputError

MOST_SLOTS = 1 << 16  # beyond any device that a step should fit


@dataclass(frozen=True)
class Deployment:
    """What may differ between a cell as trained and as deployed; None keeps what it was trained with.

    method: a tableau's name. buckets: solver steps of the graphs; None for 1, 2, 4, 8 and 16, or for the trained number
    alone where the method has no error estimate to choose by. rtol, atol: the solver's tolerances, units of `err`.
    slots: of the episodic memory.
    """

    method: str | None = None
    buckets: tuple[int, ...] | None = None
    rtol: float | None = None
    atol: float | None = None
    slots: int | None = None


def deploy(module: nn.Module, deployment: Deployment) -> tuple[nn.Module, tuple[int, ...]]:
    """The module as deployed, and its buckets (none without a solver); InputError for what does not fit."""
    if isinstance(module, Cell):
        return _deployed(module, deployment)
    changed = [f.name for f in dataclasses.fields(Deployment) if getattr(deployment, f.name) is not None]
    if changed:
        raise InputError(f"{changed[0]} is given, but {type(module).__name__} has no solver; leave it out")
    return module, ()


def _deployed(cell: Cell, deployment: Deployment) -> tuple[Cell, tuple[int, ...]]:
    config = cell.config
    method = deployment.method or config.method
    buckets = _buckets(deployment, method, config.steps)
    rtol = config.rtol if deployment.rtol is None else deployment.rtol
    atol = config.atol if deployment.atol is None else deployment.atol
    check_tolerances(rtol, atol)
    changes = {"method": method, "steps": _default_bucket(config.steps, buckets), "rtol": rtol, "atol": atol}
    deployed = Cell(dataclasses.replace(_with_slots(config, deployment.slots), **changes))  # type: ignore[arg-type]
    deployed.load_state_dict(cell.state_dict())
    return deployed.eval(), buckets


def _buckets(deployment: Deployment, method: str, trained: int) -> tuple[int, ...]:
    estimates = tableau(method).error is not None
    if deployment.buckets is None:
        return BUCKETS if estimates else (trained,)
    check_buckets(deployment.buckets)
    if len(deployment.buckets) > 1 and not estimates:
        raise InputError(
            f"{method} has no error estimate, so nothing can choose among buckets {deployment.buckets}; "
            "give a single one, or a method with an estimate such as bosh32"
        )
    return deployment.buckets


def _default_bucket(trained: int, buckets: tuple[int, ...]) -> int:
    """The trained number of steps, or the next that there is."""
    return next((bucket for bucket in buckets if bucket >= trained), buckets[-1])


def _with_slots(config: CellConfig, slots: int | None) -> CellConfig:
    if slots is None:
        return config
    if "episodic" not in config.stores:
        raise InputError("slots is given, but the model has no episodic memory; leave it out")
    if not 1 <= slots <= MOST_SLOTS:
        raise InputError(f"slots is {slots}; give 1 to {MOST_SLOTS}")
    return dataclasses.replace(config, sizes=dataclasses.replace(config.sizes, slots=slots))
