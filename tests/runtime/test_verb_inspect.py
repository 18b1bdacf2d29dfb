"""`odestream inspect`: shows what is there, checked; a snapshot is read without its bundle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from odestream.runtime import load
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import (
    Calibration,
    CoverageRow,
    ParityRow,
    TimeSpec,
    decode_manifest,
    encode_manifest,
)
from odestream.runtime.verbs.memories import describe_members
from tests.helpers.adaptive import ADAPTIVE, bursts
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
    for fact in (
        "forecast: c0, c1, c2",
        "dates, ticks of 1e-09 s",
        "heun21, 1, 4 steps",
        "[B, 16, 32]",
        "step.n4.onnx",
    ):
        assert fact in out


def calibrated(bundle: Path, calibration: Calibration | None, factor: float) -> Path:
    """The bundle with another record of its calibration, and two rows of parity a check."""
    manifest = decode_manifest((bundle / "manifest.json").read_bytes(), "bundle")
    assert manifest.solver is not None
    solver = msgspec.structs.replace(manifest.solver, safety_factor=factor, calibration=calibration)
    parity = tuple(
        ParityRow(check, bucket, tensor, 10, error, tolerance)
        for check in ("one call", "chained")
        for bucket, tensor, error, tolerance in ((1, "y", 3e-6, 1e-5), (4, "h", 2e-6, 1e-5), (4, "err", 1e-4, 1e-3))
    )
    changed = msgspec.structs.replace(manifest, solver=solver, parity=parity)
    (bundle / "manifest.json").write_bytes(encode_manifest(changed))
    return bundle


COVERAGE = (
    CoverageRow("streams", 2000, 20, 1970, 1.25, 3.5, {"1": 1500, "4": 480}, {"1": 30, "4": 0}, 5.5),
    CoverageRow("bursts", 100, 100, 0, 0.0, 9.75, {"1": 0, "4": 100}, {"1": 100, "4": 0}, 17.0),
)


@pytest.mark.parametrize("reached", [True, False])
def test_calibration_is_told_in_words_and_counts(
    reached: bool, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = Calibration(0.99, 0.95, reached, "a reference", "held-out", 4321, COVERAGE)
    assert main(["inspect", str(calibrated(bundle, found, 0.42))]) == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    for fact in (
        "safety factor 0.42 of the tolerance; above it a result is run again, split, then flagged",
        "99 % of unflagged results within tolerance of a reference (95 % confidence, 4,321 calls, held-out); "
        + ("reached" if reached else "NOT reached"),
        "streams 2,000 20 1,970 of 1,980 (99.49 %) 1.25 3.5 5.5 1: 1,530, 4: 480",
        "bursts 100 100 none unflagged 0 9.75 17 1: 100, 4: 100",
    ):
        assert fact in out


def test_parity_is_reduced_to_what_came_nearest_to_its_tolerance(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3e-6 of 1e-5 is nearer than 1e-4 of 1e-3."""
    assert main(["inspect", str(calibrated(bundle, None, 1.0))]) == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    assert "calibration none: nothing is promised of results that are not flagged" in out
    for check in ("one call", "chained"):
        assert f"{check} y 10 3.0e-06 1e-05" in out
    assert "1e-03" not in out


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
    assert (south["rerun"], south["buckets"], south["previous"]) == (0, {"1": 0, "4": 0}, None)
    assert next(m for m in south["members"] if m["name"] == "es")["holds"] == "none of 32 places filled"


def test_counters_of_a_snapshot_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(write_tiny(tmp_path / "bundle", ADAPTIVE)) as model:
        stream = model.stream()
        stream.steps(*bursts(150))
        (tmp_path / "snap").write_bytes(stream.snapshot())
        counters, previous = stream.counters, stream.save().previous
    assert previous is not None
    assert main(["inspect", str(tmp_path / "snap")]) == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    calls = ", ".join(f"{n}: {k + counters.rejected[n]}" for n, k in counters.buckets.items())
    assert f"150 {counters.rerun} {counters.split} {counters.flagged} {calls}" in out
    assert main(["inspect", str(tmp_path / "snap"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["streams"]
    assert (told["buckets"], told["rejected"]) == (counters.buckets, counters.rejected)
    assert told["previous"] == previous._asdict()


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
