"""Calls of `odestream run` on tables written for the tiny bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from odestream.runtime.cli import main

ROWS = ["time,c0,c1,c2", "0,1,2,3", "0.5,-1,,3", "0.75,,,", "2,1,1.5,1e1", "2.125,3,4,5", "3,,1,"]


def write_table(path: Path, rows: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


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
