"""What the CUDA library makes of a device that fails, by the stand-in for CUDA, which is told to fail."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from odestream.runtime import CompatError, Model, ResourceError, StateError
from odestream.runtime.backends import native
from odestream.runtime.backends.device_loss import OUT_OF_MEMORY, STICKY
from odestream.runtime.backends.native_cuda import open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.kernels.cuda_library import CUDA_LIBRARY_VARIABLE, find_gpu, load_cuda_library
from tests.helpers.native import memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell
from tests.helpers.streams import same, same_state

X = np.array([350.5, -1.0], np.float32)
SECOND = 10**9
INVALID_VALUE, ILLEGAL_ADDRESS = 1, 700


@pytest.fixture(autouse=True)
def emulated(cuda_on_cpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_LIBRARY_VARIABLE, str(cuda_on_cpu))


@pytest.fixture(scope="module")
def small() -> Bundle:
    return memory_bundle(random_cell(tiny_config()), (1,))


@pytest.fixture
def model(small: Bundle) -> Iterator[Model]:
    with Model(small, open_engine(small), "for this test") as model:
        yield model


@pytest.mark.parametrize("memory", ["CUDA_ON_CPU_DEVICE_MEMORY_ERROR", "CUDA_ON_CPU_PINNED_MEMORY_ERROR"])
def test_70_a_device_without_memory_is_a_lack_of_resources_and_serves_whom_it_served(
    memory: str, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(small)
    served = engine.bind(1)
    monkeypatch.setenv(memory, str(OUT_OF_MEMORY))
    with pytest.raises(ResourceError, match=r"no room for 20 streams .*; bind fewer streams, or free the device"):
        engine.bind(20)
    served.run("1")
    monkeypatch.delenv(memory)
    engine.bind(20).run("1")


def test_70_a_model_that_the_device_has_no_memory_for_is_refused_so(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_DEVICE_MEMORY_ERROR", str(OUT_OF_MEMORY))
    with pytest.raises(ResourceError, match="native-cuda cannot load .*; bind fewer streams, or free the device"):
        open_engine(small)


@pytest.mark.parametrize("code", sorted(STICKY))
def test_71_an_error_that_stays_loses_the_device_which_is_asked_nothing_more(
    code: int, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(small)
    binding, other = engine.bind(1), engine.bind(1)
    with monkeypatch.context() as failing:
        failing.setenv("CUDA_ON_CPU_SYNCHRONIZE_ERROR", str(code))
        with pytest.raises(StateError, match="cannot use the GPU any more; start it again and restore a snapshot"):
            binding.run("1")
    for call in (
        lambda: binding.run("1"),
        lambda: other.run("1"),
        lambda: other.arena,
        lambda: other.set_state(np.zeros(other._layout.size, np.float32)),
        lambda: engine.bind(1),
    ):
        with pytest.raises(StateError, match=r"the GPU failed before \(native-cuda failed in bucket 1 .*; start the"):
            call()


def test_71_a_stream_lives_on_elsewhere_from_its_last_snapshot(
    model: Model, small: Bundle, native_library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = model.stream()
    stream.step(X, SECOND)
    saved = stream.snapshot()
    with monkeypatch.context() as failing:
        failing.setenv("CUDA_ON_CPU_SYNCHRONIZE_ERROR", str(ILLEGAL_ADDRESS))
        with pytest.raises(StateError, match="any more"):
            stream.step(X, 2 * SECOND)
    assert stream.last_tick == SECOND
    assert stream.counters.steps == 1
    with Model(small, native.open_engine(small), "for this test") as elsewhere:
        assert elsewhere.restore(saved).step(X, 2 * SECOND).y.shape == (4,)


def test_an_error_of_one_call_discards_its_step_and_no_more(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, twin = model.stream(), model.stream()
    for each in (stream, twin):
        each.step(X, SECOND)
    before = stream.save()
    with monkeypatch.context() as failing:
        failing.setenv("CUDA_ON_CPU_SYNCHRONIZE_ERROR", str(INVALID_VALUE))
        with pytest.raises(StateError, match="the step was discarded, check its inputs"):
            stream.step(X, 2 * SECOND)
    assert same_state(stream.save(), before)
    assert same(stream.step(X, 2 * SECOND), twin.step(X, 2 * SECOND))


@pytest.mark.parametrize("code", [OUT_OF_MEMORY, ILLEGAL_ADDRESS])
def test_a_gpu_that_cannot_even_be_looked_at_cannot_be_used(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that doctor, which asks, has a sentence to show."""
    monkeypatch.setenv("CUDA_ON_CPU_PROPERTIES_ERROR", str(code))
    with pytest.raises(CompatError, match="native-cuda cannot run here .*; (free the device|start the process again)"):
        find_gpu(load_cuda_library())
