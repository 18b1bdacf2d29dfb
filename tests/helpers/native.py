"""Bundles in memory for the native backend, and what it makes of inputs beside the torch step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from odestream.export.traced import trace_cell
from odestream.export.verify import torch_reference
from odestream.export.weights import encode_weights
from odestream.models.cell import Cell
from odestream.models.hybrid import gate_names
from odestream.runtime.arena import Layout
from odestream.runtime.backends import Binding
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import Manifest, SolverSpec, TaskSpec, TimeSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.contract.tolerances import tolerances

Arrays = dict[str, NDArray[np.generic]]


def memory_bundle(cell: Cell, buckets: tuple[int, ...] = (1, 4)) -> Bundle:
    """What an export of `cell` would be to the native backend: weights and manifest, but no graphs."""
    weights = trace_cell(cell).weights
    _, entries = encode_weights(weights)
    config = cell.config
    solver = SolverSpec(
        config.method, buckets, buckets[0], config.rtol, config.atol, tableau(config.method).error is not None, 1.0
    )
    manifest = Manifest(
        schema=1,
        name="in-memory",
        identity="",
        dtype="fp32",
        spec=cell.spec(),
        task=TaskSpec(),
        time=TimeSpec(frequencies=config.frequencies),
        solver=solver,
        default_graph=str(buckets[0]),
        graphs={str(bucket): f"{bucket}.onnx" for bucket in buckets},
        gate_names=gate_names(config),
        weights=entries,
        parity=(),
        config=config.to_dict(),
        metrics={},
        provenance={},
        files={},
    )
    return Bundle(Path("in-memory"), manifest, {}, {name: tensor.detach().numpy() for name, tensor in weights.items()})


def differences(
    cell: Cell,
    binding: Binding,
    inputs: Mapping[str, torch.Tensor],
    label: str,
    chained: bool = False,
    backend: str = "native",
) -> dict[str, float]:
    """Largest error of every output and state member over inputs [T, B, …], in units of what is tolerated.

    Every call starts from torch's state, unless `chained`: the binding then runs on from its own.
    """
    reference, state = torch_reference(cell), cell.initial_state(binding.batch)
    layout, limits = Layout(cell.spec().state, binding.batch), tolerances("fp32", backend)
    worst: dict[str, float] = {}
    for t in range(len(inputs["dt"])):
        row = {name: values[t] for name, values in inputs.items()}
        for name, value in row.items():
            binding.inputs[name][...] = value.numpy()
        if not chained:
            arena = binding.arena
            for name, view in layout.views(arena).items():
                view[...] = state[name].detach().numpy()
            binding.set_state(arena)
        outputs, state = reference(label, row, state)  # type: ignore[assignment]
        binding.run(label)
        binding.swap()
        found = {**binding.outputs, **layout.views(binding.arena)}
        for name, expected in {**outputs, **state}.items():
            limit, wanted = limits.of(name), expected.numpy().astype(np.float64)
            scale = max(float(np.abs(wanted).max()), limit.floor) * limit.limit
            error = float(np.abs(found[name] - wanted).max()) / scale
            worst[name] = max(worst.get(name, 0.0), error if np.isfinite(error) else np.inf)
    return worst
