"""The TensorRT backend over a scripted GPU and scripted engines: what it does with them, not what they compute.

Everything here tests our handling of a device and of its failures. What runs on a real GPU is in test_gpu_tensorrt.py.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from odestream.runtime import CompatError, IntegrityError, ResourceError, StateError, load
from odestream.runtime.backends import cuda_device, tensorrt
from odestream.runtime.backends.cuda_device import Cuda, Gpu
from odestream.runtime.backends.device_block import DeviceBlock
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.engine import GpuRecord, PluginRecord, decode_record, encode_record
from odestream.runtime.replay import failures
from tests.helpers import scripted_gpu as scripted
from tests.helpers.scripted_gpu import PLUGIN
from tests.runtime.conftest import Setting

SECOND = 10**9


def observations(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(SECOND // 100, SECOND, count)).tolist()
    return [(rng.standard_normal(3).astype(np.float32), t) for t in times]


def test_a_stream_on_the_device_is_that_of_the_cpu_and_moves_between_them(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines()
    rows = observations(60)
    with load(tiny_path, "onnxruntime") as cpu, load(tiny_path, "tensorrt") as gpu:
        assert not failures(gpu.verify(None))
        there, here = gpu.stream(), cpu.stream()
        for i, (x, t) in enumerate(rows):
            if i == 20:  # to the GPU and back
                there, here = gpu.restore(here.snapshot()), cpu.restore(there.snapshot())
            found, expected = there.step(x, t=t), here.step(x, t=t)
            np.testing.assert_allclose(found.y, expected.y, rtol=1e-6, atol=1e-7)
            assert (found.bucket, found.flagged) == (expected.bucket, expected.flagged)
    assert script.graphs > 0


def test_a_step_copies_inputs_and_outputs_and_leaves_the_state_on_the_device(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines()
    with load(tiny_path, "tensorrt") as model:
        binding = model.bind(2)
        binding.run("1")
        script.copied_in.clear()
        for _ in range(5):
            binding.run("1")
            assert binding.finite()
            binding.swap()
        inputs = sum(cuda_device.padded(array.nbytes) for array in binding.inputs.values())
        assert script.copied_in == [inputs] * 5


def test_preparing_a_bucket_touches_no_state_that_a_stream_is_in(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines()
    with load(tiny_path, "tensorrt") as model, load(tiny_path, "onnxruntime") as reference:
        bindings = [m.bind(3) for m in (model, reference)]
        rng = np.random.default_rng(1)
        state = rng.standard_normal(bindings[0].arena.size).astype(np.float32)
        for binding in bindings:
            binding.set_state(state)
            for name, array in binding.inputs.items():
                array[...] = 0.25 if name in ("dt", "x") else 1.0
        before = script.graphs
        for label in ("1", "4"):  # the second is prepared while a state is held
            for binding in bindings:
                binding.run(label)
            np.testing.assert_array_equal(bindings[0].arena, state)
            np.testing.assert_allclose(bindings[0].next_arena, bindings[1].next_arena, rtol=1e-6)
            np.testing.assert_allclose(bindings[0].flat_outputs, bindings[1].flat_outputs, rtol=1e-6)
        assert script.graphs == before + 4  # two directions of two buckets


def test_everything_on_the_device_is_given_back(script: scripted.Script, engines: Setting, tiny_path: Path) -> None:
    engines()
    with load(tiny_path, "tensorrt") as model:
        stream = model.stream()
        stream.step(np.ones(3, np.float32), t=1)
        assert script.live
        del stream
    del model
    gc.collect()
    assert script.live == {}


def test_a_batch_beyond_every_profile_is_refused_with_the_sizes_that_there_are(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines(profiles=((1, 2, 2), (3, 6, 6)))
    with (
        load(tiny_path, "tensorrt") as model,
        pytest.raises(CompatError, match=r"7 streams.*1 to 2, 3 to 6.*--batch 7"),
    ):
        model.bind(7)


def fail_malloc(script: scripted.Script) -> None:
    script.errors["cudaMalloc"] = [0, scripted.OUT_OF_MEMORY]


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda s: setattr(s, "null_engine", True), CompatError, r"refuses it \(Error Code 6.*odestream compile"),
        (lambda s: setattr(s, "null_context", True), ResourceError, r"no execution context .*OutOfMemory"),
        (fail_malloc, ResourceError, r"cudaMalloc: CUDA error 2, out of memory for \d+ bytes; bind fewer"),
        (lambda s: setattr(s, "refuse_run", True), StateError, r"trt-rtx failed in bucket 1 \(Error Code 1"),
        (lambda s: s.errors.update(cudaGetDeviceProperties=[35]), CompatError, r"no GPU can be used here .*error 35"),
        (lambda s: s.errors.update(cudaStreamSynchronize=[scripted.BAD_VALUE]), StateError, r"CUDA error 1"),
    ],
    ids=["null engine", "null context", "out of memory", "refused run", "no driver", "failed copy"],
)
def test_what_fails_while_loading_is_told_and_nothing_is_kept(
    spoil: Callable[[scripted.Script], None],
    error: type[Exception],
    said: str,
    script: scripted.Script,
    engines: Setting,
    tiny_path: Path,
) -> None:
    engines()
    spoil(script)
    with pytest.raises(error, match=said):
        load(tiny_path, "tensorrt")
    gc.collect()
    assert script.live == {}


@pytest.mark.parametrize("tensor", ["y", "state_magnitude"])
def test_nan_from_the_device_discards_the_step_and_the_stream_goes_on_as_if_it_had_not_been(
    tensor: str, script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines()
    rows = observations(120)
    with load(tiny_path, "tensorrt") as model:
        stream, twin = model.stream(), model.stream()
        for i, (x, t) in enumerate(rows):
            if i == 20:
                before = stream.snapshot()
                script.spoil = tensor
                with pytest.raises(StateError):
                    stream.step(x, t=t)
                script.spoil = ""
                assert stream.snapshot() == before
            np.testing.assert_array_equal(stream.step(x, t=t).y, twin.step(x, t=t).y)


def test_a_sticky_error_marks_the_device_as_lost_and_asks_it_nothing_more(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    engines()
    with load(tiny_path, "tensorrt") as model:
        stream = model.stream()
        stream.step(np.ones(3, np.float32), t=1)
        saved = stream.snapshot()
        script.errors["cudaStreamSynchronize"] = [scripted.ILLEGAL_ADDRESS]
        with pytest.raises(StateError, match=r"CUDA error 700: this process cannot use the GPU any more; start it"):
            stream.step(np.ones(3, np.float32), t=SECOND)
        for _ in range(3):
            with pytest.raises(StateError, match=r"the GPU failed before \(cudaStreamSynchronize: CUDA error 700\)"):
                stream.step(np.ones(3, np.float32), t=SECOND)
    with load(tiny_path, "onnxruntime") as cpu:  # what was saved lives on elsewhere
        assert cpu.restore(saved).step(np.ones(3, np.float32), t=SECOND).y.shape == (6,)


def test_a_slow_device_is_waited_for(script: scripted.Script, engines: Setting, tiny_path: Path) -> None:
    engines()
    with load(tiny_path, "tensorrt") as model, load(tiny_path, "onnxruntime") as reference:
        script.delay_s = 0.05
        x = np.ones(3, np.float32)
        np.testing.assert_allclose(model.stream().step(x, t=1).y, reference.stream().step(x, t=1).y, rtol=1e-6)


OTHER_GPU = GpuRecord("Other RTX", 58, "8.9")
FEWER = GpuRecord(scripted.GPU.name, 46, "8.9")

MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "28 another package than asked for": (
        {"target": "tensorrt", "version": "10.3.0"},
        r"tensorrt 10.3.0, installed is",
    ),
    "29 another GPU": ({"gpu": OTHER_GPU}, r"built on Other RTX, this is Scripted RTX"),
    "29 another number of multiprocessors": ({"gpu": FEWER}, r"46 multiprocessors, Scripted RTX has 58 here"),
    "29 another compute capability": ({"architectures": ("sm86",)}, r"built for sm86, Scripted RTX is sm89"),
    "29 an architecture built for without a GPU": (
        {"architectures": ("sm80", "sm120"), "gpu": None},
        r"built for sm80, sm120, Scripted RTX is sm89",
    ),
    "30 another TensorRT": ({"version": "1.6.0.40"}, r"built with trt-rtx 1.6.0.40, installed is 1.7.1.116"),
    "30 a later TensorRT": (
        {"version": "1.8.0.1", "flags": ("version_compatible",)},
        r"built with trt-rtx 1.8.0.1, installed is 1.7.1.116",
    ),
    "30 another CUDA": ({"cuda": "12.6"}, r"built with CUDA 12.6, this is 13.0"),
    "30 a later driver": ({"driver": "13.2"}, r"driver for CUDA 13.2, this one is for 13.0"),
    "31 the plugin library is missing": (
        {"plugin": PLUGIN},
        r"libodestream_plugins.so: the plugin library .* in none of",
    ),
    "31 the sidecar names no plugin library": ({"calls": {"OdeFlow": "plugin"}}, r"its sidecar names no library"),
    "32 another plugin interface": (
        {"plugin": PluginRecord(PLUGIN.file, PLUGIN.sha256, 99)},
        r"plugin interface 99, this odestream reads 1 and 2",
    ),
    "33 other weights": ({"weights_sha256": "0" * 64}, r"built from other weights"),
    "33 another graph": ({"graph_sha256": "0" * 64}, r"built from another graph"),
    "33 a key without the weights": ({"key": "0" * 64}, r"its key does not cover what the sidecar says \(weights"),
    "35 no bucket of this label": ({"label": "2"}, r"built from another graph"),
    "another processor": ({"host": "Linux aarch64"}, r"built on Linux aarch64, this is"),
}


@pytest.mark.parametrize(("changes", "said"), MISMATCHES.values(), ids=MISMATCHES)
def test_an_engine_that_does_not_belong_here_is_refused_before_it_is_read(
    changes: dict[str, Any],
    said: str,
    script: scripted.Script,
    engines: Setting,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines(**changes)
    monkeypatch.setattr(tensorrt, "check_engine", lambda *_: pytest.fail("the engine was read"))
    with pytest.raises(CompatError, match=said) as caught:
        load(tiny_path, "tensorrt")
    assert "compile" in str(caught.value)
    assert "--target" in str(caught.value) or "build it again" in str(caught.value)
    assert script.loaded_plugins == []


def test_what_relaxes_an_engine_is_honoured(script: scripted.Script, engines: Setting, tiny_path: Path) -> None:
    engines(
        gpu=OTHER_GPU,
        architectures=("sm86",),
        version="1.6.9",
        driver="12.9",
        flags=("version_compatible", "hardware_compatible"),
    )
    with load(tiny_path, "tensorrt") as model:
        assert model.backend == "tensorrt"


def test_34_an_engine_that_computes_something_else_fails_the_known_answers(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    folder = engines()
    one, four = (next(folder.glob(f"step.n{n}.*.engine")) for n in (1, 4))
    swapped = four.read_bytes()
    one.write_bytes(swapped)
    sidecar = one.with_name(one.name + ".json")
    record = decode_record(sidecar.read_bytes(), "")
    digest = hashlib.sha256(swapped).hexdigest()
    sidecar.write_bytes(encode_record(msgspec.structs.replace(record, sha256=digest, size=len(swapped))))
    with pytest.raises(CompatError, match=r"tensorrt does not reproduce the bundle's stored vectors here"):
        load(tiny_path, "tensorrt")


def test_an_engine_whose_bytes_changed_is_refused_before_tensorrt_sees_them(
    script: scripted.Script, engines: Setting, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engines()
    monkeypatch.setattr(scripted.ScriptedEngine, "__init__", lambda *_: pytest.fail("the engine was loaded"))
    for path in folder.glob("*.engine"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"the sidecar says .*; compile the bundle again"):
        load(tiny_path, "tensorrt")


def test_without_engines_the_command_that_builds_them_is_told(
    script: scripted.Script, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ODESTREAM_ENGINES", str(tmp_path / "nowhere"))
    with pytest.raises(
        CompatError, match=r"nowhere: no engine; run odestream compile .*--target tensorrt \(or trt-rtx\)"
    ):
        load(tiny_path, "tensorrt")


def test_a_broken_sidecar_is_refused(script: scripted.Script, engines: Setting, tiny_path: Path) -> None:
    folder = engines()
    for path in folder.glob("step.n1.*.json"):
        path.write_bytes(path.read_bytes().replace(b'"weights_sha256"', b'"weights"'))
    with pytest.raises(CompatError, match=r"not a sidecar of this odestream .*weights.*; compile the bundle again"):
        load(tiny_path, "tensorrt")


def test_gpu_names_are_as_engines_name_them() -> None:
    assert Gpu("Orin", 16, "8.7", "12.6", "12.6").architecture == "sm87"
    assert Gpu("RTX", 170, "12.0", "13.0", "13.0").architecture == "sm120"


def test_a_bundle_without_engines_for_a_bucket_says_so_when_it_is_asked_for(
    script: scripted.Script, engines: Setting, tiny_path: Path
) -> None:
    folder = engines()
    for path in folder.glob("step.n4.*"):
        path.unlink()
    bundle: Bundle = read_bundle(tiny_path)
    engine = tensorrt.open_engine(bundle)
    with pytest.raises(CompatError, match=r"no engine of step.n4; run on this machine: odestream compile"):
        engine.bind(1).run("4")


def test_a_view_keeps_the_pinned_memory_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripted.Script()
    monkeypatch.setattr(cuda_device, "load_bindings", lambda: scripted.Runtime(script))
    block = DeviceBlock(Cuda(), [("x", (2, 3), "float32")], copies=2)
    view = block.host["x"][1:]
    pinned = block.host["x"].ctypes.data
    assert len(script.live) == 3
    del block
    gc.collect()
    assert list(script.live) == [pinned]
    view[...] = 5.0
    assert np.nanmax(script.live[pinned].view(np.float32)) == 5.0
    del view
    gc.collect()
    assert not script.live
