"""`odestream inspect`: shows what is there, checked; a snapshot is read without its bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import load
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.verbs.memories import describe_members
from tests.helpers.tiny_bundle import NANO_MEMBERS, Tiny, write_tiny

ISO = TimeSpec("iso", "s", 10**9, 1e-9, 1e9)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "bundle", Tiny(time=ISO, members=NANO_MEMBERS))


@pytest.fixture
def snapshot(bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "streams.snapshot"
    with load(bundle) as model:
        streams = {"north": model.stream(), "south": model.stream()}
        streams["north"].step(np.ones(3, np.float32), t=951_782_400 * 10**9)
        path.write_bytes(model.snapshot_streams(streams))
    return path


def test_bundle_is_described(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    for fact in ("forecast: c0, c1, c2", "dates, ticks of 1e-09 s", "euler, 1, 4 steps", "[B, 16, 32]", "step.n4.onnx"):
        assert fact in out


def test_bundle_as_json_is_its_manifest(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((bundle / "manifest.json").read_text())


def test_snapshot_is_described_without_its_bundle(
    bundle: Path, snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(bundle)
    assert main(["inspect", str(snapshot)]) == 0
    out = capsys.readouterr().out
    for fact in ("of model tiny", "2000-02-29T00:00:00Z", "State of north", "State of south", "32 of 32 places filled"):
        assert fact in out
    assert main(["inspect", str(snapshot), "--json"]) == 0
    north, south = json.loads(capsys.readouterr().out)["streams"]
    assert (north["name"], north["time"], north["tick"], north["steps"]) == (
        "north",
        "2000-02-29T00:00:00Z",
        951_782_400 * 10**9,
        1,
    )
    assert (south["time"], south["steps"]) == (None, 0)
    assert next(m for m in south["members"] if m["name"] == "es")["holds"] == "none of 32 places filled"


def test_many_streams_are_listed_and_a_few_shown(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(bundle) as model:
        blob = model.snapshot_streams({f"stream {i}": model.stream() for i in range(12)})
    (tmp_path / "many").write_bytes(blob)
    assert main(["inspect", str(tmp_path / "many")]) == 0
    out = capsys.readouterr().out
    assert out.count("State of") == 8
    assert "The states of 4 more streams" in out


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_damaged_snapshot_is_refused(
    damage: Callable[[bytes], bytes], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot.write_bytes(damage(snapshot.read_bytes()))
    assert main(["inspect", str(snapshot)]) == 2
    err = capsys.readouterr().err
    assert str(snapshot) in err
    assert "; use " in err


def test_damaged_bundle_or_absent_path_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "MODEL_CARD.md").write_text("another card")
    assert main(["inspect", str(bundle)]) == 2
    assert "MODEL_CARD.md" in capsys.readouterr().err
    assert main(["inspect", str(bundle / "absent")]) == 2
    assert "; name a snapshot file" in capsys.readouterr().err


def test_memories_are_counted_by_their_strengths() -> None:
    members = {
        "es": np.array([0.0, 0.5, 0.9, 0.0], np.float32),
        "ea": np.array([7.0, 1.0, 2.0, 9.0], np.float32),
        "m": np.array([[[3.0, 4.0]], [[0.0, 0.0]]], np.float32),
        "h": np.array([-1.0, 2.0], np.float32),
    }
    told = {member["name"]: member for member in describe_members(members)}
    assert told["es"]["holds"] == "2 of 4 places filled, strengths 0.5 to 0.9"
    assert told["ea"]["holds"] == "ages 1 to 2 model units"
    assert told["m"]["holds"] == "norm of each head 5, 0"
    assert (told["h"]["min"], told["h"]["max"], told["h"]["holds"]) == (-1.0, 2.0, "")
