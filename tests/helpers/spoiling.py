"""Ways to spoil a bundle that lies on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from odestream.runtime.contract.manifest import MANIFEST_NAME

GRAPH = "step.n1.onnx"


def change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / MANIFEST_NAME).read_bytes())
    change(manifest)
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Change a file and its entry in the manifest."""
    (path / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    change_manifest(path, lambda manifest: manifest["files"].update({name: entry}))


def change_graph(path: Path, change: Callable[[onnx.ModelProto], Any], name: str = GRAPH) -> None:
    """Change a graph and its entry in the manifest."""
    model = onnx.load_from_string((path / name).read_bytes())
    change(model)
    replace_file(path, name, model.SerializeToString())


def chain_functions(model: onnx.ModelProto, count: int) -> None:
    """Let y pass through functions that call each other `count` deep."""
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("chain", 1)]
    for i in range(count):
        inner = ("Identity", "") if i == count - 1 else (f"F{i + 1}", "chain")
        node = helper.make_node(inner[0], ["a"], ["b"], domain=inner[1])
        model.functions.append(helper.make_function("chain", f"F{i}", ["a"], ["b"], [node], versions))
    model.opset_import.append(versions[1])
    maker = next(node for node in model.graph.node if "y" in node.output)
    maker.output[0] = "y_before"
    model.graph.node.append(helper.make_node("F0", ["y_before"], ["y"], domain="chain"))


def rename_graph(to: str) -> Callable[[Path], None]:
    """List a graph under another name."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][to] = manifest["files"].pop(GRAPH)
        manifest["graphs"]["1"] = to

    return lambda path: change_manifest(path, change)


def make_link(path: Path) -> None:
    shutil.move(path / GRAPH, path.parent / "elsewhere")
    (path / GRAPH).symlink_to(path.parent / "elsewhere")


def make_fifo(path: Path) -> None:
    (path / GRAPH).unlink()
    os.mkfifo(path / GRAPH)


def make_directory(path: Path) -> None:
    (path / GRAPH).unlink()
    (path / GRAPH).mkdir()


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
