"""After any fault a stream goes on as one that never saw it: compared with an unfaulted twin, bit for bit."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import (
    GapError,
    InputError,
    Model,
    OdestreamError,
    Output,
    SessionBusy,
    StateError,
    Stream,
    TimeError,
    load,
)
from tests.helpers.streams import continues_like, irregular, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda x, t, m: x.__setitem__((7, 1), np.nan), InputError),
        (lambda x, t, m: t.__setitem__(7, t[6]), TimeError),
        (lambda x, t, m: m.__setitem__((7, 0), 0.5), InputError),
        (lambda x, t, m: x.__setitem__((7, 0), 3e38), StateError),
    ],
    ids=["nan", "time", "mask", "overflow"],
)
def test_a_fault_in_one_row_of_steps_names_it_and_undoes_all(
    tmp_path: Path, spoil: Callable[[Any, Any, Any], None], kind: type[OdestreamError]
) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(gain=3.0))) as model:
        x, t, mask = irregular(20)
        mask[7] = 1
        stream, twin = model.stream(), model.stream()
        for each in (stream, twin):
            each.step([1, 2, 3], int(t[0]) - 1)
        spoil(x, t, mask)
        with pytest.raises(kind, match=r"^row 7: "):
            stream.steps(x, t, mask)
        assert stream.last_tick == twin.last_tick
        assert continues_like(stream, twin)


class Unreadable:
    def __array__(self, *args: object, **kwargs: object) -> None:
        raise TypeError("no array here")


FAULTS: list[tuple[str, type[OdestreamError], str, Callable[[Stream], object]]] = [
    ("rank", InputError, r"x: received shape \[1, 3\], expected \[3\]", lambda s: s.step(np.zeros((1, 3)), 20)),
    ("scalar", InputError, r"x: received shape \[\], expected \[3\]", lambda s: s.step(1.0, 20)),
    ("empty", InputError, r"x: received shape \[0\]", lambda s: s.step([], 20)),
    ("strings", InputError, "x: received dtype <U1", lambda s: s.step(["1", "2", "3"], 20)),
    ("complex", InputError, "x: received dtype complex", lambda s: s.step([1j, 0, 0], 20)),
    ("objects", InputError, "x: received dtype object", lambda s: s.step([None, 1, 2], 20)),
    ("dates", InputError, "x: received dtype datetime64", lambda s: s.step(np.zeros(3, "M8[s]"), 20)),
    ("ragged", InputError, "x: cannot be read", lambda s: s.step([[1], [1, 2], 3], 20)),
    ("unreadable", InputError, "x: cannot be read", lambda s: s.step(Unreadable(), 20)),  # type: ignore[arg-type]
    ("nan", InputError, r"received nan in channel 1 \(c1\).*mask 0", lambda s: s.step([1, np.nan, 2], 20)),
    ("inf", InputError, r"received -inf in channel 2 \(c2\)", lambda s: s.step([1, 2, -np.inf], 20)),
    ("nan seen", InputError, "received nan in channel 0", lambda s: s.step([np.nan, 1, 2], 20, [1, 0, 1])),
    ("overflow", InputError, "received 1e[+]39, beyond float32", lambda s: s.step([1e39, 1, 2], 20)),
    ("huge int", InputError, "x: ", lambda s: s.step([10**400, 1, 2], 20)),
    ("mask shape", InputError, r"mask: received shape \[2\], expected \[3\]", lambda s: s.step([1, 2, 3], 20, [1, 1])),
    ("mask value", InputError, "mask: received a value other than", lambda s: s.step([1, 2, 3], 20, [1, 1, 2])),
    ("mask nan", InputError, "mask: received a value other than", lambda s: s.step([1, 2, 3], 20, [1, 1, np.nan])),
    ("mask text", InputError, "mask: received dtype", lambda s: s.step([1, 2, 3], 20, ["1", "1", "1"])),
    ("no time", InputError, "t is missing; give", lambda s: s.step([1, 2, 3])),
    ("float time", InputError, "t: received 20.0", lambda s: s.step([1, 2, 3], 20.0)),  # type: ignore[arg-type]
    ("bool time", InputError, "t: received True", lambda s: s.step([1, 2, 3], True)),
    ("nan time", TimeError, "t: received nan", lambda s: s.predict(float("nan"))),  # type: ignore[call-overload]
    ("equal", TimeError, "t = 10 does not advance past the stream's last time 10", lambda s: s.step([1, 2, 3], 10)),
    ("backward", TimeError, "t = 9 does not advance", lambda s: s.step([1, 2, 3], 9)),
    ("64 bits", TimeError, "does not fit 64 bits", lambda s: s.step([1, 2, 3], 1 << 63)),
    ("too far", GapError, "more than the", lambda s: s.step([1, 2, 3], 1 << 62)),
    ("predict back", TimeError, "lies before", lambda s: s.predict(9)),
    ("predict none", InputError, "t: received None", lambda s: s.predict(None)),  # type: ignore[call-overload]
    ("steps lengths", InputError, "t: received 1 rows, expected 2", lambda s: s.steps([[1, 2, 3]] * 2, [20])),
    (
        "steps too many t",
        InputError,
        "t: received 3 rows, expected 2",
        lambda s: s.steps([[1, 2, 3]] * 2, [20, 30, 40]),
    ),
    ("steps scalar", InputError, "x: received a single value", lambda s: s.steps(np.array(1.0), [1])),
    ("steps number", InputError, "x: received int, expected a sequence", lambda s: s.steps(1, [1])),
    ("steps text", InputError, "x: received str", lambda s: s.steps("abc", [1, 2, 3])),
]


@pytest.mark.parametrize(("kind", "message", "fault"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_after_a_fault_the_stream_continues_as_if_it_had_not_been(
    model: Model, kind: type[OdestreamError], message: str, fault: Callable[[Stream], object]
) -> None:
    stream, twin = model.stream(), model.stream()
    for each in (stream, twin):
        each.step([1, 2, 3], 10)
    with pytest.raises(kind, match=message) as caught:
        fault(stream)
    assert type(caught.value) is kind
    assert re.search(r"; [a-z][^;]*$", str(caught.value)), "ends with the remedy"
    assert continues_like(stream, twin)


def test_a_model_without_mask_refuses_holes_and_predictions(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(mask=False))) as model:
        stream, twin = model.stream(), model.stream()
        for each in (stream, twin):
            each.step([1, 2, 3], 0)
        with pytest.raises(InputError, match="takes none"):
            stream.step([1, 2, 3], 1, [1, 1, 1])
        with pytest.raises(InputError, match="fill it in first"):
            stream.step([1, np.nan, 3], 1)
        with pytest.raises(InputError, match="time cannot pass without an observation"):
            stream.predict(5)
        assert same(stream.step([1, 2, 3], 1), twin.step([1, 2, 3], 1))


def test_a_stream_in_use_by_another_thread_is_busy(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = model.stream()
    inside, leave = threading.Event(), threading.Event()
    run = stream._core.binding.run

    def slow(label: str) -> None:
        inside.set()
        leave.wait(10)
        run(label)

    monkeypatch.setattr(stream._core.binding, "run", slow)
    thread = threading.Thread(target=stream.step, args=([1, 2, 3], 0))
    thread.start()
    inside.wait(10)
    for call in (lambda: stream.step([1, 2, 3], 5), lambda: stream.predict(5), stream.snapshot, stream.state):
        with pytest.raises(SessionBusy, match="another thread"):
            call()
    leave.set()
    thread.join()
    assert stream.last_tick == 0
    stream.step([1, 2, 3], 5)


def test_streams_of_one_model_in_many_threads_do_not_disturb_each_other(model: Model) -> None:
    x, t, mask = irregular(200)
    expected = model.stream().steps(x, t, mask)
    results: list[list[Output]] = []
    threads = [threading.Thread(target=lambda: results.append(model.stream().steps(x, t, mask))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(same(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_closed_streams_and_models_are_busy(tiny_path: Path) -> None:
    model = load(tiny_path)
    stream, other = model.stream(), model.stream()
    stream.close()
    with pytest.raises(SessionBusy, match="closed"):
        stream.step([1, 2, 3], 0)
    other.step([1, 2, 3], 0)
    model.close()
    model.close()
    for call in (
        lambda: other.step([1, 2, 3], 5),
        lambda: other.predict(5),
        other.snapshot,
        model.stream,
        model.verify,
    ):
        with pytest.raises(SessionBusy, match="closed"):
            call()


@pytest.mark.parametrize("channels", [3, 16, 17, 40])
def test_what_is_not_finite_is_refused_in_wide_and_narrow_rows_and_large_numbers_are_not(
    tmp_path: Path, channels: int
) -> None:
    with load(write_tiny(tmp_path / "bundle", Tiny(channels=channels, gain=1e-6))) as model:
        stream = model.stream()
        stream.step(np.full(channels, 1e25, np.float32), 1)  # whose squares overflow
        last = channels - 1
        for place, values in ((last, [np.nan]), (last, [np.inf]), (0, [-np.inf, np.inf])):
            row = np.ones(channels, np.float32)
            row[place : place + len(values)] = values
            with pytest.raises(InputError, match=rf"x: received {values[0]} in channel {place} "):
                stream.step(row, 2)


def test_after_a_load_that_fails_a_stream_is_as_it_was(model: Model, tmp_path: Path) -> None:
    """States of another model's size, and one whose time fits no 64 bits."""
    with load(write_tiny(tmp_path / "other", Tiny(channels=2))) as other:
        stream, twin, foreign = model.stream(), model.stream(), other.stream()
        foreign.step([1, 2], 40)
        for each in (stream, twin):
            each.step([1, 2, 3], 10)
        with pytest.raises(StateError, match=r"a state has 4 values, expected 5; load one of this model"):
            stream.load(foreign.save())
        with pytest.raises(TimeError, match="does not fit 64 bits"):
            stream.load(replace(twin.save(), tick=1 << 63))
        assert same_state(stream.save(), twin.save())
        assert continues_like(stream, twin)


def test_a_time_that_is_left_out_does_not_leave_64_bits(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(dt=False, frequencies=(), buckets=()))) as model:
        stream = model.stream()
        stream.step([1, 2, 3], (1 << 63) - 1)
        before = stream.save()
        with pytest.raises(TimeError, match="does not fit 64 bits"):
            stream.step([1, 2, 3])
        assert same_state(stream.save(), before)
