"""Bundles that several test files of the runtime share; written once, never changed."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from odestream.export import export_bundle
from odestream.runtime import Model, load
from odestream.runtime.backends import cuda_device, tensorrt
from odestream.runtime.backends.trt_package import Package
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import TimeSpec
from tests.helpers import scripted_gpu as scripted
from tests.helpers.calibration import skip_calibration
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.sharing import made_once
from tests.helpers.tiny_bundle import Tiny, write_tiny

TINY = Tiny()
Setting = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "bundle", TINY)


@pytest.fixture(scope="session")
def model(tiny_path: Path) -> Iterator[Model]:
    """Shared by tests: never close it."""
    with load(tiny_path) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def cell_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small cell of our own, with one solver step and four."""
    cell = random_cell(tiny_config())
    time = TimeSpec(frequencies=cell.config.frequencies)
    with pytest.MonkeyPatch.context() as patch:
        skip_calibration(patch)
        export = partial(export_bundle, cell, buckets=(1, 4), time=time, verify_steps=50)
        return made_once(tmp_path_factory, "cell/bundle", export)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> scripted.Script:
    """A GPU and a TensorRT-RTX for this test."""
    script = scripted.Script()
    module = scripted.tensorrt_module(script)
    monkeypatch.setattr(cuda_device, "load_bindings", lambda: scripted.Runtime(script))
    monkeypatch.setattr(tensorrt, "load_package", lambda target: Package(target, module, module.__version__))
    return script


@pytest.fixture
def engines(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Writes engines for the tiny bundle, with changes to their sidecars, and returns their folder."""
    folder = tmp_path / "engines"
    monkeypatch.setenv("ODESTREAM_ENGINES", str(folder))

    def write(**changes: Any) -> Path:
        scripted.write_engines(read_bundle(tiny_path), folder, **changes)
        return folder

    return write
