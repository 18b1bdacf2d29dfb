"""What a verification runs: a chain of irregular steps with holes and queries, from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odestream.models.baselines import Baseline
from odestream.models.cell import Cell
from odestream.models.config import VOCABULARY
from odestream.runtime.contract.manifest import SolverSpec, TimeSpec
from odestream.runtime.contract.spec import StepSpec, TensorSpec
from odestream.runtime.contract.tableau import longest_gap

Array = NDArray[np.generic]

BATCH = 2
TYPICAL_GAP = 0.1  # a model unit is ten median gaps
LONGEST_GAP = 5.0
MISSING, QUERIES, STANDSTILL = 0.2, 0.1, 0.03  # shares of missing values, of calls with mask 0, of calls with dt 0
PHASE_LIMIT = 1000 * 2 * np.pi  # as the runtime's own guard


@dataclass(frozen=True)
class Source:
    """Where ordinary inputs lie: centre and scale [X] of x, or the number of tokens.

    solver: bounds the gaps, None for a module without one. frequencies: of the phase, in rad per model unit.
    """

    spec: StepSpec
    solver: SolverSpec | None
    frequencies: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """A chain from the initial state on. inputs: name → [T, B, …]; labels: the graph of each row."""

    inputs: dict[str, Array]
    labels: tuple[str, ...]

    def head(self, rows: int) -> Plan:
        """Its first rows."""
        return Plan({name: values[:rows] for name, values in self.inputs.items()}, self.labels[:rows])


def source(module: object, spec: StepSpec, solver: SolverSpec | None, time: TimeSpec) -> Source:
    """The source of inputs for a module: a cell's or a rival's own scales, or zero and one."""
    if isinstance(module, Cell | Baseline):
        config = module.config if isinstance(module, Cell) else module.config.frame
        return Source(spec, solver, time.frequencies, config.centre, config.scale, VOCABULARY)
    return Source(spec, solver, time.frequencies, (0.0,), (1.0,), 2)


def make_plan(of: Source, labels: Sequence[str], seed: int) -> Plan:
    """A chain through the graphs `labels`, BATCH streams wide; every gap is inside its graph's stability bound."""
    generator = np.random.default_rng(seed)
    steps = len(labels)
    dt = _gaps(of, labels, generator)
    values: dict[str, Array] = {"dt": dt, "phase": _phases(of.frequencies, dt)}
    for tensor in of.spec.inputs:
        if tensor.name == "x":
            values["x"] = _observations(of, tensor, steps, generator)
        if tensor.name == "mask":
            values["mask"] = _masks(tensor, steps, generator)
    return Plan({t.name: values[t.name] for t in of.spec.inputs}, tuple(labels))


def _observations(of: Source, tensor: TensorSpec, steps: int, generator: np.random.Generator) -> Array:
    shape = (steps, BATCH, *tensor.shape)
    if tensor.dtype == "int64":
        return generator.integers(0, of.tokens, shape)
    noise = generator.standard_normal(shape)
    walk = 0.3 * np.cumsum(noise, axis=0) / np.sqrt(np.arange(1, steps + 1)).reshape(-1, *[1] * (len(shape) - 1))
    return (np.asarray(of.centre) + np.asarray(of.scale) * (walk + 0.5 * noise)).astype(np.float32)


def _masks(tensor: TensorSpec, steps: int, generator: np.random.Generator) -> Array:
    mask = generator.random((steps, BATCH, *tensor.shape)) >= MISSING
    mask[generator.random((steps, BATCH)) < QUERIES] = False
    return mask.astype(np.float32)


def _gaps(of: Source, labels: Sequence[str], generator: np.random.Generator) -> NDArray[np.float32]:
    shape = (len(labels), BATCH, 1)
    gaps = TYPICAL_GAP * np.exp(0.8 * generator.standard_normal(shape))
    gaps[generator.random(shape) < 0.02] = LONGEST_GAP
    gaps[generator.random(shape) < STANDSTILL] = 0.0
    longest = np.array([_longest_gap(of, label) for label in labels]).reshape(-1, 1, 1)
    shortened: NDArray[np.float32] = np.minimum(gaps, longest).astype(np.float32)
    return shortened


def _longest_gap(of: Source, label: str) -> float:
    """What the runtime would pass in one call."""
    longest = LONGEST_GAP
    if of.frequencies and max(of.frequencies) > 0:
        longest = min(longest, PHASE_LIMIT / max(of.frequencies))
    if of.solver is not None:
        longest = min(longest, longest_gap(int(label), of.solver.stiffness, of.solver.method))
    return longest


def _phases(frequencies: tuple[float, ...], dt: NDArray[np.float32]) -> Array:
    """Sines, then cosines, at the time before each call, worked out in float64 as the runtime's clock does."""
    before = np.cumsum(dt, axis=0, dtype=np.float64) - dt
    angle = before * np.asarray(frequencies)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
