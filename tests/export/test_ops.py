from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from odestream.export import ops
from odestream.export.symbol import BATCH, Scope, Symbol
from odestream.runtime.errors import ExportError

WEIGHT = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)
BIAS = torch.linspace(0.5, 1.5, 5)
ROW = torch.tensor([0.5, -2.0, 3.0])

Function = Callable[[Tensor, Tensor], Tensor]

CASES: dict[str, Function] = {
    "tanh": lambda x, y: torch.tanh(x),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "exp": lambda x, y: torch.exp(x),
    "log": lambda x, y: torch.log(torch.abs(x) + 1e-3),
    "sqrt": lambda x, y: torch.sqrt(torch.abs(x)),
    "sin": lambda x, y: torch.sin(x),
    "cos": lambda x, y: torch.cos(x),
    "neg": lambda x, y: -x,
    "relu": lambda x, y: torch.relu(x),
    "relu of nn.functional": lambda x, y: F.relu(x),
    "silu": lambda x, y: F.silu(x),
    "softplus": lambda x, y: F.softplus(x * 30),
    "softmax": lambda x, y: torch.softmax(x, dim=-1),
    "add": lambda x, y: x + y,
    "add a scalar from the left": lambda x, y: 2 + x,
    "sub": lambda x, y: x - y,
    "sub from a scalar": lambda x, y: 1 - x,
    "sub from a constant": lambda x, y: ROW - x,
    "sub a constant": lambda x, y: x - ROW,
    "mul": lambda x, y: x * y,
    "mul by a constant from the left": lambda x, y: ROW * x,
    "div": lambda x, y: x / (torch.abs(y) + 1),
    "div of a scalar": lambda x, y: 1.0 / (torch.abs(x) + 1),
    "pow": lambda x, y: x**2,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp below": lambda x, y: torch.clamp(x, min=-0.5),
    "clamp above": lambda x, y: x.clamp(max=0.5),
    "clamp both": lambda x, y: torch.clamp(x, -0.5, 0.5),
    "where with tensors": lambda x, y: torch.where(x > y, x, y),
    "where with a scalar": lambda x, y: torch.where(x >= 0, x, 0.0),
    "where with two scalars": lambda x, y: torch.where(x < y, 1.0, 0.0),
    "comparisons": lambda x, y: ((x <= y) & ~(x == y) | (x != 0)).float(),
    "sum": lambda x, y: torch.sum(x, dim=-1),
    "mean": lambda x, y: torch.mean(x, dim=-1, keepdim=True),
    "amax": lambda x, y: torch.amax(x, dim=-1, keepdim=True),
    "amin": lambda x, y: torch.amin(x, dim=(-1,)),
    "argmin": lambda x, y: (torch.argmin(x, dim=-1, keepdim=True) == torch.arange(3)).float(),
    "linear": lambda x, y: F.linear(x, WEIGHT, BIAS),
    "linear without bias": lambda x, y: F.linear(x, WEIGHT),
    "linear of three axes": lambda x, y: F.linear(torch.stack([x, y], dim=1), WEIGHT, BIAS),
    "matmul": lambda x, y: torch.matmul(x.unsqueeze(-2), y.unsqueeze(-1)),
    "cat": lambda x, y: torch.cat([x, y, x], dim=-1),
    "cat with a mixed operand": lambda x, y: torch.cat([x, torch.ones_like(y)], dim=-1),
    "zeros_like": lambda x, y: torch.zeros_like(x) + y,
    "narrow": lambda x, y: x.narrow(-1, 1, 2),
    "narrow of everything": lambda x, y: x.narrow(-1, 0, 3) + 0,
    "unbind": lambda x, y: torch.unbind(x, dim=-1)[2],
    "squeeze": lambda x, y: x.unsqueeze(1).squeeze(1) * 2,
    "squeeze of a longer axis": lambda x, y: x.squeeze(-1) * 2,
    "transpose": lambda x, y: torch.stack([x, y], dim=-1).transpose(-1, -2),
    "flatten": lambda x, y: torch.flatten(torch.stack([x, y], dim=-1), -2),
    "unflatten": lambda x, y: torch.unflatten(torch.cat([x, y], dim=-1), -1, (2, -1)),
    "reshape": lambda x, y: torch.cat([x, y], dim=-1).reshape(-1, 3, 2),
    "expand": lambda x, y: x.unsqueeze(1).expand(-1, 4, -1) * 1.5,
    "embedding": lambda x, y: F.embedding((x > 0).to(torch.int64), WEIGHT),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_gives_what_torch_gives(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    run = _traced(CASES[name])
    for batch in (1, 4):
        x, y = (torch.randn(batch, 3, generator=generator) for _ in range(2))
        expected = CASES[name](x, y)
        found = run(x, y)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6, atol=1e-6)


def _composed(x: Tensor, y: Tensor) -> Tensor:
    gate = torch.sigmoid(F.linear(torch.cat([x, y], dim=-1), torch.ones(3, 6) / 6))
    return torch.where(x > y, x, y) * gate + torch.amax(x, dim=-1, keepdim=True)


@functools.cache
def _composed_graph() -> Callable[[Tensor, Tensor], NDArray[np.float32]]:
    return _traced(_composed)


@settings(max_examples=30)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6), batch=st.integers(1, 5))
def test_a_composed_function_holds_for_any_values_and_batch(values: list[float], batch: int) -> None:
    x, y = (torch.tensor(part).repeat(batch, 1) for part in (values[:3], values[3:]))
    np.testing.assert_allclose(_composed_graph()(x, y), _composed(x, y).numpy(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, y: torch.erfinv(x), "erfinv has no ONNX rule"),
        (lambda x, y: torch.add(x, y, alpha=2), "no ONNX rule"),
        (lambda x, y: x if x.sum(dim=-1) > 0 else y, "branches on the value"),
        (lambda x, y: x + torch.zeros(x.shape), "holds the batch size"),
        (lambda x, y: x.narrow(-1, 0, 1).expand(-1, x.shape[0]), "expands a tensor to the batch"),
        (lambda x, y: torch.stack(list(x), dim=0), "iterates over the batch"),
        (lambda x, y: torch.clamp(x, min=y), "limits"),
    ],
    ids=["unknown call", "unknown option", "branch", "constant", "expand", "iteration", "clamp"],
)
def test_what_cannot_stand_in_a_graph_is_refused_by_name(function: Function, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        _traced(function)


def test_equal_constants_are_written_once_and_dead_nodes_not_at_all() -> None:
    scope, (x, y) = _scope()
    result = (x * 0.5 + y * 0.5) * 0.5
    torch.tanh(x)
    scope.output("z", result)
    names = [node.op_type for node in scope.graph("g", {"": ops.OPSET})]
    assert names.count("Constant") == 1
    assert "Tanh" not in names


def test_an_input_returned_twice_becomes_two_outputs() -> None:
    scope, (x, _) = _scope()
    scope.output("a", x)
    scope.output("b", x)
    run = _session(scope)
    first, second = run.run(None, {"x": np.ones((2, 3), np.float32), "y": np.ones((2, 3), np.float32)})
    assert first.tolist() == second.tolist() == [[1.0] * 3] * 2


def _scope() -> tuple[Scope, tuple[Symbol, Symbol]]:
    scope = Scope("", ops.interpret)
    shadow = torch.empty((BATCH, 3), device="meta")
    return scope, (scope.input("x", shadow), scope.input("y", shadow))


def _session(scope: Scope) -> onnxruntime.InferenceSession:
    model = ir.Model(scope.graph("g", {"": ops.OPSET}), ir_version=10)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def _traced(function: Function) -> Callable[[Tensor, Tensor], NDArray[np.float32]]:
    scope, (x, y) = _scope()
    with torch.no_grad():
        scope.output("z", function(x, y))  # type: ignore[arg-type]
    session = _session(scope)
    return lambda x, y: session.run(["z"], {"x": x.numpy(), "y": y.numpy()})[0]
