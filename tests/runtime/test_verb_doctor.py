"""`odestream doctor`: what it says of installations and boards that are described to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from odestream.runtime.cli import main
from odestream.runtime.guards import BY_NUMPY
from odestream.runtime.kernels.build_cuda import CUDA_COMMAND
from odestream.runtime.kernels.cuda_library import CUDA_LIBRARY_VARIABLE
from odestream.runtime.kernels.library import LIBRARY_VARIABLE
from odestream.runtime.verbs import doctor as verb

NOTHING = dict.fromkeys(verb.PACKAGES)
PLAIN = {"model": None, "jetson": None, "nvidia_driver": None, "architecture": "x86_64"}


def test_this_installation_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["numpy"]
    assert report["parts"][0] == {
        "name": "backend onnxruntime",
        "ready": True,
        "detail": f"{report['packages']['onnxruntime']}: cpu",
        "install": None,
    }


def test_table_shows_versions_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in ("backend onnxruntime", "bench --plot", "numpy", "cores"):
        assert fact in out


@pytest.mark.parametrize(
    ("board", "install"),
    [
        (PLAIN, "pip install 'odestream[cpu]'"),
        (PLAIN | {"nvidia_driver": "NVRM version"}, "pip install 'odestream[gpu]'"),
        (PLAIN | {"nvidia_driver": "NVRM version", "architecture": "aarch64"}, "pip install 'odestream[cpu]'"),
        (
            PLAIN | {"jetson": "# R36", "architecture": "aarch64"},
            "pip install 'odestream[cpu]', or JetPack's onnxruntime-gpu wheel",
        ),
    ],
)
def test_missing_engine_names_the_extra_of_this_board(
    board: dict[str, str | None], install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "find_spec", lambda _: None)
    part = verb.onnxruntime_part(NOTHING, board)
    assert (part.ready, part.install) == (False, install)


def test_guards_that_are_not_compiled_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "GUARDS", BY_NUMPY)
    monkeypatch.setattr(verb, "can_build", lambda: True)
    part = verb.guards_part()
    assert (part.ready, part.install) == (False, "python -m odestream.runtime.kernels.build")
    monkeypatch.setattr(verb, "can_build", lambda: False)
    assert verb.guards_part().install is None
    monkeypatch.setattr(verb, "GUARDS", BY_NUMPY._replace(compiled=True))
    assert verb.guards_part().ready


def test_no_backend_is_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "find_spec", lambda _: None)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    monkeypatch.setattr(verb, "versions", lambda *names: dict.fromkeys(names))
    assert main(["doctor"]) == 1
    assert "pip install 'odestream[train]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("board", "detail", "install"),
    [
        (PLAIN, "without an NVIDIA driver", f"only where there is a GPU: {CUDA_COMMAND}"),
        (PLAIN | {"nvidia_driver": "NVRM version"}, "not a CUDA library of odestream", CUDA_COMMAND),
        (PLAIN | {"jetson": "# R36", "architecture": "aarch64"}, "not a CUDA library of odestream", CUDA_COMMAND),
    ],
)
def test_kernels_for_a_gpu_are_to_be_built_only_where_there_is_one(
    board: dict[str, str | None], detail: str, install: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CUDA_LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    part = verb.native_cuda_part(board)
    assert not part.ready
    assert detail in part.detail
    assert part.install == install


def test_missing_extra_names_the_packages() -> None:
    train, plot = verb.extra_parts(NOTHING | {"torch": "2.6"})
    assert (train.ready, train.detail) == (False, "without torchdiffeq, onnx, onnxscript, matplotlib")
    assert plot.install == "pip install 'odestream[bench]'"


def test_board_is_read_from_the_device_tree(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.0\nmore\n")
    board = verb.describe_board(tmp_path)
    assert (board["model"], board["jetson"]) == ("NVIDIA Jetson Orin Nano", "# R36 (release), REVISION: 4.0")
    assert board["nvidia_driver"] is None


@pytest.mark.parametrize(("columns", "terminal"), [("40", "dumb"), ("300", "xterm-256color")])
def test_a_pipe_gets_the_same_table_whatever_the_terminal(
    columns: str, terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", terminal)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == plain
    assert 100 < max(map(len, plain.splitlines())) <= 160


def test_machine_without_a_device_tree_says_so(tmp_path: Path) -> None:
    assert verb.describe_board(tmp_path)["model"] is None


def test_gpu_providers_are_found_by_their_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capi").mkdir()
    for name in ("shared", "cuda", "tensorrt"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").touch()
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(verb, "find_spec", lambda _: spec)
    assert verb.onnxruntime_part(NOTHING, PLAIN).detail == "of unknown version: cpu, cuda, tensorrt"


@pytest.mark.parametrize(
    ("packages", "board", "ready", "install"),
    [
        ({}, {"nvidia_driver": "580"}, False, r"odestream\[trt-rtx\]"),
        ({}, {"jetson": "R36", "architecture": "aarch64"}, False, r"--system-site-packages, and cuda-bindings"),
        ({"tensorrt-rtx-cu13-bindings": "1.7", "cuda-bindings": "13.0"}, {}, False, r"NVIDIA's driver"),
        ({"tensorrt": "10.3.0", "cuda-bindings": "12.6"}, {"jetson": "R36"}, True, None),
    ],
)
def test_what_engines_need_is_told_for_this_board(
    packages: dict[str, str], board: dict[str, str], ready: bool, install: str | None
) -> None:
    part = verb.tensorrt_part(NOTHING | packages, PLAIN | board)
    assert part.ready == ready
    assert (part.install is None) if install is None else re.search(install, part.install or "")
