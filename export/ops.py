"""The table of torch calls that the tracer knows, and the ONNX nodes (opset 18) that each becomes.

A rule has the signature of its torch call, behind the node writer. A call or an option that is not here is refused
with the name of the call: extend the table, not the tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from odestream.export.symbol import BATCH, TORCH_DTYPES, Scalar, Scope, Symbol, is_narrow, meta, shadows
from odestream.runtime.errors import ExportError

OPSET = 18

Operand = Symbol | Tensor | Scalar
Writer = Callable[..., Any]

UNARY = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "sin": "Sin",
    "cos": "Cos",
    "abs": "Abs",
    "neg": "Neg",
    "relu": "Relu",
    "invert": "Not",
    "logical_not": "Not",
    "bitwise_not": "Not",
}
BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "truediv": "Div",
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "and": "And",
    "or": "Or",
    "logical_and": "And",
    "logical_or": "Or",
    "bitwise_and": "And",
    "bitwise_or": "Or",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
REVERSED = {"radd": "add", "rsub": "sub", "rmul": "mul", "rtruediv": "truediv", "rdiv": "div"}
REDUCE = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}


def interpret(scope: Scope, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Write the nodes of one torch call; ExportError where the table does not know it."""
    name = getattr(func, "__name__", str(func)).strip("_")
    writer = RULES.get(name)
    if writer is None:
        raise ExportError(f"torch's {name} has no ONNX rule; write the step without it, or add it to export/ops.py")
    try:
        out = func(*shadows(args), **shadows(kwargs))
        return writer(scope, out, *args, **kwargs)
    except TypeError as cause:
        raise ExportError(
            f"torch's {name} is called in a way that has no ONNX rule ({cause}); simplify the call"
        ) from cause


def _unary(op: str) -> Writer:
    return lambda s, out, x, inplace=False: Symbol(s, s.emit(op, [s.value(x)])[0], out)


def _binary(op: str) -> Writer:
    def write(s: Scope, out: Tensor, x: Operand, y: Operand) -> Symbol:
        common = torch.result_type(meta(x), meta(y))
        if common != torch.bool and op == "Div" and not common.is_floating_point:
            common = out.dtype
        return Symbol(s, s.emit(op, [s.value(x, common), s.value(y, common)])[0], out)

    return write


def _swapped(op: str) -> Writer:
    return lambda s, out, x, y: _binary(op)(s, out, y, x)


def _not_equal(s: Scope, out: Tensor, x: Operand, y: Operand) -> Symbol:
    return Symbol(s, s.emit("Not", [_binary("Equal")(s, out, x, y).value])[0], out)


def _reduce(op: str) -> Writer:
    def write(s: Scope, out: Tensor, x: Operand, dim: int | Sequence[int], keepdim: bool = False) -> Symbol:
        axes = s.axes(*([dim] if isinstance(dim, int) else dim))
        return Symbol(s, s.emit(op, [s.value(x), axes], keepdims=int(keepdim))[0], out)

    return write


def _argmin(s: Scope, out: Tensor, x: Operand, dim: int, keepdim: bool = False) -> Symbol:
    return Symbol(s, s.emit("ArgMin", [s.value(x)], axis=dim, keepdims=int(keepdim))[0], out)


def _linear(s: Scope, out: Tensor, x: Operand, weight: Operand, bias: Operand | None = None) -> Symbol:
    """x·Wᵀ + b: one Gemm for a matrix, MatMul and Add for more axes.

    With a narrow weight the product is narrow and the sum with b is not.
    """
    terms = [] if bias is None else [s.value(bias)]
    stored = s.stored(weight) if isinstance(weight, (Symbol, Tensor)) else None
    if stored is not None and is_narrow(stored):
        narrow = s.cast(s.value(x), TORCH_DTYPES[stored.dtype])  # type: ignore[index]
        product = s.cast(_product(s, out, narrow, stored), out.dtype)
        return Symbol(s, s.emit("Add", [product, *terms])[0] if terms else product, out)
    if s.rounds is not None:
        product = _round(s, _product(s, out, _round(s, s.value(x)), s.value(weight)))
        return Symbol(s, s.emit("Add", [product, *terms])[0] if terms else product, out)
    if out.dim() == 2:
        return Symbol(s, s.emit("Gemm", [s.value(x), s.value(weight), *terms], transB=1)[0], out)
    product = _product(s, out, s.value(x), s.value(weight))
    return Symbol(s, s.emit("Add", [product, *terms])[0] if terms else product, out)


