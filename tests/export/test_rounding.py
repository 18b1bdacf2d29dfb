"""Modules that amplify rounding are compared over shorter chains; wrong graphs are refused all the same."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from odestream.export import export_bundle
from odestream.export.cli import closing_words
from odestream.export.plan import make_plan, source
from odestream.export.verify import _Run, _Twin, torch_reference, verify_bundle
from odestream.models.cell import Cell
from odestream.runtime.bundle import read_bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import ParityRow, TimeSpec
from odestream.runtime.contract.spec import StepSpec, step_spec
from odestream.runtime.contract.tolerances import tolerances
from odestream.runtime.replay import SHORTER_CHAINS, cut_short, failures
from tests.export.conftest import CONFIGS, TASKS
from tests.helpers.sequences import random_cell

WIDTH = 24


class Chaotic(nn.Module):
    """A recurrent net with gains far above one: two states that differ by rounding part within a hundred steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recur = nn.Linear(WIDTH, WIDTH)
        self.read = nn.Linear(1, WIDTH)
        self.recur.weight.data.normal_(std=1.6 / WIDTH**0.5)

    def spec(self) -> StepSpec:
        return step_spec({"x": (1,)}, {"y": (WIDTH,)}, {"h": (WIDTH,)})

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        h = torch.tanh(self.recur(state["h"]) + 0.05 * self.read(inputs["x"]))
        return {"y": h}, {"h": h}


def test_a_chaotic_module_is_verified_over_shorter_chains_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Chaotic()
    manifest = export_bundle(module, tmp_path / "bundle", verify_steps=1000)
    chained = {row.steps for row in manifest.parity if row.check == "chained"}
    assert chained <= set(SHORTER_CHAINS)
    assert not failures(list(manifest.parity))
    bundle = read_bundle(tmp_path / "bundle")
    why = f"this model amplifies rounding: .* so chains are compared over {min(chained)} steps at a time"
    assert re.search(f"T{why[1:]}\\.\n", (tmp_path / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8"))
    assert re.fullmatch(why, closing_words(manifest)[2])
    monkeypatch.setattr("odestream.runtime.verbs.verify._framework", lambda: partial(_beside, module))
    assert main(["verify", str(tmp_path / "bundle"), "--run", str(tmp_path), "--steps", "300"]) == 0
    assert re.search(why, capsys.readouterr().out)
    calm = [msgspec.structs.replace(row, steps=1000) for row in manifest.parity]
    assert cut_short(calm) == "" == cut_short(manifest.parity, min(chained))
    resets = bundle.vectors().reset.nonzero()[0]
    assert (resets % min(chained) == 0).all()
    assert len(resets) == 1000 // min(chained)


@pytest.mark.usefixtures("no_calibration")
def test_a_calm_cell_is_not_given_shorter_chains_for_another_reason(tmp_path: Path) -> None:
    """Other weights differ from the first call on: no length of chain may hide that."""
    cell = random_cell(CONFIGS["classify"])
    export_bundle(cell, tmp_path / "bundle", task=TASKS["classify"], verify_steps=40)
    other = Cell(cell.config)
    other.load_state_dict(cell.state_dict())
    with torch.no_grad():
        other.encode.bias[0] += 1e-3
    rows = verify_bundle(tmp_path / "bundle", other, steps=40)
    bad = failures(list(rows))
    assert {row.tensor for row in bad} >= {"h", "u"}
    assert {row.steps for row in bad if row.check == "chained"} == {40}


def test_rounding_of_a_calm_cell_does_not_explain_a_drifting_memory() -> None:
    """A thousand steps leave ordinary rounding; a matrix that is off by a tenth of its scale is a wrong graph."""
    cell = random_cell(CONFIGS["classify"])
    spec = cell.spec()
    limits = tolerances("fp32", "onnxruntime")
    plan = make_plan(source(cell, spec, None, TimeSpec()), ["4"] * 200, seed=1)
    run = _Run(spec, torch_reference(cell), Idle(spec), lambda: None)  # type: ignore[arg-type]
    drifted = ParityRow("chained", 4, "m", 200, 0.1, limits.of("m").limit)
    assert not _Twin(spec, cell).explains([drifted], run, plan, 200, limits)


def _beside(module: nn.Module, bundle: Path, _: Path, steps: int, backend: str) -> tuple[ParityRow, ...]:
    return verify_bundle(bundle, module, steps, backend)


class Idle:
    """A binding that is never run."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
