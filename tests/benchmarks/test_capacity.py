"""The capacity benchmark: questions that can be answered, rivals as large as ours, verdicts that can fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import capacity
import claim
from capacity_models import CEILING, CONTENDERS, SQUARE, WINDOW, build, configuration, matrix_width
from capacity_report import report, verdicts
from capacity_task import BEFORE, KEYS, NOISE, Drawn, Pairs, Reach, floor, pieces, sequences
from capacity_training import Schedule, scores, train
from odestream.models.baselines import GatedDeltaNet, footprint
from odestream.models.cell import Cell
from odestream.models.model import OURS
from sweep import Sweep

BUDGET = 2048


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 5), st.integers(0, 9), st.integers(0, 1000))
def test_the_key_of_every_question_was_written_as_often_as_said(
    pairs: int, writes: int, before: int, gap: int, seed: int
) -> None:
    drawn = sequences(3, pairs, writes, 6, before, gap, generator(seed))
    told, asked = drawn.rows.x[: drawn.asked.start], drawn.rows.x[drawn.asked.start :]
    assert len(told) == before + pairs * writes + gap
    same = (told[None, ..., :KEYS] == asked[:, None, :, :KEYS]).all(dim=-1)
    assert (same.sum(dim=1) == writes).all()
    assert not same[:, :before].any()
    assert not same[:, before + pairs * writes :].any()
    assert not drawn.rows.mask[drawn.asked.start :, :, KEYS:].any()
    assert drawn.rows.mask[: drawn.asked.start].all()
    assert not asked[..., KEYS:].any()


@pytest.mark.parametrize("task", [Pairs((40,), 40), Pairs((40,), 40, writes=3), Reach((5,), 9)])
def test_the_least_error_is_that_of_the_average_of_what_was_written_shrunk_towards_nothing(task: Pairs | Reach) -> None:
    drawn = task.trial(task.points[0], 400, generator())
    average = _average(drawn)
    error = float(torch.mean((average - drawn.wanted) ** 2))
    assert error == pytest.approx(NOISE**2 / task.writes, rel=0.05)
    shares = (0.6, 0.8, task.writes / (task.writes + NOISE**2), 1.0)
    errors = [float(torch.mean((share * average - drawn.wanted) ** 2)) for share in shares]
    assert min(errors) == errors[2] == pytest.approx(floor(task), rel=0.05)


def _average(drawn: Drawn) -> torch.Tensor:
    """Of the values beside each question's key."""
    told, asked = drawn.rows.x[: drawn.asked.start], drawn.rows.x[drawn.asked.start :]
    same = (told[None, ..., :KEYS] == asked[:, None, :, :KEYS]).all(dim=-1).float()
    total = torch.einsum("qtb,tbv->qbv", same, told[..., KEYS:])
    return total / same.sum(dim=1).unsqueeze(-1)


def test_sequences_grow_in_training_and_pieces_put_together_are_the_rows() -> None:
    reach, pairs, make = Reach((1,), 64), Pairs((1,), 60), generator()
    assert {len(reach.draw(1, 0.0, make).rows.x) for _ in range(20)} == {BEFORE + 8 + 8}
    lengths = [len(reach.draw(1, 1.0, make).rows.x) - BEFORE - 16 for _ in range(200)]
    assert min(lengths) == 0
    assert 50 < max(lengths) <= 64
    assert max(len(pairs.draw(1, 1.0, make).rows.x) for _ in range(100)) <= 60 + 16
    rows = pairs.trial(30, 2, make).rows
    cut = pieces(rows, 20)
    assert [len(piece.x) for piece in cut] == [20, 20, 6]
    assert all(torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*cut, strict=True), rows, strict=True))


@pytest.mark.parametrize("name", CONTENDERS)
def test_everybody_has_as_many_parameters_as_ours_and_no_more_bytes(name: str) -> None:
    ours, found = footprint(build(OURS, BUDGET)), footprint(build(name, BUDGET))
    assert found.parameters == pytest.approx(ours.parameters, rel=0.05)
    if name != CEILING:
        assert found.state_bytes <= BUDGET
    if name not in (CEILING, "gru", "cfc", "diagonal-ssm"):
        assert found.state_bytes >= 0.9 * BUDGET


def test_our_cell_has_as_many_slots_as_fit_and_a_gated_deltanet_forgets_slowly_at_first() -> None:
    config = configuration(BUDGET)
    more = dataclasses.replace(config, sizes=dataclasses.replace(config.sizes, slots=config.sizes.slots + 1))
    assert Cell(config).spec().state_bytes <= BUDGET < Cell(more).spec().state_bytes
    rival = build(SQUARE, BUDGET)
    assert isinstance(rival, GatedDeltaNet)
    state = rival.initial_state(1)
    shape = (matrix_width(BUDGET), matrix_width(BUDGET))
    assert state["m0"].shape[-2:] == shape
    mixer: Any = rival.mixers[0]
    rates = torch.exp(mixer.log_rate) * torch.nn.functional.softplus(mixer.offset)
    torch.testing.assert_close(rates, torch.full_like(rates, 1e-3), rtol=1e-3, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, CEILING])
