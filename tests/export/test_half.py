"""Half precision: the graphs against torch that rounds, by onnx's own evaluator; what runs them, and what it costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import odestream.export.half as half
from odestream.export import export_bundle, verify_bundle
from odestream.export.graph import build_graphs
from odestream.export.precision import PRECISIONS, narrow_products, precision, rounded
from odestream.export.protocol import example_inputs
from odestream.export.traced import trace_cell
from odestream.export.weights import encode_weights
from odestream.models.checkpoint import DataInfo, RunInfo, Settings, save_checkpoint
from odestream.models.config import Task
from odestream.runtime import CheckpointError, CompatError, InputError, load
from odestream.runtime.bundle import Bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.replay import failures
from tests.export.conftest import CONFIGS, HALVES, TASKS
from tests.helpers.gru import Gru
from tests.helpers.sequences import random_cell

UNIT = {"fp16": 2**-11, "bf16": 2**-8}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("task", CONFIGS)
def test_a_graph_rounds_where_torch_in_half_precision_does(task: Task, name: str, tmp_path: Path) -> None:
    to, batch = precision(name), 3
    cell = rounded(random_cell(CONFIGS[task]), to)
    traced = trace_cell(cell, to.narrow)  # type: ignore[arg-type]
    data, entries = encode_weights(traced.weights)
    (tmp_path / "weights.safetensors").write_bytes(data)
    (tmp_path / "step.onnx").write_bytes(build_graphs(traced, (2,), entries, "0")["2"].SerializeToString())
    onnx.checker.check_model(str(tmp_path / "step.onnx"), full_check=True)
    model = onnx.load(str(tmp_path / "step.onnx"))
    cell.config = dataclasses.replace(cell.config, steps=2)
    inputs, state = example_inputs(cell.spec(), batch), cell.initial_state(batch)  # type: ignore[operator]
    with torch.no_grad():
        for _ in range(3):  # states that are not initial ones
            _, state = cell.step(inputs, state)  # type: ignore[operator]
        wide, _ = cell.step(inputs, state)  # type: ignore[operator]
        with narrow_products(to):
            outputs, after = cell.step(inputs, state)  # type: ignore[operator]
    feed = {n: v.numpy() for n, v in inputs.items()} | {f"state_in_{n}": v.numpy() for n, v in state.items()}
    found = dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, feed), strict=True))
    expected = dict(outputs) | {f"state_out_{n}": v for n, v in after.items()}
    for tensor, value in expected.items():
        scale = max(1e-3, float(value.abs().max()))
        assert np.abs(found[tensor] - value.numpy()).max() <= UNIT[name] * scale / 8, tensor
    assert (outputs["gates"] - wide["gates"]).abs().max() > UNIT[name] / 100  # it does round


@pytest.mark.parametrize("name", HALVES)
def test_matrices_are_stored_rounded_and_vectors_whole(name: str, half_bundles: dict[str, Bundle]) -> None:
    cell, bundle = random_cell(CONFIGS["forecast"]), half_bundles[name]
    narrow = {"fp16": "float16", "bf16": "bfloat16"}[name]
    assert {len(e.shape): e.dtype for e in bundle.manifest.weights} == {1: "float32", 2: narrow}
    stored = torch.from_numpy(bundle.weights["update.weight"].copy()).view(PRECISIONS[name].dtype)
    assert torch.equal(stored, cell.update.weight.detach().to(PRECISIONS[name].dtype))
    assert torch.equal(torch.from_numpy(bundle.weights["update.bias"].copy()), cell.update.bias.detach())


def test_engines_that_widen_reproduce_the_stored_answers_as_in_fp32(
    half_bundles: dict[str, Bundle], native_library: Path
) -> None:
    del native_library
    for name, backend in (("fp16", "native"), ("bf16", "native"), ("fp16", "onnxruntime")):
        with load(half_bundles[name].path, backend) as model:
            rows = model.verify(None)
        assert not failures(rows)
        assert rows[0].steps == 60
        if backend == "native":
            assert max(row.error for row in rows if row.tensor != "err") <= 1e-5


@pytest.mark.parametrize("name", HALVES)
def test_a_bundle_verifies_against_the_run_that_it_was_rounded_from(
    name: str, half_bundles: dict[str, Bundle], native_library: Path, tmp_path: Path
) -> None:
    del native_library
    cell, time = random_cell(CONFIGS["forecast"]), TimeSpec(frequencies=CONFIGS["forecast"].frequencies)
    info = RunInfo(TASKS["forecast"], time, Settings(), DataInfo("co2.csv", "ab" * 32, 2284, 1, 1e8))
    save_checkpoint(tmp_path / "run", cell, info)
    bundle = half_bundles[name].path
    assert not failures(list(verify_bundle(bundle, cell, steps=30, backend="native")))
    verb = ["verify", str(bundle), "--backend", "native", "--steps", "30", "--run"]
    assert main([*verb, str(tmp_path / "run")]) == 0
    with torch.no_grad():
        cell.update.weight[0, 0] += 0.5
    save_checkpoint(tmp_path / "other", cell, info)
    assert main([*verb, str(tmp_path / "other")]) == 1


def test_stored_chains_are_short_enough_for_engines_that_round(half_bundles: dict[str, Bundle]) -> None:
    resets = np.flatnonzero(half_bundles["fp16"].vectors().reset)
    assert np.diff(resets).max() == 20


def test_onnxruntime_refuses_products_that_its_cpu_has_not(half_bundles: dict[str, Bundle]) -> None:
    with pytest.raises(CompatError, match=r"bfloat16.*--backend native"):
        load(half_bundles["bf16"].path, "onnxruntime")


def test_the_card_tells_size_and_drift(half_bundles: dict[str, Bundle]) -> None:
    drift = {}
    for name, bundle in half_bundles.items():
        measured = bundle.manifest.metrics[half.PRECISION]
        assert measured["weight_bytes"][name] < 0.6 * measured["weight_bytes"]["fp32"]
        assert (measured["onnxruntime_us"][name] is None) == (name == "bf16")
        assert measured["drift"]["ua"] == {"first": 0.0, "last": 0.0}  # times are exact in either
        drift[name] = measured["drift"]["u"]["last"]
        card = bundle.files["MODEL_CARD.md"].decode()
        assert f"| u | {measured['drift']['u']['first']:.4g} |" in card
        assert f"weights in {name} (matrices)" in card
    assert 0 < drift["fp16"] < drift["bf16"] < 0.1


def test_a_reference_in_float64_is_not_rounded() -> None:
    x, weight = torch.randn(4, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    plain = torch.nn.functional.linear(x, weight)
    with narrow_products(precision("fp16")):
        assert torch.equal(torch.nn.functional.linear(x, weight), plain)
        assert not torch.equal(torch.nn.functional.linear(x.float(), weight.float()).double(), plain)


def test_what_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    cell = random_cell(CONFIGS["forecast"])
    with torch.no_grad():
        cell.update.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"update.weight holds 1e\+05, beyond fp16; export it as bf16"):
        export_bundle(cell, tmp_path / "a", dtype="fp16")
    with pytest.raises(InputError, match=r"fp16 is for odestream's own cells, Gru is none"):
        export_bundle(Gru(), tmp_path / "b", dtype="fp16")
    with pytest.raises(InputError, match=r"unknown dtype 'int8'; choose one of fp32, fp16, bf16"):
        export_bundle(cell, tmp_path / "c", dtype="int8")
    assert not list(tmp_path.iterdir())
