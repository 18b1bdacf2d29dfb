"""`odestream verify`: passes a true bundle, fails a false one, hands `--run` to the layer that has the framework."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import VECTORS_NAME, FileEntry, ParityRow, decode_manifest, encode_manifest
from tests.helpers.tiny_bundle import Tiny, write_tiny

WRONG = ParityRow("chained", 4, "h", 1000, 3e-3, 1e-5)
RIGHT = ParityRow("chained", 4, "y", 1000, 3e-7, 1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("verify") / "bundle")


def register(monkeypatch: pytest.MonkeyPatch, *comparisons: Callable[..., object]) -> None:
    """Make these the comparisons that other layers registered."""
    entries = [SimpleNamespace(load=lambda c=comparison: c) for comparison in comparisons]
    monkeypatch.setattr("odestream.runtime.verbs.verify.entry_points", lambda **_: entries)


def verify(bundle: Path, *options: str | Path) -> int:
    return main(["verify", str(bundle), *map(str, options)])


def test_true_bundle_passes_and_every_tensor_is_reported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(bundle, "--json", tmp_path / "report.json") == 0
    assert "all 5 tensors are within their tolerance" in capsys.readouterr().out
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["tensor"] for row in rows} == {"y", "err", "gates", "h", "n"}


def test_bundle_that_computes_something_else_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another model's answers, hashed as if they were its own."""
    bundle = write_tiny(tmp_path / "bundle")
    answers = (write_tiny(tmp_path / "other", Tiny(gain=0.6)) / VECTORS_NAME).read_bytes()
    (bundle / VECTORS_NAME).write_bytes(answers)
    manifest = decode_manifest((bundle / "manifest.json").read_bytes(), "bundle")
    files = manifest.files | {VECTORS_NAME: FileEntry(hashlib.sha256(answers).hexdigest(), len(answers))}
    (bundle / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    assert verify(bundle) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "tensors are wrong; export the bundle again" in out


def test_report_holds_every_row_and_the_machine(bundle: Path, tmp_path: Path) -> None:
    assert verify(bundle, "--steps", "5", "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert {row["tensor"] for row in report["rows"]} == {"y", "err", "gates", "h", "n"}
    assert {row["steps"] for row in report["rows"]} == {5}
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["onnxruntime"]


def test_report_that_exists_is_replaced_only_with_force(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("older")
    assert verify(bundle, "--json", tmp_path / "report.json") == 2
    assert (tmp_path / "report.json").read_text() == "older"
    assert verify(bundle, "--json", tmp_path / "report.json", "--force") == 0


def test_run_is_compared_by_the_registered_framework(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[object, ...]] = []

    def compare(*arguments: object, **options: object) -> tuple[ParityRow, ...]:
        called.append((*arguments, options))
        return (RIGHT,)

    register(monkeypatch, compare)
    assert verify(bundle, "--run", tmp_path, "--steps", "7") == 0
    assert called == [(bundle, tmp_path, {"steps": 7, "backend": "onnxruntime"})]


def test_difference_fails_and_is_marked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch, lambda *_, **__: (RIGHT, WRONG))
    assert verify(bundle, "--run", tmp_path, "--json", tmp_path / "report.json") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.strip().startswith("chained")] == ["WRONG"]
    assert "1 of 2 tensors are wrong; export the bundle again" in lines[-1]
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False


def test_error_that_is_infinite_is_valid_json(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, lambda *_, **__: (ParityRow("chained", 4, "h", 9, float("inf"), 1e-5),))
    assert verify(bundle, "--run", tmp_path, "--json", tmp_path / "report.json") == 1
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["error"] is None


def test_run_without_the_training_extra_names_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch)
    assert verify(bundle, "--run", tmp_path) == 2
    assert capsys.readouterr().err.endswith("; pip install 'odestream[train]'\n")
