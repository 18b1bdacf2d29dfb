import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime import Model, SnapshotError, load, restore
from odestream.runtime.snapshot import MAGIC, read_contents
from tests.helpers.streams import forged
from tests.helpers.tiny_bundle import Tiny, write_tiny


def rows(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.integers(1, 2 * 10**9, count)) + seed * 10**12
    return rng.normal(size=(count, 3)).astype(np.float32), t, (rng.random((count, 3)) > 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def blob(model: Model) -> bytes:
    stream = model.stream()
    stream.steps(*rows(20))
    return stream.snapshot()


def test_a_restored_stream_continues_bit_for_bit(model: Model) -> None:
    stream = model.stream()
    stream.steps(*rows(50))
    twin = model.restore(stream.snapshot())
    assert twin.counters == stream.counters
    assert twin.last_tick == stream.last_tick
    ours, theirs = stream.steps(*rows(50, seed=1)), twin.steps(*rows(50, seed=1))
    assert [a.y.tobytes() for a in ours] == [b.y.tobytes() for b in theirs]
    assert stream.snapshot() == twin.snapshot()


@pytest.mark.parametrize("tick", [-(1 << 63), -5, 0, (1 << 63) - 1])
def test_any_64_bit_time_can_be_saved(model: Model, tick: int) -> None:
    stream = model.stream()
    stream.step([1, 2, 3], tick)
    assert model.restore(stream.snapshot()).last_tick == tick


def test_a_stream_before_its_first_observation_can_be_saved(model: Model) -> None:
    fresh = model.restore(model.stream().snapshot())
    assert fresh.last_tick is None
    assert fresh.step([1, 2, 3], 0).y.tobytes() == model.stream().step([1, 2, 3], 0).y.tobytes()


def test_a_new_process_continues_bit_for_bit(tiny_path: Path, tmp_path: Path) -> None:
    with load(tiny_path) as model:
        stream = model.stream()
        stream.steps(*rows(30))
        (tmp_path / "stream.snapshot").write_bytes(stream.snapshot())
        x, t, mask = rows(30, seed=1)
        np.savez(tmp_path / "rows.npz", x=x, t=t, mask=mask)
        expected = b"".join(out.y.tobytes() for out in stream.steps(x, t, mask)) + stream.snapshot()
    code = (
        "import sys, hashlib, pathlib, numpy as np; from odestream.runtime import restore\n"
        "here = pathlib.Path(sys.argv[1]); rows = np.load(here / 'rows.npz')\n"
        "stream = restore(here / 'stream.snapshot', sys.argv[2])\n"
        "outs = stream.steps(rows['x'], rows['t'], rows['mask'])\n"
        "data = b''.join(out.y.tobytes() for out in outs) + stream.snapshot()\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tiny_path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == hashlib.sha256(expected).hexdigest()


def test_many_streams_come_back_under_their_names_in_order(model: Model) -> None:
    streams = {name: model.stream() for name in ("pump 2", "pump 1", "ä/..")}
    for seed, stream in enumerate(streams.values()):
        stream.steps(*rows(5 + seed, seed))
    blob = model.snapshot_streams(streams)
    back = model.restore_streams(blob)
    assert list(back) == list(streams)
    for name, stream in streams.items():
        assert back[name].counters == stream.counters
        assert back[name].last_tick == stream.last_tick
        assert back[name].save().arena.tobytes() == stream.save().arena.tobytes()
    with pytest.raises(SnapshotError, match="holds 3 streams .* use restore_streams$"):
        model.restore(blob)


def test_info_tells_what_a_snapshot_holds_without_the_model(blob: bytes, model: Model) -> None:
    info, members = read_contents(blob)
    assert (info.identity, info.time) == (model.manifest.identity, model.manifest.time)
    assert {name: value.shape for name, value in members.items()} == {"h": (1, 3), "n": (1, 2)}
    assert [(s.name, s.steps) for s in info.streams] == [("", 20)]


def test_every_truncation_is_refused(blob: bytes, model: Model) -> None:
    for length in range(len(blob)):
        with pytest.raises(SnapshotError):
            model.restore(blob[:length])
    with pytest.raises(SnapshotError):
        model.restore(blob + b"\0")


@given(data=st.data())
def test_every_flipped_bit_is_refused(blob: bytes, model: Model, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 8 * len(blob) - 1))
    flipped = bytearray(blob)
    flipped[place // 8] ^= 1 << place % 8
    with pytest.raises(SnapshotError):
        model.restore(bytes(flipped))


def test_another_model_s_snapshot_names_both(blob: bytes, model: Model, tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "other", Tiny(seed=5, name="other"))) as other:
        ours, theirs = model.manifest.identity[:12], other.manifest.identity[:12]
        remedy = "or give this one its memory from an input log: odestream replay LOG --bundle BUNDLE --snapshot FILE$"
        names = rf"made by model {ours} \({model.manifest.name}\), this bundle is {theirs} \(other\), another model"
        with pytest.raises(SnapshotError, match=f"{names}; .*, {remedy}"):
            other.restore(blob)
        with pytest.raises(SnapshotError, match="streams a belong to another model"):
            model.snapshot_streams({"a": other.stream()})


def test_a_snapshot_outlives_a_re_export_with_other_buckets(blob: bytes, tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(buckets=(2, 4)))) as exported_again:
        stream = exported_again.restore(blob)
        assert stream.counters.steps == 20
        assert stream.counters.buckets == {"2": 0, "4": 0}
        stream.step([1, 2, 3], 10**12)


