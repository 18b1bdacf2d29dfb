"""The step protocol, checked: what a module must do so that a graph can stand for it.

    spec()               -> StepSpec: inputs, outputs and state members, without the batch axis
    step(inputs, state)  -> (outputs, state'): dicts of tensors, float32 (x may be int64); pure

A step that changes what it was given, or that keeps something between calls, would lose it on the way to ONNX; so
it is run twice, and everything it could have touched is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import CheckpointError, ExportError, InputError

Tensors = dict[str, Tensor]
TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@runtime_checkable
class StepModule(Protocol):
    """What can be exported, besides being a torch module."""

    def spec(self) -> StepSpec:
        """Inputs, outputs and state."""

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """One step; pure."""


def check_module(module: object) -> StepSpec:
    """The module's spec, after everything about it has been checked.

    Raises ExportError where the protocol is not followed, CheckpointError where weights are not finite.
    """
    if not isinstance(module, nn.Module) or not isinstance(module, StepModule):
        raise ExportError(
            f"{type(module).__name__} does not follow the step protocol; give a torch module spec() and step()"
        )
    spec = _spec(module)
    _check_weights(module)
    for batch in (1, 3):
        _check_step(module, spec, batch)
    return spec


def example_inputs(spec: StepSpec, batch: int, seed: int = 0) -> Tensors:
    """Ordinary inputs: random x, everything observed, dt of a tenth."""
    generator = torch.Generator().manual_seed(seed)
    inputs: Tensors = {}
    for tensor in spec.inputs:
        shape = (batch, *tensor.shape)
        if tensor.name == "x" and tensor.dtype == "int64":
            inputs["x"] = torch.randint(0, 2, shape, generator=generator)
        elif tensor.name in ("mask", "dt"):
            inputs[tensor.name] = torch.full(shape, 1.0 if tensor.name == "mask" else 0.1)
        else:
            inputs[tensor.name] = torch.randn(shape, generator=generator)
    return inputs


def initial_state(spec: StepSpec, batch: int) -> Tensors:
    """The state of `batch` new streams."""
    rows = {m.name: torch.from_numpy(m.initial_row().copy()) for m in spec.state}
    return {name: row.unsqueeze(0).repeat(batch, *[1] * row.dim()) for name, row in rows.items()}


def _spec(module: StepModule) -> StepSpec:
    spec = module.spec()
    if not isinstance(spec, StepSpec):
        raise ExportError(f"spec() returned {type(spec).__name__}; return a StepSpec, for example by step_spec()")
    try:
        spec.validate()
    except InputError as cause:
        raise ExportError(f"spec(): {cause}") from cause
    return spec


def _check_weights(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name} is {tensor.dtype}; convert the module with .float(), only float32 is exported")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} holds NaN or infinity; train again, or export an earlier checkpoint")


def _check_step(module: nn.Module, spec: StepSpec, batch: int) -> None:
    """Run the step twice on the same values; compare results, arguments and weights."""
    inputs, state_shapes = example_inputs(spec, batch), {m.name: (batch, *m.shape) for m in spec.state}
    _, state = _run(module, inputs, initial_state(spec, batch))  # initial zeros would hide what is multiplied in place
    _check_tensors("state member", state, state_shapes)
    held = _copies({**dict(module.named_parameters()), **dict(module.named_buffers())})
    given = _copies(inputs), _copies(state)
    (outputs, after), (again, after_again) = (_run(module, inputs, state) for _ in range(2))
    _check_tensors("output", outputs, {t.name: (batch, *t.shape) for t in spec.outputs})
    _check_tensors("state member", after, state_shapes)
    _check_same(given[0] | given[1], inputs | state, "is changed in place by the step; make a new tensor instead")
    kept = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    _check_same(held, kept, "is changed by the step; make it a state member, buffers are constants in a graph")
    for one, other in ((outputs, again), (after, after_again)):
        _check_same(one, other, "differs between two equal calls; make the step pure (no noise)")
    if spec.state and all(torch.equal(after[m.name], state[m.name]) for m in spec.state):
        raise ExportError("the step returns the state that it was given; return the new state")


def _run(module: nn.Module, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    try:
        with torch.no_grad():
            result = module.step(dict(inputs), dict(state))  # type: ignore[operator]
    except KeyError as cause:
        raise ExportError(f"the step asks for {cause}, which spec() does not name; add it there") from cause
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Mapping) for part in result)):
        raise ExportError("the step must return two dicts of tensors, (outputs, state); change what it returns")
    return dict(result[0]), dict(result[1])


def _check_tensors(kind: str, found: Tensors, expected: dict[str, tuple[int, ...]]) -> None:
    for name in found.keys() ^ expected.keys():
        problem = "missing from what the step returns" if name in expected else "not in spec()"
        raise ExportError(f"{kind} {name!r} is {problem}; let spec() and step() name the same")
    for name, shape in expected.items():
        tensor = found[name]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ExportError(f"{kind} {name!r} is {got}, expected float32 {list(shape)}; correct spec() or step()")
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{kind} {name!r} is not finite for ordinary inputs; check the weights and the step")


def _check_same(before: Tensors, after: Tensors, problem: str) -> None:
    for name, tensor in before.items():
        if not torch.equal(tensor, after[name]):
            raise ExportError(f"{name!r} {problem}")


def _copies(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
