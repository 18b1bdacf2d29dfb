"""Engines are really built here, by TensorRT-RTX and without a GPU; none of them can run here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from time import monotonic

import onnx
import pytest

from odestream.export import engine as engines
from odestream.export import export_bundle, half
from odestream.export.compile import compile_bundle, profiles
from odestream.export.engine import Options, build_engine, calls_of, inspected_layers, whole_model
from odestream.models.config import preset
from odestream.runtime import CompatError, ExportError, InputError, IntegrityError
from odestream.runtime.backends.engine_store import check_engine, engine_folder, read_engine
from odestream.runtime.backends.trt_package import load_package
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.engine import EngineRecord, engine_key
from odestream.runtime.contract.manifest import TimeSpec
from tests.export.conftest import CONFIGS, TASKS, Exported
from tests.helpers.gru import Gru
from tests.helpers.scripted_gpu import PLUGIN
from tests.helpers.sequences import random_cell

CALLS = {"OdeFlow": "function", "HybridMemory": "function"}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Compiled = tuple[Bundle, Path, dict[str, EngineRecord], dict[str, list[float]]]


@pytest.fixture(scope="session", autouse=True)
def trt_rtx() -> None:
    """What the tests of this file build with."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'odestream[trt-rtx]'")


@pytest.fixture(scope="session")
def compiled(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A bundle, the folder of its engines, their records, and when each bucket's build told how far it was."""
    _, bundle = exported("forecast")
    folder, told = tmp_path_factory.mktemp("engines"), dict[str, list[float]]()

    def progress(label: str, *_: object) -> None:
        told.setdefault(label, []).append(monotonic())

    records = compile_bundle(
        bundle.path, "trt-rtx", architectures=("sm89",), batches=[8], out=folder, progress=progress
    )
    return bundle, folder, records, told


def test_every_bucket_gets_an_engine_and_the_bundle_stays_as_it_is(compiled: Compiled) -> None:
    bundle, folder, records, _ = compiled
    minor = ".".join(load_package("trt-rtx").version.split(".")[:2])
    assert list(records) == [f"step.n{n}.sm89.trtrtx{minor}.engine" for n in (1, 2, 4, 8, 16)]
    for name, record in records.items():
        assert read_engine(folder / name) == record
        assert len(check_engine(folder / name, record)) == record.size > 100_000
        assert record.key == engine_key(record)
        assert (record.calls, record.proof) == (CALLS, "names of the network's layers")
        assert (record.gpu, record.plugin, record.profiles) == (None, None, ((1, 8, 8),))
        assert record.weights_sha256 == bundle.manifest.files["weights.safetensors"].sha256
    assert {path.name for path in folder.iterdir()} == {*records, *(f"{name}.json" for name in records)}
    assert read_bundle(bundle.path).files == bundle.files


@pytest.mark.skipif(CORES < 2, reason="one core builds one engine after another")
def test_buckets_are_built_side_by_side(compiled: Compiled) -> None:
    builds = sorted((min(times), max(times)) for times in compiled[3].values())
    assert len(builds) == 5
    assert all(begun < ended for begun, ended in builds)
    assert any(begun < ended for (_, ended), (begun, _) in pairwise(builds))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_builds_too(dtype: str, half_bundles: dict[str, Bundle], tmp_path: Path) -> None:
    records = compile_bundle(
        half_bundles[dtype].path, "trt-rtx", architectures=("sm80", "sm89"), batches=[8], out=tmp_path
    )
    assert [record.label for record in records.values()] == ["2"]
    assert all(record.architectures == ("sm80", "sm89") for record in records.values())
    assert all("step.n" in name and ".sm80+sm89." in name for name in records)


def test_an_engine_is_kept_until_something_it_depends_on_changes(gru_bundle: tuple[Gru, Path], tmp_path: Path) -> None:
    def build(batches: list[int]) -> tuple[Path, int]:
        (name,) = compile_bundle(gru_bundle[1], "trt-rtx", architectures=("sm89",), batches=batches, out=tmp_path)
        return tmp_path / name, (tmp_path / name).stat().st_mtime_ns

    path, first = build([8])
    assert path.name.startswith("step.sm89.")
    assert build([8]) == (path, first)
    _, second = build([1, 8])
    assert second > first
    assert read_engine(path).profiles == ((1, 1, 1), (2, 8, 8))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"sha256 .* the sidecar says .*; compile the bundle again"):
        check_engine(path, read_engine(path))
    _, third = build([1, 8])
    assert third > second
    assert check_engine(path, read_engine(path))


