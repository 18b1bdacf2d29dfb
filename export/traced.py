"""What the exporter makes of a module: one graph, its weights, and the function body of each bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from odestream.export.calls import DOMAIN, Call, Calls
from odestream.export.ops import OPSET
from odestream.export.symbol import BATCH, Scope
from odestream.models.cell import Cell
from odestream.runtime.contract.spec import StepSpec

IR_VERSION = 10  # boards run old engines: see OPSET and this together
STATE_IN, STATE_OUT = "state_in_", "state_out_"
_TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class Traced:
    """A step as ONNX: the model without its weights' data, the weights by their initializers' names, its flow.

    flow: the call whose body depends on the number of solver steps; None for a module without a solver.
    """

    model: ir.Model
    weights: dict[str, Tensor]
    flow: Call | None

    def set_steps(self, steps: int) -> None:
        """Make the model that of another bucket: only the flow's body and its node's attributes change."""
        if self.flow is None:
            raise ValueError("a module without a solver has no buckets")
        body, attributes = self.flow.with_options(steps=steps)
        self.model.functions[body.identifier()] = body
        for attribute in ir.convenience.convert_attributes(attributes):
            self.flow.node.attributes[attribute.name] = attribute


def trace_cell(cell: Cell, narrow: torch.dtype | None = None, rounds: torch.dtype | None = None) -> Traced:
    """Trace a cell's step, batch axis open, with the flow and the memory as model-local functions.

    narrow: dtype of the matrices and of their products, see `Precision`. rounds: the same arithmetic for engines
    without such products: matrices are float32, and what goes into products and comes out of them is rounded.
    """
    spec, calls = cell.spec(), Calls()
    scope = Scope("", calls.interpret, _weight_names(cell), narrow, rounds)
    inputs = {t.name: scope.input(t.name, _shadow(t.shape, t.dtype)) for t in spec.inputs}
    state = {m.name: scope.input(STATE_IN + m.name, _shadow(m.shape)) for m in spec.state}
    with torch.no_grad():
        outputs, after = cell.step(inputs, state)  # type: ignore[arg-type]
    for tensor in spec.outputs:
        scope.output(tensor.name, outputs[tensor.name])
    for member in spec.state:
        scope.output(STATE_OUT + member.name, after[member.name])
    graph = scope.graph("step", {"": OPSET, DOMAIN: 1})
    model = ir.Model(graph, ir_version=IR_VERSION, functions=[call.body for call in calls.met.values()])
    weights = {name: scope.initializers[name][1] for name in graph.initializers}
    return Traced(model, weights, calls.met.get("OdeFlow"))


def graph_names(spec: StepSpec) -> tuple[list[str], list[str]]:
    """Names of a graph's inputs and outputs, in order."""
    inputs = [t.name for t in spec.inputs] + [STATE_IN + m.name for m in spec.state]
    return inputs, [t.name for t in spec.outputs] + [STATE_OUT + m.name for m in spec.state]


def _weight_names(module: nn.Module) -> dict[int, tuple[str, Tensor]]:
    named: Mapping[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {id(tensor): (name, tensor) for name, tensor in named.items()}


def _shadow(shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    return torch.empty((BATCH, *shape), dtype=_TORCH_DTYPES[dtype], device="meta")
