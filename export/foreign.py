"""Any module that follows the step protocol, through torch's own exporter: one graph, no solver."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from odestream.export.ops import OPSET
from odestream.export.protocol import StepModule, example_inputs, initial_state
from odestream.export.symbol import BATCH_NAME
from odestream.export.traced import IR_VERSION, Traced, graph_names
from odestream.runtime.errors import ExportError

_EXAMPLE_BATCH = 3  # not 1, which torch would take for a constant


def trace_module(module: nn.Module) -> Traced:
    """Export a checked module's step with an open batch axis; ExportError says why that failed."""
    if not isinstance(module, StepModule):
        raise TypeError(type(module).__name__)
    spec = module.spec()
    inputs, outputs = graph_names(spec)
    example = (*example_inputs(spec, _EXAMPLE_BATCH).values(), *initial_state(spec, _EXAMPLE_BATCH).values())
    try:
        with _quiet():
            program = torch.onnx.export(
                _Positional(module),
                example,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes={"tensors": tuple({0: torch.export.Dim(BATCH_NAME)} for _ in example)},
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as cause:
        # Torch raises whatever the step made it raise; the whole story is in the chained cause.
        reason = str(cause.__cause__ or cause).strip().splitlines()
        raise ExportError(
            f"torch cannot export {type(module).__name__}.step ({reason[0] if reason else type(cause).__name__}); "
            "use operations with static shapes and no branches on values, and leave the batch size open"
        ) from cause
    if program is None:
        raise ExportError("torch's exporter gave no program; update torch to 2.6 or later")
    return _named(program.model, module)


class _Positional(nn.Module):
    """The step with its tensors one after another, as an exporter wants them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        spec = self.module.spec()  # type: ignore[operator]
        split = len(spec.inputs)
        inputs = {t.name: value for t, value in zip(spec.inputs, tensors[:split], strict=True)}
        state = {m.name: value for m, value in zip(spec.state, tensors[split:], strict=True)}
        outputs, after = self.module.step(inputs, state)  # type: ignore[operator]
        return (*(outputs[t.name] for t in spec.outputs), *(after[m.name] for m in spec.state))


def _named(model: ir.Model, module: nn.Module) -> Traced:
    """Weights under the module's own names, every other initializer a constant of the graph."""
    graph, weights = model.graph, dict[str, Tensor]()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in list(graph.initializers.items()):
        own = name.removeprefix("module.")
        if own in named:
            del graph.initializers[name]
            value.name = own
            graph.initializers[own] = value
            weights[own] = named[own].detach()
        else:
            _inline(graph, name, value)
    if model.graph.opset_imports.get("") != OPSET or model.ir_version > IR_VERSION:
        raise ExportError(
            f"torch's exporter gave opset {model.graph.opset_imports.get('')}; update torch and onnxscript"
        )
    return Traced(model, weights, None)


def _inline(graph: ir.Graph, name: str, value: ir.Value) -> None:
    if value.const_value is None:
        raise ExportError(f"torch's exporter gave no data for {name}; update torch and onnxscript")
    node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"constant_{name}")
    constant = node.outputs[0]
    constant.name, constant.type, constant.shape = f"constant_{name}", value.type, value.shape
    ir.convenience.replace_all_uses_with(value, constant)
    del graph.initializers[name]
    graph.insert_before(graph[0], node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns of its own deprecations and of packages that have nothing to do with the model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
