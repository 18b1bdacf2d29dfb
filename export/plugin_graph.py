"""Rewrites a graph's two calls as our TensorRT plugins take them: matrices packed as the kernels read them.

Packing happens here, once, so that a plugin points its kernels at its constant inputs and copies nothing. Vectors that
the kernels want as numbers become attributes. The functions' bodies go: where the plugins are not registered, a parser
then has nothing that it could silently put in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from odestream.runtime.errors import ExportError

LANES = 16  # as `platform.h` says
FLOW, MEMORY = "OdeFlow", "HybridMemory"

Array = NDArray[Any]


def lower_calls(model: onnx.ModelProto) -> None:
    """Rewrite the calls of a graph that holds its weights; ExportError where one is not as this version writes it."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type in (FLOW, MEMORY):
            body = next(f for f in model.functions if f.name == node.op_type)
            given = dict(zip(body.input, node.input, strict=True))
            lower = _lower_flow if node.op_type == FLOW else _lower_memory
            try:
                lower(model.graph, node, given, arrays)
            except KeyError as cause:
                raise ExportError(
                    f"{node.op_type} has no input {cause}; export the bundle with this version"
                ) from cause
    del model.functions[:]
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def pack(pieces: Sequence[tuple[int, Array]], rows: int) -> Array:
    """[panels, columns, LANES] of matrices [n, columns], each from its row on; what none fills is zero."""
    columns = pieces[0][1].shape[1]
    whole = np.zeros((_padded(rows), columns), pieces[0][1].dtype)
    for row, piece in pieces:
        whole[row : row + len(piece)] = piece
    return np.ascontiguousarray(whole.reshape(-1, LANES, columns).transpose(0, 2, 1))


def _lower_flow(
    graph: onnx.GraphProto, node: onnx.NodeProto, given: Mapping[str, str], arrays: Mapping[str, onnx.TensorProto]
) -> None:
    timed = "time" in given
    hidden, decay = _array(arrays, given["hidden"]), given["decay"]
    field, width = hidden.shape
    put = _Constants(graph, f"{FLOW}/")
    inputs = [given["h"], given["u"], *([given["phase"]] if timed else []), given["dt"], decay]
    inputs += [put.matrix(name, [(0, _array(arrays, given[name]))], field) for name in ("hidden", "drive")]
    inputs.append(put.vector("bias", [(0, _array(arrays, given["bias"]))], field))
    inputs.append(put.matrix("output", [(0, _array(arrays, given["output"]))], width))
    frequencies = 0
    if timed:
        frequencies = _array(arrays, given["frequencies"]).size
        inputs += [put.matrix("time", [(0, _array(arrays, given["time"]))], field), given["frequencies"]]
    node.input[:] = inputs
    node.attribute.append(helper.make_attribute("widths", [width, field, frequencies]))


def _lower_memory(
    graph: onnx.GraphProto, node: onnx.NodeProto, given: Mapping[str, str], arrays: Mapping[str, onnx.TensorProto]
) -> None:
    w = {name: _array(arrays, value) for name, value in given.items() if value in arrays}
    members = [name for name in ("wk", "wv", "ws", "wa", "m", "ek", "ev", "es", "ea") if name in given]
    stores = helper.get_node_attr_value(node, "stores").decode().split(",")
    widths = _memory_widths(graph, node, given, w)
    parts, rows, first_query = _rows(w, widths, len(stores))
    queries = [(row - first_query, w[state]) for row, _, state in parts if state is not None]
    put = _Constants(graph, f"{MEMORY}/")
    observed = f"{MEMORY}/observed"
    cast = helper.make_node("Cast", [given["observed"]], [observed], name=observed, to=onnx.TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(node), cast)
    biases = [(row, w[f"{name}_bias"]) for row, name, _ in parts if f"{name}_bias" in w]
    gate, outer = widths["gate"], 1 + len(stores)
    node.input[:] = [
        *(given["features"], given["h"], observed, given["surprise"], given["dt"]),
        *_in_order(members, stores, given),
        put.matrix("features", [(row, w[name]) for row, name, _ in parts], rows),
        put.vector("features_bias", biases, rows),
        put.matrix("state", queries, rows - first_query),
        put.matrix("gate_inner", [(0, w["gates_inner"])], gate),
        put.vector("gate_inner_bias", [(0, w["gates_inner_bias"])], gate),
        put.matrix("gate_outer", [(0, w["gates_write"])], outer),
        put.vector("gate_outer_bias", [(0, w["gates_write_bias"])], outer),
    ]
    slope = np.logaddexp(0.0, w["age_slope"].astype(np.float64))
    scalars = [*w["sharpness"], *slope, *w["decay_rate"], *w["gates_surprise"]]
    node.attribute.append(helper.make_attribute("widths", list(widths.values())))
    node.attribute.append(helper.make_attribute("scalars", [float(value) for value in scalars]))
    if "sink" in w:
        node.attribute.append(helper.make_attribute("sink", float(w["sink"][0])))


