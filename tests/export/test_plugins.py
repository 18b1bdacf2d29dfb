"""The TensorRT plugins: created from fields, asked for shapes and types, and called, with CUDA played by a CPU.

TensorRT's headers are not ours to keep: ODESTREAM_TENSORRT_HEADERS names folders that hold `include/NvInferRuntime.h`,
colon by colon, one for each version to try. Nothing here proves that a GPU or TensorRT itself runs the plugins.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from odestream.export.engine import whole_model
from odestream.export.plugin_graph import LANES, lower_calls, pack
from odestream.export.precision import precision, rounded
from odestream.models.cell import Cell
from odestream.models.config import Task
from odestream.models.flow import ode_flow
from odestream.models.hybrid import hybrid_memory
from odestream.runtime import CompatError
from odestream.runtime.backends.plugin_library import PLUGIN_ABI, allowed_plugin, find_plugin, plugin_record
from odestream.runtime.backends.trt_package import load_package, make_logger
from odestream.runtime.bundle import Bundle
from odestream.runtime.kernels.build import SOURCES, find_compiler
from odestream.runtime.kernels.build_plugin import build_plugin, find_headers, header_version
from tests.export.conftest import HALVES, Exported

VARIABLE = "ODESTREAM_TENSORRT_HEADERS"
ROOTS = [Path(root) for root in os.environ.get(VARIABLE, "").split(":") if root]
HELPERS = Path(__file__).parent.parent / "helpers"
FLOAT, HALF, BF16 = 0, 1, 7
KINDS = ("OdeFlow", "HybridMemory")
DATA_TYPES = {onnx.TensorProto.FLOAT: FLOAT, onnx.TensorProto.FLOAT16: HALF, onnx.TensorProto.BFLOAT16: BF16}

Array = NDArray[Any]


class Field(ctypes.Structure):
    """`nvinfer1::PluginField`; types: 6 char, 5 int32, 1 float32."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    ]