FORGERIES: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any], str]] = [
    ("schema", lambda t, i: i.update(schema=2), "schema 2, this odestream reads 1"),
    ("older schema", lambda t, i: i.update(schema=0), "schema 0, this odestream reads 1"),
    ("unknown field", lambda t, i: i.update(more=1), "unknown field"),
    ("other ticks", lambda t, i: i["time"].update(ticks_per_model_unit=1.0), "its ticks are"),
    ("no streams", lambda t, i: i.update(streams=[]), "are empty or repeat"),
    ("same names", lambda t, i: i.update(streams=i["streams"] * 2), "repeat"),
    ("tick text", lambda t, i: i["streams"][0].update(last_tick="1"), "last_tick"),
    ("tick float", lambda t, i: i["streams"][0].update(last_tick=1.5), "last_tick"),
    ("tick wide", lambda t, i: i["streams"][0].update(last_tick=1 << 63), "last_tick"),
    ("tick low", lambda t, i: i["streams"][0].update(last_tick=-(1 << 63) - 1), "last_tick"),
    ("err negative", lambda t, i: i["streams"][0]["previous"].update(err=-0.5), "err"),
    ("gap of nothing", lambda t, i: i["streams"][0]["previous"].update(gap=0), "gap"),
    ("no solver steps", lambda t, i: i["streams"][0]["previous"].update(steps=0), "steps"),
    ("held text", lambda t, i: i["streams"][0].update(held=["1"]), "held"),
    ("steps negative", lambda t, i: i["streams"][0].update(steps=-1), "steps"),
    ("bucket negative", lambda t, i: i["streams"][0]["buckets"].update({"1": -4}), "buckets"),
    ("member missing", lambda t, i: t.pop("n"), "state members are"),
    ("member extra", lambda t, i: t.update(z=t["n"]), "state members are"),
    ("members swapped", lambda t, i: t.update(n=t["h"], h=t["n"]), "state members are"),
    ("dtype", lambda t, i: t.update(n=t["n"].astype(np.int64)), "int64"),
    ("rows", lambda t, i: t.update(n=np.repeat(t["n"], 2, 0)), "state members are"),
    ("nan", lambda t, i: t["h"].fill(np.nan), "state h is not finite"),
]


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_content_that_does_not_fit_is_refused_although_the_digest_is_right(
    blob: bytes, model: Model, change: Callable[[dict[str, Any], dict[str, Any]], Any], message: str
) -> None:
    assert forged(blob, lambda tensors, info: None) == blob
    with pytest.raises(SnapshotError, match=message):
        model.restore(forged(blob, change))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a snapshot"),
        (b"PK\x03\x04", "not a snapshot"),
        (b"odestream-snapshot-2\n" + hashlib.sha256(b"x").digest() + b"x", "version '2', this odestream reads 1"),
        (b"odestream-snapshot-2\n" + bytes(100), "sha256 differs"),
        (b"odestream-snapshot-1" + bytes(100), "sha256 differs"),
        (MAGIC + hashlib.sha256(b"").digest(), "not safetensors"),
        (MAGIC + hashlib.sha256(b"junk" * 9).digest() + b"junk" * 9, "not safetensors"),
    ],
)
def test_other_bytes_are_refused_with_what_they_are(model: Model, data: bytes, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        model.restore(data)


def test_restore_opens_files_and_says_when_it_cannot(tiny_path: Path, tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        restore(tmp_path / "none", tiny_path)
    (tmp_path / "s").write_bytes(blob)
    stream = restore(str(tmp_path / "s"), tiny_path)
    assert stream.counters.steps == 20
    stream.model.close()


def test_saving_no_streams_is_refused(model: Model) -> None:
    with pytest.raises(SnapshotError, match="no streams to save"):
        model.snapshot_streams({})
