"""The kernels' sources: their functions against float64, and every way in which they are compiled."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from odestream.runtime import CompatError
from odestream.runtime.kernels import build as kernels
from odestream.runtime.kernels import library
from tests.helpers.tools import require

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

DRIVER = """
#include "maths.h"
using namespace odestream::portable;
#define EACH(name, f) extern "C" void name(const float* x, float* y, int n) { for (int i = 0; i < n; ++i) y[i] = f; }
static float sine(float x) { float s, c; sine_cosine(x, s, c); return s; }
static float cosine(float x) { float s, c; sine_cosine(x, s, c); return c; }
EACH(exp_, exp_of(x[i])) EACH(log_, log_of(x[i])) EACH(tanh_, tanh_of(x[i])) EACH(sigmoid_, sigmoid(x[i]))
EACH(silu_, silu(x[i])) EACH(hard_, hard_sigmoid(x[i])) EACH(decayed_, decayed(x[i]))
EACH(sine_, sine(x[i])) EACH(cosine_, cosine(x[i]))
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    try:
        return kernels.find_compiler()
    except CompatError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=sorted(kernels.instruction_sets().values()))
def maths(request: pytest.FixtureRequest, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if request.param == ("-march=x86-64-v4",) and "avx512vl" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this machine has no AVX-512")
    folder = tmp_path_factory.mktemp("maths")
    (folder / "driver.cpp").write_text(DRIVER)
    command = [
        compiler,
        *kernels.FLAGS,
        *kernels.own_flags(compiler),
        kernels.JOINED,
        *request.param,
        "-fvisibility=default",
        "-Wall",
        "-Werror",
        f"-I{kernels.SOURCES}",
    ]
    subprocess.run([*command, "-shared", str(folder / "driver.cpp"), "-o", str(folder / "driver.so")], check=True)
    return ctypes.CDLL(str(folder / "driver.so"))


def of(maths: ctypes.CDLL, name: str, x: Floats) -> Floats:
    y = np.empty_like(x)
    getattr(maths, name)(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), len(x))
    return y


def silu(x: Doubles) -> Doubles:
    return x / (1 + np.exp(-x))


# name, function in float64, low, high, largest error in units of the last place, or absolute
BOUNDS: list[tuple[str, Callable[[Doubles], Doubles], float, float, float, float]] = [
    ("exp_", np.exp, -87, 88, 2, 0),
    ("log_", np.log, 1.2e-38, 3e38, 2, 0),
    ("tanh_", np.tanh, -20, 20, 5, 3e-7),
    ("sigmoid_", lambda x: 1 / (1 + np.exp(-x)), -80, 80, 4, 0),
    ("silu_", silu, -80, 80, 4, 0),
    ("hard_", lambda x: np.clip(1.2 / (1 + np.exp(-x)) - 0.1, 0, 1), -20, 20, 0, 2e-7),
    ("decayed_", lambda x: -np.expm1(-x), 0, 50, 5, 0),
    ("sine_", np.sin, -7000, 7000, 0, 6e-8),
    ("cosine_", np.cos, -1e9, 1e9, 0, 6e-8),
]


@pytest.mark.parametrize(("name", "exact", "low", "high", "places", "absolute"), BOUNDS, ids=[b[0] for b in BOUNDS])
def test_functions_stay_within_their_stated_errors(
    name: str,
    exact: Callable[[Doubles], Doubles],
    low: float,
    high: float,
    places: float,
    absolute: float,
    maths: ctypes.CDLL,
) -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(low, high, 200_000)
    near_zero = np.exp(rng.uniform(-40, 0, 100_000)) * rng.choice([-1, 1], 100_000)
    x = np.clip(np.concatenate([spread, near_zero, np.geomspace(1e-30, 1e30, 50_000)]), low, high).astype(np.float32)
    wanted, found = exact(x.astype(np.float64)), of(maths, name, x).astype(np.float64)
    error = np.abs(found - wanted)
    units = error / np.spacing(np.maximum(np.abs(wanted), 1.2e-38).astype(np.float32))
    assert units.max() <= (places or np.inf), x[units.argmax()]
    assert error.max() <= (absolute or np.inf), x[error.argmax()]


