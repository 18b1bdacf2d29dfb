import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from odestream.runtime import BundleError, CompatError, load
from odestream.runtime.backends import BACKENDS, open_engine
from odestream.runtime.backends.external import external_tensors
from odestream.runtime.bundle import Bundle, read_bundle
from tests.helpers.tiny_bundle import Tiny, TinyReference, write_files, write_tiny

TINY = Tiny()


def rewritten(path: Path, target: Path, change: Callable[[onnx.ModelProto], Any]) -> Bundle:
    """The bundle at `path` with the graph of bucket 1 changed and everything else, hashes too, right."""
    bundle = read_bundle(path)
    model = onnx.load_from_string(bundle.graph("1"))
    change(model)
    files = dict(bundle.files) | {bundle.manifest.graphs["1"]: model.SerializeToString()}
    write_files(target, files, bundle.manifest)
    return read_bundle(target)


def test_the_engine_runs_from_memory_alone(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bucket is opened after the working directory has become an empty one and the files are gone."""
    path = write_tiny(tmp_path / "b", TINY)
    bundle = read_bundle(path)
    for entry in path.iterdir():
        entry.unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    engine = open_engine("onnxruntime", bundle, 1)
    binding = engine.bind(1)
    for label in ("1", "4"):
        binding.run(label)
    engine.close()


def test_a_batch_agrees_with_the_reference_row_by_row(tiny_path: Path) -> None:
    engine = open_engine("onnxruntime", read_bundle(tiny_path), 1)
    binding = engine.bind(3)
    references = [TinyReference(TINY, 4) for _ in range(3)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, dt = rng.normal(size=(3, 3)), rng.exponential(size=(3, 1))
        phase, mask = rng.normal(size=(3, 4)), (rng.random((3, 3)) > 0.5).astype(float)
        for name, value in (("x", x), ("dt", dt), ("phase", phase), ("mask", mask)):
            binding.inputs[name][...] = value
        binding.run("4")
        binding.swap()
        for row, reference in enumerate(references):
            outputs, reference.state = reference.call(x[row], float(dt[row, 0]), phase[row], mask[row])
            for name, value in outputs.items():
                np.testing.assert_allclose(binding.outputs[name][row], value, rtol=1e-4, atol=1e-5)
    assert binding.arena.reshape(-1)[:9].tolist() == pytest.approx(np.concatenate([r.state["h"] for r in references]))


def test_not_swapping_rejects_a_result(tiny_path: Path) -> None:
    binding = open_engine("onnxruntime", read_bundle(tiny_path), 1).bind(1)
    binding.inputs["mask"].fill(1)
    binding.inputs["x"].fill(2)
    before = binding.arena.copy()
    binding.run("1")
    first = binding.next_arena.copy()
    binding.run("1")
    np.testing.assert_array_equal(binding.arena, before)
    np.testing.assert_array_equal(binding.next_arena, first)
    binding.swap()
    np.testing.assert_array_equal(binding.arena, first)


def test_buckets_share_one_state_and_compose(tiny_path: Path) -> None:
    """Running bucket 1, then 4, then 1 on the same arenas continues from each other's states."""
    binding = open_engine("onnxruntime", read_bundle(tiny_path), 1).bind(1)
    reference = TinyReference(TINY)
    binding.inputs["dt"].fill(0.5)
    for label in ("1", "4", "4", "1", "4"):
        reference.steps = int(label)
        _, reference.state = reference.call([0, 0, 0], 0.5, [0, 0, 0, 0], np.zeros(3))
        binding.run(label)
        binding.swap()
    np.testing.assert_allclose(binding.arena[:3], reference.state["h"], rtol=1e-6)


def rename_state(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["state_out_m" if name == "state_out_n" else name for name in node.output]
    model.graph.output[-1].name = "state_out_m"


def move_weight(key: str, value: str) -> Callable[[onnx.ModelProto], Any]:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value

    return change


def set_dims(tensor: Any, *dims: Any) -> None:
    tensor.type.tensor_type.shape.CopyFrom(helper.make_tensor_type_proto(1, dims).tensor_type.shape)


EXTRA = helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["B", 1])

GRAPH_FAULTS: list[tuple[str, Callable[[onnx.ModelProto], Any], str]] = [
    ("state not paired by name", rename_state, r"outputs are .*state_out_m.*expected .*state_out_n"),
    ("input missing", lambda m: m.graph.input.pop(), "onnxruntime refuses it"),
    ("input extra", lambda m: m.graph.input.add().CopyFrom(EXTRA), r"inputs are .*'extra'.*, expected"),
    ("fixed batch", lambda m: set_dims(m.graph.input[0], 1, 3), r"x is tensor\(float\)\[1, 3\], expected"),
    ("shape", lambda m: set_dims(m.graph.input[-1], "B", 1), r"state_in_n is tensor\(float\)\['B', 1\], expected"),
    ("location", move_weight("location", "../weights.safetensors"), "initializer rate is .*'../weights"),
    ("offset", move_weight("offset", "0"), "initializer rate is .*the manifest says"),
    ("length", move_weight("length", "8"), "initializer rate is"),
    ("dtype", lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.DOUBLE), "initializer rate is"),
    ("dims", lambda m: m.graph.initializer[0].dims.append(1), "initializer rate is"),
    ("unknown weight", lambda m: setattr(m.graph.initializer[0], "name", "other"), "other is not among the manifest's"),
    ("unknown operator", lambda m: setattr(m.graph.node[-1], "op_type", "Nonsense"), "onnxruntime refuses it"),
    ("unknown domain", lambda m: setattr(m.graph.node[-1], "domain", "evil"), "onnxruntime refuses it"),
    ("future version", lambda m: setattr(m, "ir_version", 999), "onnxruntime refuses it"),
]


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in GRAPH_FAULTS], ids=[f[0] for f in GRAPH_FAULTS])
def test_a_graph_that_differs_from_the_manifest_is_refused(
    tiny_path: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], Any], message: str
) -> None:
    bundle = rewritten(tiny_path, tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        open_engine("onnxruntime", bundle, 1)


def test_the_order_of_a_graph_s_ports_does_not_matter(tiny_path: Path, tmp_path: Path) -> None:
    def swap_last_two(model: onnx.ModelProto) -> None:
        for ports in (model.graph.input, model.graph.output):
            last = ports.pop()
            ports.insert(0, last)

    rewritten(tiny_path, tmp_path / "b", swap_last_two)
    with load(tmp_path / "b") as model, load(tiny_path) as original:
        ours, theirs = model.stream(), original.stream()
        for t in range(5):
            assert ours.step([1, 2, 3], t).y.tobytes() == theirs.step([1, 2, 3], t).y.tobytes()


def test_a_tensor_hidden_in_a_node_is_not_read_from_a_path(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """External data in an attribute escapes the list of initializers; it must fail, not open the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(12))
    hidden = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="secret")

    def change(model: onnx.ModelProto) -> None:
        constant = next(node for node in model.graph.node if node.op_type == "Constant")
        constant.attribute[0].t.CopyFrom(hidden)

    with pytest.raises(BundleError, match="onnxruntime refuses it"):
        open_engine("onnxruntime", rewritten(tiny_path, tmp_path / "b", change), 1)


@pytest.mark.parametrize("cut", [1, 40, 400, 1000])
def test_a_truncated_graph_is_refused(tiny_path: Path, tmp_path: Path, cut: int) -> None:
    bundle = read_bundle(tiny_path)
    name = bundle.manifest.graphs["1"]
    write_files(tmp_path / "b", dict(bundle.files) | {name: bundle.files[name][:-cut]}, bundle.manifest)
    with pytest.raises(BundleError, match=r"not an ONNX file|refuses it|inputs are|outputs are"):
        open_engine("onnxruntime", read_bundle(tmp_path / "b"), 1)


def test_external_tensors_are_those_that_onnx_finds(tiny_path: Path) -> None:
    data = read_bundle(tiny_path).graph("4")
    found = {t.name: (t.data_type, t.shape, t.data) for t in external_tensors(data)}
    model = onnx.load_from_string(data)
    assert found == {
        t.name: (t.data_type, tuple(t.dims), {entry.key: entry.value for entry in t.external_data})
        for t in model.graph.initializer
    }
    assert set(found) == set(TINY.weights)


def test_without_onnxruntime_the_extra_is_named(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(CompatError, match=r"pip install 'odestream\[cpu\]'$"):
            load(tiny_path, backend)


def test_an_unknown_backend_lists_the_known(tiny_path: Path) -> None:
    with pytest.raises(CompatError, match=f"unknown backend 'cuda'; choose auto or one of {', '.join(BACKENDS)}"):
        load(tiny_path, "cuda")
    with pytest.raises(CompatError, match="threads is 0"):
        load(tiny_path, threads=0)


def test_load_says_which_backend_it_took_and_why(tiny_path: Path) -> None:
    with load(tiny_path) as model:
        assert model.backend == "onnxruntime"
        assert model.why.startswith("onnxruntime is the first backend of auto that runs the bundle")
    with load(tiny_path, backend="onnxruntime", threads=2) as model:
        assert model.why.startswith("onnxruntime was asked for")


def test_a_backend_that_fails_the_known_answers_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    """A graph that loads and computes something else: the gain's constant is doubled."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Constant" and onnx.numpy_helper.to_array(node.attribute[0].t).tolist() == [TINY.gain]:
                node.attribute[0].t.CopyFrom(helper.make_tensor("c", TensorProto.FLOAT, [1], [2 * TINY.gain]))

    rewritten(tiny_path, tmp_path / "b", change)
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(CompatError, match="does not reproduce the bundle's stored vectors here: .* is off by"):
            load(tmp_path / "b", backend)


def test_importing_the_runtime_imports_no_engine_and_no_framework() -> None:
    code = "import sys, json, odestream.runtime; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert "odestream.runtime.session" in modules
    assert not modules & {"torch", "onnx", "onnxruntime", "torchdiffeq"}
