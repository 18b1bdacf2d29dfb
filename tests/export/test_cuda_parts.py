"""The launches that others wrap, flow and memory alone, run on the CPU against the torch functions they stand for."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import Structure, c_int32, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.config import STORES, Store
from odestream.models.flow import ode_flow
from odestream.models.hybrid import hybrid_memory, memory_spec
from odestream.runtime.backends.native import library_weights
from odestream.runtime.kernels.configuration import native_config
from tests.helpers.native import memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell

Floats = NDArray[np.float32]
MOST_MEMORIES = 9
BATCHES = pytest.mark.parametrize(("batch", "processors"), [(2, 8), (6, 1)])


class FlowCall(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("h", "u", "phase", "dt", "moved", "err", "scratch")),
        ("batch", c_int32),
    ]


class MemoryCall(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("features", "h", "observed", "surprise", "dt")),
        ("old", c_void_p * MOST_MEMORIES),
        *((name, c_void_p) for name in ("reads", "gates")),
        ("fresh", c_void_p * MOST_MEMORIES),
        ("scratch", c_void_p),
        ("batch", c_int32),
    ]


class Parts:
    """The library's parts over one cell."""

    def __init__(self, library: Path, cell: Cell) -> None:
        bundle = memory_bundle(cell)
        self.library = ctypes.CDLL(str(library))
        self.config, (weights, self.kept) = (
            native_config(bundle.manifest),
            library_weights(bundle.manifest, bundle.weights),
        )
        self.cell = ctypes.byref(self.config), weights, c_size_t(len(weights))

    def run(self, name: str, *arguments: object) -> int:
        return int(getattr(self.library, f"part_{name}")(*self.cell, *arguments))


def address(array: Floats) -> int:
    return int(array.ctypes.data)


def close(found: Mapping[str, Floats], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        wanted = value.detach().numpy()
        np.testing.assert_allclose(
            found[name], wanted, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(wanted).max()), err_msg=name
        )


@BATCHES
@pytest.mark.parametrize("frequencies", [(), (0.7, 1.9)])
@pytest.mark.parametrize("room", [0, 99 * 1024])
def test_the_flow_alone_is_torch_ode_flow(
    frequencies: tuple[float, ...],
    batch: int,
    processors: int,
    room: int,
    cuda_on_cpu: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", str(processors))
    monkeypatch.setenv("CUDA_ON_CPU_BLOCK_MEMORY", str(room))
    cell = random_cell(tiny_config(frequencies=frequencies))
    width, rng = cell.config.sizes.hidden, np.random.default_rng(0)
    h, u = (rng.standard_normal((batch, width)).astype(np.float32) for _ in range(2))
    dt = rng.uniform(0, 2, (batch, 1)).astype(np.float32)
    dt[0] = 0.0
    angle = rng.uniform(0, 6, (batch, len(frequencies))).astype(np.float32)
    phase = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    moved, err = np.full_like(h, np.nan), np.full((batch, 1), np.nan, np.float32)
    call = FlowCall(*map(address, (h, u, phase, dt, moved, err)), None, batch)
    assert Parts(cuda_on_cpu, cell).run("flow", ctypes.byref(call), 3) == 0
    given = [torch.from_numpy(a) for a in (h, u, phase, dt)]
    if not frequencies:
        given[2] = None  # type: ignore[call-overload]
    c = cell.config
    with torch.no_grad():
        expected = ode_flow(*given, cell.weights().field, method=c.method, steps=3, rtol=c.rtol, atol=c.atol)
    np.testing.assert_allclose(moved, expected[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(err, expected[1].numpy(), atol=1e-3)
    assert moved[0].tobytes() == h[0].tobytes()


@BATCHES
@pytest.mark.parametrize("stores", [STORES, STORES[1:], STORES[:1]], ids="+".join)
def test_the_memory_alone_is_torch_hybrid_memory(
    stores: tuple[Store, ...], batch: int, processors: int, cuda_on_cpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", str(processors))
    sink = "episodic" in stores
    cell = random_cell(tiny_config("classify", stores=stores, surprise_gate=True, episodic_sink=sink))
    config, rng = cell.config, np.random.default_rng(1)
    features = rng.standard_normal((batch, config.feature_width)).astype(np.float32)
    h = rng.standard_normal((batch, config.sizes.hidden)).astype(np.float32)
    observed = (np.arange(batch) % 2 == 0).astype(np.float32)[:, None]
    surprise, dt = (rng.uniform(0, 1, (batch, 1)).astype(np.float32) for _ in range(2))
    old = {m.name: rng.uniform(0, 1, (batch, *m.shape)).astype(np.float32) for m in memory_spec(config)}
    given = {k: torch.from_numpy(v) for k, v in old.items()}
    rows = [torch.from_numpy(a) for a in (features, h)] + [torch.from_numpy(observed) > 0]
    rows += [torch.from_numpy(a) for a in (surprise, dt)]
    with torch.no_grad():
        expected = hybrid_memory(*rows, given, cell.weights().memory, config=config)
    fresh = {name: np.full_like(value, np.nan) for name, value in old.items()}
    reads = np.full(expected.reads.shape, np.nan, np.float32)
    gates = np.full(expected.gates.shape, np.nan, np.float32)
    call = MemoryCall(*map(address, (features, h, observed, surprise, dt)), batch=batch)
    call.reads, call.gates = address(reads), address(gates)
    call.old[: len(old)] = [address(value) for value in old.values()]
    call.fresh[: len(old)] = [address(value) for value in fresh.values()]
    assert Parts(cuda_on_cpu, cell).run("memory", ctypes.byref(call)) == 0
    close(
        {"reads": reads, "gates": gates, **fresh},
        {"reads": expected.reads, "gates": expected.gates, **expected.memories},
    )


def test_packing_on_the_device_is_the_loaders(cuda_on_cpu: Path) -> None:
    cell = random_cell(tiny_config())
    hidden = cell.weights().field.hidden.detach().numpy().astype(np.float32)
    parts = Parts(cuda_on_cpu, cell)
    assert parts.run("pack", c_void_p(address(np.ascontiguousarray(hidden)))) == 1
    assert parts.run("pack", c_void_p(address(np.ascontiguousarray(hidden + 1)))) == 0
