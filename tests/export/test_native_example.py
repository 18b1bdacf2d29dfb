"""The C example, built by a strict C compiler and run beside Python."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from odestream.models.config import Task
from odestream.runtime import load
from odestream.runtime.kernels import build as kernels
from tests.export.conftest import CONFIGS, Exported
from tests.export.test_native_streams import rows

STREAMING = Path(__file__).parents[1] / "helpers" / "streaming.cpp"


@pytest.fixture(scope="module")
def example(opening_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """example.c as a strict C compiler builds it, linked to the library."""
    program = tmp_path_factory.mktemp("example") / "example"
    options = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{kernels.SOURCES}"]
    compiler = shutil.which("cc") or pytest.skip("no C compiler is installed")
    command = [compiler, *options, str(kernels.SOURCES / "example.c"), str(opening_library), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run_example(program: Path, path: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), str(path)], input=text, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("task", CONFIGS)
def test_the_c_example_prints_what_python_gives(task: Task, example: Path, exported: Exported) -> None:
    path, lines, expected = exported(task)[1].path, [], []
    with load(path, "native") as model:
        stream = model.stream()
        for x, t, mask in itertools.islice(rows(task, 100, seed=7), 100):
            seen = np.ones(np.size(x), bool) if mask is None else mask
            cells = [str(value) if observed else "" for value, observed in zip(np.ravel(x), seen, strict=True)]
            lines.append(",".join([str(t), *cells]))
            output = stream.step(x, t, mask)
            expected.append((t, output.y.tolist(), output.err, output.bucket, output.flagged))
    done = run_example(example, path, "\n".join(lines) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.split(",") for line in done.stdout.splitlines()]
    assert [
        (int(t), [float(np.float32(v)) for v in y], float(err), int(bucket), flagged == "1")
        for t, *y, err, bucket, flagged in found
    ] == expected
    assert len(found) == 100


def test_the_c_example_says_what_is_wrong(example: Path, exported: Exported, tmp_path: Path) -> None:
    path = exported("forecast")[1].path
    for place, text, message in (
        (tmp_path, "", "manifest.json: cannot be read"),
        (path, "1,350\n", "not a row of 2 values: 1,350"),
        (path, "1,350,inf\n", "x is inf in channel 1"),
        (path, "2,350,1\n2,350,1\n", "t = 2 does not advance"),
    ):
        done = run_example(example, place, text)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize("task", CONFIGS)
def test_nothing_is_allocated_while_streams_run(
    task: Task, opening_library: Path, exported: Exported, tmp_path: Path
) -> None:
    program = tmp_path / "streaming"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{kernels.SOURCES}"]
    command = [kernels.find_compiler(), *options, str(STREAMING), str(opening_library), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program), str(exported(task)[1].path)], check=False, capture_output=True, text=True)
    words = done.stdout.split()
    found = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert found["allocations"] == 0 < found["earlier"], done.stderr
    assert found["steps"] > 2000
    assert min(found["split"], found["rerun"], found["refused"]) > 0
