"""Half precision: which weights are stored narrow, and torch that rounds where a narrow engine does.

Matrices are stored as float16 or bfloat16, and their products with activations are worked out there, summed in
float32 as tensor cores do. All else stays float32: vectors, the state and what the memories do with it, the solver's
sums and its error, softmax and every decision. An engine without such arithmetic may widen the matrices and multiply in
float32, which is nearer to the rounded weights' exact results, never farther.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from odestream.export.calls import KINDS, Kind, bind_call
from odestream.export.symbol import is_matrix
from odestream.models.cell import Cell
from odestream.runtime.errors import CheckpointError, InputError


@dataclass(frozen=True)
class Precision:
    """name: as `--dtype` takes it. dtype: of the stored matrices and of their products."""

    name: str
    dtype: torch.dtype

    @property
    def narrow(self) -> torch.dtype | None:
        """The dtype of narrow matrices, None in full precision."""
        return None if self.dtype == torch.float32 else self.dtype


FULL = Precision("fp32", torch.float32)
PRECISIONS = {p.name: p for p in (FULL, Precision("fp16", torch.float16), Precision("bf16", torch.bfloat16))}


def precision(name: str) -> Precision:
    """The precision called `name`; InputError lists the known ones."""
    try:
        return PRECISIONS[name]
    except KeyError:
        raise InputError(f"unknown dtype {name!r}; choose one of {', '.join(PRECISIONS)}") from None


def rounded(module: nn.Module, to: Precision) -> nn.Module:
    """The module with its matrices rounded to the precision, still float32: what a narrow bundle holds.

    Raises InputError for a module that is no cell, CheckpointError where a weight is beyond the dtype's range.
    """
    if to is FULL:
        return module
    if not isinstance(module, Cell):
        raise InputError(
            f"dtype {to.name} is for odestream's own cells, {type(module).__name__} is none; export it as fp32"
        )
    made = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if is_matrix(weight):
                weight.copy_(_in_range(name, weight, to))
    return made


def _in_range(name: str, weight: Tensor, to: Precision) -> Tensor:
    narrow = weight.to(to.dtype).float()
    if not bool(torch.isfinite(narrow).all()):
        raise CheckpointError(
            f"{name} holds {float(weight.abs().max()):.3g}, beyond {to.name}; export it as bf16 or fp32"
        )
    return narrow


@contextmanager
def narrow_products(to: Precision) -> Iterator[None]:
    """Within it, torch rounds operands and results of float32 products with matrices as a narrow engine does.

    Products in float64 stay as they are, so that references do.
    """
    if to is FULL:
        yield
        return
    with _NarrowProducts(to.dtype):
        yield


class _NarrowProducts(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kind = next((k for k in KINDS if k.call is func), None)
        if kind is not None:
            return self._body(kind, args, kwargs or {})
        if func is F.linear and args[0].dtype == torch.float32:
            return self._linear(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _body(self, kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the call means, with the products inside it rounded too: torch takes the mode off while it is asked."""
        arguments, options = bind_call(kind, args, kwargs)
        with self:
            return kind.body(**arguments, **options)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        product = self._rounded(F.linear(self._rounded(x), self._rounded(weight)))
        return product if bias is None else product + bias

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).float()
