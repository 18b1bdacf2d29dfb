"""The native backend against the torch step: every task, store, tableau, bucket, and sizes off every vector width."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.export import verify_bundle
from odestream.models.cell import Cell
from odestream.models.config import PRESETS, STORES, CellConfig, Sizes, Store, Task
from odestream.runtime.arena import Layout
from odestream.runtime.backends.native import NativeBinding, open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.tableau import TABLEAUS
from odestream.runtime.errors import StateError
from odestream.runtime.guards import finite
from odestream.runtime.kernels.library import load_library
from odestream.runtime.replay import failures, verify_vectors
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.native import differences, memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs

pytestmark = pytest.mark.usefixtures("native_library")

TASKS = list(CONFIGS)
SUBSETS = [tuple(chosen) for n in (1, 2, 3) for chosen in itertools.combinations(STORES, n)]


def bind(bundle: Bundle, batch: int) -> NativeBinding:
    binding = open_engine(bundle).bind(batch)
    assert isinstance(binding, NativeBinding)
    return binding


def agrees(cell: Cell, label: str = "4", batch: int = 3, length: int = 12) -> None:
    binding = bind(memory_bundle(cell, (int(label),)), batch)
    found = differences(cell, binding, random_inputs(cell.config, length, batch), label)
    assert set(found) == {t.name for t in (*cell.spec().outputs, *cell.spec().state)}
    assert max(found.values()) <= 1.0, found


@pytest.fixture(params=["x86_64_v3", "x86_64_v4"])
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ODESTREAM_ISA", request.param)
    found = load_library().odestream_instruction_set()
    if found is None or found.decode() != request.param:
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.mark.parametrize("task", TASKS)
def test_each_task_agrees_on_each_instruction_set(task: Task, instruction_set: str) -> None:
    assert instruction_set
    agrees(random_cell(CONFIGS[task]), length=30)


@pytest.mark.parametrize("stores", [*SUBSETS, tuple(reversed(STORES))], ids="+".join)
@pytest.mark.parametrize("task", ["forecast", "classify"])
def test_any_stores_in_any_order_agree(task: str, stores: tuple[Store, ...]) -> None:
    sink = "episodic" in stores
    agrees(random_cell(tiny_config(task, stores=stores, surprise_gate=True, episodic_sink=sink)))


@pytest.mark.parametrize("method", TABLEAUS)
def test_every_tableau_agrees_in_every_number_of_steps(method: str) -> None:
    cell = random_cell(tiny_config(method=method))
    bundle = memory_bundle(cell, (1, 2, 3, 8, 16))
    inputs = random_inputs(cell.config, 6, 2)
    for label in bundle.manifest.graphs:
        found = differences(cell, bind(bundle, 2), inputs, label)
        assert max(found.values()) <= 1.0, (label, found)


@pytest.mark.parametrize("averages", [(), (2.0,)])
@pytest.mark.parametrize("frequencies", [(), (0.5,)])
def test_running_averages_and_time_features_may_be_absent(
    averages: tuple[float, ...], frequencies: tuple[float, ...]
) -> None:
    agrees(random_cell(tiny_config("classify", averages=averages, frequencies=frequencies)))


@pytest.mark.parametrize("preset", ["nano", "small"])
def test_presets_agree(preset: str) -> None:
    agrees(random_cell(tiny_config(sizes=PRESETS[preset])))


WIDTH = st.integers(1, 70)
ANY_SIZES = st.builds(Sizes, *[WIDTH] * 7, st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=10)
@given(ANY_SIZES, st.integers(1, 5), st.integers(1, 9))
def test_any_sizes_agree(sizes: Sizes, channels: int, batch: int) -> None:
    scale, centre = (0.5, 3.0, 1.0, 1.0, 2.0)[:channels], (350.0, 0.0, -1.0, 0.0, 9.0)[:channels]
    cell = random_cell(tiny_config(sizes=sizes, channels=channels, scale=scale, centre=centre))
    agrees(cell, "2", batch, length=5)


def test_a_stationary_record_starts_at_its_centre_on_native_too() -> None:
    cell = random_cell(tiny_config(stationary=True, averages=(1.0, 1e4)))
    chain = differences(cell, bind(memory_bundle(cell), 3), random_inputs(cell.config, 30, 3), "4", chained=True)
    assert max(chain.values()) <= 1.0, chain


@pytest.mark.parametrize("task", TASKS)
def test_stored_chains_of_a_bundle_replay_on_native(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    rows = verify_vectors(open_engine(bundle), bundle)
    assert rows
    assert not failures(rows)
    assert task != "forecast" or {row.steps for row in rows} == {1200}


FROM_THE_CONFIGURATION = {"centre", "scale", "field.frequencies"}


def test_the_self_test_of_native_shows_a_small_change_in_any_weight(exported: Exported) -> None:
    """So that what `load` replays proves that each was read and packed into its place."""
    _, bundle = exported("forecast")
    for name in bundle.weights.keys() - FROM_THE_CONFIGURATION:
        changed = bundle.weights[name].copy()
        # The slope goes through softplus, at -4: hardly anything of a small change comes through.
        changed[tuple(n // 2 for n in changed.shape)] += 0.5 if name == "memory.age_slope" else 0.01
        spoilt = Bundle(bundle.path, bundle.manifest, bundle.files, {**bundle.weights, name: changed})
        assert failures(verify_vectors(open_engine(spoilt), spoilt)), name


@pytest.mark.slow
def test_a_thousand_chained_steps_stay_at_the_torch_step(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    rows = verify_bundle(bundle.path, cell, steps=1000, backend="native")
    assert {(row.check, row.steps) for row in rows} >= {("chained", 1000), ("chained, mixed buckets", 1000)}
    assert not failures(list(rows))
    assert max(row.error for row in rows if row.tensor != "err") <= 3e-6


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_equals_its_rows_alone_bit_for_bit(task: Task) -> None:
    cell, batch = random_cell(CONFIGS[task]), 11  # a full tile, and a rest with rows by fours and alone
    bundle, inputs = memory_bundle(cell), random_inputs(CONFIGS[task], 8, batch)
    together, alone = bind(bundle, batch), [bind(bundle, 1) for _ in range(batch)]
    layout, single = Layout(cell.spec().state, batch), Layout(cell.spec().state, 1)
    for t in range(8):
        for name, values in inputs.items():
            together.inputs[name][...] = values[t].numpy()
        together.run("4")
        together.swap()
        for r, binding in enumerate(alone):
            for name, values in inputs.items():
                binding.inputs[name][...] = values[t, r : r + 1].numpy()
            binding.run("4")
            binding.swap()
            state, own = layout.views(together.arena), single.views(binding.arena)
            assert {n: v[r].tobytes() for n, v in state.items()} == {n: v[0].tobytes() for n, v in own.items()}
            outputs = binding.outputs.items()
            assert {n: together.outputs[n][r].tobytes() for n, _ in outputs} == {n: v[0].tobytes() for n, v in outputs}


@pytest.mark.parametrize("task", TASKS)
def test_a_call_that_takes_no_time_and_sees_nothing_keeps_every_bit_of_the_state(task: Task) -> None:
    cell = random_cell(CONFIGS[task])
    binding = bind(memory_bundle(cell), 3)
    inputs = random_inputs(cell.config, 6, 3)
    for t in range(6):
        for name, values in inputs.items():
            binding.inputs[name][...] = values[t].numpy()
        binding.run("4")
        binding.swap()
    Layout(cell.spec().state, 3).views(binding.arena)["h"][:, 0] = -0.0
    binding.inputs["mask"].fill(0)
    binding.inputs["dt"].fill(0)
    binding.run("4")
    assert binding.next_arena.tobytes() == binding.arena.tobytes()
    assert not binding.outputs["err"].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible_to_the_guards(value: float) -> None:
    cell = random_cell(CONFIGS["forecast"])
    layout, bundle = Layout(cell.spec().state, 1), memory_bundle(cell)
    for member in layout.shapes:
        binding = bind(bundle, 1)
        layout.views(binding.arena)[member].fill(value)
        for tensor in binding.inputs.values():
            tensor.fill(0)
        binding.inputs["dt"].fill(0.1)
        binding.run("4")
        caught = not (finite(binding.next_arena) and finite(binding.flat_outputs))
        aged = value == np.inf and member in ("ua", "wa", "ea")  # ages stop at their limit, in torch too
        assert caught or aged, member


def test_a_missing_channel_may_hold_anything() -> None:
    cell = random_cell(CONFIGS["forecast"])
    bundle, inputs = memory_bundle(cell), random_inputs(CONFIGS["forecast"], 4, 2)
    bindings = bind(bundle, 2), bind(bundle, 2)
    for t, (binding, filler) in itertools.product(range(4), zip(bindings, (0.0, np.nan), strict=True)):
        for name, values in inputs.items():
            binding.inputs[name][...] = values[t].numpy()
        binding.inputs["x"][binding.inputs["mask"] == 0] = filler
        binding.run("4")
        binding.swap()
    assert (inputs["mask"] == 0).any()
    assert bindings[0].arena.tobytes() == bindings[1].arena.tobytes()


def test_slots_are_configuration_and_not_weights() -> None:
    cell = random_cell(tiny_config())
    more = Cell(dataclasses.replace(cell.config, sizes=dataclasses.replace(cell.config.sizes, slots=19)))
    more.load_state_dict(cell.state_dict())
    agrees(more)


def test_errors_of_a_call_are_values_and_not_crashes() -> None:
    config: CellConfig = CONFIGS["tokens"]
    binding = bind(memory_bundle(random_cell(config)), 2)
    binding.inputs["mask"][...] = [[0], [1]]
    binding.inputs["x"][...] = [300, 255]  # the first was not seen
    binding.run("1")
    binding.inputs["x"][...] = [0, 256]
    with pytest.raises(StateError, match="a token is not between 0 and 255"):
        binding.run("1")


def test_torch_is_the_reference_of_these_tests() -> None:
    """A wrong weight shows: the comparison cannot pass on anything."""
    cell = random_cell(tiny_config())
    binding = bind(memory_bundle(cell, (4,)), 2)
    with torch.no_grad():
        cell.update.weight[0, 0] += 0.01
    found = differences(cell, binding, random_inputs(cell.config, 4, 2), "4")
    assert found["h"] > 1.0