@pytest.fixture(scope="session", params=ROOTS or [None], ids=str)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins and what calls them, compiled against one version's headers."""
    if request.param is None:
        pytest.skip(f"no TensorRT headers; name a folder that holds include/NvInferRuntime.h in {VARIABLE}")
    folder = tmp_path_factory.mktemp("plugins")
    device = folder / "device.h"
    device.write_text(
        '#include "cuda_runtime_api.h"\ninline cudaError_t cudaGetDevice(int* n) { *n = 0; return cudaSuccess; }\n'
    )
    target, cuda = folder / "libplugins.so", HELPERS / "cuda_on_cpu"
    command = [find_compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-include", str(device)]
    command += ["-Werror", f"-I{cuda}", f"-I{SOURCES}", "-isystem", str(request.param / "include")]
    command += [str(SOURCES / name) for name in ("trt_plugin.cpp", "trt_parts.cpp")]
    command += [str(HELPERS / "plugin_shim.cpp"), str(cuda / "cuda_on_cpu.cpp")]
    command += ["-x", "c++", "-Wno-unknown-pragmas", str(SOURCES / "cuda_step.cu"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="session")
def shim(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for name, result in (("name", ctypes.c_char_p), ("create", ctypes.c_void_p), ("again", ctypes.c_void_p)):
        getattr(loaded, f"shim_{name}").restype = result
    loaded.shim_workspace.restype = ctypes.c_size_t
    return loaded


class Lowered:
    """A call of a graph as the plugins take it: its fields and its constant inputs."""

    def __init__(self, bundle: Bundle, label: str, kind: str) -> None:
        model = whole_model(bundle, label)
        lower_calls(model)
        self.node = next(node for node in model.graph.node if node.op_type == kind)
        self.constants = {t.name: t for t in model.graph.initializer if t.name in self.node.input}
        self.kept: list[Any] = []

    def fields(self, **changed: Any) -> Any:
        """As TensorRT's parser makes them from the node's attributes; None drops one."""
        values = {a.name: helper.get_attribute_value(a) for a in self.node.attribute} | changed
        made = [self._field(name, value) for name, value in values.items() if value is not None]
        return (Field * len(made))(*made), len(made)

    def _field(self, name: str, value: Any) -> Field:
        if isinstance(value, bytes):
            data: Any = np.frombuffer(value + b"\0", np.uint8)
        else:
            data = np.atleast_1d(np.asarray(value, np.float32 if _is_float(value) else np.int32))
        self.kept.append(data)
        kind = {"uint8": 6, "int32": 5, "float32": 1}[data.dtype.name]
        return Field(name.encode(), data.ctypes.data, kind, data.size)

    def arrays(self, given: Mapping[str, Array]) -> tuple[list[Array], list[int]]:
        """The node's inputs in order and their types: constants, and `given` for the rest."""
        arrays, types = list[Array](), list[int]()
        for name in self.node.input:
            constant = self.constants.get(name)
            array = numpy_helper.to_array(constant) if constant is not None else given[name]
            arrays.append(np.ascontiguousarray(array))
            types.append(FLOAT if constant is None else DATA_TYPES[constant.data_type])
        return arrays, types


def _is_float(value: Any) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) else value
    return isinstance(first, float)


def call(shim: ctypes.CDLL, plugin: int, arrays: Sequence[Array], types: Sequence[int], out: Sequence[Array]) -> int:
    batch = len(arrays[0])
    size = shim.shim_workspace(ctypes.c_void_p(plugin), batch, len(arrays))
    workspace = np.full(size // 4 + 64, np.nan, np.float32)
    guard = workspace[size // 4 :].copy()
    pointers = [(ctypes.c_void_p * len(group))(*(a.ctypes.data for a in group)) for group in (arrays, out)]
    kinds = (ctypes.c_int * len(types))(*types)
    status = shim.shim_call(
        ctypes.c_void_p(plugin),
        batch,
        kinds,
        pointers[0],
        len(arrays),
        pointers[1],
        len(out),
        ctypes.c_void_p(workspace.ctypes.data),
    )
    assert np.array_equal(workspace[size // 4 :], guard, equal_nan=True)  # no workspace beyond what was declared
    return int(status)


@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize("task", ["forecast", "classify", "tokens"])
def test_the_flow_plugin_computes_what_torch_does(
    task: Task, batch: int, shim: ctypes.CDLL, exported: Exported
) -> None:
    cell, bundle = exported(task)
    check_flow(shim, cell, Lowered(bundle, "4", "OdeFlow"), batch, 1e-5)


@pytest.mark.parametrize("name", HALVES)
def test_the_flow_plugin_reads_matrices_in_half_precision(
    name: str, shim: ctypes.CDLL, exported: Exported, half_bundles: dict[str, Bundle]
) -> None:
    cell = rounded(exported("forecast")[0], precision(name))
    check_flow(shim, cell, Lowered(half_bundles[name], "2", "OdeFlow"), 3, 1e-5, steps=2)


def check_flow(shim: ctypes.CDLL, cell: Any, lowered: Lowered, batch: int, limit: float, steps: int = 4) -> None:
    rng, width = np.random.default_rng(0), cell.config.sizes.hidden
    features = 2 * len(cell.config.frequencies)
    shapes = {"state_in_h": width, "state_in_u": width, "phase": features, "dt": 1}
    given = {n: rng.standard_normal((batch, k)).astype(np.float32) for n, k in shapes.items() if k}
    given["dt"] = np.abs(given["dt"]) * 0.3
    given["dt"][batch // 2] = 0.0
    arrays, types = lowered.arrays(given)
    out = [np.full((batch, width), np.nan, np.float32), np.full((batch, 1), np.nan, np.float32)]
    fields, count = lowered.fields()
    plugin = shim.shim_create(KINDS.index("OdeFlow"), fields, count)
    assert plugin
    assert call(shim, plugin, arrays, types, out) == 0
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    c = cell.config
    with torch.no_grad():
        h, err = ode_flow(
            tensors["state_in_h"],
            tensors["state_in_u"],
            tensors.get("phase"),
            tensors["dt"],
            cell.field.weights(),
            method=c.method,
            steps=steps,
            rtol=c.rtol,
            atol=c.atol,
        )
    assert np.abs(out[0] - h.numpy()).max() <= limit
    assert np.abs(out[1] - err.numpy()).max() <= 1e-3
    assert out[0][batch // 2].tobytes() == given["state_in_h"][batch // 2].tobytes()  # no time, no change
    shim.shim_destroy(ctypes.c_void_p(plugin))


@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize("task", ["forecast", "classify", "tokens"])
def test_the_memory_plugin_computes_what_torch_does(
    task: Task, batch: int, shim: ctypes.CDLL, exported: Exported
) -> None:
    cell, bundle = exported(task)
    check_memory(shim, cell, Lowered(bundle, "4", "HybridMemory"), batch)


@pytest.mark.parametrize("name", HALVES)
def test_the_memory_plugin_reads_matrices_in_half_precision(
    name: str, shim: ctypes.CDLL, exported: Exported, half_bundles: dict[str, Bundle]
) -> None:
    cell = rounded(exported("forecast")[0], precision(name))
    check_memory(shim, cell, Lowered(half_bundles[name], "2", "HybridMemory"), 3)


def test_a_memory_plugin_without_the_field_of_a_sink_has_none(shim: ctypes.CDLL, exported: Exported) -> None:
    """As in graphs and engines from before there was one."""
    cell, bundle = exported("forecast")
    weights = cell.state_dict()
    assert weights.pop("memory.sink") == 0.7
    without = Cell(dataclasses.replace(cell.config, episodic_sink=False))
    without.load_state_dict(weights)
    check_memory(shim, without, Lowered(bundle, "4", "HybridMemory"), 3, sink=None)


def check_memory(shim: ctypes.CDLL, cell: Any, lowered: Lowered, batch: int, **changed: Any) -> None:
    """Through the fields that an engine would hold: the plugin is serialised and made again before it is called."""
    rng, config = np.random.default_rng(1), cell.config
    members = [m for m in cell.spec().state if m.name in ("wk", "wv", "ws", "wa", "m", "ek", "ev", "es", "ea")]

    def draw(*shape: int) -> Array:
        return rng.standard_normal((batch, *shape)).astype(np.float32)

    old = {m.name: draw(*m.shape) for m in members}
    for name in ("ws", "es"):
        old[name] = np.abs(old[name]).clip(0, 1)
    for name in ("wa", "ea"):
        old[name] = np.abs(old[name])
    seen = (rng.random((batch, 1)) > 0.3).astype(np.float32)
    features, h, surprise, dt = draw(config.feature_width), draw(config.sizes.hidden), draw(1), np.abs(draw(1))
    names = list(lowered.node.input)
    given = dict(zip(names[:5], (features, h, seen, surprise, dt), strict=True))
    given |= {f"state_in_{name}": value for name, value in old.items()}
    arrays, types = lowered.arrays(given)
    out = [np.full((batch, config.read_width), np.nan, np.float32)]
    out += [np.full_like(value, np.nan) for value in old.values()]
    out.append(np.full((batch, 2 * len(config.stores) + 2), np.nan, np.float32))
    which = KINDS.index("HybridMemory")
    fields, count = lowered.fields(**changed)
    first = shim.shim_create(which, fields, count)
    plugin = shim.shim_again(which, ctypes.c_void_p(first))
    assert shim.shim_outputs(ctypes.c_void_p(plugin)) == len(out)
    assert call(shim, plugin, arrays, types, out) == 0
    memories = {name: torch.from_numpy(value) for name, value in old.items()}
    tensors = [torch.from_numpy(array) for array in (features, h, seen > 0, surprise, dt)]
    with torch.no_grad():
        got = hybrid_memory(*tensors, memories, cell.memory.weights(), config=config)  # type: ignore[misc]
    expected = [got.reads, *(got.memories[name] for name in old), got.gates]
    for found, wanted in zip(out, expected, strict=True):
        assert np.abs(found - wanted.numpy()).max() <= 2e-5
    for made in (first, plugin):
        shim.shim_destroy(ctypes.c_void_p(made))


def test_types_and_formats_are_those_of_the_design(shim: ctypes.CDLL, exported: Exported) -> None:
    """Floats everywhere, and matrices in any one of three types."""
    lowered = Lowered(exported("forecast")[1], "4", "OdeFlow")
    fields, count = lowered.fields()
    plugin = shim.shim_create(0, fields, count)
    matrices = {i for i, name in enumerate(lowered.node.input) if name in ("OdeFlow/hidden", "OdeFlow/drive")}
    matrices |= {i for i, name in enumerate(lowered.node.input) if name in ("OdeFlow/output", "OdeFlow/time")}
    inputs, outputs = len(lowered.node.input), 2

    def supports(position: int, kind: int, matrix: int) -> bool:
        types = [matrix if i in matrices else FLOAT for i in range(inputs + outputs)]
        types[position] = kind
        array = (ctypes.c_int * len(types))(*types)
        return bool(shim.shim_supports(ctypes.c_void_p(plugin), position, array, inputs, outputs))

    assert len(matrices) == 4
    for position in range(inputs + outputs):
        for kind in (FLOAT, HALF, BF16):
            allowed = kind == FLOAT or position in matrices
            assert supports(position, kind, kind) == allowed, (position, kind)
    assert not supports(max(matrices), HALF, FLOAT)  # not of two types
    shim.shim_destroy(ctypes.c_void_p(plugin))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("OdeFlow", {"widths": None}),
        ("OdeFlow", {"widths": [13, 21]}),
        ("OdeFlow", {"widths": [-1, 21, 2]}),
        ("OdeFlow", {"steps": 0}),
        ("OdeFlow", {"method": b"unknown"}),
        ("OdeFlow", {"rtol": 1}),
        ("HybridMemory", {"stores": b"working,attic"}),
        ("HybridMemory", {"stores": b""}),
        ("HybridMemory", {"scalars": [1.0, 2.0]}),
        ("HybridMemory", {"sink": [0.7, 0.7]}),
        ("HybridMemory", {"widths": [13, 10, 9, 4, 5, 2, 6, 1 << 20]}),
    ],
)
def test_fields_that_make_no_plugin_are_refused(
    kind: str, changed: dict[str, Any], shim: ctypes.CDLL, exported: Exported
) -> None:
    fields, count = Lowered(exported("forecast")[1], "4", kind).fields(**changed)
    assert not shim.shim_create(KINDS.index(kind), fields, count)


def test_a_registry_of_tensorrt_rtx_lists_the_creators_and_makes_plugins(
    library: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks cannot hold a plugin; its registry can."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'odestream[trt-rtx]'")
    monkeypatch.setenv("ODESTREAM_PLUGIN_FOLDERS", str(library.parent))
    assert plugin_record(allowed_plugin(library)).abi == PLUGIN_ABI
    package = load_package("trt-rtx")
    trt, (logger, messages) = package.module, make_logger(package)
    registry = trt.Builder(logger).get_plugin_registry()
    handle = registry.load_library(find_plugin(plugin_record(library)).copy)  # a path that no file system has
    assert handle is not None, messages.take()
    try:
        for kind in KINDS:
            creator = registry.get_creator(kind, "1", "odestream")
            assert creator is not None
            assert (creator.name, creator.plugin_version, creator.plugin_namespace) == (kind, "1", "odestream")
            lowered = Lowered(exported("forecast")[1], "4", kind)
            values = {a.name: helper.get_attribute_value(a) for a in lowered.node.attribute}
            assert {field.name for field in creator.field_names} <= set(values)
    finally:
        registry.deregister_library(handle)


def test_packing_is_the_layout_that_the_kernels_read() -> None:
    one, other = np.arange(15.0).reshape(5, 3), -np.arange(6.0).reshape(2, 3) - 1
    packed = pack([(0, one), (17, other)], 20)
    assert packed.shape == (2, 3, LANES)
    for row in range(32):
        expected = one[row] if row < 5 else other[row - 17] if 17 <= row < 19 else np.zeros(3)
        assert packed[row // LANES, :, row % LANES].tolist() == expected.tolist()


@pytest.mark.parametrize("task", ["forecast", "classify", "tokens"])
def test_a_graph_for_plugins_holds_no_functions_that_could_run_instead(task: Task, exported: Exported) -> None:
    model = whole_model(exported(task)[1], "2")
    lower_calls(model)
    assert not model.functions
    calls = [node for node in model.graph.node if node.domain]
    assert [node.op_type for node in calls] == ["OdeFlow", "HybridMemory"]
    for node in calls:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert (attributes["plugin_namespace"], attributes["plugin_version"]) == (b"odestream", b"1")
    defined = {i.name for i in (*model.graph.input, *model.graph.initializer)}
    for node in model.graph.node:  # sorted, and nothing is missing
        assert {name for name in node.input if name} <= defined, node.name
        defined |= set(node.output)


def test_headers_that_are_missing_or_too_old_are_told_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompatError, match=r"no NvInferRuntime.h in .*include.*--tensorrt or TENSORRT_ROOT"):
        find_headers(tmp_path)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInferRuntime.h").touch()
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert find_headers() == tmp_path / "include"
    version = tmp_path / "include" / "NvInferVersion.h"
    version.write_text("#define NV_TENSORRT_MAJOR 8 //!< x\n#define NV_TENSORRT_MINOR 6 //!< y\n")
    with pytest.raises(CompatError, match=r"TensorRT 8.6, the plugins need 10.1 or later"):
        header_version(find_headers())


@pytest.mark.parametrize("root", ROOTS or [None], ids=str)
def test_versions_are_read_from_the_headers_themselves(root: Path | None) -> None:
    if root is None:
        pytest.skip(f"no TensorRT headers; name some in {VARIABLE}")
    assert (10, 1) <= header_version(find_headers(root)) < (13, 0)


@pytest.mark.slow
@pytest.mark.parametrize("root", ROOTS or [None], ids=str)
def test_nvcc_builds_the_library_that_a_board_loads(root: Path | None, tmp_path: Path) -> None:
    if root is None:
        pytest.skip(f"no TensorRT headers; name some in {VARIABLE}")
    nm = shutil.which("nm")
    if shutil.which("nvcc") is None or nm is None:
        pytest.skip("nvcc or nm is not installed")
    built = build_plugin(tmp_path, root, ("89",))
    assert built.name.startswith("libodestream_plugins-trt1")
    assert plugin_record(built).abi == PLUGIN_ABI
    exported_names = subprocess.run([nm, "-D", "--defined-only", str(built)], check=True, capture_output=True).stdout
    assert {b"getCreators", b"setLoggerFinder", b"odestream_plugin_abi"} <= set(exported_names.split())
