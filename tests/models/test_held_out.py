"""Held-out streams: validation rows and no others, in two halves, that survive the disk and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.data import Dataset, load_table, load_text
from odestream.models.held_out import (
    CALLS,
    HELD_OUT_FILE,
    SEGMENT,
    WARM,
    HeldOut,
    hold_out_rows,
    hold_out_text,
    load_held_out,
    save_held_out,
)
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import CheckpointError
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell

ROWS = 3000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A record whose value is its row number, so that every call says where it came from."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    ticks = np.cumsum(np.random.default_rng(0).integers(1, 4, ROWS))
    path.write_text("time,row\n" + "".join(f"{t},{row}\n" for row, t in enumerate(ticks)))
    return load_table(path, TaskSpec("forecast", ("row",), ("row",), (), "time"), Settings())


def cell_of(task: str) -> Cell:
    changes = {"tokens": {}, "forecast": {"channels": 1, "scale": (1.0,), "centre": (0.0,), "frequencies": ()}}
    return random_cell(tiny_config(task, **changes[task]))


@pytest.fixture(scope="module")
def held_out(data: Dataset) -> HeldOut:
    made = hold_out_rows(cell_of("forecast"), data, seed=0)
    assert made is not None
    return made


def test_only_validation_rows_count_and_each_half_has_its_own(held_out: HeldOut, data: Dataset) -> None:
    (part,) = data.parts
    x, seen = held_out.inputs["x"][..., 0], held_out.inputs["mask"][..., 0] > 0
    halves = []
    for half in (0, 1):
        counted = held_out.counts & seen & (held_out.half == half)
        halves.append(set(x[counted].int().tolist()))
        assert len(halves[-1]) > 200
    assert max(halves[0]) < min(halves[1])
    assert min(halves[0]) >= part.validation
    assert max(halves[1]) < part.test
    assert float(x.max()) < part.test  # nor does anything else of the test rows come along


def test_the_streams_are_as_many_and_as_long_as_stated(held_out: HeldOut) -> None:
    calls = int(held_out.counts.sum())
    assert CALLS <= calls <= CALLS + 2 * SEGMENT
    assert held_out.counts.shape[0] <= SEGMENT + WARM
    assert not held_out.counts[0].any()
    assert (held_out.inputs["dt"][held_out.counts] > 0).all()


def test_calls_of_a_stream_follow_each_other_in_time(held_out: HeldOut, data: Dataset) -> None:
    (part,) = data.parts
    for lane in range(held_out.counts.shape[1]):
        seen = np.flatnonzero(held_out.inputs["mask"][:, lane, 0] > 0)
        rows = held_out.inputs["x"][seen, lane, 0].int().numpy()
        units = np.cumsum(held_out.inputs["dt"][:, lane, 0].double().numpy())[seen]
        ticks = part.series.ticks[rows] / data.time.ticks_per_model_unit
        np.testing.assert_allclose(np.diff(units), np.diff(ticks), rtol=1e-5)


def test_a_text_gives_bytes_of_its_validation_part(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_bytes(b"a" * 6400 + b"bc" * 400 + b"de" * 400 + b"f" * 2000)
    text = load_text(source, Settings(test_fraction=0.2))
    assert (text.validation[:2], text.validation[-2:]) == (b"bc", b"de")
    made = hold_out_text(text, seed=0)
    assert made is not None
    for half, letters in ((0, b"bc"), (1, b"de")):
        assert set(made.inputs["x"][made.counts & (made.half == half)].tolist()) == set(letters)
    assert int(made.counts.sum()) >= 1400


def test_they_come_back_from_a_run_as_they_were(tmp_path: Path, held_out: HeldOut) -> None:
    cell = cell_of("forecast")
    assert load_held_out(tmp_path, cell) is None
    save_held_out(tmp_path, held_out)
    back = load_held_out(tmp_path, cell)
    assert back is not None
    assert back.inputs.keys() == held_out.inputs.keys()
    assert all(torch.equal(back.inputs[name], value) for name, value in held_out.inputs.items())
    assert torch.equal(back.counts, held_out.counts)
    assert torch.equal(back.half, held_out.half)
    save_held_out(tmp_path, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(3, 2, 1)}, "x is torch.float32"),
        ({"half": torch.zeros(1, dtype=torch.int64)}, "counts must be"),
        ({"dt": None}, "dt is missing"),
    ],
)
def test_streams_that_do_not_fit_the_cell_are_refused_by_name(
    tmp_path: Path, held_out: HeldOut, change: dict[str, torch.Tensor | None], says: str
) -> None:
    tensors = {**held_out.inputs, "counts": held_out.counts, "half": held_out.half, **change}
    kept = {name: value for name, value in tensors.items() if value is not None}
    safetensors.torch.save_file(kept, tmp_path / HELD_OUT_FILE)
    with pytest.raises(CheckpointError, match=says):
        load_held_out(tmp_path, cell_of("forecast"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / HELD_OUT_FILE).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_held_out(tmp_path, cell_of("forecast"))
