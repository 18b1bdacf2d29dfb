"""The compiled guards and numpy's against `np.isfinite`, and the runtime on either."""

from __future__ import annotations

import array
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime import CompatError, InputError, StateError, core, intake, load
from odestream.runtime.backends import host
from odestream.runtime.guards import BY_NUMPY, Guards, compiled_guards
from odestream.runtime.kernels import build_guards, places
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Guards:
    try:
        path = build_guards.build_guards(tmp_path_factory.mktemp("guards"), ("-Wall", "-Wextra", "-Wshadow", "-Werror"))
    except CompatError as error:
        pytest.skip(str(error))
    found = compiled_guards(path)
    assert found is not None
    return found


@pytest.fixture(params=["compiled", "numpy"], scope="module")
def either(request: pytest.FixtureRequest) -> Guards:
    return BY_NUMPY if request.param == "numpy" else request.getfixturevalue("compiled")


@pytest.fixture
def in_use(either: Guards, monkeypatch: pytest.MonkeyPatch) -> Guards:
    for module in (core, intake, host):
        for name in ("finite", "advance", "held"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(either, name))
    return either


VALUES = st.sampled_from([np.nan, np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 1.1754944e-38, 1e-45, -0.0, 1.0])
SIZES = st.sampled_from([*range(1, 21), 8192, 8193, 65_537])


@given(size=SIZES, place=st.floats(0, 1, exclude_max=True), value=VALUES)
def test_finite_agrees_with_isfinite_wherever_the_value_stands(
    either: Guards, size: int, place: float, value: float
) -> None:
    flat = np.ones(size, np.float32)
    flat[int(place * size)] = value
    assert either.finite(either.held(flat)) is either.finite(flat) is bool(np.isfinite(flat).all())


def test_every_exponent_is_told_from_the_ones_that_are_not_finite(either: Guards) -> None:
    bits = (np.arange(512, dtype=np.uint32) << 23)[:, None] | np.uint32([0, 1, 0x400000, 0x7FFFFF])
    values = bits.reshape(-1).view(np.float32)
    assert [either.finite(values[i : i + 1]) for i in range(len(values))] == np.isfinite(values).tolist()


def test_nothing_at_all_is_finite(either: Guards) -> None:
    assert either.finite(np.zeros(0, np.float32)) is True


@given(size=st.sampled_from([1, 2, 3, 16, 17, 100]), data=st.data())
def test_advance_copies_and_tells(either: Guards, size: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(VALUES, min_size=size, max_size=size)), np.float32)
    target = np.full(size, 7, np.float32)
    assert either.advance(values, either.held(target), 3, 2) is bool(np.isfinite(values).all())
    assert target.tobytes() == values.tobytes()


LEAST, MOST = -(1 << 63), (1 << 63) - 1


@pytest.mark.parametrize(
    ("tick", "last", "advances"),
    [
        (1, 0, True),
        (0, 0, False),
        (-1, 0, False),
        (0, -1, True),
        (-1, -2, True),
        (MOST, MOST - 1, True),
        (MOST, LEAST, True),
        (LEAST, LEAST, False),
        (MOST + 1, 0, False),
        (1 << 200, 0, False),
        (LEAST - 1, 0, False),
        (True, 0, False),
        (1.0, 0, False),
        (np.int64(1), 0, False),
        ("1", 0, False),
        (None, 0, False),
    ],
    ids=repr,
)
def test_a_tick_is_an_int_of_64_bits_after_the_last(either: Guards, tick: Any, last: int, advances: bool) -> None:
    assert either.advance(np.ones(3, np.float32), either.held(np.zeros(3, np.float32)), tick, last) is advances


WIDE = np.arange(8, dtype=np.float32)
ELSEWHERE: list[Any] = [
    np.arange(4.0),
    np.arange(4, dtype=np.int32),
    np.arange(4, dtype=">f4"),
    np.arange(3, dtype=np.float32),
    np.zeros((1, 4), np.float32),
    np.float32(1),
    [1.0, 2.0, 3.0, 4.0],
    b"sixteen bytes ...",
    "text",
    None,
    1.0,
]


@pytest.mark.parametrize("values", ELSEWHERE, ids=repr)
def test_what_is_not_plainly_the_same_is_left_to_a_closer_look(either: Guards, values: Any) -> None:
    target = np.full(4, 7, np.float32)
    assert either.advance(values, either.held(target), 1, 0) is False
    assert target.tolist() == [7, 7, 7, 7]


def test_floats_are_never_written_into_tokens(either: Guards) -> None:
    target = np.full(4, 7, np.int64)
    assert either.advance(np.ones(4, np.float32), either.held(target), 1, 0) is False
    assert either.advance(np.ones(4, np.int64), either.held(target), 1, 0) is False
    assert target.tolist() == [7, 7, 7, 7]


def test_the_compiled_module_refuses_what_it_cannot_check(compiled: Guards) -> None:
    with pytest.raises(TypeError, match="not of float32; give a contiguous array of float32"):
        compiled.finite(np.ones(3))
    with pytest.raises((TypeError, ValueError, BufferError)):
        compiled.finite(WIDE[::2])
    with pytest.raises(TypeError):
        compiled.finite(3)
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises((TypeError, ValueError, BufferError)):
        compiled.advance(np.ones(4, np.float32), frozen, 1, 0)


