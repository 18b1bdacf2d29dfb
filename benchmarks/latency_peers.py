"""Other people's compilers and runtimes on the same graph or the same weights; each is optional."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from latency_model import Arrays, Inputs, new_state
from latency_subjects import Contender, by_name
from odestream.models.cell import Cell

PEERS = {
    "OpenVINO": ("openvino", ("openvino",)),
    "IREE": ("iree.compiler", ("iree-base-compiler", "iree-base-runtime")),
    "tract": ("tract", ("tract",)),
    "JAX, jitted": ("jax", ("jax",)),
    "diffrax Tsit5, jitted": ("diffrax", ("diffrax", "jax")),
}
"""Name → module to look for, packages that bring it."""


def absent() -> dict[str, str]:
    """Name → the command that installs it, of the peers that are not here."""
    return {
        name: f"pip install {' '.join(packages)}" for name, (module, packages) in PEERS.items() if not _found(module)
    }


def versions() -> dict[str, str]:
    """Of the packages behind the peers that are here."""
    here = [package for module, packages in PEERS.values() if _found(module) for package in packages]
    return {package: metadata.version(package) for package in dict.fromkeys(("torchdiffeq", *here))}


def peers(
    cell: Cell, graph: onnx.ModelProto, inputs: Inputs, steps: int, folder: Path
) -> dict[str, Callable[[], Contender]]:
    """Name → what makes the contender, for every peer that is here; diffrax chooses its steps, so once alone.

    folder: where IREE's compiled code is kept.
    """
    made: dict[str, Callable[[], Contender]] = {
        "OpenVINO": lambda: openvino(cell, graph, inputs, steps),
        "IREE": lambda: iree(cell, graph, inputs, steps, folder),
        "tract": lambda: tract(cell, graph, inputs, steps),
        "JAX, jitted": lambda: jax(cell, inputs, steps, None),
    }
    if steps == 1:
        made["diffrax Tsit5, jitted"] = lambda: jax(cell, inputs, None, "Tsit5")
    return {name: make for name, make in made.items() if name not in absent()}


def openvino(cell: Cell, graph: onnx.ModelProto, inputs: Inputs, steps: int) -> Contender:
    """OpenVINO's CPU plugin for latency, float32, one thread; tensors are shared, not copied."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", settings).create_infer_request()
    names = [port.name for port in graph.graph.output]
    feeds = {**new_state(cell), **inputs.row(0)}
    for name, array in feeds.items():
        request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def prepare(i: int) -> None:
        for name, array in inputs.row(i).items():
            np.copyto(feeds[name], array)
        for name in names if answered else ():
            if name.startswith("state_out_"):
                np.copyto(feeds[name.replace("_out_", "_in_")], request.get_tensor(name).data)

    answered: list[bool] = []

    def call() -> None:
        request.infer()
        answered[:] = [True]

    def found() -> Arrays:
        return {name.removeprefix("state_out_"): request.get_tensor(name).data for name in names}

    return Contender("OpenVINO", steps, prepare, call, found)


def iree(cell: Cell, graph: onnx.ModelProto, inputs: Inputs, steps: int, folder: Path) -> Contender:
    """IREE from the same ONNX graph: llvm-cpu for this processor, in the calling thread; arguments are made before."""
    from iree import runtime

    context = runtime.SystemContext(config=runtime.Config("local-sync"))
    module = runtime.VmModule.copy_buffer(context.instance, _iree_code(graph, folder))
    context.add_vm_module(module)
    device, function = context.config.device, module.lookup_function("step")
    names = [port.name for port in graph.graph.output]
    order = [port.name for port in graph.graph.input]
    feeds: dict[str, Any] = {name: _device_view(device, array) for name, array in new_state(cell).items()}
    rows = [{k: _device_view(device, v) for k, v in inputs.row(i).items()} for i in range(inputs.rows)]
    arguments: list[Any] = [None, None]

    def prepare(i: int) -> None:
        if arguments[1] is not None:
            for name, view in zip(names, _views(arguments[1], len(names)), strict=True):
                if name.startswith("state_out_"):
                    feeds[name.replace("_out_", "_in_")] = view
        feeds.update(rows[i % len(rows)])
        given = runtime.VmVariantList(len(order))
        for name in order:
            given.push_ref(feeds[name])
        arguments[:] = given, runtime.VmVariantList(len(names))

    def call() -> None:
        context.vm_context.invoke(function, *arguments)

    def found() -> Arrays:
        views = _views(arguments[1], len(names))
        arrays = [runtime.DeviceArray(device, view, implicit_host_transfer=True).to_host() for view in views]
        return {name.removeprefix("state_out_"): array for name, array in zip(names, arrays, strict=True)}

    return Contender("IREE", steps, prepare, call, found)


