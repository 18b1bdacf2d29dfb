"""Stored vectors: a chain of steps with the answers that a backend must reproduce, torch not needed.

A chain has T rows of a batch of B. Row i runs the graph `labels[i]` from the state that row i−1 left, or from
initial values where `reset[i]` is set (as it is for row 0), and must give `outputs[…][i]`; after the rows in
`checkpoints` the state must be `state[…]`. The file holds `in/NAME`, `out/NAME`, `state/NAME`, `checkpoint`,
`bucket` (index into the metadata's labels) and `reset`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.spec import StateSpec, TensorSpec
from odestream.runtime.contract.tensorfile import decode_tensors, encode_tensors
from odestream.runtime.errors import BundleError

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Vectors:
    """One chain; see the module's text.

    inputs: name → `[T, B, …]`. outputs: name → `[T, B, …]` float32. labels: T graph labels.
    reset: `[T]` bool. checkpoints: `[K]` int64, increasing rows. state: name → `[K, B, …]` float32.
    """

    inputs: Tensors
    outputs: Tensors
    labels: tuple[str, ...]
    reset: NDArray[np.bool_]
    checkpoints: NDArray[np.int64]
    state: Tensors

    @property
    def steps(self) -> int:
        """T, the rows of the chain."""
        return len(self.labels)

    @property
    def batch(self) -> int:
        """B, the streams of the chain."""
        return int(self.inputs["x"].shape[1])


def encode_vectors(vectors: Vectors) -> bytes:
    """The bytes of `vectors.safetensors`."""
    labels = sorted(set(vectors.labels))
    tensors: Tensors = {
        "bucket": np.asarray([labels.index(label) for label in vectors.labels], np.int64),
        "reset": np.asarray(vectors.reset).astype(np.uint8),
        "checkpoint": np.asarray(vectors.checkpoints, np.int64),
    }
    for kind, group in (("in", vectors.inputs), ("out", vectors.outputs), ("state", vectors.state)):
        tensors |= {f"{kind}/{name}": value for name, value in group.items()}
    return encode_tensors(tensors, msgspec.json.encode(labels))


def decode_vectors(data: bytes, manifest: Manifest, where: str) -> Vectors:
    """Parse and check stored vectors against the manifest; BundleError names `where` and what is wrong."""
    try:
        tensors, text = decode_tensors(data)
        labels = msgspec.json.decode(text, type=list[str])
        vectors = _assemble(tensors, labels)
        for problem in _problems(vectors, manifest):
            raise ValueError(problem)
    except (ValueError, KeyError, IndexError, msgspec.MsgspecError) as cause:
        raise BundleError(f"{where}: {cause}; export the bundle again") from cause
    return vectors


def _assemble(tensors: Tensors, labels: list[str]) -> Vectors:
    missing = {"bucket", "reset", "checkpoint", "in/x"} - set(tensors)
    if missing:
        raise ValueError(f"no tensor {', '.join(sorted(missing))}")
    index = tensors["bucket"]
    if index.ndim != 1 or index.dtype != np.int64 or any(not 0 <= i < len(labels) for i in index.tolist()):
        raise ValueError(f"bucket must be int64 indices below {len(labels)}")
    group = {
        kind: {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("in/", "out/", "state/")
    }
    return Vectors(
        inputs=group["in/"],
        outputs=group["out/"],
        labels=tuple(labels[i] for i in index.tolist()),
        reset=tensors["reset"].astype(np.bool_),
        checkpoints=tensors["checkpoint"].astype(np.int64),
        state=group["state/"],
    )


def _problems(vectors: Vectors, manifest: Manifest) -> Iterator[str]:
    spec, steps, rows = manifest.spec, vectors.steps, vectors.checkpoints
    if steps == 0 or vectors.inputs["x"].ndim < 2 or vectors.batch == 0:
        yield "the chain is empty"
        return
    unknown = set(vectors.labels) - set(manifest.graphs)
    if unknown:
        yield f"buckets {sorted(unknown)} are not among the bundle's {sorted(manifest.graphs)}"
    if vectors.reset.shape != (steps,) or not vectors.reset[0]:
        yield f"reset must have {steps} values, the first of them 1"
    if rows.ndim != 1 or not len(rows) or np.any(np.diff(rows) <= 0) or rows[0] < 0 or rows[-1] >= steps:
        yield f"checkpoint must be increasing rows below {steps}"
    yield from _tensor_problems("in", vectors.inputs, spec.inputs, (steps, vectors.batch))
    yield from _tensor_problems("out", vectors.outputs, spec.outputs, (steps, vectors.batch))
    yield from _tensor_problems("state", vectors.state, spec.state, (len(rows), vectors.batch))


def _tensor_problems(
    kind: str, found: Tensors, expected: tuple[TensorSpec, ...] | tuple[StateSpec, ...], lead: tuple[int, int]
) -> Iterator[str]:
    if set(found) != {tensor.name for tensor in expected}:
        yield f"{kind}/ has {sorted(found)}, expected {[tensor.name for tensor in expected]}"
        return
    for tensor in expected:
        dtype = tensor.dtype if isinstance(tensor, TensorSpec) else "float32"
        value, shape = found[tensor.name], (*lead, *tensor.shape)
        if value.shape != shape or value.dtype != np.dtype(dtype):
            yield f"{kind}/{tensor.name} is {value.dtype}{list(value.shape)}, expected {dtype}{list(shape)}"
        if value.dtype == np.float32 and not np.isfinite(value).all():
            yield f"{kind}/{tensor.name} is not finite"
