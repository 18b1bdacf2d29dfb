"""The two calls that stay whole: `ode_flow` and `hybrid_memory` become ONNX model-local functions.

The main graph holds one node each, `odestream.OdeFlow` and `odestream.HybridMemory`; the function of that name holds
what the node means, traced from the same torch code. An engine that knows nothing of us inlines it; one with our
kernels replaces the node. Weights enter as inputs, so that they stay initializers of the main graph, live once in the
bundle, and reach a kernel as constants.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils._pytree import (
    GetAttrKey,
    KeyEntry,
    MappingKey,
    SequenceKey,
    tree_flatten_with_path,
    tree_unflatten,
)

from odestream.export import ops
from odestream.export.symbol import Scope, Symbol, meta
from odestream.models.config import CellConfig
from odestream.models.flow import ode_flow, unrolled_flow
from odestream.models.hybrid import Access, access, content, hybrid_memory
from odestream.runtime.errors import ExportError

DOMAIN = "odestream"
Leaves = list[tuple[str, Tensor | None, torch.dtype | None]]
# What TensorRT looks a plugin up by; from 10.15 on a node without a namespace keeps its function instead.
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


@dataclass(frozen=True)
class Kind:
    """One torch-overridable function and how it appears in ONNX.

    name: of the ONNX function, unique whatever the domain and no built-in's, since TensorRT looks up by name only.
    call: the overridable function; body: what it means. weights: prefix of its weights' names. attributes: of the
    node, from the call's keywords: what a kernel must know.
    """

    name: str
    call: Callable[..., Any]
    body: Callable[..., Any]
    weights: str
    attributes: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass
class Call:
    """A call that was met: enough to write its body again with other keywords."""

    kind: Kind
    node: ir.Node
    tree: Any
    leaves: Leaves
    options: dict[str, Any]
    rounds: torch.dtype | None
    body: ir.Function

    def with_options(self, **changed: Any) -> tuple[ir.Function, dict[str, Any]]:
        """The body and the node's attributes for other keywords, such as `steps`."""
        options = {**self.options, **changed}
        body, _ = _trace_body(self.kind, self.tree, self.leaves, options, self.rounds)
        return body, _attributes(self.kind, options)


@dataclass
class Calls:
    """Interprets torch calls in the main graph: keeps those of KINDS whole, writes the rest with `ops`."""

    met: dict[str, Call] = field(default_factory=dict)

    def interpret(self, scope: Scope, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write one torch call into the main graph."""
        kind = next((k for k in KINDS if k.call is func), None)
        if kind is None:
            return ops.interpret(scope, func, args, kwargs)
        if kind.name in self.met:
            raise ExportError(f"the step calls {kind.name} twice; a graph has one body for it: call it once")
        return self._call(scope, kind, args, kwargs)

    def _call(self, scope: Scope, kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        arguments, options = bind_call(kind, args, kwargs)
        paths, tree = tree_flatten_with_path(arguments)
        present = [(path, leaf) for path, leaf in paths if leaf is not None]
        for path, leaf in present:
            if isinstance(leaf, Tensor) and scope.weights is not None:
                _name_weight(scope.weights, leaf, ".".join([kind.weights, *_words(path[1:])]))
        leaves: Leaves = [
            (_formal(path), None if leaf is None else meta(leaf), scope.stored_dtype(leaf)) for path, leaf in paths
        ]
        body, result = _trace_body(kind, tree, leaves, options, scope.rounds)
        outputs, result_tree = tree_flatten_with_path(result)
        values = scope.emit(
            kind.name,
            [scope.stored(leaf) for _, leaf in present],
            count=len(outputs),
            domain=DOMAIN,
            **_attributes(kind, options),
        )
        self.met[kind.name] = Call(kind, scope.nodes[-1], tree, leaves, options, scope.rounds, body)
        results = [Symbol(scope, value, meta(leaf)) for value, (_, leaf) in zip(values, outputs, strict=True)]
        return tree_unflatten(results, result_tree)


def _trace_body(
    kind: Kind, tree: Any, leaves: Leaves, options: dict[str, Any], rounds: torch.dtype | None
) -> tuple[ir.Function, Any]:
    """Run the body on fresh symbols; return the ONNX function and the torch result (symbols of the body)."""
    scope = Scope(f"{kind.name}/", ops.interpret, rounds=rounds)
    symbols = [None if shadow is None else scope.input(name, shadow, stored) for name, shadow, stored in leaves]
    result = kind.body(**tree_unflatten(symbols, tree), **options)
    for path, leaf in tree_flatten_with_path(result)[0]:
        scope.output("_".join(["out", *_words(path[-1:])]), leaf)
    graph = scope.graph(kind.name, {"": ops.OPSET})
    return ir.Function(DOMAIN, kind.name, graph=graph, attributes=[]), result


def bind_call(kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call's tensors by parameter name, and its keywords."""
    bound = inspect.signature(kind.call).bind(*args, **kwargs).arguments
    parameters = inspect.signature(kind.call).parameters
    options = {k: v for k, v in bound.items() if parameters[k].kind is inspect.Parameter.KEYWORD_ONLY}
    return {k: v for k, v in bound.items() if k not in options}, options


def _attributes(kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**PLUGIN, **kind.attributes(options)}


def _name_weight(weights: dict[int, tuple[str, Tensor]], tensor: Tensor, name: str) -> None:
    """Folded weights have no name in the state dict; a call's weights get the name of their place in the call."""
    weights[id(tensor)] = (name, tensor)


def _formal(path: Iterable[KeyEntry]) -> str:
    """Name of a body's input: the parameter's own, or the place inside it."""
    words = _words(path)
    return "_".join(words[1:] or words)


def _words(path: Iterable[KeyEntry]) -> list[str]:
    words = []
    for key in path:
        match key:
            case GetAttrKey(name=word) | MappingKey(key=word) | SequenceKey(idx=word):
                words.append(str(word))
    return words


def _memory(*, config: CellConfig, features: Any, w: Any, **arguments: Any) -> Access:
    return access(content(features, w, config), w=w, config=config, **arguments)


def _memory_attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    config: CellConfig = options["config"]
    return {
        "stores": ",".join(config.stores),
        "heads": config.sizes.heads,
        "surprise_gate": int(config.surprise_gate),
        "age_limit": config.age_limit,
    }


KINDS = (
    Kind("OdeFlow", ode_flow, unrolled_flow, "field", dict),
    Kind("HybridMemory", hybrid_memory, _memory, "memory", _memory_attributes),
)
