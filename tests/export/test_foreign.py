"""Modules that are not ours: a user's plain GRU cell, and what torch's exporter cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from odestream.export import export_bundle
from odestream.export.protocol import initial_state
from odestream.runtime import load
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import WEIGHTS_NAME, TimeSpec
from odestream.runtime.contract.spec import StepSpec, step_spec
from odestream.runtime.errors import ExportError, InputError
from odestream.runtime.replay import failures
from tests.helpers.gru import Gru


def test_a_gru_streams_what_torch_computes(gru_bundle: tuple[Gru, Path]) -> None:
    module, path = gru_bundle
    rng, state = np.random.default_rng(0), initial_state(module.spec(), 1)
    with load(path) as model:
        stream = model.stream()
        for t in range(50):
            x = rng.standard_normal(3).astype(np.float32)
            found = stream.step(x, t=t)
            with torch.no_grad():
                outputs, state = module.step({"x": torch.from_numpy(x[None])}, state)
            np.testing.assert_allclose(found.y, outputs["y"][0].numpy(), rtol=1e-5, atol=1e-6)
            assert found.err is None


def test_its_bundle_has_one_graph_no_solver_and_its_own_weights_names(gru_bundle: tuple[Gru, Path]) -> None:
    module, path = gru_bundle
    bundle = read_bundle(path)
    manifest = bundle.manifest
    assert manifest.graphs == {"-": "step.onnx"}
    assert manifest.solver is None
    assert manifest.task.kind == "step"
    assert manifest.task.inputs == ("x0", "x1", "x2")
    assert {entry.name for entry in manifest.weights} == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(bundle.weights[name], tensor.numpy())


def test_its_graph_is_one_that_old_engines_read_with_every_weight_outside(gru_bundle: tuple[Gru, Path]) -> None:
    _, path = gru_bundle
    model = onnx.load(str(path / "step.onnx"), load_external_data=False)
    onnx.checker.check_model(str(path / "step.onnx"), full_check=True)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert len(model.graph.initializer) == 4
    for initializer in model.graph.initializer:
        assert {entry.key: entry.value for entry in initializer.external_data}["location"] == WEIGHTS_NAME


def test_its_parity_is_measured_chained(gru_bundle: tuple[Gru, Path]) -> None:
    _, path = gru_bundle
    rows = read_bundle(path).manifest.parity
    assert {(row.check, row.steps, row.tensor) for row in rows} == {
        (check, steps, tensor) for check, steps in (("chained", 100), ("one call", 1)) for tensor in ("y", "h")
    }
    assert not failures(list(rows))


class Timed(nn.Module):
    """Decays with dt, sees through a mask, has constants of its own and an unused buffer: all inputs but phase."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 5)
        self.register_buffer("unused", torch.ones(4))

    def spec(self) -> StepSpec:
        return step_spec(
            {"x": (2,), "mask": (2,), "dt": (1,)}, {"y": (5,)}, {"h": (5,), "n": (1,)}, initial={"n": (2.0,)}
        )

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = torch.arange(5.0)
        seen = torch.where(inputs["mask"] > 0, inputs["x"], 0.0)
        h = state["h"] * torch.exp(-inputs["dt"]) + torch.tanh(self.mix(seen)) * weights
        return {"y": h.reshape(h.shape[0], -1)}, {"h": h, "n": state["n"] * 0.9}


def test_a_module_with_masks_gaps_and_constants_exports(tmp_path: Path) -> None:
    manifest = export_bundle(Timed(), tmp_path / "timed", verify_steps=60)
    assert {entry.name for entry in manifest.weights} == {"mix.weight", "mix.bias"}
    assert not failures(list(manifest.parity))
    assert manifest.task.time == "time"


class Branching(Gru):
    """Its path depends on a value, which a graph has no way to follow."""

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if inputs["x"].sum() > 100:
            return {"y": state["h"] * 2}, {"h": state["h"] + 1}
        return super().step(inputs, state)


def test_a_branch_on_a_value_fails_with_the_step_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch cannot export Branching\.step"):
        export_bundle(Branching(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_solver_options_are_refused_for_a_module_without_a_solver(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method is given, but Gru has no solver"):
        export_bundle(Gru(), tmp_path / "bundle", method="rk4")


class Phased(Gru):
    """Asks for a phase of two frequencies."""

    def spec(self) -> StepSpec:
        return step_spec({"x": (3,), "phase": (4,)}, {"y": (64,)}, {"h": (64,)})


def test_a_phase_needs_its_frequencies_and_then_exports(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"phase has shape \[4\], but times have 0 frequencies"):
        export_bundle(Phased(), tmp_path / "bundle")
    manifest = export_bundle(Phased(), tmp_path / "bundle", time=TimeSpec(frequencies=(1.0, 2.0)), verify_steps=20)
    assert not failures(list(manifest.parity))