def _memory_widths(
    graph: onnx.GraphProto, node: onnx.NodeProto, given: Mapping[str, str], w: Mapping[str, Array]
) -> dict[str, int]:
    """In the order of the plugin's field; lengths of stores that are not there are zero."""
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}

    def length(member: str, axis: int) -> int:
        return int(shapes[given[member]][axis]) if member in given else 0

    heads = int(helper.get_node_attr_value(node, "heads"))
    keys = max(length("wk", 2), length("ek", 2), length("m", 2))
    return {
        "hidden": w["gates_read_state"].shape[1],
        "features": w["gates_read"].shape[1],
        "gate": w["gates_inner"].shape[0],
        "window": length("wk", 1),
        "slots": length("ek", 1),
        "heads": heads,
        "keys": keys,
        "values": max(length("wv", 2), length("ev", 2), length("m", 3)),
    }


def _rows(
    w: Mapping[str, Array], widths: Mapping[str, int], stores: int
) -> tuple[list[tuple[int, str, str | None]], int, int]:
    """(first row, weight of the features, weight of the state) of each part, rows in all, first row of the queries.

    The order of `said_of` in `layout.h`, without the content, which the cell works out by itself.
    """
    slots, matrix = "slots_key" in w, "matrix_key" in w
    keys, values, heads = widths["keys"], widths["values"], widths["heads"]
    lengths: list[tuple[str, str | None, int]] = [
        ("slots_key", None, keys if slots else 0),
        ("slots_value", None, values if slots else 0),
        ("matrix_key", None, heads * keys if matrix else 0),
        ("matrix_value", None, heads * values if matrix else 0),
        ("gates_forget", None, 1),
        ("slots_query", "slots_query_state", keys if slots else 0),
        ("matrix_query", "matrix_query_state", heads * keys if matrix else 0),
        ("gates_read", "gates_read_state", stores),
    ]
    parts, end, first_query = list[tuple[int, str, str | None]](), 0, 0
    for name, state, length in lengths:
        if name == "slots_query":
            first_query = end
        if length:
            parts.append((end, name, state))
        end += _padded(length)
    return parts, end, first_query


def _in_order(members: Sequence[str], stores: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """The memories in the order of the stores, as the plugin and the state have them."""
    of = {"working": ("wk", "wv", "ws", "wa"), "longterm": ("m",), "episodic": ("ek", "ev", "es", "ea")}
    return [given[name] for store in stores for name in of[store] if name in members]


def _array(arrays: Mapping[str, onnx.TensorProto], name: str) -> Array:
    return numpy_helper.to_array(arrays[name])


def _padded(n: int) -> int:
    return -(-n // LANES) * LANES


class _Constants:
    """Adds packed weights to a graph, under names of their own."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix

    def matrix(self, name: str, pieces: Sequence[tuple[int, Array]], rows: int) -> str:
        return self._add(name, pack(pieces, rows))

    def vector(self, name: str, pieces: Sequence[tuple[int, Array]], rows: int) -> str:
        whole = np.zeros(_padded(rows), np.float32)
        for row, piece in pieces:
            whole[row : row + len(piece)] = piece
        return self._add(name, whole)

    def _add(self, name: str, array: Array) -> str:
        self.graph.initializer.append(numpy_helper.from_array(array, self.prefix + name))
        return self.prefix + name
