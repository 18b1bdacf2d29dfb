"""Bundles and snapshots in the C library: the same streams as in Python, and refusals instead of crashes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.models.config import Task
from odestream.runtime import Model, Output, load
from odestream.runtime.backends.native import NativeEngine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest, decode_manifest
from odestream.runtime.contract.tableau import TABLEAUS
from odestream.runtime.gaps import bucket_rule
from odestream.runtime.kernels.library import Solving, load_library
from odestream.runtime.snapshot import MAGIC
from tests.export.conftest import CONFIGS, Exported
from tests.export.test_native_streams import rows
from tests.helpers.clib import (
    BAD_BUNDLE,
    BAD_CALL,
    BAD_HASH,
    BAD_PATH,
    BAD_SNAPSHOT,
    UNSUPPORTED,
    CModel,
    Refused,
    opened,
)
from tests.helpers.streams import SECOND, forged

pytestmark = pytest.mark.usefixtures("opening_library")


@pytest.fixture(scope="module")
def path(exported: Exported) -> Path:
    return exported("forecast")[1].path


@pytest.fixture(scope="module")
def manifest(path: Path) -> Manifest:
    return read_bundle(path).manifest


@pytest.fixture(scope="module")
def native(path: Path) -> Iterator[Model]:
    with load(path, "native") as model:
        yield model


def same(found: tuple[Any, ...], expected: Output) -> bool:
    """Bitwise equality of what C and Python gave."""
    assert expected.gates is not None
    e = expected
    return found == (e.y.tobytes(), e.err, e.gates.tobytes(), e.bucket, e.flagged, e.calls, e.reruns)


@pytest.mark.parametrize("task", CONFIGS)
def test_a_bundle_opened_in_c_streams_as_in_python_bit_for_bit(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    with opened(bundle.path) as model, load(bundle.path, "native") as python:
        ours, theirs = model.stream(bundle.manifest), python.stream()
        for x, t, mask in rows(task, 120, seed=1):
            assert same(ours.step(x, t, mask), theirs.step(x, t, mask))
            assert same(ours.predict(t + SECOND), theirs.predict(t + SECOND))
        assert theirs.counters.split > 0
        ours.close()


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A bundle with another manifest, of the two files that C reads."""
    target.mkdir()
    (target / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes())
    content = json.loads((path / "manifest.json").read_bytes())
    change(content)
    (target / "manifest.json").write_text(json.dumps(content))
    return target