def test_functions_keep_what_is_not_finite_and_what_is_exact(maths: ctypes.CDLL) -> None:
    nan = np.full(40, np.nan, np.float32)
    for name, *_ in BOUNDS:
        assert np.isnan(of(maths, name, nan)).all(), name
    for name, x, y in [
        ("exp_", 0.0, 1.0),
        ("exp_", -0.0, 1.0),
        ("log_", 1.0, 0.0),
        ("log_", np.inf, np.inf),
        ("log_", 0.0, -np.inf),
        ("tanh_", -0.0, -0.0),
        ("hard_", 4.0, 1.0),
        ("hard_", -4.0, 0.0),
        ("decayed_", 0.0, 0.0),
    ]:
        found = of(maths, name, np.full(40, x, np.float32))
        assert found.tobytes() == np.full(40, y, np.float32).tobytes(), (name, x)
    assert np.isnan(of(maths, "log_", np.full(40, -1.0, np.float32))).all()
    assert np.isnan(of(maths, "sine_", np.full(40, np.inf, np.float32))).all()


def test_cmake_compiles_with_the_same_flags() -> None:
    text = (kernels.SOURCES / "CMakeLists.txt").read_text()
    flags = set(kernels.FLAGS) - {"-std=c++17", "-fPIC", "-fvisibility=hidden"}
    assert f"step_${{name}} PRIVATE ${{ODESTREAM_FLAGS}} {kernels.JOINED} " in text
    assert f"odestream PRIVATE ${{ODESTREAM_FLAGS}} {kernels.EXACT})" in text
    assert f"SHARED {' '.join(kernels.PLAIN)})" in text
    for sources in (kernels.WITH_JSON, kernels.WITHOUT_JSON):
        assert f"target_sources(odestream PRIVATE {' '.join(sources)})" in text
    assert flags == set(re.search(r"ODESTREAM_FLAGS (.*)\)", text)[1].split())  # type: ignore[index]
    gcc = f"list(APPEND ODESTREAM_FLAGS {' '.join(kernels.GCC_FLAGS)})"
    assert f'if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")\n  {gcc}\nendif()' in text
    for setting in ("CXX_STANDARD 17", "POSITION_INDEPENDENT_CODE ON", "CXX_VISIBILITY_PRESET hidden"):
        assert setting in text
    for name, extra in kernels.instruction_sets().items():
        assert f"add_step({' '.join([name, *extra])})" in text


