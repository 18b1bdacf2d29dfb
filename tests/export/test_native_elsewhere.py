"""The C interface without Python: the same sources in a C++ program, here and on an emulated aarch64."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from odestream.models.config import Task
from odestream.runtime import load
from odestream.runtime.backends.native import open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.kernels.build import SOURCES, instruction_sets, json_flags, units
from odestream.runtime.kernels.configuration import native_config
from odestream.runtime.kernels.library import Config
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.native import memory_bundle
from tests.helpers.sequences import random_cell, random_inputs

REPLAY = Path(__file__).parents[1] / "helpers" / "replay.cpp"
BATCH, LENGTH, STEPS = 5, 40, 4


def write_calls(target: Path, bundle: Bundle, inputs: dict[str, np.ndarray], state: bytes) -> None:  # type: ignore[type-arg]
    """The file that replay.cpp reads."""
    config = native_config(bundle.manifest)
    parts = [bytes(config), *_arrays(config)]
    for entry in bundle.manifest.weights:
        shape = np.array([*entry.shape, 1][:2] if len(entry.shape) < 2 else entry.shape, np.int64)
        parts += [entry.name.encode(), shape.tobytes(), bundle.weights[entry.name].tobytes()]
    parts += [b"", np.int64(BATCH).tobytes(), state]
    for t in range(LENGTH):
        row = [inputs[name][t].tobytes() if name in inputs else b"" for name in ("x", "mask", "dt", "phase")]
        parts += [np.int64(STEPS).tobytes(), *row]
    target.write_bytes(b"".join(np.int64(len(part)).tobytes() + part for part in parts))


def _arrays(config: Config) -> Iterator[bytes]:
    """What the configuration's eight pointers lead to, in their order."""
    floats = {"scale": config.channels, "centre": config.channels, "average": config.averages}
    for name, length in {**floats, "frequency": config.frequencies}.items():
        yield np.array(getattr(config, name)[:length], np.float32).tobytes()
    stages = config.stages
    for name, length in {"a": stages**2, "b": stages, "c": stages, "error": stages * config.estimates}.items():
        yield np.array(getattr(config, name)[:length], np.float64).tobytes()


def compile_library(compiler: str, folder: Path, sets: dict[str, tuple[str, ...]]) -> list[str]:
    """The library's objects, to be linked into a program."""
    objects = []
    for source, name, flags in units(sets, json_flags(compiler)):
        target = folder / f"{source}{name}.o"
        subprocess.run([compiler, *flags, "-c", str(SOURCES / source), "-o", str(target)], check=True)
        objects.append(str(target))
    return objects


def compile_replay(compiler: str, folder: Path, sets: dict[str, tuple[str, ...]], *extra: str) -> Path:
    """replay.cpp with the library's sources in one program."""
    program, objects = folder / "replay", compile_library(compiler, folder, sets)
    options = ["-std=c++17", "-Wall", "-Werror", f"-I{SOURCES}", *extra]
    subprocess.run([compiler, *options, str(REPLAY), *objects, "-o", str(program)], check=True)
    return program


def replay_agrees(task: Task, command: list[str], folder: Path, limit: float) -> None:
    """Every output and state of every call, beside what this process's own library makes of them."""
    cell = random_cell(CONFIGS[task])
    bundle = memory_bundle(cell, (STEPS,))
    binding = open_engine(bundle).bind(BATCH)
    inputs = {name: value.numpy() for name, value in random_inputs(cell.config, LENGTH, BATCH).items()}
    write_calls(folder / "calls", bundle, inputs, binding.arena.tobytes())
    done = subprocess.run(
        [*command, str(folder / "calls"), str(folder / "found")], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "replayed\n"), done.stderr
    expected = []
    for t in range(LENGTH):
        for name, values in inputs.items():
            binding.inputs[name][...] = values[t]
        binding.run(str(STEPS))
        binding.swap()
        expected += [binding.flat_outputs.copy(), binding.arena.copy()]
    wanted = np.concatenate(expected)
    found = np.frombuffer((folder / "found").read_bytes(), np.float32)
    assert found.shape == wanted.shape
    assert np.abs((found - wanted) / np.maximum(np.abs(wanted), 1)).max() <= limit


@pytest.fixture(scope="module")
def program_here(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    compiler = shutil.which("g++") or pytest.skip("g++ is not installed")
    return [str(compile_replay(compiler, tmp_path_factory.mktemp("here"), instruction_sets()))]


@pytest.fixture(scope="module")
def program_on_aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    compiler = shutil.which("aarch64-linux-gnu-g++") or pytest.skip("no aarch64 compiler (g++-aarch64-linux-gnu)")
    emulator = shutil.which("qemu-aarch64") or pytest.skip("no emulator of aarch64 (qemu-user)")
    return [emulator, str(compile_replay(compiler, tmp_path_factory.mktemp("aarch64"), {"portable": ()}, "-static"))]


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("task", list(CONFIGS))
def test_a_program_gets_the_same_bits_and_a_step_allocates_nothing(
    task: Task, program_here: list[str], tmp_path: Path
) -> None:
    replay_agrees(task, program_here, tmp_path, limit=0)


@pytest.mark.slow
@pytest.mark.usefixtures("opening_library")
def test_the_c_example_streams_a_bundle_on_aarch64(
    program_on_aarch64: list[str], exported: Exported, tmp_path: Path
) -> None:
    """The emulated processor's rounding is its own; what a stream decides is the same away from ties."""
    emulator, path = program_on_aarch64[0], exported("forecast")[1].path
    compiler, linker = (shutil.which(f"aarch64-linux-gnu-{name}") for name in ("gcc", "g++"))
    assert compiler
    assert linker
    objects = compile_library(linker, tmp_path, {"portable": ()})
    program, example = str(tmp_path / "example"), str(tmp_path / "example.o")
    options = ["-std=c99", f"-I{SOURCES}", "-c", str(SOURCES / "example.c")]
    subprocess.run([compiler, *options, "-o", example], check=True)
    subprocess.run([linker, "-static", example, *objects, "-o", program], check=True)
    every = [(350 + i % 5, -1 + i % 3, 10**9 * i + i**5) for i in range(60)]
    text = "".join(f"{t},{a},{b}\n" for a, b, t in every)
    done = subprocess.run([emulator, program, str(path)], input=text, check=True, capture_output=True, text=True)
    with load(path, "native") as model:
        stream = model.stream()
        expected = [stream.step([a, b], t) for a, b, t in every]
    found = [[float(cell) for cell in line.split(",")] for line in done.stdout.splitlines()]
    assert [(row[0], row[-2], row[-1]) for row in found] == [
        (t, output.bucket, output.flagged) for (_, _, t), output in zip(every, expected, strict=True)
    ]
    np.testing.assert_allclose([row[1:5] for row in found], [output.y for output in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("task", list(CONFIGS))
def test_aarch64_agrees(task: Task, program_on_aarch64: list[str], tmp_path: Path) -> None:
    replay_agrees(task, program_on_aarch64, tmp_path, limit=1e-4)
