from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from odestream.export import export_bundle, half
from odestream.models.cell import Cell
from odestream.models.config import CellConfig, Sizes, Task
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.kernels.build import find_compiler, json_flags
from tests.helpers.calibration import skip_calibration
from tests.helpers.gru import Gru
from tests.helpers.sequences import random_cell
from tests.helpers.sharing import made_once

# No two widths are alike, none is a multiple of a vector's width.
SIZES = Sizes(hidden=13, field=21, content=11, head=15, gate=9, window=4, slots=5, heads=2, keys=6, values=7)
BUCKETS = (1, 2, 4, 8, 16)
HALVES = ("fp16", "bf16")

CONFIGS: dict[Task, CellConfig] = {
    "forecast": CellConfig(
        "forecast",
        2,
        SIZES,
        scale=(0.5, 3.0),
        centre=(350.0, -1.0),
        averages=(1.0, 10.0, 100.0),
        frequencies=(0.3, 1.7),
        surprise_gate=True,
        episodic_sink=True,
    ),
    "classify": CellConfig("classify", 3, SIZES, scale=(1.0,) * 3, centre=(0.0,) * 3, outputs=5),
    "tokens": CellConfig("tokens", 1, SIZES, scale=(1.0,), centre=(0.0,)),
}
TASKS = {
    "forecast": TaskSpec("forecast", ("co2", "wind"), ("co2",), time="t"),
    "classify": TaskSpec("classify", ("a", "b", "c"), ("label",), ("p", "q", "r", "s", "t"), time="t"),
    "tokens": TaskSpec("tokens", ("text",)),
}

Exported = Callable[[Task], tuple[Cell, Bundle]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A cell of each task and its bundle, made when first asked for; the forecast is verified in full."""
    made: dict[Task, tuple[Cell, Bundle]] = {}

    def get(task: Task) -> tuple[Cell, Bundle]:
        if task not in made:
            cell, steps = random_cell(CONFIGS[task]), 1000 if task == "forecast" else 50
            time = TimeSpec(frequencies=cell.config.frequencies)
            export = partial(export_bundle, cell, task=TASKS[task], time=time, buckets=BUCKETS, verify_steps=steps)
            made[task] = cell, read_bundle(made_once(tmp_path_factory, f"exported/{task}", export))
        return made[task]

    return get


@pytest.fixture(scope="session")
def opening_library(native_library: Path) -> Path:
    """The CPU library, where it was built with JSON and so opens bundles."""
    if json_flags(find_compiler()) is None:
        pytest.skip("nlohmann/json is not installed, so the library opens no bundles")
    return native_library


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `skip_calibration`."""
    skip_calibration(monkeypatch)


@pytest.fixture(scope="session")
def half_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A forecast cell in both half precisions, its drift measured over a few hundred calls."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        skip_calibration(patch)
        patch.setattr(half, "DRIFT_STEPS", 400)
        patch.setattr(half, "_WINDOW", 100)
        for name in HALVES:
            cell, time = random_cell(CONFIGS["forecast"]), TimeSpec(frequencies=CONFIGS["forecast"].frequencies)
            export = partial(export_bundle, cell, task=TASKS["forecast"], time=time, buckets=(2,), verify_steps=60)
            made[name] = read_bundle(made_once(tmp_path_factory, f"half/{name}", partial(export, dtype=name)))
    return made


@pytest.fixture(scope="session")
def gru_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gru, Path]:
    """A plain GRU cell and its bundle."""
    torch.manual_seed(0)
    module = Gru()
    return module, made_once(tmp_path_factory, "gru/bundle", partial(export_bundle, module, verify_steps=100))
