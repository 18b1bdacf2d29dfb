"""Exported graphs against the torch step, through onnxruntime's own file loading as well as our backend."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch

from odestream.export import verify_bundle
from odestream.models.config import Task
from odestream.runtime import load
from odestream.runtime.bundle import Bundle
from odestream.runtime.replay import failures
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.sequences import random_inputs

TASKS = list(CONFIGS)
Arrays = dict[str, np.ndarray]  # type: ignore[type-arg]


def _session(bundle: Bundle, label: str) -> onnxruntime.InferenceSession:
    """By path: onnxruntime reads weights.safetensors itself."""
    return onnxruntime.InferenceSession(str(bundle.path / bundle.manifest.graphs[label]))


def _call(session: onnxruntime.InferenceSession, inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    feed = inputs | {f"state_in_{name}": value for name, value in state.items()}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feed), strict=True))
    after = {n.removeprefix("state_out_"): v for n, v in found.items() if n.startswith("state_out_")}
    return {n: v for n, v in found.items() if not n.startswith("state_out_")}, after


def _numpy(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("task", TASKS)
def test_the_batch_axis_is_open(task: Task, batch: int, exported: Exported) -> None:
    cell, bundle = exported(task)
    session, state = _session(bundle, "4"), cell.initial_state(batch)
    given = random_inputs(cell.config, length=12, batch=batch)
    for t in range(12):
        inputs = {name: values[t] for name, values in given.items()}
        found, found_state = _call(session, _numpy(inputs), _numpy(state))
        with torch.no_grad():
            outputs, state = cell.step(inputs, state)
        for name, expected in (_numpy(outputs) | _numpy(state)).items():
            actual = (found | found_state)[name]
            assert actual.shape == expected.shape
            limit = 1e-3 if name == "err" else 2e-6 * max(1.0, float(np.abs(expected).max()))
            assert np.abs(actual - expected).max() <= limit, name


@pytest.mark.parametrize("task", TASKS)
def test_a_row_does_not_depend_on_its_batch_mates(task: Task, exported: Exported) -> None:
    cell, bundle = exported(task)
    session, state = _session(bundle, "2"), _numpy(cell.initial_state(4))
    inputs = {name: values[1].numpy() for name, values in random_inputs(cell.config, length=2, batch=4).items()}
    together, _ = _call(session, inputs, state)
    for row in range(4):
        alone, _ = _call(session, *({n: v[row : row + 1] for n, v in g.items()} for g in (inputs, state)))
        np.testing.assert_allclose(alone["y"][0], together["y"][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", ["1", "4", "16"])
def test_a_call_that_takes_no_time_and_sees_nothing_keeps_every_bit_of_the_state(
    label: str, exported: Exported
) -> None:
    cell, bundle = exported("forecast")
    session, state = _session(bundle, label), _numpy(cell.initial_state(3))
    given = random_inputs(cell.config, length=8, batch=3)
    for t in range(8):
        inputs = {name: values[t].numpy() for name, values in given.items()}
        _, state = _call(session, inputs, state)
    state["h"][:, 0] = -0.0
    still = inputs | {"mask": np.zeros_like(inputs["mask"]), "dt": np.zeros_like(inputs["dt"])}
    _, after = _call(session, still, state)
    assert {name: value.tobytes() for name, value in after.items()} == {n: v.tobytes() for n, v in state.items()}


def test_the_manifest_reports_a_thousand_chained_steps_within_tolerance(exported: Exported) -> None:
    _, bundle = exported("forecast")
    rows = bundle.manifest.parity
    tensors = {t.name for t in (*bundle.manifest.spec.outputs, *bundle.manifest.spec.state)}
    checks = {(row.check, row.bucket, row.steps) for row in rows}
    singles = {("one call", bucket, 1) for bucket in (1, 2, 4, 8, 16)}
    assert checks == singles | {("chained", 4, 1000), ("chained, mixed buckets", 0, 1000)}
    assert all({r.tensor for r in rows if (r.check, r.bucket) == (c, b)} == tensors for c, b, _ in checks)
    assert not failures(list(rows))
    assert all(row.error <= 1e-5 for row in rows if row.tensor != "err")


def test_the_stored_chain_has_holes_queries_resets_and_every_bucket(exported: Exported) -> None:
    _, bundle = exported("forecast")
    vectors = bundle.vectors()
    mask, dt = vectors.inputs["mask"], vectors.inputs["dt"]
    queries = (mask == 0).all(axis=-1)
    assert vectors.steps >= 1000
    assert 0.05 < queries.mean() < 0.2
    assert 0.1 < (mask[~queries] == 0).mean() < 0.3
    assert (dt == 0).any()
    assert dt.max() > 10 * np.median(dt)
    assert np.flatnonzero(vectors.reset).tolist() == [0, 1000]  # a thousand steps unbroken, then once anew
    assert set(vectors.labels) == set(bundle.manifest.graphs)
    assert np.abs(vectors.state["h"]).max() > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_stored_vectors_replay_through_the_runtime(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    with load(bundle.path) as model:
        rows = model.verify(None)
    assert rows
    assert not failures(list(rows))


def test_verification_against_torch_passes_for_its_own_cell_and_fails_for_another(exported: Exported) -> None:
    cell, bundle = exported("classify")
    assert not failures(list(verify_bundle(bundle.path, cell, steps=30)))
    other = copy.deepcopy(cell)
    with torch.no_grad():
        other.update.weight[0, 0] += 0.01
    wrong = {row.tensor for row in failures(list(verify_bundle(bundle.path, other, steps=30)))}
    assert "h" in wrong


def test_a_stream_gives_what_torch_gives_with_time_worked_out_by_hand(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    unit, frequencies = bundle.manifest.time.ticks_per_model_unit, np.asarray(cell.config.frequencies)
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.integers(1e7, 2e8, 40)).tolist()
    state, before = cell.initial_state(1), times[0]
    with load(bundle.path) as model:
        stream = model.stream(buckets=(int(bundle.manifest.default_graph),))
        for now in times:
            x = (np.asarray(cell.config.centre) + rng.standard_normal(2)).astype(np.float32)
            found = stream.step(x, t=now)
            angle = before / unit * frequencies
            inputs = {
                "x": torch.from_numpy(x[None]),
                "mask": torch.ones(1, 2),
                "dt": torch.tensor([[(now - before) / unit]], dtype=torch.float32),
                "phase": torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)])[None], dtype=torch.float32),
            }
            with torch.no_grad():
                outputs, state = cell.step(inputs, state)
            np.testing.assert_allclose(found.y, outputs["y"][0].numpy(), rtol=1e-5, atol=1e-5)
            before = now
