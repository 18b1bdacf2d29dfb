"""What only a GPU can show: engines run, agree with torch over a thousand chained steps, and trade states with the CPU.

`make test-gpu` on a machine with a GPU, and TensorRT or TensorRT-RTX or onnxruntime-gpu. What is missing is skipped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from odestream.export.compile import compile_bundle
from odestream.models.config import Task
from odestream.runtime import CompatError, Model, load
from odestream.runtime.backends.cuda_device import find_gpu
from odestream.runtime.bundle import Bundle
from odestream.runtime.kernels.build_plugin import build_plugin
from odestream.runtime.replay import failures
from tests.export.conftest import CONFIGS, HALVES, Exported

pytestmark = pytest.mark.gpu
SECOND = 10**9
WAYS = ("trt-rtx", "tensorrt", "tensorrt with plugins", "onnxruntime-cuda")
Opened = Callable[[Bundle], Model]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    try:
        return find_gpu().name
    except CompatError as error:
        pytest.skip(str(error))


@pytest.fixture(params=WAYS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Loads a bundle in one way on the GPU; skipped where its package is not here."""
    monkeypatch.setenv("ODESTREAM_ENGINES", str(tmp_path))
    models: list[Model] = []

    def open_bundle(bundle: Bundle) -> Model:
        try:
            if request.param != "onnxruntime-cuda":
                target, _, plugins = request.param.partition(" with ")
                library = build_plugin() if plugins else None
                records = compile_bundle(bundle.path, target, batches=(1, 8, 64), plugin=library)
                assert {way for r in records.values() for way in r.calls.values()} == {
                    "plugin" if plugins else "function"
                }
                assert all(record.proof == "engine inspector" for record in records.values())
            models.append(load(bundle.path, "onnxruntime-cuda" if "onnx" in request.param else "tensorrt"))
        except CompatError as error:
            if "not installed" in str(error) or "it has" in str(error) or "NvInferRuntime.h" in str(error):
                pytest.skip(str(error))
            raise
        return models[-1]

    yield open_bundle
    for model in models:
        model.close()


@pytest.mark.parametrize("task", CONFIGS)
def test_a_thousand_chained_steps_stay_within_the_table(task: Task, opened: Opened, exported: Exported) -> None:
    rows = opened(exported(task)[1]).verify(None)
    assert rows
    assert not failures(rows)


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_stays_within_the_table(name: str, opened: Opened, half_bundles: dict[str, Bundle]) -> None:
    assert not failures(opened(half_bundles[name]).verify(None))


def test_a_stream_moves_from_the_cpu_to_the_gpu_and_back(opened: Opened, exported: Exported) -> None:
    _, bundle = exported("forecast")
    rng, now, model = np.random.default_rng(0), 0, opened(bundle)
    with load(bundle.path, "onnxruntime") as cpu:
        stays, moves = cpu.stream(buckets=(4,)), cpu.stream(buckets=(4,))
        for i in range(300):
            if i == 100:
                moves = model.restore(moves.snapshot(), buckets=(4,))
            if i == 200:
                moves = cpu.restore(moves.snapshot(), buckets=(4,))
            now += int(rng.integers(SECOND // 100, SECOND // 2))
            x = (np.array([350.0, -1.0]) + rng.standard_normal(2)).astype(np.float32)
            np.testing.assert_allclose(moves.step(x, t=now).y, stays.step(x, t=now).y, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_meet(opened: Opened, exported: Exported) -> None:
    model = opened(exported("forecast")[1])
    alone, together = model.bind(1), model.bind(8)
    rng = np.random.default_rng(0)
    for name, array in together.inputs.items():
        array[...] = rng.random(array.shape) if name != "mask" else 1.0
        alone.inputs[name][...] = array[3:4]
    alone.run("2")
    together.run("2")
    np.testing.assert_allclose(together.outputs["y"][3], alone.outputs["y"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 64])
def test_latency_is_reported(
    batch: int, opened: Opened, exported: Exported, gpu: str, record_property: Callable[[str, object], None]
) -> None:
    binding, taken = opened(exported("forecast")[1]).bind(batch), list[float]()
    for _ in range(500):
        started = time.perf_counter()
        binding.run("4")
        taken.append(time.perf_counter() - started)
    median = statistics.median(taken[100:]) * 1e6
    record_property("median_us", median)
    print(f"{gpu}, batch {batch}: {median:.1f} µs a call, host to host")
    assert median < 1e5
