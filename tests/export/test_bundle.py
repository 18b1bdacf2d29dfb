from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import odestream.export.bundle as export_module
from odestream.export import export_bundle, verify_against_run
from odestream.models.checkpoint import DataInfo, RunInfo, Settings, save_checkpoint
from odestream.runtime.bundle import read_bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import CARD_NAME, Manifest, TimeSpec
from odestream.runtime.errors import CheckpointError, ExportError, InputError, IntegrityError, PathError
from odestream.runtime.replay import failures
from tests.export.conftest import CONFIGS, TASKS, Exported
from tests.helpers.sequences import random_cell

pytestmark = pytest.mark.usefixtures("no_calibration")

METRICS = {
    "test": {
        "co2": {
            "1": {"mae": 0.25, "rivals": {"last_value": 0.5}},
            "4": {"mae": 0.375, "rivals": {"last_value": None}},
        }
    },
    "deployed_solver_steps": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "weekly"
    cell = random_cell(CONFIGS["forecast"], seed=5)
    info = RunInfo(
        TASKS["forecast"],
        TimeSpec(frequencies=cell.config.frequencies),
        Settings(preset="nano"),
        DataInfo("co2.csv", "ab" * 32, 2284, 1, 1e8),
        METRICS,
    )
    save_checkpoint(path, cell, info)
    return path


def test_a_run_exports_with_its_task_times_and_metrics_and_verifies_against_itself(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    manifest = export_bundle(run, out, buckets=(1, 4), verify_steps=40)
    assert read_bundle(out).manifest == manifest
    assert manifest.name == "bundle"
    assert manifest.task == TASKS["forecast"]
    assert manifest.time.frequencies == (0.3, 1.7)
    assert manifest.metrics == METRICS
    assert not failures(list(verify_against_run(out, run, steps=40, backend="onnxruntime")))


def test_a_run_that_is_taken_for_its_bundle_says_how_to_export_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("t,co2,wind\n1,1,1\n")
    assert main(["run", str(run), "--input", str(tmp_path / "a.csv")]) == 2
    told = "a training run, not a bundle; export it first: odestream export"
    assert capsys.readouterr().err == f"odestream: error: {run}: {told} {run} --out BUNDLE\n"


def test_the_card_says_what_it_was_trained_on_how_good_it_is_and_how_to_run_it(run: Path, tmp_path: Path) -> None:
    export_bundle(run, tmp_path / "bundle", buckets=(4,), verify_steps=10)
    card = (tmp_path / "bundle" / CARD_NAME).read_text()
    for expected in (
        "# bundle",
        "co2.csv",
        "| gaps ahead | mae | rivals / last value |",
        "| 1 | 0.25 | 0.5 |",
        "| 4 | 0.375 |  |",
        "bosh32",
        "odestream run bundle",
        "| chained | 4 | 10 |",
    ):
        assert expected in card


def test_a_bundle_of_another_model_is_told_apart_from_the_run(run: Path, exported: Exported) -> None:
    _, other = exported("classify")
    with pytest.raises(InputError, match="the weights' shapes differ"):
        verify_against_run(other.path, run, steps=5)
    _, same_shapes = exported("forecast")
    assert failures(list(verify_against_run(same_shapes.path, run, steps=5)))


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "precious").write_text("mine")
    cell = random_cell(CONFIGS["classify"])
    with pytest.raises(PathError, match="--force"):
        export_bundle(cell, out, task=TASKS["classify"])
    with pytest.raises(PathError, match="is no bundle"):
        export_bundle(cell, out, task=TASKS["classify"], force=True)
    assert (out / "precious").read_text() == "mine"


def test_a_difference_from_torch_fails_the_export_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = random_cell(CONFIGS["classify"])
    nudged = {"update.bias": cell.update.bias.detach() + 1e-3}
    traced = export_module.trace_cell

    def wrong(*arguments: object) -> object:
        made = traced(*arguments)  # type: ignore[arg-type]
        made.weights.update(nudged)
        return made

    monkeypatch.setattr(export_module, "trace_cell", wrong)
    with pytest.raises(ExportError, match=r"differs from the torch step by .* allowed is 1e-05"):
        export_bundle(cell, tmp_path / "bundle", task=TASKS["classify"], buckets=(1,), verify_steps=10)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    cell = random_cell(CONFIGS["classify"])
    with torch.no_grad():
        cell.update.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"update\.weight"):
        export_bundle(cell, tmp_path / "bundle", task=TASKS["classify"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["weights.safetensors", "step.n4.onnx", "vectors.safetensors", CARD_NAME])
def test_one_changed_byte_is_noticed(file: str, tmp_path: Path, exported: Exported) -> None:
    _, bundle = exported("classify")
    for path in bundle.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(IntegrityError, match=file):
        read_bundle(tmp_path)


def _export(path: Path, **options: object) -> Manifest:
    cell = random_cell(CONFIGS["classify"])
    return export_bundle(cell, path, task=TASKS["classify"], verify_steps=5, **options)  # type: ignore[arg-type]


def test_the_identity_is_the_models_and_not_the_solvers(tmp_path: Path) -> None:
    one = _export(tmp_path / "one", buckets=(1, 4))
    other = _export(tmp_path / "other", buckets=(2,), method="rk4", rtol=1e-2, allow_uncalibrated=True)
    more_slots = _export(tmp_path / "slots", buckets=(2,), slots=9)
    assert one.identity == other.identity
    assert one.identity != more_slots.identity


def test_a_fixed_method_says_that_it_has_no_estimate(tmp_path: Path) -> None:
    manifest = _export(tmp_path / "bundle", method="rk4", allow_uncalibrated=True)
    assert manifest.solver is not None
    assert (manifest.solver.method, manifest.solver.error_estimate) == ("rk4", False)
    assert manifest.solver.buckets == (4,)  # as trained
    vectors = read_bundle(tmp_path / "bundle").vectors()
    assert not vectors.outputs["err"].any()


def test_more_episodic_slots_than_trained_need_no_new_weights(tmp_path: Path) -> None:
    manifest = _export(tmp_path / "bundle", buckets=(4,), slots=11)
    shapes = {member.name: member.shape for member in manifest.spec.state}
    assert shapes["ek"] == (11, 6)
    assert not failures(list(manifest.parity))


def test_tolerances_scale_the_error_estimate(tmp_path: Path) -> None:
    loose, tight = (
        _export(tmp_path / name, buckets=(4,), rtol=scale * 1e-3, atol=scale * 1e-4)
        for name, scale in (("loose", 10.0), ("tight", 1.0))
    )
    assert (loose.solver, tight.solver) != (None, None)
    ten, one = (read_bundle(tmp_path / name).vectors().outputs["err"] for name in ("loose", "tight"))
    assert one.max() > 0
    np.testing.assert_allclose(10 * ten, one, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"buckets": ()}, "give increasing numbers of solver steps"),
        ({"buckets": (0, 4)}, "from 1"),
        ({"buckets": (4, 1)}, "give increasing numbers"),
        ({"buckets": (1, 1)}, "give increasing numbers"),
        ({"method": "rk4", "buckets": (2, 8)}, "nothing can choose among buckets"),
        ({"atol": float("nan")}, "above 0"),
        ({"rtol": float("inf")}, "finite"),
        ({"method": "rk5"}, "unknown solver method"),
        ({"slots": 0}, "slots is 0"),
        ({"rtol": -1.0}, "above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        _export(tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_records_where_it_came_from(exported: Exported) -> None:
    _, bundle = exported("classify")
    provenance = bundle.manifest.provenance
    assert {"odestream", "torch", "onnx", "date", "source_sha256"} <= set(provenance)
    assert json.loads(json.dumps(bundle.manifest.config))["sizes"]["hidden"] == 13


def test_progress_is_told_in_stages(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    _export(tmp_path / "bundle", buckets=(1, 2), progress=lambda *stage: told.append(stage))
    assert [stage for stage, _, _ in told if stage != "verifying"] == ["tracing", "checking"]
    assert ("verifying", 10, 10) in told


def test_a_bundle_is_replaced_whole_and_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    _export(out, buckets=(1, 2))
    with pytest.raises(PathError, match="--force"):
        _export(out, buckets=(4,))
    assert read_bundle(out).manifest.default_graph == "2"
    _export(out, buckets=(4,), force=True)
    assert read_bundle(out).manifest.default_graph == "4"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
