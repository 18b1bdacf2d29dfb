"""The CUDA sources, run on the CPU: every thread of every block, its barriers and its shuffles, against the torch step.

It proves arithmetic, indexing, graphs and state handling on any machine, and nothing about speed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from odestream.models.cell import Cell
from odestream.models.config import PRESETS, STORES, Sizes, Store, Task
from odestream.runtime import InputError, StateError
from odestream.runtime.arena import Layout
from odestream.runtime.backends.native_cuda import NativeCudaBinding, open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.tableau import TABLEAUS
from odestream.runtime.kernels.cuda_library import CUDA_LIBRARY_VARIABLE
from odestream.runtime.replay import failures, verify_vectors
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.native import differences, memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs

TASKS = list(CONFIGS)
SUBSETS = [tuple(chosen) for n in (1, 2, 3) for chosen in itertools.combinations(STORES, n)]


@pytest.fixture(scope="module", autouse=True)
def emulated(cuda_on_cpu: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CUDA_LIBRARY_VARIABLE, str(cuda_on_cpu))
        yield


@pytest.fixture(params=["a block for each stream", "four streams a block"])
def one_or_four(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", "64" if request.param == "a block for each stream" else "1")


def bind(bundle: Bundle, batch: int) -> NativeCudaBinding:
    binding = open_engine(bundle).bind(batch)
    assert isinstance(binding, NativeCudaBinding)
    return binding


def agrees(cell: Cell, label: str = "2", batch: int = 2, length: int = 4) -> None:
    binding = bind(memory_bundle(cell, (int(label),)), batch)
    inputs = random_inputs(cell.config, length, batch)
    found = differences(cell, binding, inputs, label, backend="native-cuda")
    assert set(found) == {t.name for t in (*cell.spec().outputs, *cell.spec().state)}
    assert max(found.values()) <= 1.0, found


@pytest.mark.usefixtures("one_or_four")
@pytest.mark.parametrize("task", TASKS)
def test_each_task_agrees(task: Task) -> None:
    agrees(random_cell(CONFIGS[task]), batch=6, length=5)


@pytest.mark.parametrize("stores", [*SUBSETS, tuple(reversed(STORES))], ids="+".join)
def test_any_stores_in_any_order_agree(stores: tuple[Store, ...]) -> None:
    sink = "episodic" in stores
    agrees(random_cell(tiny_config("classify", stores=stores, surprise_gate=True, episodic_sink=sink)))


@pytest.mark.parametrize("method", TABLEAUS)
def test_every_tableau_agrees_in_every_number_of_steps(method: str) -> None:
    cell = random_cell(tiny_config(method=method))
    bundle = memory_bundle(cell, (1, 3, 16))
    inputs = random_inputs(cell.config, 3, 2)
    for label in bundle.manifest.graphs:
        found = differences(cell, bind(bundle, 2), inputs, label, backend="native-cuda")
        assert max(found.values()) <= 1.0, (label, found)


@pytest.mark.parametrize("averages", [(), (2.0,)])
@pytest.mark.parametrize("frequencies", [(), (0.5,)])
def test_running_averages_and_time_features_may_be_absent(
    averages: tuple[float, ...], frequencies: tuple[float, ...]
) -> None:
    agrees(random_cell(tiny_config("classify", averages=averages, frequencies=frequencies)))


@pytest.mark.parametrize("bytes_of_a_block", [0, 24_000, 99 * 1024, 227 * 1024])
@pytest.mark.parametrize("preset", ["nano", "small"])
def test_presets_agree_wherever_their_rows_find_room(
    preset: str, bytes_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scratch and state in shared memory, scratch alone, or neither."""
    monkeypatch.setenv("CUDA_ON_CPU_BLOCK_MEMORY", str(bytes_of_a_block))
    agrees(random_cell(tiny_config(sizes=PRESETS[preset])), length=2)


