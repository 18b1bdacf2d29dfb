import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime.arena import Layout, aligned, initial, stack, unstack
from odestream.runtime.contract.spec import StateSpec
from odestream.runtime.errors import InputError

STATE = (StateSpec("h", (2,), (1.0, -2.0)), StateSpec("a", (), (7.0,)), StateSpec("m", (2, 3), (0.0,)))


def test_members_stand_one_after_another_each_with_its_batch() -> None:
    """The module's worked example: h00 h01 h10 h11 a0 a1."""
    layout = Layout(STATE[:2], 2)
    views = layout.views(np.arange(layout.size, dtype=np.float32))
    assert views["h"].tolist() == [[0, 1], [2, 3]]
    assert views["a"].tolist() == [4, 5]


def test_initial_holds_the_spec_s_values_in_every_row() -> None:
    views = Layout(STATE, 3).views(initial(STATE, 3))
    assert views["h"].tolist() == [[1, -2]] * 3
    assert views["a"].tolist() == [7] * 3
    assert not views["m"].any()


def test_views_write_through_to_the_arena() -> None:
    layout = Layout(STATE, 1)
    arena = layout.empty()
    layout.views(arena)["m"][0, 1, 2] = 5
    assert arena.tolist() == [0] * 8 + [5]


@given(batch=st.integers(1, 5), seed=st.integers(0, 1000))
def test_unstack_inverts_stack_bit_for_bit(batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=9).astype(np.float32) for _ in range(batch)]
    back = unstack(STATE, stack(STATE, rows), batch)
    assert [row.tobytes() for row in back] == [row.tobytes() for row in rows]


@given(shape=st.lists(st.integers(0, 7), max_size=3), dtype=st.sampled_from(["float32", "int64", "uint8"]))
def test_aligned_starts_at_64_bytes_and_is_zero(shape: list[int], dtype: str) -> None:
    array = aligned(tuple(shape), dtype)
    assert array.shape == tuple(shape)
    assert array.dtype == dtype
    assert array.ctypes.data % 64 == 0 or array.size == 0
    assert not array.any()


def test_empty_state_and_empty_batch() -> None:
    assert initial((), 1).size == 0
    with pytest.raises(InputError, match="at least 1"):
        Layout(STATE, 0)
