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
from odestream.models.train import AVERAGES, FORECAST_CHUNK, FORECAST_LANES
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.loop import Budget, Trainer
from odestream.models.training.regularity import Solving

SIZES = Sizes(hidden=32, field=48, content=24, head=48, gate=16, window=8, slots=8, heads=1, keys=16, values=16)
"""About 20,000 parameters."""
RIVAL_SIZES: dict[str, RivalSizes] = {
    "cfc": CfcSizes(backbone=64),
    "diagonal-ssm": DiagonalSsmSizes(states=32),
    "ode-rnn": OdeRnnSizes(steps=2),
}
"""What the default sizes, meant for five times as many parameters, would leave out of proportion."""
MEDIAN_GAPS = (1, 3, 6, 12)  # horizons that validation asks for: those of the test in median gaps


def build(name: str, data: Dataset, sizes: Sizes = SIZES, **changes: Any) -> Model:
    """Our cell, or the rival called `name` with as many parameters. changes: of the cell's configuration."""
    centre, scale = centre_and_scale(data)
    channels = len(data.task.inputs)
    plain = CellConfig("forecast", channels, sizes, scale, centre, averages=AVERAGES, frequencies=data.time.frequencies)
    if name in BASELINES:
        return matched(name, Frame.of(plain), footprint(Cell(plain)).parameters, RIVAL_SIZES.get(name))
    return Cell(dataclasses.replace(plain, **changes))


def fit(model: Model, data: Dataset, rate: float, steps: int, seed: int, dropped: float = 0.0) -> tuple[Model, float]:
    """Train by the trainer's own recipe; the best averaged weights and their validation error.

    rate: the highest learning rate. dropped: see `ForecastRecipe`; 0, so that training sees one rate of rows alone.
    """
    settings = Settings(seed=seed, horizons=MEDIAN_GAPS)
    recipe = ForecastRecipe(model, data, settings, FORECAST_LANES, FORECAST_CHUNK, Solving.of(settings), dropped)
    recipe.learning_rate = rate
    trainer = Trainer(model, recipe, Budget(None, steps), seed, World())
    trainer.run(lambda _: None, lambda: False, lambda: None)
    return trainer.best.eval(), trainer.best_score
