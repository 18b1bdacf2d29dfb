"""The batched flow that calibration runs on, against the runtime it stands for and against closed forms."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from odestream.export.adaptive_flow import AdaptiveFlow, reference, true_errors
from odestream.export.calibration_samples import Samples, rotated
from odestream.models.cell import Cell
from odestream.runtime import Output, load
from odestream.runtime.arena import Layout
from odestream.runtime.backends import Binding
from odestream.runtime.bundle import Bundle
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest, TimeSpec, encode_manifest
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.sequences import random_cell

SECOND = 10**9
CALLS = 150


def with_factor(bundle: Bundle, factor: float, out: Path) -> Manifest:
    """A copy of a bundle in `out` with another safety factor."""
    solver = bundle.manifest.solver
    assert solver is not None
    changed = msgspec.structs.replace(solver, safety_factor=factor, calibration=None)
    manifest = msgspec.structs.replace(bundle.manifest, solver=changed)
    for path in bundle.path.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / "manifest.json").write_bytes(encode_manifest(manifest))
    return manifest


def lived(path: Path, manifest: Manifest) -> tuple[Samples, list[Output]]:
    """What a runtime's stream did over gaps from 50 ms to 20 s, most calls without an observation, and each start.

    Over shorter gaps err is rounding, in which torch and a backend differ. Of a few hundred decisions one may still
    hang on how a phase is rounded; in this draw none does.
    """
    rng, clock = np.random.default_rng(5), Clock(manifest.time)
    gaps = np.maximum(np.exp(rng.uniform(math.log(0.05), math.log(20.0), CALLS)) * SECOND, 1).astype(np.int64)
    ticks = np.concatenate([[17 * 10**17], 17 * 10**17 + np.cumsum(gaps)])
    starts: list[dict[str, Any]] = []
    outputs = []
    with load(path, "onnxruntime") as model:
        stream = model.stream()
        stream.step([351.0, -2.0], int(ticks[0]))
        for i in range(CALLS):
            starts.append({**stream.state(), "phase": clock.phase(int(ticks[i]))})
            seen = i % 5 == 0
            x = np.array([350.0, -1.0]) + rng.normal(size=2) * (3.0 if i % 25 == 0 else 1.0)
            outputs.append(stream.step(x, int(ticks[i + 1]), [seen, seen]))
    h, u, phase = (torch.from_numpy(np.stack([start[name] for start in starts])) for name in ("h", "u", "phase"))
    return Samples("lived", h, u, phase, gaps, np.zeros(CALLS, np.int64), np.zeros(CALLS, np.int64)), outputs


class ByGraphs(AdaptiveFlow):
    """The same, with the exported graphs in place of torch's flow, whose rounding decisions then do not hang on."""

    def __init__(self, cell: Cell, manifest: Manifest, samples: Samples, binding: Binding) -> None:
        super().__init__(cell, manifest, samples)
        self.binding, self.places = binding, Layout(manifest.spec.state, 1)
        self.err = Layout(manifest.spec.outputs, 1).offsets["err"]

    def _flow(
        self, h: Tensor, rows: Tensor, offset: NDArray[np.float64], dt: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        inputs, arena = self.binding.inputs, self.places.views(self.binding.arena)
        ends, errs = [], []
        for place, row in enumerate(rows.tolist()):
            inputs["mask"][...], inputs["dt"][...] = 0.0, dt[place].numpy()
            assert self.samples.phase is not None
            start = self.samples.phase[row][None]
            inputs["phase"][...] = rotated(start, offset[place][None], self._cell.config.frequencies).numpy()
            arena["h"][...], arena["u"][...] = h[place].numpy(), self.samples.u[row].numpy()
            self.binding.run(str(steps))
            ends.append(torch.from_numpy(self.places.views(self.binding.next_arena)["h"][0].copy()))
            errs.append(float(self.binding.flat_outputs[self.err]))
        return torch.stack(ends), torch.tensor(errs)[:, None]


@pytest.mark.parametrize(("factor", "by_graphs"), [(1.0, False), (0.3, False), (0.01, True), (1e-4, True)])
def test_the_batched_flow_decides_as_a_stream_does_call_by_call(
    factor: float, by_graphs: bool, tmp_path: Path, exported: Exported
) -> None:
    cell, bundle = exported("forecast")
    manifest = with_factor(bundle, factor, tmp_path)
    samples, outputs = lived(tmp_path, manifest)
    with load(tmp_path, "onnxruntime") as model:
        flow = ByGraphs(cell, manifest, samples, model.bind()) if by_graphs else AdaptiveFlow(cell, manifest, samples)
        flow.prepare()
        crossed = flow.cross(flow.rule, np.arange(CALLS))
    found = [(c.accepted[-1], len(c.accepted), len(c.rejected), c.flagged) for c in crossed]
    assert found == [(o.bucket, o.calls, o.reruns, o.flagged) for o in outputs]
    np.testing.assert_allclose([c.err for c in crossed], [o.err for o in outputs], rtol=1e-2, atol=1e-3)
    assert max(o.calls for o in outputs) > 4
    if factor < 1:
        assert any(o.reruns for o in outputs)
    if factor == 1e-4:
        assert 0 < sum(o.flagged for o in outputs) < CALLS


def test_chains_side_by_side_do_not_change_each_other(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    random = torch.Generator().manual_seed(2)
    h, u = (torch.randn(40, 13, generator=random) for _ in range(2))
    phase, gap = torch.zeros(40, 4), np.tile([SECOND // 20, SECOND // 2], 20)
    samples = Samples("two", h, u, phase, gap, np.repeat([0, 1], 20), np.zeros(40, np.int64))
    both = AdaptiveFlow(cell, bundle.manifest, samples)
    alone = AdaptiveFlow(cell, bundle.manifest, samples)
    together = both.cross(both.rule, np.arange(40))
    apart = alone.cross(alone.rule, np.arange(20, 40))
    assert [(c.accepted, c.rejected) for c in together[20:]] == [(c.accepted, c.rejected) for c in apart]
    assert len({c.accepted for c in apart}) > 1


def leak(rates: torch.Tensor) -> Cell:
    """A cell whose field is −λ ⊙ h alone."""
    cell = random_cell(dataclasses.replace(CONFIGS["classify"], decay_limit=50.0))
    with torch.no_grad():
        cell.field.output.zero_()
        cell.field.log_decay.copy_(torch.log(torch.expm1(rates)))
    return cell


def test_the_reference_is_the_closed_form_of_a_pure_leak() -> None:
    cell = leak(torch.linspace(0.1, 30.0, 13))
    random = torch.Generator().manual_seed(0)
    h = torch.randn(400, 13, generator=random)
    units = np.exp(np.random.default_rng(0).uniform(math.log(0.01), math.log(5.0), 400))
    samples = Samples("leak", h, torch.zeros(400, 13), None, np.zeros(400, np.int64), *[np.zeros(400, np.int64)] * 2)
    found = reference(cell, samples, units)
    rates = cell.field.weights().decay.detach().double()
    exact = h.double() * torch.exp(-rates * torch.from_numpy(units)[:, None])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_the_true_error_is_the_root_mean_square_in_tolerances() -> None:
    before, after = torch.tensor([[1.0, -4.0], [0.0, 0.0]]), torch.tensor([[2.0, 3.0], [0.0, math.nan]])
    expected = torch.tensor([[2.5, 3.5], [0.0, 0.0]], dtype=torch.float64)
    errors = true_errors(before, after, expected, rtol=0.1, atol=0.05)
    first = math.sqrt(((0.5 / 0.3) ** 2 + (0.5 / 0.45) ** 2) / 2)
    assert errors[0] == pytest.approx(first)
    assert np.isfinite(errors[1])
    assert errors[1] > 1e9


def test_a_clock_of_coarse_ticks_never_splits_a_single_tick(exported: Exported) -> None:
    cell, bundle = exported("classify")
    solver = bundle.manifest.solver
    assert solver is not None
    strict = msgspec.structs.replace(solver, safety_factor=1e-9, calibration=None)
    time = TimeSpec(ticks_per_model_unit=2.0, tick_seconds=0.5)
    manifest = msgspec.structs.replace(bundle.manifest, solver=strict, time=time)
    h = torch.randn(3, 13, generator=torch.Generator().manual_seed(1))
    rows = np.zeros(3, np.int64)
    flow = AdaptiveFlow(cell, manifest, Samples("coarse", h, h, None, np.array([1, 2, 3]), rows, rows))
    crossed = flow.cross(flow.rule, np.arange(3))
    assert [len(c.accepted) for c in crossed] == [1, 2, 3]
    assert all(c.flagged for c in crossed)
