"""The CUDA library: every way in which it is compiled, and what it and the commands say where there is no GPU."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from pathlib import Path

import pytest

from odestream.runtime import CompatError, load
from odestream.runtime.cli import main
from odestream.runtime.kernels import build, build_cuda, cuda_library, places
from odestream.runtime.verbs import doctor
from tests.helpers.tools import require

BOARD = {"jetson": None, "nvidia_driver": "NVRM version"}
STRICT = ("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra")


@pytest.fixture(scope="module")
def nvcc() -> str:
    try:
        return build_cuda.find_nvcc()
    except CompatError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "BESIDE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cuda_library.CUDA_LIBRARY_VARIABLE, raising=False)


def test_nvcc_reads_the_sources_without_a_warning(nvcc: str, tmp_path: Path) -> None:
    """Without optimising, which is what takes long."""
    quick = ("-O0", "-arch=compute_80", "-Xcicc=-O0", "-ptx", *STRICT)
    build_cuda.compile_cuda(tmp_path / "step.ptx", quick, ("cuda_step.cu",))
    text = (tmp_path / "step.ptx").read_text()
    entries = re.findall(
        r"\.entry \S*?(step|flow|memory|pack)_kernel(?:I(f|6__half|13__nv_bfloat16)(?:Li(\d)E)?)", text
    )
    types = ("f", "6__half", "13__nv_bfloat16")
    whole = {(part, kind, rows) for part in ("step", "flow", "memory") for kind in types for rows in ("1", "4")}
    assert {tuple(entry) for entry in entries} == whole | {("pack", kind, "") for kind in types}


def test_python_and_the_header_agree_on_the_interface(tmp_path: Path) -> None:
    structs = {"device": cuda_library.DeviceInfo, "buffers": cuda_library.Buffers}
    lines, expected = [], []
    for name, struct in structs.items():
        lines.append(f'printf("%zu ", sizeof(odestream_cuda_{name}));')
        expected.append(ctypes.sizeof(struct))
        for field in struct._fields_:
            lines.append(f'printf("%zu ", offsetof(odestream_cuda_{name}, {field[0]}));')
            expected.append(getattr(struct, field[0]).offset)
    lines += [f'printf("%d ", ODESTREAM_CUDA_{name.upper()});' for name in cuda_library.PRECISIONS]
    lines.append('printf("%d ", ODESTREAM_CUDA_ABI);')
    expected += [*cuda_library.PRECISIONS.values(), cuda_library.CUDA_ABI]
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "odestream_cuda.h"\nint main(void) {'
        + "\n".join(lines)
        + "}"
    )
    plain = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{build.SOURCES}")
    subprocess.run([require("gcc"), *plain, str(source), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert [int(number) for number in found.split()] == expected


def test_every_function_of_the_header_is_declared_in_python() -> None:
    text = (build.SOURCES / "odestream_cuda.h").read_text()
    named = set(re.findall(r"ODESTREAM_API [^(]*?(odestream_cuda_\w+)\(", text))
    declared = set(re.findall(r'^        "(\w+)": \(', Path(cuda_library.__file__).read_text(), re.MULTILINE))
    assert {name.removeprefix("odestream_cuda_") for name in named} == declared | {"abi"}


def test_cmake_builds_the_same_sources_for_the_same_gpus() -> None:
    text = (build.SOURCES / "CMakeLists.txt").read_text()
    assert f"add_library(odestream_cuda SHARED {' '.join(build_cuda.CUDA_SOURCES)})" in text
    named = re.findall(r"CMAKE_CUDA_ARCHITECTURES ([\d ]+)\)", text)
    assert " ".join(named).split() == list(build_cuda.ARCHITECTURES)
    assert f"SOVERSION {cuda_library.CUDA_ABI})" in text


def test_only_gpus_that_nvcc_knows_are_built_for(tmp_path: Path) -> None:
    old, strange = tmp_path / "old", tmp_path / "strange"
    old.write_text("#!/bin/sh\n[ $1 = --list-gpu-arch ] && printf 'compute_%s\\n' 75 80 86 87 89 90 90a\n")
    strange.write_text("#!/bin/sh\nexit 1\n")
    for file in (old, strange):
        file.chmod(0o755)
    assert build_cuda.known_architectures(str(old)) == ("80", "87", "89", "90")
    with pytest.raises(CompatError, match="lists none of 80, 87, .*; install the CUDA toolkit, 12 or later"):
        build_cuda.known_architectures(str(strange))


def test_each_source_is_told_before_nvcc_has_it_and_all_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a compiler that writes down what it is asked for, and makes every file that it is to make."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\necho "$@" >>"$0.log"\nfor last; do :; done\necho made >"$last"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    asked, told = Path(f"{nvcc}.log"), list[tuple[str, int]]()

    def tell(source: str) -> None:
        told.append((source, len(asked.read_text().splitlines()) if asked.exists() else 0))

    library = build_cuda.build_cuda(tmp_path / "out", ("80", "90"), tell)
    assert library.read_text() == "made\n"
    assert told == [(source, i) for i, source in enumerate(build_cuda.CUDA_SOURCES)]
    *compiled, linked = [line.split() for line in asked.read_text().splitlines()]
    objects = [line[-1] for line in compiled]
    assert [line[-3] for line in compiled] == [str(build.SOURCES / source) for source in build_cuda.CUDA_SOURCES]
    assert all("-c" in line and any("code=sm_90" in word for word in line) for line in compiled)
    assert "-shared" in linked
    assert linked[-2 - len(objects) : -2] == objects


@pytest.mark.slow
@pytest.mark.parametrize("architecture", build_cuda.ARCHITECTURES)
def test_nvcc_compiles_every_source_for_each_gpu(architecture: str, nvcc: str, tmp_path: Path) -> None:
    flags = ("-shared", "-cudart=static", *build_cuda.architecture_flags((architecture,)), *STRICT)
    build_cuda.compile_cuda(tmp_path / "library.so", flags)
    library = cuda_library._load(tmp_path / "library.so")
    if not build_cuda.has_gpu():
        with pytest.raises(
            CompatError, match="native-cuda cannot run here .*(install NVIDIA's driver|nvidia-smi lists)"
        ):
            cuda_library.find_gpu(library)


@pytest.mark.slow
def test_cmake_builds_the_library(nvcc: str, tmp_path: Path) -> None:
    cmake = require("cmake")
    options = ("-DODESTREAM_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=80", f"-DCMAKE_CUDA_COMPILER={nvcc}")
    for command in (
        [cmake, "-S", str(build.SOURCES), "-B", str(tmp_path / "b"), *options],
        [cmake, "--build", str(tmp_path / "b"), "--target", "odestream_cuda"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    assert cuda_library._load(tmp_path / "b" / "libodestream_cuda.so").odestream_cuda_abi() == cuda_library.CUDA_ABI


@pytest.mark.usefixtures("no_library")
def test_without_a_library_the_command_that_builds_it_is_named(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CompatError, match=r"run: python -m odestream.runtime.kernels.build --cuda"):
        load(tiny_path, "native-cuda")
    part = doctor.native_cuda_part(BOARD)
    assert (part.ready, part.install) == (False, build_cuda.CUDA_COMMAND)
    main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert "backend native-cuda" in [part["name"] for part in report["parts"]]


def test_doctor_names_the_gpu(cuda_on_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_library.CUDA_LIBRARY_VARIABLE, str(cuda_on_cpu))
    part = doctor.native_cuda_part(BOARD)
    assert part.ready
    assert part.detail.startswith("CUDA on the CPU, compute capability 8.0, driver for CUDA 13.0")


def test_a_gpu_that_is_not_there_is_refused(cuda_on_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_library.CUDA_LIBRARY_VARIABLE, str(cuda_on_cpu))
    with pytest.raises(CompatError, match="cannot run here .*; see which GPUs nvidia-smi lists"):
        cuda_library.find_gpu(cuda_library.load_cuda_library(), 7)


@pytest.mark.parametrize(
    ("define", "message"),
    [("", "not a CUDA library of odestream"), ("-DABI=99", "ABI version 99, this odestream needs")],
)
def test_a_strange_library_is_refused(
    define: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = tmp_path / "strange.c", tmp_path / "strange.so"
    source.write_text("#ifdef ABI\nint odestream_cuda_abi(void) { return ABI; }\n#endif\n")
    flags = [define] if define else []
    subprocess.run([require("gcc"), *flags, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    monkeypatch.setenv(cuda_library.CUDA_LIBRARY_VARIABLE, str(made))
    with pytest.raises(CompatError, match=f"{message}.*build it again: .*--cuda --force"):
        cuda_library.load_cuda_library()


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cuda", "--force"], "nvcc is not on the path; install the CUDA toolkit"),
        (["--arch", "90"], "give it together with --cuda"),
        (["--cuda", "--arch", "hopper"], "capabilities such as 80,87,89,90,120"),
    ],
)
def test_a_build_that_cannot_be_done_says_what_to_do(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_cuda.shutil, "which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["build", *options])
    with pytest.raises(SystemExit, match="2"):
        build.main()
    assert message in capsys.readouterr().err
