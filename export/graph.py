"""One ONNX file for each bucket, with the metadata that other tools show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from odestream.export.traced import Traced
from odestream.export.weights import point_to_weights
from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.contract.manifest import WeightEntry

PRODUCER = "odestream"


def graph_file(label: str) -> str:
    """File name of a bucket's graph."""
    return "step.onnx" if label == NO_SOLVER else f"step.n{label}.onnx"


def build_graphs(
    traced: Traced, buckets: Sequence[int], entries: tuple[WeightEntry, ...], version: str
) -> dict[str, onnx.ModelProto]:
    """Label → model, every initializer external; `buckets` is empty for a module without a solver."""
    point_to_weights(traced.model, entries)
    traced.model.producer_name, traced.model.producer_version = PRODUCER, version
    if not buckets:
        return {NO_SOLVER: ir.to_proto(traced.model)}
    graphs = {}
    for steps in buckets:
        traced.set_steps(steps)
        graphs[str(steps)] = ir.to_proto(traced.model)
    return graphs


def set_metadata(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Replace the model's metadata."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
