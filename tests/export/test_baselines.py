"""Rivals through the exporter: the step protocol, parity over chained steps, and streams that give what torch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from odestream.export import export_bundle
from odestream.export.protocol import check_module
from odestream.models import config as config_module
from odestream.models.baselines import BASELINES, Baseline
from odestream.models.config import Task
from odestream.runtime import load
from odestream.runtime.bundle import read_bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError
from odestream.runtime.replay import failures
from tests.helpers.baselines import random_baseline
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.tables import seasonal_csv

SECOND = 10**9
QUICK = (
    "gru-d",
    "gated-deltanet",
)  # torch's exporter takes seconds for each: these two cover gaps, caches and matrices
TASK = TaskSpec("forecast", ("a", "b"), ("a", "b"), time="t")
FREQUENCIES = (0.7, 1.9)


@pytest.mark.parametrize("task", ["forecast", "classify", "tokens"])
@pytest.mark.parametrize("name", BASELINES)
def test_a_rival_follows_the_step_protocol(name: str, task: Task) -> None:
    model = random_baseline(name, tiny_config(task))
    assert check_module(model) == model.spec()


def streamed(model: Baseline, bundle: Path, steps: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """y [T, Y] of a stream with holes, queries and irregular gaps, and of torch, its time worked out by hand."""
    rng = np.random.default_rng(3)
    frame = model.config.frame
    times = np.cumsum(rng.integers(SECOND // 100, SECOND // 2, steps)).tolist()
    state, before, found, expected = model.initial_state(1), times[0], [], []
    with load(bundle) as loaded:
        stream = loaded.stream()
        for now in times:
            x = (np.asarray(frame.centre) + np.asarray(frame.scale) * rng.standard_normal(2)).astype(np.float32)
            mask = (rng.random(2) > 0.3).astype(np.float32)
            found.append(stream.step(x, t=now, mask=mask).y)
            angle = before / SECOND * np.asarray(FREQUENCIES)
            phase = np.concatenate([np.sin(angle), np.cos(angle)])
            values = {"x": x, "mask": mask, "dt": np.array([(now - before) / SECOND]), "phase": phase}
            inputs = {k: torch.from_numpy(np.asarray(v, np.float32)[None]) for k, v in values.items()}
            with torch.no_grad():
                outputs, state = model.step(inputs, state)
            expected.append(outputs["y"][0].numpy())
            before = now
    return np.stack(found), np.stack(expected)


def check_export(name: str, out: Path) -> None:
    model = random_baseline(name, tiny_config("forecast", frequencies=FREQUENCIES))
    manifest = export_bundle(model, out, task=TASK, time=TimeSpec(frequencies=FREQUENCIES), verify_steps=200)
    assert not failures(list(manifest.parity))
    assert {row.tensor for row in manifest.parity} == {"y"} | {member.name for member in model.spec().state}
    assert manifest.config["model"] == name
    found, expected = streamed(model, out, 60)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(InputError, match="has no solver"):
        export_bundle(model, out.with_name("other"), buckets=(1, 2))


@pytest.mark.parametrize("name", QUICK)
def test_a_rival_exports_and_streams_what_torch_computes(name: str, tmp_path: Path) -> None:
    check_export(name, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BASELINES if name not in QUICK])
def test_every_other_rival_exports_and_streams_what_torch_computes(name: str, tmp_path: Path) -> None:
    check_export(name, tmp_path / "bundle")


@pytest.mark.slow
def test_a_trained_rival_goes_from_a_table_to_predictions_by_the_same_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)
    table, run, bundle = seasonal_csv(tmp_path / "a.csv"), tmp_path / "run", tmp_path / "bundle"
    trained = ["train", str(table), "--time", "time", "--model", "gru-dt", "--epochs", "2", "--horizons", "1,3"]
    assert main([*trained, "--out", str(run)]) == 0
    assert main(["export", str(run), "--out", str(bundle)]) == 0
    assert main(["verify", str(bundle), "--run", str(run), "--steps", "50"]) == 0
    assert main(["run", str(bundle), "--input", str(table), "--output", str(tmp_path / "o.csv")]) == 0
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert len(lines) == len(table.read_text().splitlines())
    assert lines[0] == "time,level,level_std,other,other_std,err,bucket,flagged"
    assert read_bundle(bundle).manifest.solver is None
