"""Runs on disk: what is saved comes back, and what is damaged is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from odestream.models.checkpoint import DataInfo, RunInfo, Settings, encode_tensors, load_checkpoint, save_checkpoint
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import CheckpointError
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs

INFO = RunInfo(
    TaskSpec("forecast", ("a", "b"), ("b",), (), "time"),
    TimeSpec(frequencies=(0.7, 1.9), origin=-5),
    Settings(seed=3, horizons=(1, 2)),
    DataInfo("data.csv", "00", 100, 1, 1e9),
    {"test": {"b": {"1": {"mae": 0.5}}}},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run", random_cell(tiny_config()), INFO)
    return tmp_path / "run"


@pytest.mark.parametrize("task", ["forecast", "classify", "tokens"])
def test_a_loaded_cell_steps_bit_for_bit_like_the_saved_one(tmp_path: Path, task: str) -> None:
    config = tiny_config(task)
    cell = random_cell(config, seed=1)
    save_checkpoint(tmp_path / "run", cell, INFO)
    loaded, info = load_checkpoint(tmp_path / "run")
    assert info == INFO
    assert loaded.config == config
    assert not loaded.training
    inputs = {name: value[1] for name, value in random_inputs(config, 2, 3).items()}
    expected, state = cell.step(inputs, cell.initial_state(3))
    found, state_found = loaded.step(inputs, loaded.initial_state(3))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(state[name], state_found[name]) for name in state)


def test_a_run_from_before_there_was_a_sink_loads_as_a_cell_without(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_bytes())
    assert "episodic_sink" not in config["cell"]
    del config["settings"]["episodic_sink"]
    (run / "config.json").write_text(json.dumps(config))
    old, info = load_checkpoint(run)
    assert not old.config.episodic_sink
    assert not info.settings.episodic_sink
    assert "memory.sink" not in old.state_dict()
    own = random_cell(tiny_config(episodic_sink=True))
    save_checkpoint(tmp_path / "own", own, INFO)
    loaded, _ = load_checkpoint(tmp_path / "own")
    assert loaded.config == own.config
    assert loaded.state_dict().keys() - old.state_dict().keys() == {"memory.sink"}


def test_a_pickle_is_refused_and_not_executed(run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "executed"),)

    _replace_weights(run, pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(run)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(run: Path, tmp_path: Path) -> None:
    cell = random_cell(tiny_config())
    with torch.no_grad():
        cell.update.bias[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"update\.bias holds NaN"):
        save_checkpoint(tmp_path / "other", cell, INFO)
    assert not (tmp_path / "other").exists()
    _replace_weights(run, encode_tensors(cell.state_dict()))
    with pytest.raises(CheckpointError, match=r"update\.bias holds NaN"):
        load_checkpoint(run)


def test_weights_of_another_run_are_refused(run: Path) -> None:
    (run / "model.safetensors").write_bytes(encode_tensors(random_cell(tiny_config(), seed=9).state_dict()))
    with pytest.raises(CheckpointError, match="not the weights"):
        load_checkpoint(run)


def test_weights_of_another_shape_are_refused_by_name(run: Path) -> None:
    _replace_weights(run, encode_tensors(random_cell(tiny_config(averages=(1.0,))).state_dict()))
    with pytest.raises(CheckpointError, match="encode_content"):
        load_checkpoint(run)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{}", "not a run's configuration"),
        ("config.json", b'{"version": 99}', "version 99"),
        ("config.json", None, "no finished training run"),
        ("model.safetensors", None, "cannot be read"),
        ("metrics.json", b"[", "not JSON"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_named(
    run: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(run)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "nowhere")


def _replace_weights(run: Path, data: bytes) -> None:
    """Put `data` in place of the weights and make the configuration name its hash, as an attacker would."""
    import hashlib

    old = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    (run / "model.safetensors").write_bytes(data)
    config = (run / "config.json").read_text().replace(old, hashlib.sha256(data).hexdigest())
    (run / "config.json").write_text(config)