@pytest.mark.parametrize(
    ("macros", "expected"), [("__GNUC__ 12", kernels.GCC_FLAGS), ("__GNUC__ 4\n#define __clang__ 1", ()), ("_X 1", ())]
)
def test_only_gcc_is_given_the_flags_that_only_gcc_knows(
    macros: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\ncat <<END\n#define {macros}\nEND\n")
    compiler.chmod(0o755)
    assert kernels.own_flags(str(compiler)) == expected


def test_the_compiler_takes_all_flags_without_a_warning(compiler: str) -> None:
    flags = (*kernels.FLAGS, *kernels.own_flags(compiler), kernels.JOINED, "-Werror")
    subprocess.run([compiler, *flags, "-x", "c++", "-fsyntax-only", "/dev/null"], check=True)


def test_python_and_the_header_agree_on_the_interface(compiler: str, tmp_path: Path) -> None:
    """Sizes and places of every struct field, as the compiler lays them out."""
    structs = {
        "config": library.Config,
        "weight": library.Weight,
        "call": library.Call,
        "solving": library.Solving,
        "output": library.Given,
        "progress": library.Progress,
    }
    lines = [f'printf("%zu ", sizeof(odestream_{name}));' for name in structs]
    expected = [ctypes.sizeof(struct) for struct in structs.values()]
    for name, struct in structs.items():
        for field in struct._fields_:
            lines.append(f'printf("%zu ", offsetof(odestream_{name}, {field[0]}));')
            expected.append(getattr(struct, field[0]).offset)
    lines.append('printf("%d ", ODESTREAM_ABI);')
    source, program = tmp_path / "layout.cpp", tmp_path / "layout"
    source.write_text('#include <cstdio>\n#include "odestream.h"\nint main() {' + "\n".join(lines) + "}")
    subprocess.run([compiler, f"-I{kernels.SOURCES}", str(source), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert [int(number) for number in found.split()] == [*expected, library.ABI]


def test_the_header_is_plain_c(tmp_path: Path) -> None:
    gcc = require("gcc")
    header = str(kernels.SOURCES / "odestream.h")
    subprocess.run(
        [gcc, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-xc", "-fsyntax-only", header], check=True
    )


def test_the_sources_compile_without_a_warning_and_share_no_function_between_instruction_sets(
    compiler: str, tmp_path: Path
) -> None:
    """A weak symbol of one object may replace that of another, which this machine may not be able to run."""
    kernels.compile_library(compiler, tmp_path, ("-O0", "-Wall", "-Wextra", "-Wshadow", "-Werror"))
    nm = require("nm")
    objects = sorted(tmp_path.glob("cpu_step*.o"))
    assert len(objects) == len(kernels.instruction_sets())
    for path in objects:
        listed = subprocess.run([nm, "-C", str(path)], check=True, capture_output=True, text=True).stdout
        own = path.stem.removeprefix("cpu_step")
        weak = [line for line in listed.splitlines() if re.search(r" [WVu] ", line)]
        assert [line for line in weak if f"odestream::{own}::" not in line] == []


@pytest.mark.slow
def test_cmake_builds_and_installs_what_a_c_program_finds(tmp_path: Path) -> None:
    cmake, gcc = require("cmake"), require("gcc")
    program, installed = tmp_path / "program", tmp_path / "installed"
    program.mkdir()
    (program / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(program C)\nfind_package(odestream 0.1 REQUIRED)\n"
        "add_executable(program main.c)\ntarget_link_libraries(program odestream::odestream)\n"
        f"add_executable(example {kernels.SOURCES}/example.c)\ntarget_link_libraries(example odestream::odestream)\n"
    )
    (program / "main.c").write_text(
        '#include <odestream.h>\n#include <stdio.h>\nint main(void) { printf("%d\\n", odestream_abi()); return 0; }\n'
    )
    json = kernels.json_flags(kernels.find_compiler())
    options = [f"-DODESTREAM_JSON={json[1]}"] if json else []
    for command in (
        [cmake, "-S", str(kernels.SOURCES), "-B", str(tmp_path / "build"), *options],
        [cmake, "--build", str(tmp_path / "build")],
        [cmake, "--install", str(tmp_path / "build"), "--prefix", str(installed)],
        [
            cmake,
            "-S",
            str(program),
            "-B",
            str(program / "b"),
            f"-DCMAKE_PREFIX_PATH={installed}",
            f"-DCMAKE_C_COMPILER={gcc}",
        ],
        [cmake, "--build", str(program / "b")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([str(program / "b" / "program")], check=True, capture_output=True, text=True)
    assert int(done.stdout) == library.ABI
    refused = subprocess.run([str(program / "b" / "example"), "nowhere"], check=False, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr[:37]) == (2, "open: nowhere: not a bundle directory")


@pytest.mark.slow
def test_a_library_built_without_json_streams_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "json_flags", lambda compiler: None)
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(kernels.build(tmp_path)))
    built = library.load_library()
    assert hasattr(built, "odestream_stream_step")
    model = ctypes.c_void_p()
    assert built.odestream_open(str(tmp_path).encode(), ctypes.byref(model)) != 0
    assert "manifest.json: cannot be read" in built.odestream_last_error().decode()
    (tmp_path / "manifest.json").write_text("{}")
    assert built.odestream_open(str(tmp_path).encode(), ctypes.byref(model)) != 0
    assert "without JSON; install nlohmann-json" in built.odestream_last_error().decode()
