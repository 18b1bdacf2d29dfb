"""Symbolic tensors: run a torch function on them and it writes ONNX nodes.

`Symbol` takes part in torch's own override protocol (`__torch_function__`), so that any function made of torch calls
can be run on symbols as it stands. Each call finds a rule in the scope's table, which writes the nodes; shapes and
dtypes come from running the very same torch call on *shadows*, meta tensors without data, in which the batch has a
size that nothing else has.

Why not torch's own exporter here: it takes 5 to 14 seconds for one step of this model and has to be run again for
every solver bucket; this takes hundredths of a second, keeps the flow and the memory as functions with a border that
a kernel can replace, and keeps the names that people gave their weights. What it does not know, it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from odestream.runtime.errors import ExportError

BATCH = 9973  # a prime that no layer's width contains
BATCH_NAME = "B"

DTYPES: dict[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}

TORCH_DTYPES = {kind: dtype for dtype, kind in DTYPES.items()}

Scalar = bool | int | float
Interpreter = Callable[["Scope", Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


class Symbol:
    """A tensor of a graph that is being written: its ONNX value, and a shadow that knows its shape and dtype."""

    def __init__(self, scope: Scope, value: ir.Value, shadow: Tensor) -> None:
        self.scope, self.value, self.shadow = scope, value, shadow

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Write the nodes of one torch call; ExportError where no rule knows it."""
        scope = next(leaf.scope for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Symbol))
        return scope.interpret(scope, func, args, kwargs or {})

    @property
    def shape(self) -> torch.Size:
        """Its shape; the batch axis has size BATCH."""
        return self.shadow.shape

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.shadow.dtype

    @property
    def device(self) -> torch.device:
        """The CPU, where constants that are made beside it belong."""
        return torch.device("cpu")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.shadow.dim()

    def dim(self) -> int:
        """Number of axes."""
        return self.shadow.dim()

    def size(self, axis: int) -> int:
        """Length of one axis."""
        return self.shadow.shape[axis]

    def new_tensor(self, data: Any) -> Tensor:
        """A constant of the same dtype."""
        return torch.tensor(data, dtype=self.dtype)

    def __bool__(self) -> bool:
        """Refused: a graph has one path for all values."""
        raise ExportError(
            f"the step branches on the value of {self.value.name}; choose with torch.where, a graph has no branches"
        )

    def __iter__(self) -> Any:
        """Iterate over the first axis, if that is not the batch."""
        return iter(self.unbind(0))

    # Identity, because == writes a node.
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        """A tensor's method, as the torch call that it is."""
        method = getattr(Tensor, name, None)
        if name.startswith("__") or not callable(method):
            raise AttributeError(name)
        return lambda *args, **kwargs: type(self).__torch_function__(method, (), (self, *args), kwargs)


def _operator(name: str) -> Callable[..., Any]:
    """An operator's method; Python looks these up on the class, not through `__getattr__`."""
    function = getattr(Tensor, name)

    def method(self: Symbol, *args: Any) -> Any:
        return Symbol.__torch_function__(function, (), (self, *args))

    return method


_ARITHMETIC = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "neg", "matmul")
_LOGIC = ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "invert")
for _name in (*_ARITHMETIC, *_LOGIC):
    setattr(Symbol, f"__{_name}__", _operator(f"__{_name}__"))


