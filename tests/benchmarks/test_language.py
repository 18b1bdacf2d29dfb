"""A corpus without overlap, repeats that are counted right, bits that add up, verdicts that can fall."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import language
from language import ALL, FORGETFUL, NAMES, NEW, OURS, QUICK, REPEATED, bits_per_byte, build, draw, measure, report
from language_data import corpus, pooled, repeats
from odestream.models.baselines import footprint
from odestream.models.cell import Cell
from odestream.models.model import Model
from odestream.models.sequences import steps_across
from odestream.models.unroll import unroll
from sweep import Sweep
from tests.helpers.problems import TINY


def test_repeats_are_those_that_a_search_of_the_text_before_finds() -> None:
    random = np.random.default_rng(0)
    for length in (2, 3, 6):
        text = bytes(random.integers(97, 100, 120).tolist())
        expected = []
        for end in range(2, len(text) + 1):
            gram, before = text[max(0, end - length) : end], text[: end - 1]
            expected.append(len(gram) == length and gram in before)
        assert repeats(text, length).tolist() == expected
    assert pooled((b"abab", b"ab"), 2).tolist() == [False, False, True, False]


def test_no_file_is_in_two_parts_and_those_left_out_are_in_none(tmp_path: Path) -> None:
    root = tmp_path / "test" / "lib"  # what lies above the sources leaves none of them out
    (root / "test").mkdir(parents=True)
    for i in range(12):
        (root / f"m{i}.py").write_bytes(bytes([65 + i]) * 40)
    (root / "test" / "x.py").write_bytes(b"z" * 40)
    (root / "short.py").write_bytes(b"y" * 5)
    found = corpus(160, 50, 3, 30, root)
    parts = [set(found.training), set(found.validation), *(set(text) for text in found.tests)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert not set(b"zy") & set.union(*parts)
    assert [len(found.training), len(found.validation), *map(len, found.tests)] == [160, 50, 30, 30, 30]
    assert corpus(160, 50, 3, 30, root) == found
    with pytest.raises(ValueError, match="expected at least 22"):
        corpus(160, 50, 20, 30, root)


def test_the_standard_library_of_this_interpreter_is_enough() -> None:
    found = corpus(10_000, 1000, 4, 256)
    assert len(found.training) == 10_000
    assert b"import " in found.training + b"".join(found.tests)


def test_the_deployed_solver_crosses_a_byte_in_one_stable_step_and_models_are_of_equal_size() -> None:
    cell = build(OURS, language.SIZES)
    assert steps_across(cell.config, 1.0) == 1
    sizes = [footprint(build(name, language.SIZES)).parameters for name in NAMES]
    assert max(sizes) < 1.03 * min(sizes)


def test_bits_are_those_of_the_softmax_and_kinds_of_bytes_add_up() -> None:
    texts = (b"abcabcab", b"xyxyxyxy")
    model = _loud(build("GRU", TINY))
    found = bits_per_byte(model, texts)
    bits = []
    for text in texts:
        codes = torch.tensor(list(text)).unsqueeze(1)
        inputs = {"x": codes, "mask": torch.ones(len(text), 1, 1), "dt": torch.ones(len(text), 1, 1)}
        inputs["dt"][0] = 0.0
        with torch.no_grad():
            logits = unroll(model, inputs, model.initial_state(1)).y[:-1, 0].double()
        bits += (-torch.log_softmax(logits, -1)[range(len(text) - 1), codes[1:, 0]] / math.log(2)).tolist()
    assert found[ALL] == pytest.approx(np.mean(bits), rel=1e-6)
    again = pooled(texts, 2)
    share = again.mean()
    assert found[REPEATED[2]] * share + found[NEW] * (1 - share) == pytest.approx(found[ALL], rel=1e-6)
    assert found[REPEATED[2]] == pytest.approx(np.mean(np.array(bits)[again]), rel=1e-6)


def test_a_cell_without_reads_is_the_same_cell_with_its_memories_unheard() -> None:
    whole, deaf = build(OURS, TINY), build(FORGETFUL, TINY)
    assert isinstance(whole, Cell)
    assert isinstance(deaf, Cell)
    assert deaf.config == dataclasses.replace(whole.config, without=("reads",))


def test_a_sweep_measures_all_models_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "NAMES", {name: NAMES[name] for name in (OURS, FORGETFUL, "GRU")})
    plan = dataclasses.replace(QUICK, sizes=TINY, length=24, steps=1, validation=64)
    result = measure(plan, Sweep(tmp_path / "points.json"))
    assert "| GRU |" in report(result)
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    _check_verdicts(result)


def _check_verdicts(result: dict[str, Any]) -> None:
    """The gain is paired by seed, and what falls comes first."""
    made = copy.deepcopy(result)
    bits = made["bits_per_byte"]
    for name, values in ((OURS, [2.0, 3.0, 4.0]), (FORGETFUL, [2.02, 3.5, 4.005]), ("GRU", [2.5, 2.9, 2.9])):
        bits[name] = dict.fromkeys(bits[name], values)
    assert language.gain(made, REPEATED[2]) == pytest.approx(0.02)
    said = language.verdicts(made)
    assert [line.split(":")[0] for line in said] == ["**Falsified**", "Holds"]
    assert "GRU (3.000 against 2.900)" in said[0]
    bits[FORGETFUL] = {kind: [value + 0.009 for value in values] for kind, values in bits[OURS].items()}
    assert language.verdicts(made)[0].startswith("**Falsified**: the memories' reads save 0.009")


def _loud(model: Model) -> Model:
    """The model with a last layer that says something."""
    torch.manual_seed(0)
    for head in (model.heads.expect, model.heads.answer):
        if head is not None:
            with torch.no_grad():
                head.outer.weight.normal_()
    return model.eval()
