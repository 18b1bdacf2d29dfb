"""`odestream export` as a user types it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from odestream.export.cli import closing_words
from odestream.runtime.bundle import read_bundle
from odestream.runtime.cli import main
from tests.export.conftest import Exported
from tests.helpers.gru import Gru

MODEL = """
import torch
from odestream.runtime.contract.spec import step_spec

class Gru(torch.nn.GRUCell):
    def __init__(self): super().__init__(3, 64)
    def spec(self): return step_spec({"x": (3,)}, {"y": (64,)}, {"h": (64,)})
    def step(self, inputs, state):
        h = super().forward(inputs["x"], state["h"])
        return {"y": h}, {"h": h}

def with_argument(size): return Gru()
def text(): return "no module"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_gru.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_gru", raising=False)
    return tmp_path


def test_a_users_module_exports_by_name_with_its_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    trained = Gru()
    safetensors.torch.save_file(trained.state_dict(), folder / "trained.safetensors")
    status = main(["export", "my_gru:Gru", "--weights", "trained.safetensors", "--out", "bundle"])
    assert status == 0
    assert "bundle: step.onnx; largest difference from torch" in capsys.readouterr().out
    bundle = read_bundle(folder / "bundle")
    np.testing.assert_array_equal(bundle.weights["weight_hh"], trained.weight_hh.detach().numpy())
    assert {row.steps for row in bundle.manifest.parity} == {1, 1000}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["my_gru:Missing"], "my_gru has no 'Missing'"),
        (["no_such_module:Gru"], "cannot import no_such_module"),
        (["my_gru:with_argument"], "without arguments"),
        (["my_gru:text"], "let it return a torch module"),
        (["my_gru:Gru", "--weights", "nothing.safetensors"], "cannot be read"),
        (["my_gru:Gru", "--weights", "my_gru.py"], "not a safetensors file"),
        (["my_gru:Gru", "--buckets", "1,two"], "--buckets is '1,two'"),
        (["my_gru:Gru", "--buckets", "0"], "from 1"),
        (["my_gru:Gru", "--buckets", "4,1"], "increasing"),
        (["no_such_run"], "no_such_run"),
        (["no_such_run", "--weights", "w.safetensors"], "--weights belongs to MODULE:FACTORY"),
    ],
)
def test_bad_input_is_one_sentence_with_status_2(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(["export", *arguments, "--out", "bundle"]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_an_existing_bundle_is_refused_before_torch_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bundle").mkdir()
    assert main(["export", "my_gru:Gru", "--out", "bundle"]) == 2
    assert "pass --force" in capsys.readouterr().err


def test_weights_of_another_module_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    assert main(["export", "my_gru:Gru", "--weights", "other.safetensors", "--out", "bundle"]) == 2
    assert "does not fit Gru" in capsys.readouterr().err
    assert not (folder / "bundle").exists()


@pytest.mark.parametrize(("share", "told"), [(0.05, ""), (0.06, "6%"), (0.5, "50%"), (1.0, "100%")])
def test_flags_of_more_than_a_twentieth_of_the_calibration_are_told_with_their_remedy(
    share: float, told: str, exported: Exported
) -> None:
    manifest = exported("forecast")[1].manifest
    assert manifest.solver is not None
    assert manifest.solver.calibration is not None
    rows = tuple(
        msgspec.structs.replace(row, calls=1000, flagged=round(1000 * share), within=1000 - round(1000 * share))
        for row in manifest.solver.calibration.rows
    )
    calibration = msgspec.structs.replace(manifest.solver.calibration, rows=rows)
    solver = msgspec.structs.replace(manifest.solver, calibration=calibration)
    *_, counts, last = closing_words(msgspec.structs.replace(manifest, solver=solver))
    if told:
        assert last == f"of such calls {told} are flagged: export more --buckets, or a looser --rtol and --atol"
        assert counts.endswith(f"{round(1000 * share) * len(rows):,} flagged")
    else:
        assert last.endswith(f"{50 * len(rows):,} flagged")
