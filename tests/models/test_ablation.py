"""What is switched off does nothing, stays off while the rest is trained, and exports as the rest does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from odestream.models import config as config_module
from odestream.models.cell import Cell
from odestream.models.checkpoint import load_checkpoint
from odestream.models.config import PARTS, CellConfig, Part
from odestream.models.hybrid import gate_names
from odestream.models.unroll import unroll
from odestream.models.unrolled import Unrolled
from odestream.runtime.cli import main
from odestream.runtime.errors import InputError
from tests.helpers.problems import TINY, tiny_config
from tests.helpers.sequences import random_cell, random_inputs
from tests.helpers.tables import seasonal_csv

LENGTH, BATCH = 12, 3


def run(config: CellConfig, **changes: Tensor) -> tuple[Unrolled, dict[str, Tensor]]:
    inputs = {**random_inputs(config, LENGTH, BATCH, seed=1), **changes}
    with torch.no_grad():
        cell = random_cell(config)
        return unroll(cell, inputs, cell.initial_state(BATCH), keep=("h", "m")), inputs


def gates_of(config: CellConfig) -> dict[str, Tensor]:
    found, inputs = run(config)
    seen = inputs["mask"].amax(-1) > 0
    return {name: found.gates[..., i][seen] for i, name in enumerate(gate_names(config))}


@pytest.mark.parametrize(("part", "column"), [("write-gate", "write"), ("read-gate", "read"), ("forget-gate", "keep")])
def test_a_gate_that_is_off_is_wide_open_and_the_others_are_as_they_were(part: Part, column: str) -> None:
    whole, without = gates_of(tiny_config("classify")), gates_of(tiny_config("classify", without=(part,)))
    for name in whole:
        if name.startswith(column):
            assert not (whole[name] == 1).all()
            assert (without[name] == 1).all()
        elif not name.startswith(("read", "surprise")):  # those see h, which other writes and reads change
            assert torch.equal(whole[name], without[name]), name


def test_without_reads_nothing_that_a_memory_holds_reaches_an_answer() -> None:
    for parts, heard in (((), True), (("reads",), False)):
        cell = random_cell(tiny_config("classify", without=parts))
        inputs, state = random_inputs(cell.config, LENGTH, BATCH, seed=1), cell.initial_state(BATCH)
        with torch.no_grad():
            empty, full = (unroll(cell, inputs, given).y for given in (state, {**state, "m": state["m"] + 1.0}))
        assert (not torch.equal(empty, full)) == heard


def test_without_the_forget_gate_time_does_not_fade_the_matrix() -> None:
    for parts, faded in ((("write-gate",), True), (("write-gate", "forget-gate"), False)):
        config = tiny_config("classify", averages=(), without=parts)
        queries = torch.zeros(LENGTH, BATCH, 2)
        queries[0] = 1.0
        found, _ = run(config, mask=queries)
        assert found.kept["m"][0].abs().max() > 0
        assert (not torch.equal(found.kept["m"][0], found.kept["m"][-1])) == faded


def test_without_the_flow_h_stands_still_between_observations() -> None:
    for parts, still in (((), False), (("flow",), True)):
        config = tiny_config("forecast", without=parts)
        queries = torch.zeros(LENGTH, BATCH, 2)
        queries[0] = 1.0
        found, _ = run(config, mask=queries)
        assert found.kept["h"][0].abs().max() > 0
        assert torch.equal(found.kept["h"][0], found.kept["h"][-1]) == still
    assert random_cell(config).field.stiffness() == 0


def test_without_flow_elapsed_time_forgetting_and_averages_of_it_gaps_change_nothing() -> None:
    """The working memory's ages are the last that know of time: it is left out here."""
    config = tiny_config(
        "classify",
        averages=(),
        frequencies=(),
        stores=("longterm", "episodic"),
        without=("flow", "elapsed", "forget-gate"),
    )
    one, inputs = run(config)
    other, _ = run(config, dt=3 * inputs["dt"])
    assert torch.equal(one.y, other.y)
    whole = tiny_config("classify", averages=(), frequencies=(), stores=("longterm", "episodic"))
    assert not torch.equal(run(whole)[0].y, run(whole, dt=3 * inputs["dt"])[0].y)


def test_elapsed_time_reaches_neither_the_head_nor_the_encoder() -> None:
    cell = random_cell(tiny_config("forecast", without=("elapsed",)))
    start = 6 + 4 + 2 * 2  # h, φ, two averages of two channels
    assert not cell.heads.expect.inner.weight[:, start : start + 2].any()
    assert cell.heads.expect.inner.weight[:, start + 2 :].all()
    assert not cell.encode.weight[:, -1].any()


@pytest.mark.parametrize("part", PARTS)
def test_what_is_off_stays_off_while_the_rest_learns(part: Part) -> None:
    config = tiny_config("classify", without=(part,))
    cell = random_cell(config)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    optimiser = torch.optim.AdamW(cell.parameters(), lr=0.1)
    inputs = random_inputs(config, LENGTH, BATCH)
    for _ in range(2):
        optimiser.zero_grad()
        torch.autograd.backward(unroll(cell, inputs, cell.initial_state(BATCH)).y.square().sum())
        optimiser.step()
        cell.constrain()
    after = cell.state_dict()
    fixed = {name for name, value in after.items() if torch.equal(value, before[name])}
    expected = {name for name, p in cell.named_parameters() if not p.requires_grad}
    assert expected <= fixed
    assert bool(expected) == (part != "elapsed")
    if part == "elapsed":
        assert not after["encode.weight"][:, -1].any()
    assert len(fixed) < len(after) / 2


def test_a_whole_cells_configuration_reads_as_it_did_before_there_were_switches() -> None:
    config = tiny_config()
    assert "without" not in config.to_dict()
    ablated = tiny_config(without=("flow",))
    assert CellConfig.from_dict(ablated.to_dict()) == ablated
    with pytest.raises(InputError, match="name parts of write-gate"):
        tiny_config(without=("gate",))
    assert sum(p.numel() for p in Cell(config).parameters()) == sum(p.numel() for p in Cell(ablated).parameters())


def test_parts_are_left_out_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)
    arguments = ["train", str(seasonal_csv(tmp_path / "a.csv")), "--time", "time", "--period", "20", "--epochs", "1"]
    arguments += ["--horizons", "1", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--without", "working,flow,phase"]) == 0
    cell, info = load_checkpoint(tmp_path / "run")
    assert cell.config.stores == ("longterm", "episodic")
    assert cell.config.without == ("flow",)
    assert cell.config.frequencies == info.time.frequencies == ()
    assert "seasonal naive" in capsys.readouterr().out
    for wrong in ("memory", "working,longterm,episodic"):
        assert main([*arguments, "--force", "--without", wrong]) == 2
        assert "working, longterm, episodic, phase, write-gate" in capsys.readouterr().err
