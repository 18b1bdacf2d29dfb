"""The fault table: what each fault gets, and that a stream goes on as one that never saw it.

`FAULTS` holds the faults that raise: after each, the stream's state, clock and counters are the same bytes as before,
and its next 100 steps are those of an unfaulted twin. test_fault_outcomes.py holds those that end in something else.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from odestream.runtime import (
    Batcher,
    BundleError,
    CompatError,
    Fleet,
    GapError,
    InputError,
    IntegrityError,
    Model,
    OdestreamError,
    PathError,
    SessionBusy,
    SnapshotDamaged,
    SnapshotError,
    StateError,
    Stream,
    TimeError,
    load,
)
from odestream.runtime.contract.manifest import MANIFEST_NAME, VECTORS_NAME, WEIGHTS_NAME, TimeSpec
from odestream.runtime.contract.tensorfile import decode_tensors, encode_tensors
from odestream.runtime.recorder import Recorder
from odestream.runtime.shelf import Shelf
from tests.helpers.spoiling import (
    GRAPH,
    chain_functions,
    change_graph,
    change_manifest,
    flip_bit,
    make_fifo,
    make_link,
    rename_graph,
    replace_file,
)
from tests.helpers.streams import continues_like, forged, of_version, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny

GAIN = Tiny(gain=3.0)
"""A model that overflows on observations which float32 still holds."""


@dataclass
class World:
    """What a fault may touch. stream: has seen one row. bundle: a copy of its bundle. blob: the stream, saved."""

    model: Model
    stream: Stream
    bundle: Path
    folder: Path
    blob: bytes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny(tmp_path_factory.mktemp("faults") / "bundle", GAIN)
    with load(path) as model:
        yield path, model


@pytest.fixture
def world(shared: tuple[Path, Model], tmp_path: Path) -> World:
    path, model = shared
    shutil.copytree(path, tmp_path / "bundle")
    stream = model.stream()
    stream.step([1, 2, 3], 10)
    return World(model, stream, tmp_path / "bundle", tmp_path, stream.snapshot())


Fault = Callable[[World], object]


def loading(spoil: Callable[[Path], object]) -> Fault:
    """Load the bundle after it was spoiled."""

    def fault(world: World) -> None:
        spoil(world.bundle)
        with load(world.bundle):
            pass

    return fault


def manifest(change: Callable[[dict[str, Any]], object]) -> Fault:
    return loading(lambda path: change_manifest(path, change))


def manifest_bytes(data: bytes) -> Fault:
    return loading(lambda path: (path / MANIFEST_NAME).write_bytes(data))


def graph(change: Callable[[onnx.ModelProto], object]) -> Fault:
    return loading(lambda path: change_graph(path, change))


def step(x: Any = (1, 2, 3), t: Any = 20, mask: Any = None) -> Fault:
    return lambda world: world.stream.step(x, t, mask)


def restoring(change: Callable[[bytes], bytes]) -> Fault:
    return lambda world: world.model.restore(change(world.blob))


def forging(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Fault:
    return restoring(lambda blob: forged(blob, change))


def swap_members(tensors: dict[str, Any], info: dict[str, Any]) -> None:
    tensors["h"], tensors["n"] = tensors["n"], tensors["h"]


def into(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, info: tensors[name].fill(value)


def link_parent(path: Path) -> None:
    shutil.move(path, path.parent / "real")
    path.symlink_to(path.parent / "real")
    shutil.move(path / GRAPH, path.parent / "x")
    (path / GRAPH).symlink_to(path.parent / "real" / ".." / "x")


def other_vectors(path: Path) -> None:
    """Vectors that are well made and wrong: the known answers of another model."""
    tensors, text = decode_tensors((path / VECTORS_NAME).read_bytes())
    tensors["out/y"] = tensors["out/y"] + np.float32(1)
    replace_file(path, VECTORS_NAME, encode_tensors(tensors, text))


def weights_of_nan(path: Path) -> None:
    data = bytearray((path / WEIGHTS_NAME).read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    replace_file(path, WEIGHTS_NAME, bytes(data))


def rename_state(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "state_out_h":
                node.output[i] = "state_out_k"
        for i, name in enumerate(node.input):
            if name == "state_out_h":
                node.input[i] = "state_out_k"
    next(port for port in model.graph.output if port.name == "state_out_h").name = "state_out_k"


def other_bucket(world: World) -> None:
    """A bucket with another state: refused when it is first needed, inside a stream."""
    change_graph(world.bundle, rename_state, "step.n4.onnx")
    with load(world.bundle) as model:
        model.stream(buckets=(4,)).step([1, 2, 3], 0)


def too_stiff(world: World) -> None:
    """A field that moves faster than the clock ticks: no bucket crosses even one tick stably."""
    tiny = Tiny(stiffness=110.0, time=TimeSpec(ticks_per_model_unit=10.0))
    with load(write_tiny(world.folder / "stiff", tiny)) as model:
        model.stream()


def move_weight(model: onnx.ModelProto) -> None:
    entry = next(e for e in model.graph.initializer[0].external_data if e.key == "offset")
    entry.value = str(10**9)


def stopped_in_a_thread(world: World) -> None:
    """As a second thread finds the stream while the first is inside."""
    world.stream._enter()
    try:
        world.stream.step([1, 2, 3], 20)
    finally:
        world.stream._lock.release()


def closed(world: World) -> None:
    other = world.model.restore(world.blob)
    other.close()
    other.step([1, 2, 3], 20)


def twice_in_a_batch(world: World) -> None:
    Batcher(world.model).step([world.stream] * 2, [[1, 2, 3]] * 2, [20, 21])


def zip_bundle(world: World) -> None:
    load(shutil.make_archive(str(world.folder / "b"), "zip", world.bundle))


def two_recorders(world: World) -> None:
    first = Recorder(world.folder / "log")
    try:
        Recorder(world.folder / "log")
    finally:
        first.close()


def two_fleets(world: World) -> None:
    first = Fleet(world.model, shelf=Shelf(world.folder))
    try:
        Fleet(world.model, shelf=Shelf(world.folder))
    finally:
        first.close()


def other_model(world: World) -> None:
    with load(write_tiny(world.folder / "other", Tiny(seed=9))) as other:
        other.restore(world.blob)


def both_generations_bad(world: World) -> None:
    for name in ("s", "s.previous"):
        (world.folder / name).write_bytes(world.blob[:-1])
    world.model.restore(world.folder / "s")


JSON = "not a manifest"
FAULTS: list[tuple[int, str, type[OdestreamError], str, Fault]] = [
    (1, "no manifest", BundleError, "no manifest.json", loading(lambda p: (p / MANIFEST_NAME).unlink())),
    (1, "no JSON", BundleError, JSON, manifest_bytes(b"\xff{")),
    (2, "duplicate keys", BundleError, JSON, manifest_bytes(b'{"schema": 1, "schema": 1}')),
    (2, "NaN", BundleError, JSON, manifest_bytes(b'{"schema": NaN}')),
    (2, "5,000 digits", BundleError, JSON, manifest_bytes(b'{"schema": ' + b"9" * 5000 + b"}")),
    (2, "200,000 deep", BundleError, JSON, manifest_bytes(b"[" * 200_000)),
    (3, "schema", BundleError, "schema version 9, this odestream reads 1", manifest(lambda m: m.update(schema=9))),
    (4, "missing file", BundleError, f"{GRAPH} missing", loading(lambda p: (p / GRAPH).unlink())),
    (4, "extra file", BundleError, "more not listed", loading(lambda p: (p / "more").touch())),
    (5, "archive", BundleError, "not a bundle directory", zip_bundle),
    (6, "truncated ONNX", BundleError, GRAPH, loading(lambda p: replace_file(p, GRAPH, (p / GRAPH).read_bytes()[:99]))),
    (7, "function chain", BundleError, "onnxruntime refuses", graph(lambda model: chain_functions(model, 150))),
    (8, "operator", BundleError, "refuses", graph(lambda m: setattr(m.graph.node[-1], "op_type", "Nope"))),
    (8, "domain", BundleError, "refuses", graph(lambda m: setattr(m.graph.node[-1], "domain", "no.where"))),
    (9, "missing bucket", BundleError, "graphs has the buckets", manifest(lambda m: m["graphs"].pop("4"))),
    (9, "doubled", BundleError, "for two buckets", manifest(lambda m: m["graphs"].update({"4": m["graphs"]["1"]}))),
    (9, "other state", BundleError, "step.n4.onnx: outputs are .*state_out_k", other_bucket),
    (10, "unpaired state", BundleError, "outputs are .*state_out_k", graph(rename_state)),
    (11, "wrong hash", IntegrityError, "sha256 is", manifest(lambda m: m["files"][GRAPH].update(sha256="0" * 64))),
    (11, "wrong size", IntegrityError, "the manifest says 3", manifest(lambda m: m["files"][GRAPH].update(size=3))),
    (12, "flipped graph", IntegrityError, "sha256 is", loading(lambda p: flip_bit(p / GRAPH))),
    (12, "flipped weights", IntegrityError, "sha256 is", loading(lambda p: flip_bit(p / WEIGHTS_NAME))),
    (16, "../", PathError, "not a plain file name", loading(rename_graph("../x"))),
    (17, "a/../../x", PathError, "not a plain file name", loading(rename_graph("a/../../x"))),
    (18, "absolute", PathError, "not a plain file name", loading(rename_graph("/etc/passwd"))),
    (19, "symlink", PathError, GRAPH, loading(make_link)),
    (20, "symlinked parent", PathError, GRAPH, loading(link_parent)),
    (21, "hardlink", PathError, "has 2 hard links", loading(lambda p: (p.parent / "o").hardlink_to(p / GRAPH))),
    (22, "FIFO", PathError, "is no regular file", loading(make_fifo)),
    (23, "NUL", PathError, "not a plain file name", loading(rename_graph("a\0b"))),
    (23, "long", PathError, "not a plain file name", loading(rename_graph("x" * 256))),
    (23, "case", PathError, "differ in case alone", loading(lambda p: replace_file(p, GRAPH.upper(), b""))),
    (24, "negative", BundleError, "offset -4", manifest(lambda m: m["weights"][0].update(offset=-4))),
    (24, "past the end", BundleError, "lies outside", manifest(lambda m: m["weights"][0].update(offset=10**9))),
    (24, "in the graph", BundleError, "the manifest says", graph(move_weight)),
    (27, "NaN weights", CompatError, "does not reproduce", loading(weights_of_nan)),
    (34, "known answers", CompatError, "does not reproduce .* is off by", loading(other_vectors)),
    (35, "no bucket fits", CompatError, r"the largest bucket, 4, .* 0\.73 of a tick", too_stiff),
    (36, "rank", InputError, r"received shape \[1, 3\], expected \[3\]", step(np.zeros((1, 3)))),
    (36, "shape", InputError, r"received shape \[2\], expected \[3\]", step([1, 2])),
    (37, "text", InputError, "received dtype <U1", step(["1", "2", "3"])),
    (37, "complex", InputError, "received dtype complex", step([1j, 0, 0])),
    (37, "integer", InputError, "received 16777217, which float32 would make 16777216", step([16777217, 0, 0])),
    (37, "int64", InputError, "received 9223372036854775807, ", step(np.array([0, (1 << 63) - 1, 0]))),
    (37, "uint64", InputError, "received 18446744073709551615, ", step(np.array([(1 << 64) - 1] * 3, np.uint64))),
    (37, "int64 seen", InputError, "received -16777219, ", step(np.array([0, 16777217, -16777219]), mask=[1, 0, 1])),
    (39, "NaN", InputError, r"received nan in channel 1 \(c1\).*mask 0", step([1, np.nan, 3])),
    (39, "infinity", InputError, "received -inf in channel 2", step([1, 2, -np.inf])),
    (39, "NaN array", InputError, "received nan in channel 0", step(np.array([np.nan, 1, 2], np.float32))),
    (40, "overflow within", StateError, "state h became NaN or infinite", step([3e38, 0, 0])),
    (40, "beyond float32", InputError, "beyond float32", step([1e39, 1, 2])),
    (41, "empty batch", InputError, "a batch of 0 rows", lambda world: world.model.bind(0)),
    (42, "twice in a batch", InputError, "one is given twice", twice_in_a_batch),
    (44, "backward", TimeError, "t = 9 does not advance past the stream's last time 10", step(t=9)),
    (45, "equal", TimeError, "t = 10 does not advance", step(t=10)),
    (46, "NaN time", TimeError, "t: received nan", step(t=float("nan"))),
    (46, "infinite time", TimeError, "t: received inf", step(t=float("inf"))),
    (46, "infinite float32 time", TimeError, "t: received .*-inf", step(t=np.float32("-inf"))),
    (46, "no time", InputError, "t is missing", step(t=None)),
    (47, "out of order", TimeError, "^row 2: t = 25", lambda w: w.stream.steps([[1, 2, 3]] * 3, [20, 30, 25])),
    (48, "clock set back", TimeError, "send each time once and in order", step(t=10 - 3600 * 10**9)),
    (49, "calls", GapError, r"more than the \d+ that 16 call", step(t=1 << 62)),
    (49, "gap", GapError, "start a new stream after such a gap", step(t=1 << 61)),
    (50, "64 bits", TimeError, "does not fit 64 bits", step(t=1 << 63)),
    (50, "below", TimeError, "does not fit 64 bits", step(t=-(1 << 63) - 1)),
    (52, "cut", SnapshotDamaged, "damaged or cut off", restoring(lambda blob: blob[:-1])),
    (52, "empty", SnapshotDamaged, "not a snapshot", restoring(lambda blob: b"")),
    (53, "flipped", SnapshotDamaged, "sha256 differs", restoring(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]))),
    (53, "flipped version", SnapshotDamaged, "version '3' but", restoring(lambda blob: blob.replace(b"-1", b"-3", 1))),
    (54, "version", SnapshotError, "version '2'", restoring(lambda blob: of_version(blob, 2))),
    (54, "schema", SnapshotError, "schema 7", forging(lambda tensors, info: info.update(schema=7))),
    (55, "another model's", SnapshotError, "made by model", other_model),
    (56, "swapped tensors", SnapshotError, "state members are", forging(swap_members)),
    (58, "all bad", SnapshotDamaged, "s: damaged .*s.previous: damaged", both_generations_bad),
    (59, "NaN in a snapshot", SnapshotError, "state h is not finite", forging(into("h", np.nan))),
    (59, "infinity out", StateError, "the step was discarded", step([0, -3e38, 0])),
    (63, "two recorders", SessionBusy, "another process records here", two_recorders),
    (63, "two fleets", SessionBusy, "another fleet puts its streams away here", two_fleets),
    (65, "two threads", SessionBusy, "in use by another thread", stopped_in_a_thread),
    (66, "closed", SessionBusy, "closed; make a new one", closed),
]


@pytest.mark.parametrize(
    ("kind", "message", "fault"), [f[2:] for f in FAULTS], ids=[f"{number} {name}" for number, name, *_ in FAULTS]
)
def test_a_fault_gets_its_error_and_the_stream_goes_on_like_its_twin(
    world: World, kind: type[OdestreamError], message: str, fault: Fault
) -> None:
    twin, before = world.model.restore(world.blob), world.stream.save()
    with pytest.raises(kind, match=message) as caught:
        fault(world)
    assert type(caught.value) is kind
    assert re.search(r"; [a-z'][^;]*$", str(caught.value)), "ends with the remedy"
    assert same_state(world.stream.save(), before)
    assert continues_like(world.stream, twin)
