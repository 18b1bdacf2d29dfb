"""The event recall task says what it promises, and the way from training to a score works."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import recall_beyond
import recall_forgetting
from odestream.models.config import PRESETS
from odestream.models.unroll import unroll
from odestream.runtime import load
from recall_figure import Curve, draw
from recall_scoring import Trial, leaks
from recall_streams import Streams, Subject, with_reads
from recall_task import (
    CHANNELS,
    EVENTS,
    KEYS,
    LONGEST_GAP,
    MEDIAN_GAP,
    NOISE,
    event_rows,
    near_miss_rows,
    noise,
    questions,
    sequences,
)
from recall_training import ROWS, Recipe, configuration


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_event(rows: torch.Tensor) -> torch.Tensor:
    """Which rows [..., 32] hold one key, one value and nothing else."""
    flat = ((rows == 0) | (rows == 1)).all(dim=-1)
    return flat & (rows[..., :KEYS].sum(dim=-1) == 1) & (rows[..., KEYS:].sum(dim=-1) == 1)


@given(
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(0, 70),
    st.integers(0, EVENTS),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.integers(0, 1000),
)
def test_the_answer_to_every_question_is_the_latest_value_that_its_sequence_gave_to_the_key(
    before: int, between: int, gap: int, rewritten: int, near_misses: float, seed: int
) -> None:
    drawn = sequences(3, before, between, gap, generator(seed), rewritten=rewritten, near_misses=near_misses)
    length = before + EVENTS + rewritten + between + gap
    assert drawn.rows.x.shape == (length + EVENTS, 3, CHANNELS)
    assert list(drawn.asked) == list(range(length, length + EVENTS))
    for row in range(3):
        told = drawn.rows.x[:length, row]
        events = is_event(told).nonzero().flatten()
        assert len(events) == EVENTS + rewritten
        assert events[0] >= before
        assert events[-1] == length - gap - 1
        given = [(int(told[t, :KEYS].argmax()), int(told[t, KEYS:].argmax())) for t in events]
        assert len(set(given)) == EVENTS + rewritten
        latest = dict(given)
        assert len(latest) == EVENTS
        asked = drawn.rows.x[length:, row, :KEYS].argmax(dim=1)
        assert [latest[int(key)] for key in asked] == drawn.labels[:, row].tolist()


def test_near_misses_take_their_share_of_the_noise_and_none_of_them_is_an_event() -> None:
    rows = noise(200, 100, generator(), near_misses=0.02)
    silent = (rows.x == 0).any(dim=-1)
    assert silent.float().mean().item() == pytest.approx(0.02, rel=0.1)
    assert not is_event(rows.x).any()
    assert rows.mask.all()


def test_near_misses_are_of_every_kind_as_often_and_use_every_key_and_value() -> None:
    rows = near_miss_rows(5000, generator())
    kinds, counts = torch.stack([rows[:, :KEYS].sum(dim=1), rows[:, KEYS:].sum(dim=1)], dim=1).unique(
        dim=0, return_counts=True
    )
    assert kinds.tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 2.0], [2.0, 1.0]]
    assert (counts > 850).all()
    assert (rows > 0).any(dim=0).all()


def test_questions_hide_the_values_and_everything_else_is_observed() -> None:
    drawn = sequences(4, 5, 5, 5, generator())
    asked = drawn.rows.mask[drawn.asked.start :]
    assert asked[..., :KEYS].all()
    assert not asked[..., KEYS:].any()
    assert not drawn.rows.x[drawn.asked.start :, :, KEYS:].any()
    assert drawn.rows.mask[: drawn.asked.start].all()


def test_events_are_at_random_places_and_have_less_energy_than_noise() -> None:
    events = event_rows(400, 24, generator())
    plain = noise(200, 100, generator(1))
    at = ((events.rows.x == 0) | (events.rows.x == 1)).all(dim=-1).float().mean(dim=1)
    torch.testing.assert_close(at[:-1], torch.full((31,), 7 / 31), rtol=0, atol=0.09)
    assert at[-1] == 1
    energy = (plain.x**2).sum(dim=-1)
    torch.testing.assert_close(energy.mean(), torch.tensor(CHANNELS * NOISE**2), rtol=0.01, atol=0)
    assert energy.mean() > 2.0


def test_gaps_are_irregular_with_the_stated_median() -> None:
    dt = noise(500, 100, generator()).dt
    assert dt.median().item() == pytest.approx(MEDIAN_GAP, rel=0.03)
    assert dt.min() > 0
    assert dt.max() <= LONGEST_GAP
    assert dt.std() > 0.1


def test_the_same_seed_asks_the_same_questions() -> None:
    first, again = (sequences(2, 3, 3, 3, generator(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip((*first.rows, first.labels), (*again.rows, again.labels), strict=True))
    events = event_rows(2, 3, generator(7))
    assert not torch.equal(questions(events, generator(1)).rows.x, questions(events, generator(2)).rows.x)


def test_the_trained_cell_is_the_full_nano_preset() -> None:
    config = configuration()
    assert tuple(config.stores) == ("working", "longterm", "episodic")  # the order of ROWS' columns
    assert config.sizes == PRESETS["nano"]
    assert not config.without


TEST = Trial((2, 12), before=4, between=2, rewritten=3, near_misses=0.2, sequences=8, rounds=2)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    """A cell after a short training, which beats chance."""
    with Subject(0, Recipe(memory_steps=150, gate_steps=4, cell_steps=2, batch=32, cell_batch=4)) as subject:
        yield subject


@pytest.mark.slow
def test_the_deployed_cell_answers_as_the_torch_step_after_a_training_that_beats_chance(subject: Subject) -> None:
    deployed = subject.deployed("all memories", TEST)
    assert deployed == subject.stepped(TEST)
    assert len(deployed) == 2
    assert deployed[0] > 0.3
    assert subject.cell.spec().state_bytes > 16 * 1024


@pytest.mark.slow
def test_a_row_is_the_cell_with_the_other_reads_closed(subject: Subject) -> None:
    rows = sequences(4, 3, 2, 5, generator(), rewritten=2, near_misses=0.1).rows
    state = subject.cell.initial_state(4)
    for row, opened in ROWS.items():
        held = unroll(with_reads(subject.cell, opened), rows.inputs(), state)
        asked = unroll(
            subject.cell, rows.inputs(), state, opened=torch.tensor(opened, dtype=torch.float32).repeat(4, 1)
        )
        torch.testing.assert_close(held.y, asked.y, rtol=0, atol=1e-6, msg=row)
    assert (held.y - unroll(subject.cell, rows.inputs(), state).y).abs().max() > 0.01


@pytest.mark.slow
def test_streams_are_asked_without_being_changed(subject: Subject) -> None:
    events = event_rows(4, 2, generator())
    asked = questions(events, generator()).rows
    with load(subject.bundle("all memories"), "native") as model:
        streams = Streams(model, 4)
        streams.feed(events.rows)
        first = streams.answers(asked)
        assert torch.equal(streams.answers(asked), first)
        streams.feed(noise(5, 4, generator()))
        assert first.shape == (EVENTS, 4)


def test_leaks_are_counted_over_noise_and_near_misses(subject: Subject) -> None:
    gates = subject.cell.memory.gates.write
    before = gates.bias.detach().clone()
    with torch.no_grad():
        gates.bias[0] = 1e3
        assert leaks(subject.cell, 1500, 0) == {"noise": 1500, "near-misses": 1500}
        gates.bias[0] = -1e3
        assert leaks(subject.cell, 1500, 0) == {"noise": 0, "near-misses": 0}
        gates.bias.copy_(before)


def test_the_write_gate_is_trained_without_its_view_of_the_mask(subject: Subject) -> None:
    columns = subject.cell.memory.gates.inner.weight.detach().view(-1, 2, 2, CHANNELS)
    assert not columns[:, :, 1].any()
    assert columns[:, :, 0].all()


def made_up(full: list[float], window: list[float], stepped: list[float]) -> dict[str, Any]:
    """A result of one seed."""
    plan = dataclasses.asdict(recall_beyond.PLANS["full"])
    points: dict[str, Any] = {"stepped": [stepped], "leaks": [{"noise": 3, "near-misses": 0}]}
    for row in ROWS:
        of_row = full if row == "all memories" else window if row == "window alone" else full[:5]
        for condition in recall_beyond.CONDITIONS:
            points[f"{row}, {condition}"] = [of_row]
    return {"seeds": [100], "plan": plan, "points": points}


GOOD, FORGETS = [1.0] * 7, [1.0, 1.0, 1.0, 1.0, 1.0, 0.99, 0.94]


@pytest.mark.parametrize(
    ("result", "falls"),
    [
        (made_up(GOOD, [0.2, 0.1, 0.1, 0.1, 0.1], [1.0] * 3), ""),
        (made_up(FORGETS, [0.2, 0.1, 0.1, 0.1, 0.1], [1.0] * 3), "a gap of 1,000,000"),
        (made_up(GOOD, [1.0] * 5, [1.0] * 3), "the window"),
        (made_up(GOOD, [0.2, 0.1, 0.1, 0.1, 0.1], [1.0, 1.0, 0.9]), "the torch step"),
    ],
)
def test_a_claim_falls_where_its_figures_say_so_and_is_told_first(result: dict[str, Any], falls: str) -> None:
    said = recall_beyond.verdicts(result)
    assert [line.startswith("**Falsified**") for line in said] == [bool(falls), *[False] * (len(said) - 1)]
    assert falls in said[0]
    assert recall_beyond.report(result).startswith(said[0])


@pytest.mark.parametrize(("off", "holds"), [(0.8, True), (0.9, False), (0.95, False)])
def test_forgetting_falls_unless_the_cell_with_the_gate_is_better(off: float, holds: bool) -> None:
    test = dataclasses.replace(recall_forgetting.PLANS["full"].test, gaps=(10,))
    accuracies = {recall_forgetting.ON: 0.9, recall_forgetting.OFF: off}
    points = {f"{row}, {name}": [[found]] for row in ROWS for name, found in accuracies.items()}
    result = {"seeds": [100], "plan": {"test": dataclasses.asdict(test)}, "points": points}
    assert all(line.startswith("Holds") == holds for line in recall_forgetting.verdicts(result))
    assert "gap 10" in recall_forgetting.report(result)


def test_a_figure_is_drawn_of_curves_of_different_lengths(tmp_path: Path) -> None:
    draw({"a": Curve((10, 100), [[1.0, 0.5], [0.8, 0.6]]), "b": Curve((10,), [[0.1], [0.2]])}, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000
