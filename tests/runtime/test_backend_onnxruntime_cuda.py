"""The CUDA provider's binding: refused where there is none, and its handling of device tensors, with the CPU as device.

That a GPU runs it is shown by test_gpu.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from odestream.runtime import CompatError, ResourceError, StateError, load
from odestream.runtime.backends import onnxruntime_cuda
from odestream.runtime.backends.onnxruntime_cuda import OnnxCudaEngine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.replay import failures

SECOND = 10**9


class OnCpu(OnnxCudaEngine):
    """The same engine with tensors and kernels of the CPU provider."""

    provider = "CPUExecutionProvider"
    provider_options = {}  # noqa: RUF012 - as the class it stands in for
    device = "cpu"

    def run_options(self, graph: int) -> onnxruntime.RunOptions:
        return onnxruntime.RunOptions()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_engine(bundle: Bundle, threads: int = 1) -> OnCpu:
        return OnCpu(onnxruntime, bundle, threads)

    monkeypatch.setattr(onnxruntime_cuda, "open_engine", open_engine)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has the CUDA provider"
)
def test_28_a_provider_that_is_not_there_is_refused_and_never_replaced(tiny_path: Path) -> None:
    with pytest.raises(CompatError, match=r"asked onnxruntime for CUDAExecutionProvider, it has .*odestream\[gpu\]"):
        load(tiny_path, "onnxruntime-cuda")


@pytest.mark.usefixtures("on_cpu")
def test_28_a_provider_that_was_not_obtained_is_refused(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnCpu, "provider", "CUDAExecutionProvider")
    monkeypatch.setattr(OnCpu, "refuse", lambda _: None)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(CompatError, match=r"onnxruntime refuses it .*CPU EP.*; use --backend onnxruntime"),
    ):
        load(tiny_path, "onnxruntime-cuda")


@pytest.mark.usefixtures("on_cpu")
def test_streams_equal_those_of_host_memory_and_move_between_them(tiny_path: Path) -> None:
    rng, now = np.random.default_rng(0), 0
    with load(tiny_path, "onnxruntime") as host, load(tiny_path, "onnxruntime-cuda") as device:
        assert not failures(device.verify(None))
        here, there = host.stream(), device.stream()
        for i in range(60):
            if i == 20:
                here, there = host.restore(there.snapshot()), device.restore(here.snapshot())
            now += int(rng.integers(SECOND // 100, SECOND))
            x = rng.standard_normal(3).astype(np.float32)
            assert there.step(x, t=now).y.tobytes() == here.step(x, t=now).y.tobytes()


@pytest.mark.usefixtures("on_cpu")
def test_a_state_is_read_as_a_copy_and_written_by_handing_it_back(tiny_path: Path) -> None:
    with load(tiny_path, "onnxruntime-cuda") as model:
        binding = model.bind(2)
        arena = binding.arena
        arena[...] = 7.0
        assert not np.array_equal(binding.arena, arena)
        binding.set_state(arena)
        np.testing.assert_array_equal(binding.arena, arena)
        arena[0] = np.nan
        binding.set_next_state(arena)
        assert not binding.finite()


def test_a_call_waits_for_one_of_another_binding(tiny_path: Path) -> None:
    engine = OnCpu(onnxruntime, read_bundle(tiny_path), 1)
    binding, label = engine.bind(1), read_bundle(tiny_path).manifest.default_graph
    call = threading.Thread(target=binding.run, args=(label,))
    with engine.running:
        call.start()
        call.join(0.1)
        assert call.is_alive()
    call.join(10)
    assert not call.is_alive()


ILLEGAL = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node.\n"
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize(s); "
)
FULL = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 AllocateRawInternal "
    "Available memory of 5513472 is smaller than requested bytes of 20751872",
    "Failed to allocate memory for requested buffer of size 1073741824",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size); ",
)


def failing(message: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    return fail


@pytest.mark.usefixtures("on_cpu")
def test_71_an_error_that_stays_loses_the_device_which_is_asked_nothing_more(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(tiny_path, "onnxruntime-cuda") as model, load(tiny_path, "onnxruntime") as elsewhere:
        stream, other = model.stream(), model.stream()
        stream.step(np.ones(3), t=1)
        saved = stream.snapshot()
        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing(ILLEGAL))
            with pytest.raises(StateError, match=r"CUDA failure 700: .*cannot use the GPU any more; start it again"):
                stream.step(np.ones(3), t=SECOND)
        assert (stream.last_tick, stream.counters.steps) == (1, 1)
        for call in (
            lambda: stream.step(np.ones(3), t=SECOND),
            lambda: other.step(np.ones(3), t=SECOND),
            stream.snapshot,
            model.stream,
        ):
            with pytest.raises(StateError, match=r"the GPU failed before \(.*CUDA failure 700.*\); start the process"):
                call()
        assert elsewhere.restore(saved).step(np.ones(3), t=SECOND).y.shape == (6,)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("message", FULL)
def test_70_a_device_without_memory_is_a_lack_of_resources_and_serves_whom_it_served(
    message: str, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(tiny_path, "onnxruntime-cuda") as model:
        stream, twin = model.stream(), model.stream()
        for each in (stream, twin):
            each.step(np.ones(3), t=1)
        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing(message))
            with pytest.raises(ResourceError, match="; bind fewer streams, or free the device"):
                stream.step(np.ones(3), t=SECOND)
            patch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", failing(message))
            with pytest.raises(ResourceError, match="; bind fewer streams, or free the device"):
                model.bind(64)
        assert stream.step(np.ones(3), t=SECOND).y.tobytes() == twin.step(np.ones(3), t=SECOND).y.tobytes()
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing(message))
    with pytest.raises(ResourceError, match="; bind fewer streams, or free the device"):
        load(tiny_path, "onnxruntime-cuda")


@pytest.mark.usefixtures("on_cpu")
def test_any_other_error_discards_its_step_and_no_more(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_path, "onnxruntime-cuda") as model:
        stream, twin = model.stream(), model.stream()
        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing("CUDA failure 1: invalid"))
            with pytest.raises(StateError, match="failed in bucket 1 .*; the step was discarded, check its inputs"):
                stream.step(np.ones(3), t=1)
        assert stream.step(np.ones(3), t=1).y.tobytes() == twin.step(np.ones(3), t=1).y.tobytes()