def test_a_short_training_already_recalls_and_is_scored_at_every_point(name: str) -> None:
    task = Pairs((4, 6), 6)
    torch.manual_seed(0)
    model = build(name, 1024)
    before = scores(model, task, 32, 0)
    after = scores(train(model, task, Schedule(120, 4, 16), 1e-2, 0), task, 32, 0)
    assert len(before) == len(after) == 2
    assert all(late < 0.8 * early for early, late in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [OURS, SQUARE])
def test_a_few_steps_among_noise_change_the_weights_and_leave_them_finite(name: str) -> None:
    model = build(name, 1024)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = scores(train(model, Reach((0, 3), 4), Schedule(4, 1, 4), 1e-2, 0), Reach((0, 3), 4), 4, 0)
    assert all(0 < error < 10 for error in found)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plan = dataclasses.replace(capacity.QUICK, tasks=("rewritten",), models=(OURS, SQUARE), rates=(1e-2,))
    return capacity.measure(plan, Sweep(tmp_path_factory.mktemp("capacity") / "points.json"))


def test_the_quick_plan_measures_every_model_of_its_tasks_and_tells_of_all(
    quick: dict[str, Any], tmp_path: Path
) -> None:
    at = quick["parts"]["rewritten"]["4096"]
    assert set(at["models"]) == {OURS, SQUARE}
    for found in at["models"].values():
        assert found["rate"] == 1e-2
        assert all(len(seed) == len(at["points"]) and min(seed) > floor(Pairs((), 0, 3)) for seed in found["errors"])
    text = report(quick)
    assert all(CONTENDERS[name].label in text for name in at["models"])
    capacity.draw(quick, tmp_path / "capacity.png")
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_the_learning_rate_is_the_one_with_the_least_error_on_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[int, set[float]] = {}

    def one(setting: object, rate: float, seed: int, plan: object) -> dict[str, Any]:
        del setting, plan
        seeds.setdefault(seed, set()).add(rate)
        return {"parameters": 1, "state_bytes": 1, "errors": [abs(rate - 6e-3)]}

    monkeypatch.setattr(capacity, "one", one)
    plan = dataclasses.replace(capacity.FULL, tasks=("patient",), models=(OURS,))
    found = capacity.measure(plan, Sweep(tmp_path / "points.json"))["parts"]["patient"]["2048"]["models"][OURS]
    assert found["rate"] == 6e-3
    assert seeds == {capacity.TRIAL_SEED: set(plan.rates), 0: {6e-3}, 1: {6e-3}, 2: {6e-3}}


def _result(ours: list[float], theirs: list[float], window: list[float]) -> dict[str, Any]:
    size = {"parameters": 1, "state_bytes": 1, "rate": 1e-2}
    curves = {OURS: ours, SQUARE: theirs, WINDOW: window}
    models = {name: {**size, "errors": [curve] * 3} for name, curve in curves.items()}
    at = {"points": [8, 20, 40], "commit": "abc", "floor": 0.2, "width": 10, "models": models}
    pairs = {**at, "models": {name: models[name] for name in (OURS, SQUARE)}}
    return {"parts": {"reach": {"4096": at}, "pairs": {"4096": pairs}}}


def test_the_verdicts_fall_where_the_figures_do() -> None:
    good, bad, blind = [0.2, 0.21, 0.22], [0.5, 0.6, 0.9], [0.2, 0.95, 1.0]
    assert all(said.startswith("Holds") for said in verdicts(_result(good, bad, blind)))
    assert len(verdicts(_result(good, bad, blind))) == 2 + 2 + 2
    turned = verdicts(_result(bad, good, good))
    assert [said.split(":")[0] for said in turned] == ["**Falsified**"] * 6
    assert any("20 keys" in said and "0.60 against 0.21 at best" in said for said in turned)


def test_a_rival_is_judged_by_its_best_seed() -> None:
    result = _result([0.2, 0.21, 0.22], [1.0, 1.0, 1.0], [0.2, 0.95, 1.0])
    result["parts"]["pairs"]["4096"]["models"][SQUARE]["errors"][1] = [0.1, 0.2, 0.3]
    fallen = [said for said in verdicts(result) if said.startswith("**Falsified**")]
    assert len(fallen) == 1
    assert "20 keys" in fallen[0]


def test_a_part_of_a_plan_is_measured_and_not_published_and_an_unknown_name_lists_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Plan:
        models: tuple[str, ...] = ("a", "b")

    def start(*options: str) -> None:
        monkeypatch.setattr("sys.argv", ["script", *options])
        claim.run("thing", "About.", (Plan(), Plan()), measure, str, lambda *_: None, {"models": "ab"})

    def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
        return {"found": sweep.get("one", lambda: list(plan.models))}

    monkeypatch.setattr(claim, "RUNS", tmp_path)
    start("--models", "b")
    assert capsys.readouterr().out == "{'found': ['b']}\n"
    assert sorted(p.name for p in (tmp_path / "thing").iterdir()) == ["points_full.json", "thing.json"]
    with pytest.raises(SystemExit):
        start("--models", "c")
    assert "choose from" in capsys.readouterr().err
