"""The event recall task says what it promises, and the way from training to a score works."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recall_scoring import Trial, score
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
from recall_training import ROWS, Recipe, configuration, train


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
    config = configuration(slots=32)
    assert set(config.stores) == {"working", "longterm", "episodic"}
    assert tuple(config.stores) == ("working", "longterm", "episodic")  # the order of ROWS' columns
    assert config.sizes.slots == 32


def test_a_short_training_already_beats_chance_and_is_scored_in_every_row() -> None:
    cell = train(0, Recipe(memory_steps=150, cell_steps=2, batch=32, cell_batch=4))
    assert cell.spec().state_bytes > 16 * 1024
    result = score(cell, Trial(gaps=(2, 12), before=4, between=2, sequences=16, rounds=2), seed=0)
    assert set(result.accuracy) == set(ROWS)
    assert all(len(row) == 2 and all(0 <= a <= 1 for a in row) for row in result.accuracy.values())
    assert result.accuracy["all memories"][0] > 0.3
    assert 0 <= result.written <= 1