def test_neither_guard_keeps_a_reference(compiled: Guards) -> None:
    values, target = np.ones(16, np.float32), np.zeros(16, np.float32)
    view, other, tick = memoryview(target), [1.0], 1 << 40
    counts = [sys.getrefcount(one) for one in (values, target, view, other, tick)]
    for _ in range(1000):
        compiled.advance(values, view, tick, 0)
        compiled.advance(other, view, tick, 0)
        compiled.advance(values[:3], view, tick, 0)
        compiled.finite(view)
    after = [sys.getrefcount(one) for one in (values, target, view, other, tick)]
    assert max(abs(b - a) for a, b in zip(counts, after, strict=True)) < 100
    view.release()  # BufferError while anything still looks at it


GIVEN: list[Any] = [
    np.float32([1, 2, 3]),
    [1.0, 2.0, 3.0],
    np.arange(1.0, 4.0),
    np.arange(2, 8, dtype=np.float32)[::2] / 2,
    np.arange(1, 4, dtype=">f4"),
    array.array("f", [1, 2, 3]),
    memoryview(np.float32([1, 2, 3])),
    np.ma.masked_array(np.float32([1, 2, 3])),
]


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("x", GIVEN, ids=lambda x: f"{type(x).__name__}")
def test_a_stream_answers_the_same_whatever_holds_its_values(tmp_path: Path, x: Any) -> None:
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1,))), backend="onnxruntime") as model:
        stream, twin = model.stream(), model.stream()
        expected = np.asarray(x, np.float32).tolist()
        for t in (10, 20, 30):  # the first row of a stream, one after it, and one after a row with a hole
            assert stream.step(x, t).y.tobytes() == twin.step(expected, t).y.tobytes()
            assert stream.snapshot() == twin.snapshot()
            for one in (stream, twin):
                one.step([1, 2, 3], t + 5, [1, 0, 1])


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mask", [None, [1, 1, 1]])
def test_a_stream_refuses_what_is_not_finite_and_goes_on(tmp_path: Path, bad: float, mask: Any) -> None:
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1,))), backend="onnxruntime") as model:
        stream, twin = model.stream(), model.stream()
        for one in (stream, twin):
            one.step(np.float32([1, 2, 3]), 10)
        before = stream.snapshot()
        with pytest.raises(InputError, match=r"in channel 1 .*expected a finite value; mark it missing with mask 0"):
            stream.step(np.float32([1, bad, 3]), 20, mask)
        assert stream.snapshot() == before
        assert stream.step(np.float32([4, 5, 6]), 20).y.tobytes() == twin.step(np.float32([4, 5, 6]), 20).y.tobytes()


@pytest.mark.usefixtures("in_use")
def test_a_state_that_is_not_finite_is_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(write_tiny(tmp_path / "bundle", Tiny(buckets=(1,))), backend="onnxruntime") as model:
        stream = model.stream()
        stream.step(np.float32([1, 2, 3]), 10)
        before, run = stream.snapshot(), type(model.bind(1)).run

        def spoil(binding: Any, label: str) -> None:
            run(binding, label)
            binding.next_arena[-1] = np.nan

        with monkeypatch.context() as patch:
            patch.setattr(type(model.bind(1)), "run", spoil)
            with pytest.raises(StateError):
                stream.step(np.float32([1, 2, 3]), 20)
        assert stream.snapshot() == before
        stream.step(np.float32([1, 2, 3]), 20)


def test_without_the_module_or_with_a_broken_one_the_guards_are_numpy_s(tmp_path: Path) -> None:
    broken = tmp_path / "broken.abi3.so"
    broken.write_bytes(b"no library")
    assert compiled_guards(None) is None
    assert compiled_guards(broken) is None


def test_a_python_of_another_abi_takes_numpy_s(compiled: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_guards(build_guards.build_guards()) is not None
    monkeypatch.setattr("odestream.runtime.guards.EXTENSION_SUFFIXES", [".cpython-313t-x86_64-linux-gnu.so", ".so"])
    assert compiled_guards(build_guards.find_guards()) is None


def test_a_python_too_old_to_compile_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_guards, "can_build", lambda: False)
    with pytest.raises(CompatError, match="the guards stay numpy's: .* use one where µs count"):
        build_guards.build_guards(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["unreadable", "unknown"])
def test_a_user_without_a_home_can_import_the_runtime(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service has none: the cache is looked into last, and what cannot be is not there."""
    monkeypatch.setattr(places, "BESIDE", tmp_path)

    def cache() -> Path:
        if home == "unknown":
            raise RuntimeError("Could not determine home directory.")
        return tmp_path / ("x" * 300)  # as is_file() raises for a folder without permission, so for a name too long

    monkeypatch.setattr(places, "cache_folder", cache)
    assert places.find("module.so") is None
    (tmp_path / "module.so").touch()
    assert places.find("module.so") == tmp_path / "module.so"


def test_without_python_s_headers_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(CompatError, match="no Python.h in .*; install it .*python3-dev"):
        build_guards.build_guards(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_source_asks_for_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_guards.guards_name()
    changed = tmp_path / "guards.c"
    changed.write_bytes(build_guards.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(build_guards, "SOURCE", changed)
    assert build_guards.guards_name() != before


def test_a_built_module_is_found_where_libraries_lie(
    compiled: Guards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BESIDE", tmp_path / "beside")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build_guards.find_guards() is None
    for folder in (tmp_path / "cache" / "odestream", tmp_path / "beside"):
        assert build_guards.build_guards(folder) == build_guards.find_guards()
        assert build_guards.find_guards() == folder / build_guards.guards_name()
    found = compiled_guards(build_guards.find_guards())
    assert found is not None
    assert found.compiled