@dataclass
class Scope:
    """One ONNX graph that is being written: the main graph, or the body of a function.

    name: prefix of its nodes' names, which are unique over the model. interpret: writes a torch call's nodes.
    weights: names of the tensors that are initializers, by their id; None in a body, into which weights come as
    inputs. narrow: dtype that matrices among the weights are stored in, float32 where None; a shadow knows nothing of
    it, and whoever uses such a weight gets it widened, but for products (`stored`). rounds: dtype that operands and
    results of products with weights are rounded to, where the weights themselves are stored in float32.
    """

    name: str
    interpret: Interpreter
    weights: dict[int, tuple[str, Tensor]] | None = None
    narrow: torch.dtype | None = None
    rounds: torch.dtype | None = None
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, tuple[ir.Value, Tensor]] = field(default_factory=dict)
    _constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], Sequence[ir.Value]] = field(default_factory=dict)

    def input(self, name: str, shadow: Tensor, stored: torch.dtype | None = None) -> Symbol:
        """A new input of the graph, like `shadow`, or of the dtype `stored`."""
        kind = ir.TensorType(DTYPES[stored or shadow.dtype])
        value = ir.Value(name=name, type=kind, shape=onnx_shape(shadow.shape))
        self.inputs.append(value)
        return Symbol(self, value, shadow)

    def output(self, name: str, result: Symbol | Tensor) -> None:
        """Make `result` an output called `name`."""
        value = self.value(result)
        if value.producer() is None or value in self.outputs or value in self._constants.values():
            value = self._append("Identity", [value])[0]  # an input, or an output twice, needs a node of its own
        shadow = meta(result)
        value.name, value.type, value.shape = name, ir.TensorType(DTYPES[shadow.dtype]), onnx_shape(shadow.shape)
        self.outputs.append(value)

    def graph(self, name: str, imports: dict[str, int]) -> ir.Graph:
        """The finished graph, without nodes whose results nobody uses."""
        needed, live = set(self.outputs), list[ir.Node]()
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(value for value in node.inputs if value is not None)
                live.append(node)
        used = [value for value, _ in self.initializers.values() if value in needed]
        return ir.Graph(
            self.inputs, self.outputs, nodes=live[::-1], initializers=used, opset_imports=imports, name=name
        )

    def emit(
        self, op: str, inputs: Sequence[ir.Value | None], count: int = 1, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """The outputs of a node: a new one, or the one that computes the same already.

        A method's last stage and the step it takes are often one sum, and an engine is built the sooner the smaller its
        graph is.
        """
        key = (domain, op, count, *inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = self._append(op, inputs, count, domain, **attributes)
        return self._known[key]

    def _append(
        self, op: str, inputs: Sequence[ir.Value | None], count: int = 1, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        self._counts[op] = self._counts.get(op, -1) + 1
        name = f"{self.name}{op}_{self._counts[op]}"
        node = ir.Node(domain, op, inputs, ir.convenience.convert_attributes(attributes), num_outputs=count, name=name)
        for i, output in enumerate(node.outputs):
            output.name = name if i == 0 else f"{name}.{i}"
        self.nodes.append(node)
        return node.outputs

    def value(self, operand: Symbol | Tensor | Scalar, dtype: torch.dtype | None = None) -> ir.Value:
        """The ONNX value of an operand, cast to `dtype` where that is given."""
        if isinstance(operand, Symbol):
            stored = self.stored(operand)
            same = dtype in (None, operand.dtype) and not is_narrow(stored)
            return stored if same else self.cast(stored, dtype or operand.dtype)
        if isinstance(operand, Tensor):
            stored = self._lift(operand if dtype is None else _as_dtype(operand, dtype))
            return self.cast(stored, operand.dtype) if is_narrow(stored) else stored
        return self.constant(torch.tensor(operand, dtype=dtype).numpy())

    def stored(self, operand: Symbol | Tensor) -> ir.Value:
        """The ONNX value of an operand as it is stored: a narrow weight is not widened."""
        if isinstance(operand, Tensor):
            return self._lift(operand)
        if operand.scope is not self:
            raise ExportError("a function's body uses a value from outside; pass it as an argument")
        return operand.value

    def stored_dtype(self, operand: Symbol | Tensor | None) -> torch.dtype | None:
        """The narrow dtype of a weight that is stored so, None for everything else."""
        return self.narrow if isinstance(operand, Tensor) and self._named(operand) and is_matrix(operand) else None

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """`value` as `dtype`."""
        return self.emit("Cast", [value], to=DTYPES[dtype].value)[0]

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """A Constant node, one for each distinct content."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._append("Constant", [], value=ir.Tensor(np.array(array)))[0]
        return self._constants[key]

    def axes(self, *axes: int) -> ir.Value:
        """Axes, sizes and places as the int64 input that ONNX wants them in."""
        return self.constant(np.asarray(axes, np.int64))

    def _lift(self, tensor: Tensor) -> ir.Value:
        """A real tensor: an initializer where it has a name, else a constant."""
        if BATCH in tensor.shape:
            raise ExportError(
                f"a constant of shape {tuple(tensor.shape)} holds the batch size; let broadcasting do so instead"
            )
        name = self._named(tensor)
        if not name:
            return self.constant(tensor.detach().numpy())
        if name not in self.initializers:
            stored = tensor.detach().to(self.stored_dtype(tensor) or tensor.dtype)
            value = ir.Value(name=name, type=ir.TensorType(DTYPES[stored.dtype]), shape=ir.Shape(list(tensor.shape)))
            self.initializers[name] = (value, stored)
        return self.initializers[name][0]

    def _named(self, tensor: Tensor) -> str:
        """The name of a weight; empty for any other tensor."""
        name, known = (self.weights or {}).get(id(tensor), ("", None))
        return name if known is tensor else ""


def is_matrix(tensor: Tensor) -> bool:
    """Whether a weight is one that narrow precision stores narrow."""
    return tensor.dim() == 2 and tensor.is_floating_point()


def is_narrow(value: ir.Value) -> bool:
    """Whether a value is stored in half precision."""
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def meta(operand: Any) -> Any:
    """An operand's shadow; what is no tensor is its own."""
    if isinstance(operand, Symbol):
        return operand.shadow
    return torch.empty_like(operand, device="meta") if isinstance(operand, Tensor) else operand


def shadows(operands: Any) -> Any:
    """`meta` of everything in a tree of operands."""
    return tree_map(meta, operands)


def onnx_shape(shape: Sequence[int]) -> ir.Shape:
    """A shadow's shape, with the batch by its name."""
    return ir.Shape([BATCH_NAME if n == BATCH else n for n in shape])


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
