"""The safety factor: how it is chosen, what it keeps on fresh calls, and what happens where none will do."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import odestream.export.bundle as export_module
from odestream.export import export_bundle
from odestream.export.calibrate import (
    ENOUGH,
    LEVEL,
    TARGET,
    Calibrated,
    Judge,
    binomial_tail,
    calibrate,
    covered,
    refuse_uncalibrated,
)
from odestream.export.calibration_samples import KINDS, make_samples, plentiful, synthetic_streams
from odestream.export.plan import source
from odestream.models.cell import Cell
from odestream.models.held_out import HeldOut
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import CARD_NAME, Manifest, SolverSpec, TimeSpec, encode_manifest
from odestream.runtime.errors import BundleError, ExportError, InputError
from tests.export.conftest import CONFIGS, TASKS, Exported
from tests.helpers.sequences import random_cell

FORECAST_TIME = TimeSpec(frequencies=CONFIGS["forecast"].frequencies)


def solver_of(manifest: Manifest) -> SolverSpec:
    assert manifest.solver is not None
    return manifest.solver


def streams(cell: Cell, manifest: Manifest, seed: int) -> HeldOut:
    return synthetic_streams(source(cell, manifest.spec, manifest.solver, manifest.time), 16, seed)


def stiffer(cell: Cell, manifest: Manifest, factor: float) -> Manifest:
    """The cell, changed in place to `factor` times its drive, as a bundle of it would be described."""
    with torch.no_grad():
        cell.field.output.mul_(factor)
    solver = msgspec.structs.replace(solver_of(manifest), stiffness=cell.field.stiffness())
    return msgspec.structs.replace(manifest, solver=solver)


@pytest.fixture(scope="module")
def stiff(exported: Exported) -> tuple[Cell, Manifest, Calibrated]:
    """A random cell with four times the drive, calibrated."""
    cell = random_cell(CONFIGS["forecast"], seed=8)
    manifest = stiffer(cell, exported("forecast")[1].manifest, 4.0)
    return cell, manifest, calibrate(cell, manifest, None)


def test_the_factor_holds_on_fresh_states_gaps_and_bursts_of_a_stiff_cell(
    stiff: tuple[Cell, Manifest, Calibrated],
) -> None:
    cell, manifest, found = stiff
    assert found.record.reached
    assert 0 < found.factor <= 1
    assert len(found.ratios) == len(solver_of(manifest).buckets)
    assert found.ratios[-1] < found.ratios[0], "finer graphs overstate their error"
    for samples in make_samples(cell, manifest.time, streams(cell, manifest, seed=500), seed=77):
        row = Judge(cell, manifest, samples).outcome(found.factor, found.ratios).row("bosh32")
        assert row.calls > 1000
        assert covered(row) >= TARGET, row
        assert row.flagged <= 0.05 * row.calls, row


def test_every_call_above_the_factor_is_flagged_and_no_other(stiff: tuple[Cell, Manifest, Calibrated]) -> None:
    cell, manifest, found = stiff
    (samples, *_) = make_samples(cell, manifest.time, streams(cell, manifest, seed=3), seed=5)
    outcome = Judge(cell, manifest, samples).outcome(0.002)
    np.testing.assert_array_equal(outcome.flagged, outcome.err > 0.002)
    assert 0 < outcome.flagged.sum() < len(outcome.flagged)
    assert all((o.err[~o.flagged] <= found.factor).all() for o in found.measured)


def test_calibrating_again_gives_what_the_bundle_says(exported: Exported) -> None:
    cell, bundle = exported("classify")
    solver = solver_of(bundle.manifest)
    again = calibrate(cell, bundle.manifest, None)
    assert (again.factor, again.ratios) == (solver.safety_factor, solver.error_ratios)
    assert again.record == solver.calibration


def test_a_bundle_holds_factor_counts_figure_and_words(exported: Exported) -> None:
    _, bundle = exported("forecast")
    solver, card = solver_of(bundle.manifest), (bundle.path / CARD_NAME).read_text()
    record = solver.calibration
    assert record is not None
    assert (record.source, record.reached) == ("synthetic", True)
    assert [row.kind for row in record.rows] == list(KINDS)
    for row in record.rows:
        assert row.calls > 600
        assert sum(row.buckets.values()) >= row.calls
        assert row.evaluations >= 4  # one step of bosh32
    assert (bundle.path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert "calibration.png" in bundle.manifest.files
    for words in ("## Solver error", f"exceeds the safety factor {solver.safety_factor:g} is flagged", "made up"):
        assert words in card


def test_tolerances_below_float32_are_refused_and_say_so_when_forced(exported: Exported) -> None:
    cell, bundle = exported("classify")
    strict = msgspec.structs.replace(solver_of(bundle.manifest), rtol=1e-9, atol=1e-11, buckets=(1, 2))
    found = calibrate(cell, msgspec.structs.replace(bundle.manifest, solver=strict), None)
    assert not found.record.reached
    with pytest.raises(ExportError, match=r"no safety factor is .* of the kind '\w+'.*--allow-uncalibrated"):
        refuse_uncalibrated(found.factor, found.record)


MANY, BAD, NONE, FEW = (1000, 0, 1000), (1000, 600, 390), (746, 746, 0), (746, 606, 140)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (
            (MANY, BAD, MANY),
            r"with 0\.1, the best, 390 of 400 of the kind 'gaps' do \(97\.50%\), and 600 more are flagged",
        ),
        (
            (MANY, MANY, FEW),
            r"even 0\.1 flags 606 of 746 calls of the kind 'bursts', and leaves too few to judge by \(140\)",
        ),
        (
            (NONE, BAD, FEW),
            r"even 0\.1 flags 746 of 746 calls of the kind 'streams', and leaves too few to judge by \(0\)",
        ),
        ((FEW, BAD, MANY), r"390 of 400 of the kind 'gaps' do \(97\.50%\), and 600 more are flagged"),
    ],
)
def test_a_refusal_tells_wrong_calls_from_too_few_that_are_left(
    counts: tuple[tuple[int, int, int], ...], says: str, exported: Exported
) -> None:
    """Each kind has so many calls, flagged ones, and unflagged ones within tolerance."""
    record = solver_of(exported("classify")[1].manifest).calibration
    assert record is not None
    rows = tuple(
        msgspec.structs.replace(row, calls=calls, flagged=flagged, within=within)
        for row, (calls, flagged, within) in zip(record.rows, counts, strict=True)
    )
    with pytest.raises(ExportError, match=f"{says}; export buckets of more steps, a looser --rtol"):
        refuse_uncalibrated(0.1, msgspec.structs.replace(record, reached=False, rows=rows))


def test_an_uncalibrated_model_is_exported_only_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stiff: tuple[Cell, Manifest, Calibrated]
) -> None:
    missed = stiff[2]._replace(record=msgspec.structs.replace(stiff[2].record, reached=False))
    monkeypatch.setattr(export_module, "calibrate", lambda *_: missed)
    options = {"task": TASKS["classify"], "verify_steps": 5}
    with pytest.raises(ExportError, match="--allow-uncalibrated"):
        export_bundle(random_cell(CONFIGS["classify"]), tmp_path / "bundle", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    cell = random_cell(CONFIGS["classify"])
    manifest = export_bundle(cell, tmp_path / "bundle", allow_uncalibrated=True, **options)  # type: ignore[arg-type]
    calibration = solver_of(manifest).calibration
    assert calibration is not None
    assert not calibration.reached
    assert "**Uncalibrated.**" in (tmp_path / "bundle" / CARD_NAME).read_text()


def test_a_method_without_an_estimate_promises_nothing_but_is_measured(tmp_path: Path) -> None:
    cell = random_cell(CONFIGS["classify"])
    with pytest.raises(ExportError, match="rk4 does not estimate its error.*--allow-uncalibrated"):
        export_bundle(cell, tmp_path / "bundle", method="rk4", buckets=(2,))
    manifest = export_bundle(
        cell, tmp_path / "bundle", method="rk4", buckets=(2,), allow_uncalibrated=True, verify_steps=5
    )
    record = solver_of(manifest).calibration
    assert record is not None
    assert not record.reached
    assert record.chosen_on == 0
    assert all(row.flagged == 0 and 0 < row.within <= row.calls for row in record.rows)
    assert "**Nothing is promised.**" in (tmp_path / "bundle" / CARD_NAME).read_text()


def test_held_out_streams_that_do_not_fit_are_refused(tmp_path: Path, exported: Exported) -> None:
    cell, bundle = exported("forecast")
    held_out = streams(cell, bundle.manifest, seed=0)
    for wrong, says in (
        ({**held_out.inputs, "x": held_out.inputs["x"][..., :1]}, "x is torch.float32"),
        ({name: value for name, value in held_out.inputs.items() if name != "phase"}, "phase is missing"),
        ({**held_out.inputs, "dt": held_out.inputs["dt"] * math.inf}, "dt holds NaN or infinity"),
    ):
        with pytest.raises(InputError, match=says):
            export_bundle(cell, tmp_path / "b", time=FORECAST_TIME, held_out=held_out._replace(inputs=wrong))


@pytest.mark.parametrize(("count", "misses", "rate"), [(5, 0, 0.5), (12, 3, 0.25), (30, 30, 0.1), (200, 4, 0.01)])
def test_the_binomial_tail_is_that_of_exact_enumeration(count: int, misses: int, rate: float) -> None:
    p = Fraction(rate)
    exact = sum(math.comb(count, i) * p**i * (1 - p) ** (count - i) for i in range(misses + 1))
    assert binomial_tail(misses, count, rate) == pytest.approx(float(exact), rel=1e-12)


def test_many_calls_do_not_make_misses_vanish() -> None:
    assert binomial_tail(3000, 80_000, 0.01) == pytest.approx(1.0)
    assert binomial_tail(800, 80_000, 0.01) == pytest.approx(0.5, abs=0.02)


def test_as_many_calls_as_stated_are_enough_to_reject_one_miss_in_a_hundred() -> None:
    assert binomial_tail(0, ENOUGH, 1 - TARGET) <= LEVEL < binomial_tail(0, ENOUGH - 10, 1 - TARGET)
    assert binomial_tail(0, 0, 1 - TARGET) == 1.0  # nothing unflagged proves nothing


def test_samples_come_in_three_kinds_over_two_separate_halves(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    held_out = streams(cell, bundle.manifest, seed=0)
    assert plentiful(held_out)
    assert not plentiful(None)
    assert not plentiful(held_out._replace(counts=held_out.counts & (held_out.half == 0)))
    made = make_samples(cell, bundle.manifest.time, held_out, seed=1, draws=2)
    count = int(held_out.counts.sum())
    assert [(s.kind, len(s.gap)) for s in made] == [("streams", count), ("gaps", 2 * count), ("bursts", count)]
    for samples in made:
        assert samples.gap.min() >= 1
        assert all(len(set(samples.half[samples.chain == chain])) == 1 for chain in np.unique(samples.chain))
        assert set(samples.half) == {0, 1}
    gaps = made[1].gap / bundle.manifest.time.ticks_per_model_unit
    assert gaps.min() >= 0.05 - 1e-9
    assert gaps.max() <= 5
    torch.testing.assert_close(made[1].h[:count], made[0].h)
    assert not torch.equal(made[2].h, made[0].h)


def test_phases_of_bursts_are_those_of_their_own_times(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    held_out = streams(cell, bundle.manifest, seed=0)
    *_, bursts = make_samples(cell, bundle.manifest.time, held_out, seed=1)
    assert bursts.phase is not None
    for chain in np.unique(bursts.chain)[:4]:
        rows = np.flatnonzero(bursts.chain == chain)
        angle = np.arctan2(*np.split(bursts.phase[rows].double().numpy(), 2, axis=-1))
        units = bursts.gap[rows] / bundle.manifest.time.ticks_per_model_unit
        moved = angle[:-1] + units[:-1, None] * np.asarray(cell.config.frequencies)
        held = np.array([(moved[i] - angle[i + 1] + np.pi) % (2 * np.pi) - np.pi for i in range(len(moved))])
        assert np.median(np.abs(held)) < 1e-4  # calls of no gap stand between some, and do not count


def test_a_calibration_that_contradicts_itself_is_refused(tmp_path: Path, exported: Exported) -> None:
    _, bundle = exported("classify")
    solver = solver_of(bundle.manifest)
    record = solver.calibration
    assert record is not None
    broken = msgspec.structs.replace(record.rows[0], within=record.rows[0].calls + 1)
    strange = msgspec.structs.replace(record.rows[0], buckets={"3": 1})
    for row, says in ((broken, "within tolerance"), (strange, "no bucket of the bundle")):
        wrong = msgspec.structs.replace(record, rows=(row,))
        changed = msgspec.structs.replace(solver, calibration=wrong)
        for path in bundle.path.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        manifest = msgspec.structs.replace(bundle.manifest, solver=changed)
        (tmp_path / "manifest.json").write_bytes(encode_manifest(manifest))
        with pytest.raises(BundleError, match=says):
            read_bundle(tmp_path)
