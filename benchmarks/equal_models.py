"""Models of equal size, trained alike: our cell, whole or with parts off, and its rivals."""

from __future__ import annotations

import dataclasses
from typing import Any

from odestream.models.baselines import BASELINES, Frame, footprint, matched
from odestream.models.baselines import Sizes as RivalSizes
from odestream.models.baselines.cfc import CfcSizes
from odestream.models.baselines.diagonal_ssm import DiagonalSsmSizes
from odestream.models.baselines.ode_rnn import OdeRnnSizes
from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.config import CellConfig, Sizes
from odestream.models.data import Dataset, centre_and_scale
from odestream.models.distributed import World
from odestream.models.model import Model
from odestream.models.train import ANCHOR, AVERAGES, FORECAST_CHUNK, FORECAST_LANES, LABEL_CHUNK, LABEL_LANES
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.labels import classify_recipe
from odestream.models.training.loop import Budget, Trainer
from odestream.models.training.recipe import Recipe
from odestream.models.training.regularity import Solving

SIZES = Sizes(hidden=32, field=48, content=24, head=48, gate=16, window=8, slots=8, heads=1, keys=16, values=16)
"""About 20,000 parameters."""
RIVAL_SIZES: dict[str, RivalSizes] = {
    "cfc": CfcSizes(backbone=64),
    "diagonal-ssm": DiagonalSsmSizes(states=32),
    "ode-rnn": OdeRnnSizes(steps=2),
}
"""What the default sizes, meant for five times as many parameters, would leave out of proportion."""
MEDIAN_GAPS = (3, 12)  # horizons that validation asks for: two of the test's, in median gaps


def build(name: str, data: Dataset, sizes: Sizes = SIZES, **changes: Any) -> Model:
    """Our cell, or the rival called `name` with as many parameters. changes: of the cell's configuration."""
    centre, scale = centre_and_scale(data)
    stationary = not data.task.labels and not data.time.frequencies  # CO2 rises
    plain = CellConfig(
        "classify" if data.task.labels else "forecast",
        len(data.task.inputs),
        sizes,
        scale,
        centre,
        outputs=len(data.task.labels),
        averages=() if data.task.labels else (*AVERAGES, ANCHOR) if stationary else AVERAGES,
        stationary=stationary,
        frequencies=data.time.frequencies,
    )
    return equal(name, plain, **changes)


def equal(name: str, plain: CellConfig, **changes: Any) -> Model:
    """The same, of a cell's configuration."""
    if name in BASELINES:
        return matched(name, Frame.of(plain), footprint(Cell(plain)).parameters, RIVAL_SIZES.get(name))
    return Cell(dataclasses.replace(plain, **changes))


def fit(model: Model, data: Dataset, rate: float, steps: int, seed: int, dropped: float = 0.0) -> tuple[Model, float]:
    """Train to forecast, or to tell classes, by the trainer's own recipe; see `fit_by`.

    dropped: see `ForecastRecipe`; 0, so that training sees one rate of rows alone.
    """
    settings = Settings(seed=seed, horizons=MEDIAN_GAPS)
    solving = Solving.of(settings)
    if data.task.labels:
        return fit_by(classify_recipe(model, data, LABEL_LANES, LABEL_CHUNK, solving), model, rate, steps, seed)
    recipe = ForecastRecipe(model, data, settings, FORECAST_LANES, FORECAST_CHUNK, solving, dropped)
    return fit_by(recipe, model, rate, steps, seed)


def fit_by(recipe: Recipe, model: Model, rate: float, steps: int, seed: int) -> tuple[Model, float]:
    """Train; the averaged weights, where they were best on validation rows, and their score there.

    rate: the highest learning rate. Without validation rows the last weights are taken and the score is infinite.
    """
    recipe.learning_rate = rate
    trainer = Trainer(model, recipe, Budget(None, steps), seed, World())
    trainer.run(lambda _: None, lambda: False, lambda: None)
    return trainer.best.eval(), trainer.best_score
