from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import BundleError, CompatError, InputError, Model, load
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.manifest import VECTORS_NAME
from odestream.runtime.contract.tolerances import TOLERANCES, tolerances
from odestream.runtime.contract.vectors import Vectors, decode_vectors, encode_vectors
from odestream.runtime.replay import failures, verify_vectors
from tests.helpers.tiny_bundle import Tiny, tiny_vectors, write_tiny


def with_vectors(bundle: Bundle, vectors: Vectors) -> Bundle:
    return replace(bundle, files=dict(bundle.files) | {VECTORS_NAME: encode_vectors(vectors)})


def test_the_stored_answers_are_reproduced_for_every_output_and_member(model: Model) -> None:
    rows = model.verify()
    assert {row.tensor for row in rows} == {"y", "err", "gates", "h", "n"}
    assert failures(rows) == []
    assert max(row.error for row in rows) < 1e-6
    assert {(row.steps, row.bucket) for row in rows} == {(24, 0)}


def test_fewer_steps_compare_what_they_reach(model: Model) -> None:
    rows = model.verify(steps=4)
    assert {(row.steps, row.bucket) for row in rows} == {(4, 1)}
    assert {row.tensor for row in model.verify(steps=1)} == {"y", "err", "gates"}
    assert {row.steps for row in model.verify(steps=10**6)} == {24}
    with pytest.raises(InputError, match="at least 1"):
        model.verify(steps=0)


@pytest.mark.parametrize(
    ("group", "name", "place"),
    [("outputs", "y", 20), ("outputs", "gates", 0), ("outputs", "err", 23), ("state", "h", 2), ("state", "n", 0)],
)
def test_one_wrong_value_anywhere_fails_its_tensor_alone(model: Model, group: str, name: str, place: int) -> None:
    vectors = model.bundle.vectors()
    tensors: dict[str, Any] = getattr(vectors, group)
    values = tensors[name].copy()
    values[place, 1, 0] += 0.01 * max(float(np.abs(values).max()), 1.0)
    changed = with_vectors(model.bundle, replace(vectors, **{group: tensors | {name: values}}))
    wrong = failures(verify_vectors(model._engine, changed))
    assert [row.tensor for row in wrong] == [name]
    assert wrong[0].error == pytest.approx(0.01, rel=0.1)


def test_a_result_that_is_not_finite_fails(model: Model) -> None:
    vectors = model.bundle.vectors()
    x = vectors.inputs["x"].copy()
    x[5:8] = 3e38
    rows = verify_vectors(model._engine, with_vectors(model.bundle, replace(vectors, inputs=vectors.inputs | {"x": x})))
    assert "y" in {row.tensor for row in failures(rows)}


def test_a_row_marked_reset_starts_from_initial_values(model: Model) -> None:
    vectors = model.bundle.vectors()
    reset = vectors.reset.copy()
    reset[12] = False
    rows = verify_vectors(model._engine, with_vectors(model.bundle, replace(vectors, reset=reset)))
    assert failures(rows)


def test_vectors_come_back_as_they_were_written(tiny_path: Path) -> None:
    manifest = read_bundle(tiny_path).manifest
    vectors = tiny_vectors(Tiny())
    back = decode_vectors(encode_vectors(vectors), manifest, "v")
    assert back.labels == vectors.labels
    assert (back.steps, back.batch) == (24, 2)
    np.testing.assert_array_equal(back.reset, vectors.reset)
    np.testing.assert_array_equal(back.checkpoints, vectors.checkpoints)
    for ours, theirs in ((back.inputs, vectors.inputs), (back.outputs, vectors.outputs), (back.state, vectors.state)):
        assert {name: value.tobytes() for name, value in ours.items()} == {
            name: value.tobytes() for name, value in theirs.items()
        }


VECTOR_FAULTS: list[tuple[Callable[[Vectors], dict[str, Any]], str]] = [
    (lambda v: {"labels": ("9",) * 24}, r"buckets \['9'\] are not among"),
    (lambda v: {"labels": v.labels[:-1]}, "reset must have 23 values"),
    (lambda v: {"labels": ()}, "the chain is empty"),
    (lambda v: {"reset": np.zeros(24, bool)}, "the first of them 1"),
    (lambda v: {"checkpoints": np.array([3, 3, 5])}, "increasing rows below 24"),
    (lambda v: {"checkpoints": np.array([1, 2, 24])}, "increasing rows below 24"),
    (lambda v: {"checkpoints": np.array([], np.int64)}, "increasing rows below 24"),
    (lambda v: {"outputs": {k: a for k, a in v.outputs.items() if k != "y"}}, r"out/ has \['err', 'gates'\]"),
    (lambda v: {"state": v.state | {"z": v.state["h"]}}, "state/ has"),
    (lambda v: {"inputs": v.inputs | {"dt": v.inputs["dt"][:, :1]}}, r"in/dt is float32\[24, 1, 1\], expected"),
    (lambda v: {"inputs": v.inputs | {"x": v.inputs["x"].astype(np.int64)}}, r"in/x is int64"),
    (lambda v: {"state": v.state | {"h": v.state["h"] * np.float32("nan")}}, "state/h is not finite"),
]


@pytest.mark.parametrize(("change", "message"), VECTOR_FAULTS)
def test_vectors_that_do_not_fit_the_manifest_are_refused(
    model: Model, change: Callable[[Vectors], dict[str, Any]], message: str
) -> None:
    vectors = model.bundle.vectors()
    with pytest.raises(BundleError, match=message):
        with_vectors(model.bundle, replace(vectors, **change(vectors))).vectors()


@pytest.mark.parametrize("data", [b"", b"junk", bytes(100)])
def test_bytes_that_are_no_vectors_are_refused(model: Model, data: bytes) -> None:
    with pytest.raises(BundleError, match="not safetensors"):
        decode_vectors(data, model.manifest, "v")


def test_token_vectors_replay_too(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(tokens=True))) as model:
        assert failures(model.verify()) == []


def test_every_tolerance_has_a_reason_and_an_unknown_pair_is_refused() -> None:
    assert TOLERANCES
    for (precision, _), entry in TOLERANCES.items():
        most = 1e-2 if precision == "fp32" else 1.0
        assert all(len(each.why) > 20 and 0 < each.limit <= most for each in (entry.values, entry.err))
    assert tolerances("fp32", "onnxruntime").of("h").limit == 1e-5
    with pytest.raises(CompatError, match=r"fp8 on onnxruntime, only for .*fp32 on onnxruntime"):
        tolerances("fp8", "onnxruntime")
