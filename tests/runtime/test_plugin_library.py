"""Plugin libraries: found in allowed folders alone, by their hash; the bytes that were hashed are those that run."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from odestream.export.engine import register_plugin
from odestream.runtime import CompatError, PathError, load
from odestream.runtime.backends import plugin_library, tensorrt
from odestream.runtime.backends.engine_store import check_engine
from odestream.runtime.backends.trt_package import Messages, load_package, make_logger
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.engine import EngineRecord, PluginRecord
from tests.helpers import scripted_gpu as scripted
from tests.helpers.scripted_gpu import PLUGIN
from tests.helpers.tools import require
from tests.runtime.conftest import Setting


def library(folder: Path, data: bytes = b"library") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / PLUGIN.file
    path.write_bytes(data)
    return path


def compile_library(path: Path, source: str) -> None:
    command = [require("gcc"), "-shared", "-fPIC", "-xc", "-", "-o", str(path)]
    subprocess.run(command, input=source.encode(), check=True)


@pytest.mark.parametrize("interface", [1, plugin_library.PLUGIN_ABI])
def test_the_plugin_library_is_registered_before_the_engine_from_an_allowed_folder_alone(
    interface: int,
    script: scripted.Script,
    engines: Setting,
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = library(tmp_path / "allowed")
    engines(plugin=PluginRecord(PLUGIN.file, PLUGIN.sha256, interface))
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(allowed.parent))
    with load(tiny_path, "tensorrt"):
        assert script.loaded_plugins == [b"library"]
    library(allowed.parent, b"another library")
    with pytest.raises(CompatError, match=r"another plugin library than the engine was built with; build it again"):
        load(tiny_path, "tensorrt")


def test_13_a_plugin_library_swapped_after_it_was_hashed_is_not_the_one_that_runs(
    script: scripted.Script, engines: Setting, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = library(tmp_path / "allowed")
    engines(plugin=PLUGIN)
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(allowed.parent))

    def swap(path: Path, record: EngineRecord) -> bytes:
        library(allowed.parent, b"another library")
        return check_engine(path, record)

    monkeypatch.setattr(tensorrt, "check_engine", swap)  # which comes between the two
    engine = tensorrt.open_engine(read_bundle(tiny_path))
    assert script.loaded_plugins == [b"library"]
    engine.close()


def test_13_an_engine_is_built_with_the_plugin_library_that_its_sidecar_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(tmp_path))
    library(tmp_path)
    loaded = []

    class Registry:
        def load_library(self, path: str) -> object:
            library(tmp_path, b"another library")
            loaded.append(Path(path).read_bytes())
            return self

    for refusal in (nullcontext(), pytest.raises(CompatError, match="another plugin library than the engine was bui")):
        with refusal:
            register_plugin(Registry(), PLUGIN, Messages())
        assert loaded == [b"library"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_13_the_system_s_loader_takes_the_copy_of_a_library_that_is_there_no_more(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second way is for a Python that was built for an old C library."""
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(tmp_path))
    built, abi = tmp_path / PLUGIN.file, plugin_library.PLUGIN_ABI
    source = f"int odestream_plugin_abi(void) {{ return {abi}; }} int answer(void) {{ return 40 + {int(in_memory)}; }}"
    compile_library(built, source)
    record = plugin_library.plugin_record(built)
    found = plugin_library.find_plugin(record)
    assert found.copy == plugin_library.find_plugin(record).copy, "one copy serves all"
    library(tmp_path, b"another library")
    assert ctypes.CDLL(found.copy).answer() == 40 + in_memory
    assert found.path == built
    with pytest.raises(CompatError, match="another plugin library"):
        plugin_library.find_plugin(record)


@pytest.fixture(params=["in memory", "on the disk"])
def no_copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No library was copied yet."""
    monkeypatch.setattr(plugin_library, "_copies", {})
    if request.param == "on the disk":
        monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize("taken_by", ["nothing", "the library itself", "another library", "a pipe"])
def test_13_a_copy_that_somebody_closed_is_made_again(
    taken_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process does that becomes a daemon; its next files get the numbers of those that it closed."""
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(tmp_path))
    paths = [tmp_path / f"{name}.so" for name in ("one", "other")]
    for answer, path in enumerate(paths):
        abi = f"int odestream_plugin_abi(void) {{ return {plugin_library.PLUGIN_ABI}; }}"
        compile_library(path, f"{abi} int answer(void) {{ return {answer}; }}")
    records = [plugin_library.plugin_record(paths[0])]
    number = int(Path(plugin_library.find_plugin(records[0]).copy).name)
    os.close(number)
    ours, theirs = os.pipe()
    os.close(theirs)
    if taken_by == "a pipe":
        os.dup2(ours, number)
    elif taken_by != "nothing":
        with paths[taken_by == "another library"].open("rb") as file:
            os.dup2(file.fileno(), number)
    os.close(ours)
    records.append(plugin_library.plugin_record(paths[1]))
    copies = [plugin_library.find_plugin(record).copy for record in records]
    assert [Path(copy).read_bytes() for copy in copies] == [path.read_bytes() for path in paths]
    assert [ctypes.CDLL(copy).answer() for copy in copies] == [0, 1]
    paths[0].write_bytes(b"swapped")
    assert hashlib.sha256(Path(copies[0]).read_bytes()).hexdigest() == records[0].sha256
    if taken_by != "nothing":
        os.close(number)


@pytest.mark.usefixtures("no_copies")
def test_a_copy_that_cannot_be_written_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(1 << 20)
    library(tmp_path, data)
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(tmp_path))
    record = PluginRecord(PLUGIN.file, hashlib.sha256(data).hexdigest(), PLUGIN.abi)
    before, limits = len(list(Path("/proc/self/fd").iterdir())), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            plugin_library.find_plugin(record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    copy = plugin_library.find_plugin(record).copy
    assert Path(copy).read_bytes() == data


def test_13_tensorrt_rtx_opens_the_copy_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls the library and finds no plugin in it; that it makes plugins of a real one is in test_plugins.py."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'odestream[trt-rtx]'")
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(tmp_path))
    source = f"int odestream_plugin_abi(void) {{ return {plugin_library.PLUGIN_ABI}; }}"
    source += "void setLoggerFinder(void* finder) {}"
    source += "static void* none[1]; void** getCreators(int* count) { *count = 0; return none; }"
    source += "void** getPluginCreators(int* count) { return getCreators(count); }"
    compile_library(tmp_path / PLUGIN.file, source)
    found = plugin_library.find_plugin(plugin_library.plugin_record(tmp_path / PLUGIN.file))
    package = load_package("trt-rtx")
    logger, messages = make_logger(package)
    assert package.module.Runtime(logger).get_plugin_registry().load_library(found.copy) is None
    assert f"No creator returned by getPluginCreators in {found.copy}" in messages.take()


def test_25_a_plugin_library_outside_the_allowed_folders_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", library(tmp_path / "outside")
    inside.mkdir()
    (inside / PLUGIN.file).symlink_to(outside)
    monkeypatch.setenv(plugin_library.FOLDERS_VARIABLE, str(inside))
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was opened"))
    for path in (outside, inside / PLUGIN.file, inside / ".." / "outside" / PLUGIN.file):
        with pytest.raises(PathError, match=r"plugin libraries are loaded from .* alone"):
            plugin_library.allowed_plugin(path)
    with pytest.raises(PathError, match=r"alone"):
        plugin_library.find_plugin(PLUGIN)
    with pytest.raises(PathError, match=r"named without a folder"):
        plugin_library.find_plugin(PluginRecord("../x.so", PLUGIN.sha256, PLUGIN.abi))