WIDTH = st.integers(1, 70)
ANY_SIZES = st.builds(Sizes, *[WIDTH] * 7, st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(ANY_SIZES, st.integers(1, 5), st.integers(1, 9), st.sampled_from(["1", "64"]))
def test_any_sizes_agree(sizes: Sizes, channels: int, batch: int, processors: str) -> None:
    """Without slots: which of them gives way is a decision that a rounding can turn; fixed weights hold it above."""
    scale, centre = (0.5, 3.0, 1.0, 1.0, 2.0)[:channels], (350.0, 0.0, -1.0, 0.0, 9.0)[:channels]
    cell = random_cell(tiny_config(sizes=sizes, channels=channels, scale=scale, centre=centre, stores=STORES[:2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_ON_CPU_PROCESSORS", processors)
        agrees(cell, "2", batch, length=3)


@pytest.mark.parametrize("task", TASKS)
def test_stored_chains_of_a_bundle_replay(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    rows = verify_vectors(open_engine(bundle), bundle, 60)
    assert rows
    assert not failures(rows)


def fill(binding: NativeCudaBinding, inputs: dict[str, torch.Tensor], t: int, rows: slice) -> None:
    for name, values in inputs.items():
        binding.inputs[name][...] = values[t, rows].numpy()


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_equals_its_rows_alone_bit_for_bit(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four streams a block and a rest of three, against a block of many threads for each."""
    cell, batch = random_cell(CONFIGS[task]), 7
    bundle, inputs = memory_bundle(cell), random_inputs(CONFIGS[task], 4, batch)
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", "1")
    together = bind(bundle, batch)
    monkeypatch.setenv("CUDA_ON_CPU_PROCESSORS", "64")
    alone = [bind(bundle, 1) for _ in range(batch)]
    layout, single = Layout(cell.spec().state, batch), Layout(cell.spec().state, 1)
    for t in range(4):
        fill(together, inputs, t, slice(None))
        together.run("4")
        together.swap()
        state = layout.views(together.arena)
        for r, binding in enumerate(alone):
            fill(binding, inputs, t, slice(r, r + 1))
            binding.run("4")
            binding.swap()
            own = single.views(binding.arena)
            assert {n: v[r].tobytes() for n, v in state.items()} == {n: v[0].tobytes() for n, v in own.items()}
            outputs = binding.outputs.items()
            assert {n: together.outputs[n][r].tobytes() for n, _ in outputs} == {n: v[0].tobytes() for n, v in outputs}


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.usefixtures("one_or_four")
def test_half_weights_give_what_the_torch_step_gives_with_matrices_rounded_so(dtype: str, kind: torch.dtype) -> None:
    """Sums stay in float32: the difference to torch is that of fp32, and far below that to the weights unrounded."""
    cell = random_cell(tiny_config("classify"))
    bundle = memory_bundle(cell, (4,))
    half = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, dtype=dtype), {}, bundle.weights)
    inputs = random_inputs(cell.config, 4, 6)
    unrounded = differences(cell, bind(half, 6), inputs, "4", backend="native-cuda")
    with torch.no_grad():
        for weight in cell.parameters():
            if weight.dim() == 2:
                weight.copy_(weight.to(kind))
    rounded = differences(cell, bind(half, 6), inputs, "4", backend="native-cuda")
    assert max(rounded.values()) <= 1.0, rounded
    assert unrounded["h"] > 10.0


@pytest.mark.parametrize("task", TASKS)
def test_a_call_that_takes_no_time_and_sees_nothing_keeps_every_bit_of_the_state(task: Task) -> None:
    cell = random_cell(CONFIGS[task])
    binding = bind(memory_bundle(cell), 3)
    inputs = random_inputs(cell.config, 4, 3)
    for t in range(4):
        fill(binding, inputs, t, slice(None))
        binding.run("4")
        binding.swap()
    arena = binding.arena
    Layout(cell.spec().state, 3).views(arena)["h"][:, 0] = -0.0
    binding.set_state(arena)
    binding.inputs["mask"].fill(0)
    binding.inputs["dt"].fill(0)
    binding.run("4")
    assert binding.next_arena.tobytes() == binding.arena.tobytes() == arena.tobytes()
    assert not binding.outputs["err"].any()


@pytest.mark.usefixtures("one_or_four")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_device_sees_what_is_not_finite(value: float, batch: int) -> None:
    cell = random_cell(CONFIGS["forecast"])
    layout, bundle = Layout(cell.spec().state, batch), memory_bundle(cell)
    for member in layout.shapes:
        binding = bind(bundle, batch)
        binding.inputs["dt"].fill(0.1)
        binding.run("4")
        assert binding.finite()
        arena = binding.arena
        layout.views(arena)[member][batch - 1].fill(value)
        binding.set_state(arena)
        binding.run("4")
        aged = value == np.inf and member in ("ua", "wa", "ea")  # ages stop at their limit, in torch too
        assert binding.finite() == aged, member


def test_a_new_state_that_is_handed_in_is_looked_at() -> None:
    binding = bind(memory_bundle(random_cell(tiny_config()), (1,)), 2)
    binding.run("1")
    good = binding.next_arena
    bad = good.copy()
    bad[5] = np.inf
    binding.set_next_state(bad)
    assert not binding.finite()
    binding.set_next_state(good)
    assert binding.finite()
    binding.outputs["y"][0, 0] = np.nan
    assert not binding.finite()


def test_capturing_and_preparing_leave_states_and_outputs_as_they_are() -> None:
    bundle = memory_bundle(random_cell(tiny_config()), (1, 2, 4))
    first = bind(bundle, 2)
    first.inputs["dt"].fill(0.3)
    first.inputs["mask"].fill(1)
    first.run("2")
    before, new, outputs = first.arena, first.next_arena, first.flat_outputs.copy()
    bind(bundle, 2)
    bind(bundle, 1).run("4")
    assert (first.arena.tobytes(), first.next_arena.tobytes()) == (before.tobytes(), new.tobytes())
    assert first.flat_outputs.tobytes() == outputs.tobytes()


def test_not_swapping_rejects_a_result() -> None:
    binding = bind(memory_bundle(random_cell(tiny_config()), (1, 4)), 2)
    binding.inputs["mask"].fill(1)
    before = binding.arena
    binding.run("1")
    first = binding.next_arena
    binding.run("4")
    binding.run("1")
    assert binding.arena.tobytes() == before.tobytes()
    assert binding.next_arena.tobytes() == first.tobytes()
    binding.swap()
    assert binding.arena.tobytes() == first.tobytes()


def test_arrays_and_bindings_outlive_what_they_came_from() -> None:
    engine = open_engine(memory_bundle(random_cell(tiny_config()), (1,)))
    binding = engine.bind(1)
    inputs, outputs = binding.inputs, binding.outputs
    engine.close()
    binding.run("1")
    with pytest.raises(StateError, match="closed; load the bundle again"):
        engine.bind(1)
    del binding, engine
    inputs["mask"].fill(1)
    assert np.isfinite(outputs["y"]).all()


def test_threads_share_a_model() -> None:
    bundle = memory_bundle(random_cell(tiny_config()), (1, 4))
    engine = open_engine(bundle)
    bindings = [engine.bind(2) for _ in range(3)]

    def work(index: int) -> None:
        bindings[index].inputs["mask"].fill(1)
        for _ in range(6):
            bindings[index].run("4")
            bindings[index].swap()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({binding.arena.tobytes() for binding in bindings}) == 1
    assert bindings[0].arena.any()


BAD: list[tuple[Callable[[NativeCudaBinding], object], str]] = [
    (lambda b: b.set_state(np.zeros(3, np.float32)), "the state has 3 values"),
    (lambda b: b.device_microseconds("1", 0), "steps and repeats must be at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_errors_of_a_call_are_values_and_not_crashes(call: Callable[[NativeCudaBinding], object], message: str) -> None:
    with pytest.raises(StateError, match=message):
        call(bind(memory_bundle(random_cell(tiny_config()), (1,)), 1))


def test_a_token_outside_the_vocabulary_is_refused_where_it_was_seen() -> None:
    binding = bind(memory_bundle(random_cell(CONFIGS["tokens"])), 2)
    binding.inputs["mask"][...] = [[0], [1]]
    binding.inputs["x"][...] = [300, 255]  # the first was not seen
    binding.run("1")
    binding.inputs["x"][...] = [0, 256]
    with pytest.raises(StateError, match="a token is not between 0 and 255"):
        binding.run("1")
    with pytest.raises(InputError, match="batch of 0"):
        bind(memory_bundle(random_cell(tiny_config()), (1,)), 0)


def test_torch_is_the_reference_of_these_tests() -> None:
    """A wrong weight shows: the comparison cannot pass on anything."""
    cell = random_cell(tiny_config())
    binding = bind(memory_bundle(cell, (4,)), 2)
    with torch.no_grad():
        cell.update.weight[0, 0] += 0.01
    found = differences(cell, binding, random_inputs(cell.config, 4, 2), "4", backend="native-cuda")
    assert found["h"] > 1.0
