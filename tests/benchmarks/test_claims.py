"""The scripts of the cheap claims: sweeps that resume, bytes that are counted right, verdicts that can fall."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import adjoint_memory
import claim
import growth
import sweep as sweep_module
from saved_bytes import SavedBytes
from sweep import Sweep

HERE = {"commit": "abc1234", "versions": {"torch": "1"}}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Circumstances of a checkout without changes, which a test may change."""
    now = copy.deepcopy(HERE)
    monkeypatch.setattr(sweep_module, "circumstances", lambda: copy.deepcopy(now))
    return now


def test_an_interrupted_sweep_goes_on_and_measures_nothing_twice(tmp_path: Path, clean: dict[str, Any]) -> None:
    del clean
    path = tmp_path / "points.json"
    Sweep(path).get("a", lambda: {"x": 1.5})
    resumed = Sweep(path)
    assert resumed.get("a", lambda: pytest.fail("measured again")) == {"x": 1.5}
    assert resumed.get("b", lambda: 2) == 2
    assert json.loads(path.read_text())["points"] == {"a": {"x": 1.5}, "b": 2}
    resumed.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"commit": "def5678"}, {"commit": "abc1234+"}, {"commit": "unknown"}, {"versions": {"torch": "2"}}]
)
def test_points_of_another_commit_or_of_changed_files_are_never_mixed_in(
    tmp_path: Path, clean: dict[str, Any], change: dict[str, Any]
) -> None:
    path = tmp_path / "points.json"
    Sweep(path).get("a", lambda: 1)
    clean.update(change)
    assert Sweep(path).get("a", lambda: 2) == 2
    assert Sweep(path).get("a", lambda: 3) == (2 if change.get("commit") in (None, "def5678") else 3)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"points": 3}'])
def test_a_damaged_file_of_points_is_measured_anew(tmp_path: Path, clean: dict[str, Any], content: str) -> None:
    del clean
    (tmp_path / "points.json").write_text(content)
    assert Sweep(tmp_path / "points.json").get("a", lambda: 4) == 4


def test_a_quick_run_measures_the_small_plan_and_writes_into_its_own_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claim, "RUNS", tmp_path)
    monkeypatch.setattr("sys.argv", ["script", "--quick"])

    def measure(plan: str, sweep: Sweep) -> dict[str, Any]:
        return {"found": sweep.get("one", plan.upper)}

    def draw(result: dict[str, Any], path: Path) -> None:
        path.write_text(result["found"])

    claim.run("thing", "About.", ("full", "quick"), measure, lambda result: f"found {result['found']}", draw)
    assert capsys.readouterr().out == "found QUICK\n"
    assert sorted(p.name for p in (tmp_path / "thing").iterdir()) == ["thing.json", "thing.png"]
    kept = json.loads((tmp_path / "thing" / "thing.json").read_text())
    assert kept["found"] == "QUICK"
    assert kept["circumstances"]["commit"]


def test_saved_bytes_are_those_of_the_tensors_that_a_backward_pass_needs() -> None:
    weight, x = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    with SavedBytes(ignored=[weight]) as saved:
        y = torch.tanh(x @ weight.T)  # keeps x, and its own result
        assert saved.held == 4 * (7 * 5 + 7 * 3)
        z = y * y  # keeps y, which is kept already
        assert saved.held == 4 * (7 * 5 + 7 * 3)
        torch.autograd.backward(z.sum())
        assert saved.held == 0
        assert saved.peak == 4 * (7 * 5 + 7 * 3)
    assert weight.grad is not None


def test_saved_bytes_of_an_operation_that_keeps_its_own_result_go_with_it() -> None:
    with SavedBytes() as saved:
        y = torch.exp(torch.ones(6, requires_grad=True))
        assert saved.held == 24
        del y
        assert saved.held == 0


@pytest.fixture(scope="session")
def adjoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return adjoint_memory.measure(adjoint_memory.QUICK, Sweep(tmp_path_factory.mktemp("adjoint") / "points.json"))


def test_every_way_of_differentiating_a_flow_gives_the_gradients_of_float64(adjoint: dict[str, Any]) -> None:
    for points in adjoint["ways"].values():
        assert points[0]["gradient_error"] < 1e-4
        assert points[1]["gradient_error"] < 1e-5


def test_bytes_grow_with_steps_for_back_propagation_by_their_root_for_checkpoints_and_not_for_the_adjoint(
    adjoint: dict[str, Any],
) -> None:
    growth_of = {way: points[1]["bytes"] / points[0]["bytes"] for way, points in adjoint["ways"].items()}
    assert growth_of[adjoint_memory.BACKPROP] == pytest.approx(4, rel=0.05)
    assert growth_of[adjoint_memory.ODEINT] == pytest.approx(4, rel=0.1)
    assert growth_of[adjoint_memory.CHECKPOINTS] == pytest.approx(2, rel=0.2)
    assert growth_of[adjoint_memory.ADJOINT] == 1


def test_the_adjoints_verdicts_fall_where_its_figures_do(adjoint: dict[str, Any]) -> None:
    assert all(said.startswith("Holds") for said in adjoint_memory.verdicts(adjoint))
    worse = copy.deepcopy(adjoint)
    worse["ways"][adjoint_memory.ADJOINT][-1].update(bytes=10**9, gradient_error=0.1)
    worse["chains"][adjoint_memory.ADJOINT][-1] *= 2
    said = adjoint_memory.verdicts(worse)
    assert [line.split(":")[0] for line in said] == ["**Falsified**"] * 3
    assert "back-propagation" in adjoint_memory.report(worse)


def test_growth_times_both_and_counts_a_state_that_does_not_grow(tmp_path: Path) -> None:
    result = growth.measure(growth.QUICK, Sweep(tmp_path / "points.json"))
    ours, rival = (result["models"][name] for name in (growth.OURS, growth.RIVAL))
    assert ours[0]["bytes"] == ours[1]["bytes"] > 0
    assert rival[1]["bytes"] == 10 * rival[0]["bytes"]
    assert all(point["us"] > 0 for point in (*ours, *rival))
    assert growth.RIVAL in growth.report(result)
    growth.draw(result, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_the_verdicts_on_growth_fall_where_the_figures_do() -> None:
    flat, steep = [{"us": 5.0, "bytes": 8}] * 3, [{"us": 5.0 * n, "bytes": 8 * n} for n in (1, 10, 100)]
    result = {"steps": [100, 1000, 10_000], "models": {growth.OURS: flat, growth.RIVAL: steep}}
    assert growth.slope(result, growth.RIVAL, "us") == pytest.approx(1)
    assert growth.slope(result, growth.OURS, "us") == pytest.approx(0)
    assert all(said.startswith("Holds") for said in growth.verdicts(result))
    turned = {"steps": result["steps"], "models": {growth.OURS: steep, growth.RIVAL: flat}}
    assert [said.split(":")[0] for said in growth.verdicts(turned)] == ["**Falsified**"] * 3
