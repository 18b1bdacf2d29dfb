"""Calls of `odestream run` on tables written for the tiny bundle."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec, decode_manifest, encode_manifest

ROWS = ["time,c0,c1,c2", "0,1,2,3", "0.5,-1,,3", "0.75,,,", "2,1,1.5,1e1", "2.125,3,4,5", "3,,1,"]


def write_table(path: Path, rows: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


def with_task(bundle: Path, task: TaskSpec) -> Path:
    """The bundle, changed to another task over the same step."""
    manifest = bundle / "manifest.json"
    changed = msgspec.structs.replace(decode_manifest(manifest.read_bytes(), "bundle"), task=task)
    manifest.write_bytes(encode_manifest(changed))
    return bundle


def run(bundle: Path, table: Path, *options: str | Path) -> int:
    return main(["run", str(bundle), "--input", str(table), *map(str, options)])


def files_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a refused call."""
    captured = capsys.readouterr()
    assert captured.err.startswith("odestream: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removesuffix("\n")