def _product(s: Scope, out: Tensor, x: ir.Value, weight: ir.Value) -> ir.Value:
    if out.dim() == 2:
        return s.emit("Gemm", [x, weight], transB=1)[0]
    return s.emit("MatMul", [x, s.emit("Transpose", [weight], perm=[1, 0])[0]])[0]


def _round(s: Scope, value: ir.Value) -> ir.Value:
    """To the scope's half precision and back."""
    return s.cast(s.cast(value, s.rounds or torch.float32), torch.float32)


def _matmul(s: Scope, out: Tensor, x: Operand, y: Operand) -> Symbol:
    return Symbol(s, s.emit("MatMul", [s.value(x), s.value(y)])[0], out)


def _silu(s: Scope, out: Tensor, x: Operand, inplace: bool = False) -> Symbol:
    value = s.value(x)
    return Symbol(s, s.emit("Mul", [value, s.emit("Sigmoid", [value])[0]])[0], out)


def _softplus(s: Scope, out: Tensor, x: Operand) -> Symbol:
    return Symbol(s, s.emit("Softplus", [s.value(x)])[0], out)


def _softmax(s: Scope, out: Tensor, x: Operand, dim: int) -> Symbol:
    return Symbol(s, s.emit("Softmax", [s.value(x)], axis=dim)[0], out)


def _clamp(
    s: Scope,
    out: Tensor,
    x: Operand,
    min: Scalar | None = None,  # noqa: A002 (torch's own names)
    max: Scalar | None = None,  # noqa: A002
) -> Symbol:
    if isinstance(min, (Symbol, Tensor)) or isinstance(max, (Symbol, Tensor)):
        raise ExportError("torch's clamp with tensors as limits has no ONNX rule; use torch.maximum and torch.minimum")
    low, high = (None if limit is None else s.value(limit, out.dtype) for limit in (min, max))
    return Symbol(s, s.emit("Clip", [s.value(x), low, high])[0], out)


def _where(s: Scope, out: Tensor, condition: Operand, x: Operand, y: Operand) -> Symbol:
    chosen = [s.value(condition), s.value(x, out.dtype), s.value(y, out.dtype)]
    return Symbol(s, s.emit("Where", chosen)[0], out)


def _cat(s: Scope, out: Tensor, tensors: Sequence[Operand], dim: int = 0) -> Symbol:
    if len(tensors) == 1:
        return Symbol(s, s.value(tensors[0]), out)
    return Symbol(s, s.emit("Concat", [s.value(t, out.dtype) for t in tensors], axis=dim)[0], out)


def _stack(s: Scope, out: Tensor, tensors: Sequence[Operand], dim: int = 0) -> Symbol:
    rows = [s.emit("Unsqueeze", [s.value(t, out.dtype), s.axes(dim)])[0] for t in tensors]
    return Symbol(s, s.emit("Concat", rows, axis=dim)[0], out)


def _narrow(s: Scope, out: Tensor, x: Operand, dim: int, start: int, length: int) -> Symbol:
    if tuple(out.shape) == tuple(meta(x).shape):
        return Symbol(s, s.value(x), out)
    places = [s.axes(start), s.axes(start + length), s.axes(dim)]
    return Symbol(s, s.emit("Slice", [s.value(x), *places])[0], out)


def _unbind(s: Scope, out: Sequence[Tensor], x: Operand, dim: int = 0) -> tuple[Symbol, ...]:
    if meta(x).shape[dim] == BATCH:
        raise ExportError("the step iterates over the batch; its size is not known in a graph")
    value = s.value(x)
    places = [s.constant(np.asarray(i, np.int64)) for i in range(len(out))]
    return tuple(Symbol(s, s.emit("Gather", [value, i], axis=dim)[0], o) for i, o in zip(places, out, strict=True))