SOLVERS: list[dict[str, Any]] = [
    *({"method": m, "error_estimate": t.error is not None} for m, t in TABLEAUS.items()),
    {"error_estimate": False, "default_bucket": 4},
    {"stiffness": 0.0, "error_ratios": [0.5, 1, 1.5, 2, 4.25], "safety_factor": 0.125, "max_calls": 3},
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_c_solves_by_the_manifest_as_python_does(solver: dict[str, Any], path: Path, tmp_path: Path) -> None:
    """Limits, ratios and rule in numbers; the method's coefficients in what a stream gives."""
    place = edited(path, tmp_path / "b", lambda content: content["solver"].update(solver))
    manifest = decode_manifest((place / "manifest.json").read_bytes(), "edited")
    rule = bucket_rule(manifest, Clock(manifest.time))
    plain = read_bundle(path)
    python = NativeEngine(load_library(), Bundle(place, manifest, {}, plain.weights)).core()
    with opened(place) as model:
        s, count = model.solving, len(rule.buckets)
        assert (s.buckets, tuple(s.bucket[:count]), tuple(s.limit[:count])) == (count, rule.buckets, rule.limits)
        assert (tuple(s.ratio[:count]), s.factor, s.order) == (rule.ratios, rule.factor, rule.order)
        assert s.default_bucket == rule.default
        assert manifest.solver is not None
        assert s.max_calls == manifest.solver.max_calls
        stream = model.stream(manifest)
        for i in range(20):
            found, expected = (
                stream.step([350 + i, -1], i * SECOND // 3),
                python.observe([350 + i, -1], i * SECOND // 3, None),
            )
            err = found[1] if rule.order else None
            assert same((found[0], err, *found[2:]), expected)
        stream.close()


def test_a_snapshot_goes_on_in_either_language_bit_for_bit(path: Path, native: Model) -> None:
    every = list(rows("forecast", 90, seed=2))
    with opened(path) as model:
        whole, ours = native.stream(), model.stream(native.manifest)
        for row in every[:30]:
            whole.step(*row)
            ours.step(*row)
        theirs = native.restore(ours.snapshot())
        assert theirs.counters == whole.counters
        for row in every[30:60]:
            assert same(tuple_of(theirs.step(*row)), whole.step(*row))
        back = model.restore(theirs.snapshot(), native.manifest)
        for row in every[60:]:
            assert same(back.step(*row), whole.step(*row))
        assert native.restore(back.snapshot()).counters == whole.counters
        fresh = model.restore(native.stream().snapshot(), native.manifest)
        assert native.restore(fresh.snapshot()).last_tick is None


def test_a_snapshot_of_a_stream_over_some_buckets_names_its_counts_by_bucket(path: Path, native: Model) -> None:
    theirs = native.stream(buckets=(2, 8))
    with opened(path) as model:
        solving = Solving()
        ctypes.pointer(solving)[0] = model.solving
        places = [i for i in range(solving.buckets) if solving.bucket[i] in (2, 8)]
        solving.bucket = (ctypes.c_int32 * 2)(*(solving.bucket[i] for i in places))
        solving.limit = (ctypes.c_uint64 * 2)(*(solving.limit[i] for i in places))
        solving.ratio = (ctypes.c_double * 2)(*(solving.ratio[i] for i in places))
        solving.buckets, solving.default_bucket = 2, 8 if solving.default_bucket > 2 else 2
        stream = model.stream(native.manifest, solving)
        for row in rows("forecast", 60, seed=9):
            assert same(stream.step(*row), theirs.step(*row))
        counters = native.restore(stream.snapshot()).counters
        assert counters == theirs.counters
        assert counters.buckets["8"] > 0 == counters.buckets["1"]


def tuple_of(output: Output) -> tuple[Any, ...]:
    assert output.gates is not None
    o = output
    return o.y.tobytes(), o.err, o.gates.tobytes(), o.bucket, o.flagged, o.calls, o.reruns


@pytest.fixture
def blob(native: Model) -> bytes:
    stream = native.stream()
    for row in rows("forecast", 20, seed=4):
        stream.step(*row)
    return stream.snapshot()


def test_a_snapshot_cut_off_anywhere_or_with_a_flipped_bit_is_refused(path: Path, native: Model, blob: bytes) -> None:
    with opened(path) as model:
        for size in range(len(blob)):
            refused(model, native, blob[:size], "damaged or cut off|not a snapshot")
        for i in range(len(blob)):
            flipped = blob[:i] + bytes([blob[i] ^ 1 << i % 8]) + blob[i + 1 :]
            refused(model, native, flipped, "damaged or cut off|not a snapshot")


def refused(model: CModel, native: Model, data: bytes, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        model.restore(data, native.manifest)
    assert caught.value.status == BAD_SNAPSHOT


def first(info: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = info["streams"][0]
    return record


FORGED: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    ("schema", lambda _, info: info.update(schema=2), "another schema"),
    ("model", lambda _, info: info.update(identity="0" * 64), "made by model 000000000000, this bundle is"),
    ("clock", lambda _, info: info["time"].update(origin=5), "its ticks are not the bundle's"),
    ("two streams", lambda _, info: info["streams"].append({}), "it holds 2 streams"),
    ("no stream", lambda _, info: info["streams"].clear(), "it holds 0 streams"),
    ("held", lambda _, info: first(info).update(held=[1.0]), "fills in held values"),
    ("unknown field", lambda _, info: info.update(more=1), "the field more is unknown"),
    ("missing field", lambda _, info: info.pop("name"), "name is missing"),
    ("tick", lambda _, info: first(info).update(last_tick=1 << 63), "last_tick is not a whole number from"),
    ("count", lambda _, info: first(info).update(steps=-1), "steps is not a whole number from 0"),
    ("label's count", lambda _, info: first(info)["buckets"].update({"1": 0.5}), "buckets holds something else"),
    ("previous", lambda _, info: first(info)["previous"].update(gap=0), "previous has no gap"),
    ("err", lambda _, info: first(info)["previous"].update(err=-1.0), "err is not a number in its range"),
    ("not finite", lambda tensors, _: tensors["h"].fill(np.nan), "state h is not finite"),
    ("other shape", lambda tensors, _: tensors.update(h=tensors["h"][:, :-1]), "members are not the model's"),
    ("other name", lambda tensors, _: tensors.update(hh=tensors.pop("h")), "which the model lacks"),
    ("swapped", lambda tensors, _: tensors.update(u=tensors["ws"], ws=tensors["u"]), "float32 of the model's shape"),
    ("dtype", lambda tensors, _: tensors.update(h=tensors["h"].view(np.uint8)), "float32 of the model's shape"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in FORGED], ids=[case[0] for case in FORGED])
def test_a_snapshot_with_a_right_hash_and_wrong_content_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], object], message: str, path: Path, native: Model, blob: bytes
) -> None:
    def act(tensors: dict[str, Any], info: dict[str, Any]) -> None:
        change(tensors, info)

    with opened(path) as model:
        model.restore(blob, native.manifest).close()
        refused(model, native, forged(blob, act), message)


@given(st.binary(max_size=300))
def test_any_bytes_under_a_right_hash_are_refused(path: Path, native: Model, body: bytes) -> None:
    with opened(path) as model:
        refused(model, native, MAGIC + hashlib.sha256(body).digest() + body, "snapshot: ")


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


WRONG: list[tuple[Callable[[dict[str, Any]], Any], int, str]] = [
    (put("schema", value=2), BAD_BUNDLE, "schema version 2, this odestream reads 1"),
    (put("schema", value="1"), BAD_BUNDLE, "schema version"),
    (put("more", value=1), BAD_BUNDLE, "the field more is unknown"),
    (lambda c: c.pop("solver"), BAD_BUNDLE, "solver is missing"),
    (put("solver", value=None), UNSUPPORTED, "has no solver; run it with the onnxruntime"),
    (put("dtype", value="fp16"), UNSUPPORTED, "is fp16, the library runs fp32"),
    (put("config", value={}), UNSUPPORTED, "not one of odestream's own cells"),
    (put("config", "sizes", "hidden", value=7), UNSUPPORTED, "weight field.decay is"),
    (put("config", "sizes", "hidden", value=1 << 40), BAD_BUNDLE, "config.sizes.hidden is not a whole number"),
    (put("config", "sizes", value=dict.fromkeys(("window", "slots"), 1)), BAD_BUNDLE, "config.sizes.* is missing"),
    (put("config", "scale", value=[1.0]), BAD_BUNDLE, "scale and centre each channel"),
    (put("config", "scale", value=[1e300, 1]), BAD_BUNDLE, "config.scale is not a number in its range"),
    (put("config", "stores", value=["working", "working"]), UNSUPPORTED, "stores name one twice"),
    (put("config", "stores", value=["other"]), BAD_BUNDLE, "config.stores is other, which is unknown"),
    (put("config", "task", value="translate"), BAD_BUNDLE, "config.task is translate"),
    (put("config", "age_limit", value="x"), BAD_BUNDLE, "config.age_limit is not a number"),
    (put("spec", "state", 0, "shape", value=[1 << 20, 1 << 20]), BAD_BUNDLE, "h has a shape"),
    (put("spec", "state", 0, "shape", value=[14]), UNSUPPORTED, "the library steps over"),
    (put("spec", "state", 0, "initial", value=[1.0, 2.0]), BAD_BUNDLE, "neither one initial value"),
    (put("spec", "inputs", 0, "dtype", value="int64"), UNSUPPORTED, "the library steps over"),
    (put("solver", "method", value="dopri5"), BAD_BUNDLE, "solver.method is dopri5, which is unknown"),
    (put("solver", "buckets", value=[2, 1, 4, 8, 16]), BAD_BUNDLE, "buckets do not increase"),
    (put("solver", "buckets", value=[]), BAD_BUNDLE, "solver.buckets is empty"),
    (lambda c: c["solver"].update(buckets=list(range(1, 66)), error_ratios=[]), UNSUPPORTED, "more than 64 buckets"),
    (put("solver", "default_bucket", value=3), BAD_BUNDLE, "default_bucket is not among"),
    (put("solver", "safety_factor", value=0), BAD_BUNDLE, "safety_factor is not a number in its range"),
    (put("solver", "error_ratios", value=[1.0]), BAD_BUNDLE, "error_ratios are not one for each bucket"),
    (put("solver", "max_calls", value=0), BAD_BUNDLE, "max_calls is not a whole number"),
    (put("time", "ticks_per_model_unit", value=0), BAD_BUNDLE, "ticks_per_model_unit is not a number in its range"),
    (put("time", "origin", value=1 << 63), BAD_BUNDLE, "time.origin is not a whole number"),
    (put("time", "frequencies", value=[0.1]), BAD_BUNDLE, "not as many as config.frequencies"),
    (put("weights", 0, "offset", value=1 << 62), BAD_BUNDLE, "lies outside the weights file"),
    (put("weights", 0, "offset", value=-1), BAD_BUNDLE, "offset is not a whole number from 0"),
    (put("weights", 0, "length", value=4), BAD_BUNDLE, "not as long as its shape"),
    (lambda c: c["weights"].clear(), UNSUPPORTED, "weight field.decay is missing"),
    (lambda c: c["files"].pop("weights.safetensors"), BAD_BUNDLE, "files does not list weights.safetensors"),
    (put("files", "weights.safetensors", "size", value=1 << 40), BAD_HASH, "the manifest says 1099511627776"),
    (put("files", "weights.safetensors", "sha256", value="0" * 64), BAD_HASH, "sha256 is"),
]


def refuses(path: Path, status: int, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught, opened(path):
        pass
    assert caught.value.status == status
    assert "; " in str(caught.value)


@pytest.mark.parametrize(("change", "status", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_a_wrong_manifest_is_refused_and_says_what_to_do(
    change: Callable[[dict[str, Any]], Any], status: int, message: str, path: Path, tmp_path: Path
) -> None:
    refuses(edited(path, tmp_path / "b", change), status, message)


TEXTS = {
    "empty": "",
    "no JSON": "{",
    "key twice": '{"schema": 1, "schema": 1}',
    "NaN": '{"schema": NaN}',
    "5,000 digits": '{"schema": ' + "1" * 5000 + "}",
    "beyond double": '{"schema": 1e999}',
    "deep": "[" * 200_000,
    "a list": "[1]",
    "no text": "\xff",
    "4 MB and more": " " * ((4 << 20) + 1),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_no_manifest_is_refused(text: str, path: Path, tmp_path: Path) -> None:
    place = edited(path, tmp_path / "b", lambda content: None)
    (place / "manifest.json").write_bytes(text.encode("latin-1"))
    refuses(place, BAD_BUNDLE, "manifest.json: ")


@pytest.mark.parametrize(
    ("count", "message"), [(4096, "the field 0 is unknown"), (4097, "an object has too many keys")]
)
def test_an_object_of_more_keys_than_are_read_quickly_is_refused(
    count: int, message: str, path: Path, tmp_path: Path
) -> None:
    place = edited(path, tmp_path / "b", lambda content: None)
    keys = ", ".join(f'"{i}": 0' for i in range(count - 1))
    (place / "manifest.json").write_text(f'{{"schema": 1, {keys}}}')
    refuses(place, BAD_BUNDLE, message)


def test_one_flipped_bit_in_the_weights_is_refused(path: Path, tmp_path: Path) -> None:
    place = edited(path, tmp_path / "b", lambda content: None)
    with opened(place):
        data = bytearray((place / "weights.safetensors").read_bytes())
    data[-5] ^= 4
    (place / "weights.safetensors").write_bytes(data)
    refuses(place, BAD_HASH, "sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64}; export or copy")
    (place / "weights.safetensors").write_bytes(data[:-1])
    refuses(place, BAD_HASH, "bytes, the manifest says")
    (place / "weights.safetensors").write_bytes(data + b"0")
    refuses(place, BAD_HASH, "bytes, at most .* are expected")


def test_links_devices_and_missing_files_are_refused(path: Path, tmp_path: Path) -> None:
    place, outside = edited(path, tmp_path / "b", lambda content: None), tmp_path / "outside"
    weights = place / "weights.safetensors"
    weights.rename(outside)
    refuses(place, BAD_BUNDLE, "weights.safetensors: cannot be read")
    weights.symlink_to(outside)
    refuses(place, BAD_PATH, "weights.safetensors: cannot be read")
    weights.unlink()
    weights.hardlink_to(outside)
    refuses(place, BAD_PATH, "not a file of its own")
    weights.unlink()
    os.mkfifo(weights)
    refuses(place, BAD_PATH, "not a file of its own")
    refuses(tmp_path / "nowhere", BAD_BUNDLE, "not a bundle directory")
    refuses(outside, BAD_BUNDLE, "not a bundle directory")


def test_a_model_that_was_not_opened_says_so(path: Path) -> None:
    engine = NativeEngine(load_library(), read_bundle(path))
    core, library = engine.core(), load_library()
    assert not library.odestream_stream_create(core.model.pointer, None)
    assert "say how it solves" in library.odestream_last_error().decode()
    size = ctypes.c_size_t()
    assert library.odestream_snapshot(core.pointer, None, 0, ctypes.byref(size)) == BAD_CALL
    assert "use odestream_open" in library.odestream_last_error().decode()
