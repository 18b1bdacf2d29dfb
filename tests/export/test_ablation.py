"""Cells with parts switched off export as whole ones do: same graphs, other weights."""

from __future__ import annotations

from pathlib import Path

from odestream.export import export_bundle
from odestream.models.config import PARTS
from odestream.runtime import load
from odestream.runtime.replay import failures
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell


def test_a_cell_without_parts_exports_with_parity_and_streams(tmp_path: Path) -> None:
    cell = random_cell(tiny_config("classify", frequencies=(), averages=(), without=PARTS))
    manifest = export_bundle(cell, tmp_path / "bundle", buckets=(1, 2), verify_steps=50)
    assert not failures(list(manifest.parity))
    assert tuple(manifest.config["without"]) == PARTS
    with load(tmp_path / "bundle", backend="onnxruntime") as model:
        stream = model.stream()
        stream.step([350.0, -2.0], 0)
        before = stream.state()["h"]
        out = stream.step([350.0, -2.0], 10**9, mask=[0, 0])
        assert out.err == 0
        assert stream.state()["h"].tobytes() == before.tobytes()
