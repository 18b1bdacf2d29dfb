"""A model that is trained and exported: a cell, or a rival in its place, where code calls either `cell`.

Both are read back from plain values: a cell's are those of its configuration, a rival's begin with its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from odestream.models.baselines import BASELINES, Baseline, Frame, footprint, matched, name_of
from odestream.models.baselines.config import BaselineConfig
from odestream.models.cell import Cell
from odestream.models.config import CellConfig
from odestream.runtime.errors import InputError

Model = Cell | Baseline
OURS = "cell"
MODELS = (OURS, *BASELINES)
_NAME = "model"


def make_model(name: str, config: CellConfig) -> Model:
    """The cell, or the rival called `name` with as many parameters and the same inputs; InputError lists the known."""
    check_name(name)
    cell = Cell(config)
    return cell if name == OURS else matched(name, Frame.of(config), footprint(cell).parameters)


def check_name(name: str) -> None:
    """InputError for a model that is not known."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")


def forecast_from(model: Model) -> Sequence[str]:
    """Members of the state that a forecast starts from."""
    return model.forecast_from if isinstance(model, Baseline) else ("h", "u", "norm")


def stiffness(model: Model) -> float:
    """Of the field, as `Field.stiffness` bounds it; zero without a solver, for which every gap is short enough."""
    return model.field.stiffness() if isinstance(model, Cell) else 0.0


def to_dict(model: Model) -> dict[str, object]:
    """What rebuilds the model but for its weights, as plain JSON values."""
    named = {} if isinstance(model, Cell) else {_NAME: name_of(model)}
    return {**named, **model.config.to_dict()}


def from_dict(data: dict[str, object]) -> Model:
    """A model with random weights from `to_dict`'s result; InputError names what does not fit."""
    if _NAME not in data:
        return Cell(CellConfig.from_dict(data))
    name = str(data[_NAME])
    check_name(name)
    kind = BASELINES[name]
    return kind(BaselineConfig.from_dict({k: v for k, v in data.items() if k != _NAME}, kind.sizes_type))
