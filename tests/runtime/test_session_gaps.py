"""Gaps that one call may not cross are split, and nobody can tell but by the number of calls."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import InputError, Model, StateError, TimeError, load
from tests.helpers.streams import SECOND, continues_like
from tests.helpers.tiny_bundle import Tiny, TinyReference, write_tiny

STIFF = Tiny(stiffness=2.0, max_calls=8, err_scale=1.0)


@pytest.fixture(scope="module")
def stiff(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One step of the solver crosses one model unit: stiffness 2 against a bound of 2."""
    with load(write_tiny(tmp_path_factory.mktemp("stiff") / "b", STIFF)) as model:
        yield model


def test_a_gap_beyond_the_stability_bound_is_split_into_equal_flows(stiff: Model) -> None:
    reference = TinyReference(STIFF, steps=5)
    stream = stiff.stream(buckets=(1,))
    stream.step([3, -2, 1], 0)
    reference.step([3, -2, 1], 0)
    output = stream.step([1, 1, 1], 5 * SECOND)
    assert output.calls == 5
    reference.step([1, 1, 1], 5 * SECOND)
    np.testing.assert_allclose(stream.state()["h"], reference.state["h"], rtol=1e-5)
    assert stream.state()["n"].tolist() == [2.0, 5.5]
    assert (stream.counters.split, stream.counters.buckets) == (1, {"1": 6, "4": 0})


def test_the_err_of_a_split_gap_is_the_largest_of_its_pieces(stiff: Model) -> None:
    """The leak shrinks h, so the first piece moves it most."""
    stream = stiff.stream(buckets=(1,))
    stream.step([30, 30, 30], 0)
    split, first_piece = stream.predict(4 * SECOND), stream.predict(SECOND)
    assert split.calls == 4
    assert split.err == first_piece.err
    assert split.err is not None
    assert split.err > 1.0
    assert split.flagged


def test_splitting_equals_steps_with_nothing_observed(stiff: Model) -> None:
    """Predict, the split step and mask-0 steps at the pieces' ends go through the same states."""
    whole, pieces = stiff.stream(buckets=(1,)), stiff.stream(buckets=(1,))
    for stream in (whole, pieces):
        stream.step([3, -2, 1], 100)
    predicted = whole.predict(100 + 3 * SECOND)
    output = whole.step([1, 1, 1], 100 + 3 * SECOND)
    for piece in (1, 2):
        pieces.step([0, 0, 0], 100 + piece * SECOND, [0, 0, 0])
    last = pieces.step([1, 1, 1], 100 + 3 * SECOND)
    assert output.y.tobytes() == last.y.tobytes()
    assert output.y.tobytes() == predicted.y.tobytes()
    np.testing.assert_array_equal(whole.state()["h"], pieces.state()["h"])


def test_a_fault_within_a_split_gap_undoes_its_pieces(stiff: Model) -> None:
    stream, twin = stiff.stream(buckets=(1,)), stiff.stream(buckets=(1,))
    for each in (stream, twin):
        each.step([3, -2, 1], 0)
    with pytest.raises(InputError):
        stream.step([np.nan, 1, 1], 5 * SECOND)
    with pytest.raises(TimeError, match="more than the 8000000000 that 8 call"):
        stream.step([1, 1, 1], 8 * SECOND + 1)
    with pytest.raises(TimeError):
        stream.predict(8 * SECOND + 1)
    stream.predict(8 * SECOND)
    assert continues_like(stream, twin)


def test_a_result_that_is_not_finite_in_the_last_piece_undoes_all_pieces(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(stiffness=2.0, gain=3.0))) as model:
        stream, twin = model.stream(), model.stream()
        for each in (stream, twin):
            each.step([3, -2, 1], 0)
        with pytest.raises(StateError, match=r"state h became NaN or infinite; the step was discarded"):
            stream.step([3e38, 0, 0], 5 * SECOND)
        assert continues_like(stream, twin)
