"""The folder of engines that a command names, on a scripted GPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import CompatError, load
from odestream.runtime.bundle import read_bundle
from odestream.runtime.cli import main
from tests.helpers import scripted_gpu as scripted
from tests.helpers.run_verb import ROWS, refusal, run, write_table


def test_run_and_verify_find_engines_where_they_are_told(
    script: scripted.Script, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "elsewhere", write_table(tmp_path / "rows.csv", ROWS)
    scripted.write_engines(read_bundle(tiny_path), folder)
    told = ("--backend", "tensorrt", "--engines", folder)
    assert run(tiny_path, table, "--output", tmp_path / "gpu.csv", *told) == 0
    assert script.graphs > 0
    assert run(tiny_path, table, "--output", tmp_path / "cpu.csv", "--backend", "onnxruntime") == 0
    found, expected = (np.genfromtxt(tmp_path / f"{name}.csv", delimiter=",", skip_header=1) for name in ("gpu", "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert main(["verify", str(tiny_path), *map(str, told)]) == 0
    capsys.readouterr()
    assert run(tiny_path, table, "--backend", "tensorrt") == 2  # they lie nowhere else
    assert "no engine; run odestream compile" in refusal(capsys)


@pytest.mark.parametrize("verb", [["run", "--input", "-"], ["verify"], ["bench", "--compare", "native,onnxruntime"]])
def test_engines_for_a_backend_that_uses_none_are_refused(
    verb: list[str], tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, str(tiny_path), "--engines", "x"]) == 2
    assert re.search(r"--engines x is for tensorrt, not .*; add --backend tensorrt", refusal(capsys))


def test_missing_engines_are_built_into_the_folder_that_was_named(
    script: scripted.Script, tiny_path: Path, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    with pytest.raises(CompatError, match=rf"{named}: no engine; .* --target tensorrt --out {named}"):
        load(tiny_path, "tensorrt", engines=named)
    scripted.write_engines(read_bundle(tiny_path), named, version="9.9")
    with pytest.raises(CompatError, match=rf"fits here .* --target trt-rtx --out {named}"):
        load(tiny_path, "tensorrt", engines=named)
