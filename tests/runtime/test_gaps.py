from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from odestream.runtime.bundle import read_bundle
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest, SolverSpec, TimeSpec
from odestream.runtime.contract.tableau import calls_needed
from odestream.runtime.errors import CompatError, TimeError
from odestream.runtime.gaps import GapRule
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.fixture(scope="module")
def manifest(tiny_path: Path) -> Manifest:
    return read_bundle(tiny_path).manifest


def rule(manifest: Manifest, stiffness: float, ticks: float, fastest: float = 0.0, max_calls: int = 1024) -> GapRule:
    solver = SolverSpec("bosh32", (1, 4), 1, 1e-3, 1e-4, True, stiffness, max_calls)
    time = TimeSpec(ticks_per_model_unit=ticks, frequencies=(fastest, fastest / 2))
    changed = msgspec.structs.replace(manifest, solver=solver, time=time)
    return GapRule(changed, Clock(time), "1")


@given(
    gap=st.integers(1, 10**12),
    stiffness=st.floats(0.01, 100),
    ticks=st.floats(100, 1e9),
)
def test_pieces_fill_the_gap_and_none_exceeds_the_stability_bound(
    manifest: Manifest, gap: int, stiffness: float, ticks: float
) -> None:
    gaps = rule(manifest, stiffness, ticks, max_calls=10_000)
    assume(gap <= gaps.limit * gaps.max_calls)
    ends = gaps.cut(7, 7 + gap)
    assert ends[-1] == 7 + gap
    pieces = [after - before for before, after in zip([7, *ends], ends, strict=False)]
    assert min(pieces) >= 1
    assert all(calls_needed(piece / ticks, 1, stiffness, "bosh32") == 1 for piece in pieces)
    assert len(ends) >= calls_needed(gap / ticks, 1, stiffness, "bosh32")


def test_with_fine_ticks_there_are_exactly_as_many_calls_as_the_bound_asks(manifest: Manifest) -> None:
    gaps = rule(manifest, stiffness=3.0, ticks=1e9)
    for units in (0.5, 0.83, 0.84, 2.0, 100.0):
        assert len(gaps.cut(0, int(units * 1e9))) == calls_needed(units, 1, 3.0, "bosh32")


def test_a_call_crosses_at_most_1000_periods_of_the_fastest_frequency(manifest: Manifest) -> None:
    gaps = rule(manifest, stiffness=0.0, ticks=1e6, fastest=2 * 3.141592653589793)
    assert gaps.limit == 1000 * 10**6
    assert gaps.cut(0, 1000 * 10**6) == [1000 * 10**6]
    assert len(gaps.cut(0, 1000 * 10**6 + 1)) == 2


def test_a_gap_beyond_max_calls_is_refused_with_both_figures(manifest: Manifest) -> None:
    gaps = rule(manifest, stiffness=2.512745, ticks=100, max_calls=3)
    assert gaps.limit == 100
    assert len(gaps.cut(50, 350)) == 3
    with pytest.raises(TimeError, match=r"t = 351 lies 301 ticks after .* 50, more than the 300 that 3 call"):
        gaps.cut(50, 351)


def test_where_one_tick_is_already_too_long_no_stream_is_begun(manifest: Manifest) -> None:
    with pytest.raises(CompatError, match=r"the largest bucket, 1, .* 0\.02\d* of a tick .*; .*more solver steps"):
        rule(manifest, stiffness=100.0, ticks=1)


def test_without_mask_a_gap_cannot_be_split(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny(tmp_path / "b", Tiny(mask=False, stiffness=2.0))).manifest
    gaps = GapRule(manifest, Clock(manifest.time), "1")
    assert gaps.cut(0, 10**9) == [10**9]
    with pytest.raises(TimeError, match="export a model with a mask input"):
        gaps.cut(0, 10**9 + 1)


def test_without_dt_time_is_only_counted(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny(tmp_path / "b", Tiny(dt=False, stiffness=100.0))).manifest
    assert GapRule(manifest, Clock(manifest.time), "1").cut(0, 1 << 62) == [1 << 62]