def test_a_function_that_runs_in_a_plugins_place_is_a_failure(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX compiles the functions where no plugin is registered: what a silent fallback looks like."""
    package = load_package("trt-rtx")
    monkeypatch.setattr(engines, "register_plugin", lambda *_: None)
    monkeypatch.setattr(engines, "lower_calls", lambda _: None)  # the functions stay
    options = Options(("sm89",), profiles([8]), plugin=PLUGIN)
    with pytest.raises(ExportError, match=r"OdeFlow, HybridMemory ran as function, not as plugin; .*--plugin"):
        build_engine(package, exported("forecast")[1], "1", options, None, lambda *_: None)


def test_plugin_and_function_are_told_apart_by_layer_names() -> None:
    names = list(CALLS)
    plugins = [("OdeFlow_0", True), ("HybridMemory_0", True), ("Add_3", False)]
    assert calls_of(names, plugins) == {"OdeFlow": "plugin", "HybridMemory": "plugin"}
    assert calls_of(names, [("OdeFlow/Gemm_1", False), ("HybridMemory_0", True)]) == {
        "OdeFlow": "function",
        "HybridMemory": "plugin",
    }
    assert calls_of(names, [("OdeFlow/Gemm_1", False), ("OdeFlow_0", True)]) == {}  # both: nothing is proved
    text = json.dumps({"Layers": [{"Name": "OdeFlow_0", "LayerType": "PluginV3"}, "HybridMemory/Gemm_2+Add"]})
    assert calls_of(names, inspected_layers(text)) == {"OdeFlow": "plugin", "HybridMemory": "function"}


def test_the_graph_that_is_compiled_holds_its_weights_and_tells_whether_its_state_is_finite(
    exported: Exported,
) -> None:
    import numpy as np
    import onnxruntime

    _, bundle = exported("forecast")
    model = whole_model(bundle, "1")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng, feed = np.random.default_rng(0), {}
    for port in session.get_inputs():
        feed[port.name] = np.abs(rng.standard_normal((3, *port.shape[1:]))).astype(np.float32)
    feed["state_in_ea"][1, 2] = np.nan
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    states = [value for name, value in found.items() if name.startswith("state_out_")]
    expected = sum(np.abs(value).reshape(3, -1).sum(axis=1) for value in states)
    np.testing.assert_allclose(found["state_magnitude"], expected, rtol=1e-5)
    assert np.isfinite(found["state_magnitude"]).tolist() == [True, False, True]


def test_compiling_loads_no_training_framework() -> None:
    code = (
        "import sys, odestream.export.compile, odestream.export.engine\n"
        "assert not {'torch', 'onnxscript', 'onnx_ir', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"architectures": ("sm87",)}, InputError, r"--arch: sm87 is not among .* sm86, sm89"),
        ({"plugin": Path("x.so")}, InputError, r"--plugin is for tensorrt, trt-rtx has no such thing"),
        ({"version_compatible": True}, InputError, r"--version-compatible is for tensorrt"),
        ({"hardware_compatible": True}, InputError, r"--hardware-compatible is for tensorrt"),
        ({"target": "tensorrt", "architectures": ("sm87",)}, InputError, r"--arch is for trt-rtx, tensorrt builds for"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: dict[str, object], error: type[Exception], said: str, gru_bundle: tuple[Gru, Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        compile_bundle(gru_bundle[1], **{"target": "trt-rtx", "out": tmp_path, **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_the_package_cannot_build_is_told_in_its_own_words(gru_bundle: tuple[Gru, Path], tmp_path: Path) -> None:
    with pytest.raises(CompatError, match=r"step.onnx: trt-rtx .* cannot build it \(.*Turing"):
        compile_bundle(gru_bundle[1], "trt-rtx", architectures=("sm75",), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_error_names_the_option_that_needs_none(
    gru_bundle: tuple[Gru, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a GPU that is here is hidden
    with pytest.raises(CompatError, match=r"no GPU to build for .* --arch sm89$"):
        compile_bundle(gru_bundle[1], "trt-rtx", out=tmp_path / "engines")
    assert not list(tmp_path.iterdir())


def test_the_verb_builds_tells_and_fails_with_a_sentence(
    gru_bundle: tuple[Gru, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(gru_bundle[1])
    assert main(["compile", path, "--target", "trt-rtx", "--arch", "sm89", "--out", str(tmp_path)]) == 0
    assert "step.sm89.trtrtx" in capsys.readouterr().out
    assert main(["compile", path, "--target", "tpu"]) == 2
    assert "unknown target 'tpu'; choose native, tensorrt or trt-rtx" in capsys.readouterr().err
    assert not engine_folder(path).exists()


def test_the_native_target_builds_the_library_of_the_kernels(
    gru_bundle: tuple[Gru, Path], native_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(gru_bundle[1]), "--target", "native"]) == 0
    assert capsys.readouterr().out.strip() == str(native_library)


def test_a_plugin_that_is_not_registered_fails_the_parse(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "register_plugin", lambda *_: None)
    options = Options(("sm89",), profiles([8]), plugin=PLUGIN)
    with pytest.raises(ExportError, match=r"cannot parse it .*Plugin not found"):
        build_engine(load_package("trt-rtx"), exported("forecast")[1], "1", options, None, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("preset_name", ["nano", "small", "base"])
def test_every_preset_builds_for_gpus_that_are_not_here(
    preset_name: str, dtype: str, no_calibration: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del no_calibration
    monkeypatch.setattr(half, "DRIFT_STEPS", 2000)
    config = dataclasses.replace(CONFIGS["forecast"], sizes=preset(preset_name))
    time = TimeSpec(frequencies=config.frequencies)
    export_bundle(random_cell(config), tmp_path / "b", task=TASKS["forecast"], time=time, verify_steps=20, dtype=dtype)
    before = os.times()
    records = compile_bundle(tmp_path / "b", "trt-rtx", architectures=("sm89",))
    taken = sum(os.times()[:4]) - sum(before[:4])  # of the processor: a wait for other programs is not the builds'
    assert len(records) == 5
    assert all(record.calls == CALLS for record in records.values())
    if preset_name == "nano":
        assert taken <= 15  # s, of all processes together, whatever the number of cores