def tract(cell: Cell, graph: onnx.ModelProto, inputs: Inputs, steps: int) -> Contender:
    """tract through its Python package, which copies tensors in and out."""
    import tract as package

    order = [port.name for port in graph.graph.input]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        onnx.save(graph, path)
        runnable = package.onnx().load(str(path)).into_model().into_runnable()
    return by_name(
        "tract",
        cell,
        graph,
        inputs,
        steps,
        lambda feeds: runnable.run([feeds[name] for name in order]),
        lambda tensor: tensor.to_numpy(),
    )


def jax(cell: Cell, inputs: Inputs, steps: int | None, solver: str | None) -> Contender:
    """The step written in JAX and jitted, weights as constants of the program; the flow unrolled, or by diffrax."""
    import jax as package

    from latency_jax import initial_state, jitted_step

    step = jitted_step(cell, steps, solver)
    rows = [package.device_put({name: value[0] for name, value in inputs.row(i).items()}) for i in range(inputs.rows)]
    held: list[Any] = [rows[0], ({}, initial_state(cell))]

    def prepare(i: int) -> None:
        held[0] = rows[i % len(rows)]

    def call() -> None:
        held[1] = package.block_until_ready(step(held[0], held[1][1]))

    def found() -> Arrays:
        outputs, state = package.device_get(held[1])
        return {name: np.asarray(value)[None] for name, value in {**outputs, **state}.items()}

    name = "JAX, jitted" if solver is None else f"diffrax {solver}, jitted"
    return Contender(name, steps, prepare, call, found, exact=solver is None)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _iree_code(graph: onnx.ModelProto, folder: Path) -> bytes:
    """The compiled graph, from `folder` where this version has compiled it before."""
    from iree import compiler

    graph.graph.name = "step"
    data = graph.SerializeToString(deterministic=True)
    name = f"{hashlib.sha256(data).hexdigest()[:16]}-{metadata.version('iree-base-compiler')}.vmfb"
    if (folder / name).exists():
        return (folder / name).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        source, imported = Path(scratch) / "step.onnx", Path(scratch) / "step.mlir"
        source.write_bytes(data)
        command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(source), "-o", str(imported)]
        subprocess.run(command, check=True, capture_output=True)
        try:
            code = _iree_compiled(imported, "--iree-opt-level=O3")
        except compiler.CompilerToolError:  # 3.13.0 trips over its own rewrite of some graphs at O3
            code = _iree_compiled(imported)
    (folder / name).write_bytes(code)
    return code


def _iree_compiled(imported: Path, *flags: str) -> bytes:
    from iree import compiler

    code: bytes = compiler.tools.compile_file(
        str(imported),
        input_type="onnx",
        target_backends=["llvm-cpu"],
        extra_args=["--iree-llvmcpu-target-cpu=host", *flags],
    )
    return code


def _device_view(device: Any, array: Any) -> Any:
    from iree import runtime

    made = runtime.asdevicearray(device, np.ascontiguousarray(array))
    return made._buffer_view


def _views(results: Any, count: int) -> list[Any]:
    from iree import runtime

    return [results.get_as_object(i, runtime.HalBufferView) for i in range(count)]
