"""What every subject of latency.py runs: one nano cell with drawn weights, one stream's inputs, and its graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray

from odestream.export import export_bundle
from odestream.export.verify import torch_reference
from odestream.models.cell import Cell
from odestream.models.config import PRESETS, CellConfig, Sizes
from odestream.models.data import GAPS_PER_UNIT, phases
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.contract.tableau import tableau

Arrays = dict[str, NDArray[np.float32]]

CHANNELS = 16
AVERAGES = (0.5, 2.0, 8.0, 32.0)
FREQUENCIES = (0.5, 1.0, 1.5, 2.0)
CHECKED = ("y", "err", "gates", "h", "m", "wv", "ev")
"""Outputs and members that show whether a subject does the same: the forecast, the flow, every store."""


def drawn_cell(sizes: Sizes = PRESETS["nano"], channels: int = CHANNELS) -> Cell:
    """A forecaster whose every weight is drawn: nothing hides behind a zero, and how long a step takes is not said by
    the weights."""
    torch.manual_seed(0)
    ones = (1.0,) * channels
    cell = Cell(
        CellConfig(
            "forecast",
            channels,
            sizes,
            scale=ones,
            centre=(0.0,) * channels,
            averages=AVERAGES,
            frequencies=FREQUENCIES,
        )
    )
    with torch.no_grad():
        for parameter in cell.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    cell.field.constrain()
    return cell.eval()


@dataclass(frozen=True)
class Inputs:
    """Rows of one stream at the usual gap, a tenth of a model unit: x [T, X], ticks [T], and what a graph is given."""

    x: NDArray[np.float32]
    ticks: NDArray[np.int64]
    dt: NDArray[np.float32]
    phase: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """T."""
        return len(self.x)

    def row(self, i: int, batch: int = 1) -> Arrays:
        """Inputs of call i, which begins anew after T, for `batch` streams alike but for x."""
        i %= self.rows
        x = np.stack([self.x[(i + shift) % self.rows] for shift in range(batch)])
        rest = {"dt": self.dt[i], "phase": self.phase[i]}
        return {"x": x, "mask": np.ones_like(x), **{k: np.repeat(v[None], batch, axis=0) for k, v in rest.items()}}


def drawn_inputs(time: TimeSpec, rows: int, channels: int = CHANNELS) -> Inputs:
    """Standard normal x; the first call's dt is 0, as a new stream's is."""
    gap = round(time.ticks_per_model_unit / GAPS_PER_UNIT)
    ticks = time.origin + gap * np.arange(rows, dtype=np.int64)
    before = np.concatenate([ticks[:1], ticks[:-1]])
    dt = ((ticks - before) / time.ticks_per_model_unit).astype(np.float32)[:, None]
    x = np.random.default_rng(0).standard_normal((rows, channels)).astype(np.float32)
    return Inputs(x, ticks, dt, phases(before, time))


def export_cell(cell: Cell, path: Path, buckets: tuple[int, ...], verify_steps: int) -> TimeSpec:
    """Export the cell; its clock."""
    names = tuple(f"x{i}" for i in range(cell.config.channels))
    time = TimeSpec(frequencies=cell.config.frequencies)
    task = TaskSpec("forecast", names, names, time="t")
    export_bundle(cell, path, task=task, time=time, buckets=buckets, verify_steps=verify_steps, allow_uncalibrated=True)
    return time


def new_state(cell: Cell) -> Arrays:
    """The state of a new stream, by the names of a graph's inputs."""
    return {f"state_in_{m.name}": m.initial_row()[None].copy() for m in cell.spec().state}


def plain_graph(bundle: Path, steps: int) -> onnx.ModelProto:
    """A bucket's graph as a plain export has it: functions inlined, weights inside, batch 1 written into the shapes."""
    model = onnx.inliner.inline_local_functions(onnx.load(bundle / f"step.n{steps}.onnx"))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].Clear()
        port.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def torch_answers(cell: Cell, inputs: Inputs, steps: int) -> list[Arrays]:
    """Outputs and new state of the torch step after each row of the chain."""
    step, state, answers = torch_reference(cell), cell.initial_state(1), []
    for i in range(inputs.rows):
        row = {name: torch.from_numpy(value) for name, value in inputs.row(i).items()}
        outputs, state = step(str(steps), row, state)
        answers.append({name: value.numpy() for name, value in {**outputs, **state}.items()})
    return answers


def weight_floats(cell: Cell, steps: int) -> int:
    """Weights that one step of one stream multiplies with, each counted once a use.

    The field's two matrices are used once an evaluation, the time features' once a distinct time of a stage, everything
    else once. Twice as many floating-point operations are these products; biases and the memories' own are left out.
    """
    table = tableau(cell.config.method)
    evaluations = table.stages + (steps - 1) * (table.stages - table.fsal)
    times = len({(n + share) / steps for n in range(steps) for share in table.c})
    return _floats(cell, evaluations, times)


def matrix_floats(cell: Cell) -> int:
    """The same weights, each counted once."""
    return _floats(cell, 1, 1)


def _floats(cell: Cell, evaluations: int, times: int) -> int:
    c, z = cell.config, cell.config.sizes
    f, d, reads, x, k = c.feature_width, z.hidden, c.read_width, c.channels, 2 * len(c.frequencies)
    stores, addresses = len(c.stores), (1 + z.heads) * (2 * z.keys + z.values)
    field = evaluations * 2 * z.field * d + times * z.field * k + z.field * d
    memory = (z.content + addresses + 1 + stores) * f + ((1 + z.heads) * z.keys + stores) * d
    gates = 2 * f * z.gate + (1 + stores) * z.gate
    head = z.head * (d + k + x * (2 + len(c.averages))) + 2 * x * z.head
    jump = z.content * x + d * (z.content + 1) + 2 * d * (2 * d + reads)
    return field + memory + gates + head + jump
