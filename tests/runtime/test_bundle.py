import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odestream.runtime import BundleError, IntegrityError, OdestreamError, PathError
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import MANIFEST_NAME
from tests.helpers.spoiling import (
    GRAPH,
    change_manifest,
    make_directory,
    make_fifo,
    make_link,
    rename_graph,
    replace_file,
)
from tests.helpers.tiny_bundle import Tiny


@pytest.fixture
def copy(tiny_path: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    target = tmp_path / "bundle"
    shutil.copytree(tiny_path, target)
    return target


def test_a_bundle_holds_the_bytes_of_its_files_and_views_of_its_weights(tiny_path: Path) -> None:
    bundle = read_bundle(str(tiny_path))
    assert set(bundle.files) == {entry.name for entry in tiny_path.iterdir()} - {MANIFEST_NAME}
    assert all(bundle.files[name] == (tiny_path / name).read_bytes() for name in bundle.files)
    for name, expected in Tiny().weights.items():
        np.testing.assert_array_equal(bundle.weights[name], expected)
        assert not bundle.weights[name].flags.writeable
    assert bundle.graph("4") == (tiny_path / "step.n4.onnx").read_bytes()


def test_every_flipped_bit_of_every_file_is_refused_before_a_parser(copy: Path) -> None:
    for name in [entry.name for entry in copy.iterdir() if entry.name != MANIFEST_NAME]:
        good = (copy / name).read_bytes()
        for place in range(0, 8 * len(good), 8 * len(good) // 5 + 1):
            bad = bytearray(good)
            bad[place // 8] ^= 1 << place % 8
            (copy / name).write_bytes(bad)
            with pytest.raises(IntegrityError, match=f"{name}: sha256 is .* the manifest says"):
                read_bundle(copy)
        (copy / name).write_bytes(good[:-1])
        with pytest.raises(IntegrityError, match=f"{len(good) - 1} bytes, the manifest says {len(good)}"):
            read_bundle(copy)
        (copy / name).write_bytes(good)
    read_bundle(copy)


DISK_FAULTS: list[tuple[str, Callable[[Path], Any], type[OdestreamError], str]] = [
    ("no manifest", lambda p: (p / MANIFEST_NAME).unlink(), BundleError, "no manifest.json"),
    ("no JSON", lambda p: (p / MANIFEST_NAME).write_bytes(b"\xff{"), BundleError, "not a manifest"),
    ("empty manifest", lambda p: (p / MANIFEST_NAME).write_bytes(b""), BundleError, "not a manifest"),
    ("huge manifest", lambda p: (p / MANIFEST_NAME).write_bytes(b" " * (5 << 20)), BundleError, "bytes, more than"),
    ("deep", lambda p: (p / MANIFEST_NAME).write_bytes(b"[" * 200_000), BundleError, "not a manifest"),
    ("wide integer", lambda p: (p / MANIFEST_NAME).write_bytes(b"9" * 5000), BundleError, "not a manifest"),
    ("missing", lambda p: (p / GRAPH).unlink(), BundleError, f"{GRAPH} missing"),
    ("extra", lambda p: (p / "more").touch(), BundleError, "more not listed in manifest.json"),
    ("symlink", make_link, PathError, GRAPH),
    (
        "manifest symlink",
        lambda p: shutil.move(p / MANIFEST_NAME, p.parent / "m") and (p / MANIFEST_NAME).symlink_to(p.parent / "m"),
        PathError,
        MANIFEST_NAME,
    ),
    ("hardlink", lambda p: os.link(p / GRAPH, p.parent / "other"), PathError, "has 2 hard links"),
    ("fifo", make_fifo, PathError, "is no regular file"),
    ("directory", make_directory, PathError, "is no regular file"),
    ("parent", rename_graph("../x"), PathError, "not a plain file name"),
    ("deep parent", rename_graph("a/../../x"), PathError, "not a plain file name"),
    ("absolute", rename_graph("/etc/passwd"), PathError, "not a plain file name"),
    ("backslash", rename_graph("a\\b"), PathError, "not a plain file name"),
    ("NUL", rename_graph("a\0b"), PathError, "not a plain file name"),
    ("dots", rename_graph(".."), PathError, "not a plain file name"),
    ("no name", rename_graph(""), PathError, "not a plain file name"),
    ("long", rename_graph("x" * 256), PathError, "not a plain file name"),
    ("case", lambda p: replace_file(p, GRAPH.upper(), b""), PathError, "differ in case alone"),
]


@pytest.mark.parametrize(("spoil", "kind", "message"), [f[1:] for f in DISK_FAULTS], ids=[f[0] for f in DISK_FAULTS])
def test_what_the_disk_holds_is_checked(
    copy: Path, spoil: Callable[[Path], Any], kind: type[OdestreamError], message: str
) -> None:
    read_bundle(copy)
    spoil(copy)
    with pytest.raises(kind, match=message) as caught:
        read_bundle(copy)
    assert type(caught.value) is kind
    assert "; " in str(caught.value)


@pytest.mark.parametrize("where", ["none", "file", "a\0b"])
def test_what_is_no_directory_is_no_bundle(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="not a bundle directory"):
        read_bundle(tmp_path / where)


def weight(index: int, **fields: object) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["weights"][index].update(fields)


MANIFEST_FAULTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(schema=2), "schema version 2, this odestream reads 1"),
    (lambda m: m.update(surprise=1), "unknown field"),
    (lambda m: m.pop("task"), "task"),
    (lambda m: m["graphs"].pop("4"), r"graphs has the buckets \['1'\], expected \['1', '4'\]"),
    (lambda m: m["graphs"].update({"4": m["graphs"]["1"]}), "one file for two buckets"),
    (lambda m: m["graphs"].update({"4": "other.onnx"}), "files does not list other.onnx"),
    (lambda m: m.update(default_graph="4"), "default_graph is '4', expected '1'"),
    (lambda m: m.update(solver=None), r"expected \['-'\]"),
    (lambda m: m["solver"].update(default_bucket=2), "default_graph is '1', expected '2'"),
    (lambda m: m["solver"].update(method="magic"), "solver.method is 'magic', expected one of euler"),
    (lambda m: m["solver"].update(buckets=[4, 1]), "increasing step counts"),
    (lambda m: m["solver"].update(stiffness=-1.0), "solver.stiffness"),
    (lambda m: m["solver"].update(max_calls=0), "solver.max_calls"),
    (lambda m: m["spec"].update(outputs=m["spec"]["outputs"][:1], state=m["spec"]["state"]), "no output err"),
    (lambda m: m["time"].update(ticks_per_model_unit=0.0), "ticks_per_model_unit is 0.0"),
    (lambda m: m["time"].update(origin=1 << 63), "expected a 64-bit integer"),
    (lambda m: m["time"].update(ticks_per_column_unit=0), "ticks_per_column_unit"),
    (lambda m: m["time"].update(tick_seconds=-1.0), "tick_seconds"),
    (lambda m: m["time"].update(frequencies=[1.0]), r"phase has shape \[4\], expected sine and cosine of 1"),
    (lambda m: m["time"].update(frequencies=[1.0, -1.0]), "expected values from 0 to"),
    (lambda m: m["spec"]["inputs"][1].update(shape=[2]), r"mask has shape \[2\], expected \[3\]"),
    (lambda m: m["spec"]["inputs"][2].update(shape=[2]), r"dt has shape \[2\], expected \[1\]"),
    (lambda m: m["spec"]["inputs"][2].update(dtype="int64"), "dt must be float32"),
    (lambda m: m["spec"]["inputs"][2].update(name="speed"), "unknown inputs"),
    (lambda m: m["spec"]["state"][1].update(name="h"), "repeat"),
    (lambda m: m.update(gate_names=["one"]), "gate_names has 1 names"),
    (lambda m: m["task"].update(inputs=["a"]), "task.inputs has 1 columns, but x has 3"),
    (lambda m: m["task"].update(targets=["z"]), "not all among task.inputs"),
    (lambda m: m["task"].update(kind="classify", targets=["z"]), "y has 6 logits, but task.labels has 0"),
    (lambda m: m["task"].update(kind="classify", targets=[]), "a classifier has one label column"),
    (lambda m: m["spec"]["outputs"][0].update(shape=[5]), "a forecast of 3 channels needs 6"),
    (weight(0, offset=-4), r"weight rate \(offset -4"),
    (weight(0, offset=10**9), "lies outside weights.safetensors"),
    (weight(0, length=4), "its shape .* needs 12"),
    (weight(0, shape=[-3]), "weight rate"),
    (weight(0, dtype="float8"), "dtype 'float8', expected one of"),
    (weight(0, name="logvar"), "names a tensor twice"),
    (lambda m: m["files"].pop("vectors.safetensors"), "vectors.safetensors not listed"),
]


@pytest.mark.parametrize(("change", "message"), MANIFEST_FAULTS)
def test_parts_of_a_manifest_that_do_not_agree_are_refused(
    copy: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change_manifest(copy, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(copy)


@pytest.mark.parametrize("text", [b'{"schema": 1, "schema": 1}', b'{"schema": NaN}', b'{"schema": -Infinity}'])
def test_json_with_two_meanings_is_refused(copy: Path, text: bytes) -> None:
    (copy / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(BundleError, match="not a manifest"):
        read_bundle(copy)


def test_a_file_swapped_after_reading_changes_nothing(copy: Path) -> None:
    bundle = read_bundle(copy)
    shutil.rmtree(copy)
    assert bundle.vectors().steps == 24
    assert len(bundle.graph("1")) == bundle.manifest.files[GRAPH].size