def _unsqueeze(s: Scope, out: Tensor, x: Operand, dim: int) -> Symbol:
    return Symbol(s, s.emit("Unsqueeze", [s.value(x), s.axes(dim)])[0], out)


def _squeeze(s: Scope, out: Tensor, x: Operand, dim: int) -> Symbol:
    if meta(x).shape[dim] != 1:  # torch then leaves the tensor as it is
        return Symbol(s, s.value(x), out)
    return Symbol(s, s.emit("Squeeze", [s.value(x), s.axes(dim)])[0], out)


def _transpose(s: Scope, out: Tensor, x: Operand, dim0: int, dim1: int) -> Symbol:
    order = list(range(out.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return Symbol(s, s.emit("Transpose", [s.value(x)], perm=order)[0], out)


def _reshape(s: Scope, out: Tensor, x: Operand, *_: Any, **__: Any) -> Symbol:
    """Reshape, view, flatten, unflatten: torch has worked out the shape already; the batch stays open."""
    if sum(n % BATCH == 0 for n in out.shape) > 1:
        raise ExportError(f"a reshape to {tuple(out.shape)} splits the batch; keep the batch in one axis")
    sizes = [-1 if n % BATCH == 0 else n for n in out.shape]
    return Symbol(s, s.emit("Reshape", [s.value(x), s.axes(*sizes)])[0], out)


def _expand(s: Scope, out: Tensor, x: Operand, *_: Any) -> Symbol:
    before = (1,) * (out.dim() - meta(x).dim()) + tuple(meta(x).shape)
    if any(new == BATCH != old for old, new in zip(before, out.shape, strict=True)):
        raise ExportError("the step expands a tensor to the batch size; let broadcasting do so instead")
    sizes = [1 if n == BATCH else n for n in out.shape]  # 1 keeps what is there
    return Symbol(s, s.emit("Expand", [s.value(x), s.axes(*sizes)])[0], out)


def _filled(content: float) -> Writer:
    def write(s: Scope, out: Tensor, x: Operand) -> Symbol:
        return Symbol(s, s.emit("Expand", [s.value(content, out.dtype), s.emit("Shape", [s.value(x)])[0]])[0], out)

    return write


def _cast(dtype: torch.dtype | None = None) -> Writer:
    def write(s: Scope, out: Tensor, x: Operand, *_: Any) -> Symbol:
        return Symbol(s, s.value(x, out.dtype if dtype is None else dtype), out)

    return write


def _embedding(s: Scope, out: Tensor, x: Operand, weight: Operand, *_: Any, **__: Any) -> Symbol:
    stored = s.stored(weight) if isinstance(weight, (Symbol, Tensor)) else s.value(weight)
    rows = s.emit("Gather", [stored, s.value(x)], axis=0)[0]
    return Symbol(s, s.cast(rows, out.dtype) if is_narrow(stored) else rows, out)


def _same(s: Scope, out: Tensor, x: Operand, *_: Any, **__: Any) -> Symbol:
    return Symbol(s, s.value(x), out)


RULES: dict[str, Writer] = {
    **{name: _unary(op) for name, op in UNARY.items()},
    **{name: _binary(op) for name, op in BINARY.items()},
    **{name: _swapped(BINARY[forward]) for name, forward in REVERSED.items()},
    **{name: _reduce(op) for name, op in REDUCE.items()},
    "ne": _not_equal,
    "argmin": _argmin,
    "linear": _linear,
    "matmul": _matmul,
    "silu": _silu,
    "softplus": _softplus,
    "softmax": _softmax,
    "clamp": _clamp,
    "where": _where,
    "cat": _cat,
    "stack": _stack,
    "narrow": _narrow,
    "unbind": _unbind,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "reshape": _reshape,
    "view": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "expand": _expand,
    "zeros_like": _filled(0.0),
    "ones_like": _filled(1.0),
    "float": _cast(torch.float32),
    "to": _cast(),
    "embedding": _embedding,
    "detach": _same,
    "contiguous": _same,
}
