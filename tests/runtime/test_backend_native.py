"""The native backend as a runtime sees it: chosen, refused with a remedy, streamed, resumed, shared by threads."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from odestream.runtime import (
    CompatError,
    Model,
    Output,
    StateError,
    Stream,
    load,
    restore,
)
from odestream.runtime.backends import Engine, open_engine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.kernels import build as kernels
from odestream.runtime.kernels import places
from odestream.runtime.kernels.library import ABI, LIBRARY_VARIABLE, load_library
from odestream.runtime.replay import verify_vectors
from odestream.runtime.verbs import doctor
from tests.helpers.streams import irregular, same

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.fixture(scope="module")
def path(cell_path: Path) -> Path:
    return cell_path


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


@pytest.fixture(scope="module")
def native(path: Path) -> Iterator[Model]:
    with load(path, "native") as model:
        yield model


def run(stream: Stream, start: int, stop: int) -> list[Output]:
    x, t, mask = irregular(120, 2)
    rows = zip(np.add(x, [350, -2])[start:stop], t[start:stop].tolist(), mask[start:stop], strict=True)
    return [stream.step(*row) for row in rows]


def changed(bundle: Bundle, **fields: object) -> Bundle:
    manifest: Manifest = msgspec.structs.replace(bundle.manifest, **fields)
    return Bundle(bundle.path, manifest, bundle.files, bundle.weights)


def test_auto_takes_native_and_says_why(path: Path, native: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert (native.backend, native.why[:23]) == ("native", "native was asked for an")
    with load(path) as model:
        assert model.backend == "native"
        assert model.why == (
            "native is the first backend of auto that runs the bundle and reproduces its stored vectors here"
        )
        assert main(["inspect", str(path)]) == 0
        assert model.why in " ".join(capsys.readouterr().out.replace("│", " ").split())
    part = doctor.native_part()
    assert part.ready
    assert "auto takes it for odestream's own cells" in part.detail


COMMANDS = [["run", "--input", "rows.csv"], ["bench", "--seconds", "0.01", "--batch", "1"], ["verify", "--steps", "20"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize(("chosen", "backend"), [([], "native"), (["--backend", "onnxruntime"], "onnxruntime")])
def test_every_verb_runs_on_the_backend_that_it_is_told(
    command: list[str], chosen: list[str], backend: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []

    def spy(name: str, bundle: Bundle, threads: int) -> Engine:
        opened.append(name)
        return open_engine(name, bundle, threads)

    for place in ("model", "verbs.verify"):
        monkeypatch.setattr(f"odestream.runtime.{place}.open_engine", spy)
    (tmp_path / "rows.csv").write_text("time,x0,x1\n0,350,-2\n1,351,-1\n")
    verb, *options = command
    assert main([verb, str(path), *options, *chosen]) == 0
    assert set(opened) == {backend}


def test_a_stream_on_native_gives_what_it_gives_on_onnxruntime(path: Path, native: Model) -> None:
    with load(path, "onnxruntime") as other:
        pairs = list(zip(run(native.stream(), 0, 120), run(other.stream(), 0, 120), strict=True))
    assert len(pairs) == 120
    for ours, theirs in pairs:
        assert (ours.bucket, ours.calls, ours.flagged) == (theirs.bucket, theirs.calls, theirs.flagged)
        np.testing.assert_allclose(ours.y, theirs.y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.gates, theirs.gates, atol=1e-5)


def test_a_snapshot_resumes_on_either_backend(path: Path, native: Model) -> None:
    """onnxruntime, then native, then onnxruntime again, against one unbroken stream."""
    with load(path, "onnxruntime") as other:
        whole, first = other.stream(), other.stream()
        expected = run(whole, 0, 90)
        run(first, 0, 30)
        second = native.restore(first.snapshot())
        found = run(second, 30, 60)
        found += run(other.restore(second.snapshot()), 60, 90)
    for ours, theirs in zip(found, expected[30:], strict=True):
        np.testing.assert_allclose(ours.y, theirs.y, rtol=1e-5, atol=1e-5)


def test_native_resumes_its_own_snapshot_bit_for_bit(path: Path, native: Model) -> None:
    stream = native.stream()
    run(stream, 0, 40)
    twin = restore(stream.snapshot(), path, "native")
    assert all(same(a, b) for a, b in zip(run(stream, 40, 80), run(twin, 40, 80), strict=True))
    twin.model.close()


def test_a_prediction_leaves_the_stream_as_it_was(native: Model) -> None:
    stream = native.stream()
    run(stream, 0, 10)
    before = stream.state()
    stream.predict((stream.last_tick or 0) + 10**9)
    assert {n: v.tobytes() for n, v in stream.state().items()} == {n: v.tobytes() for n, v in before.items()}


def test_a_state_that_is_not_finite_is_refused_and_the_stream_goes_on(native: Model) -> None:
    stream = native.stream()
    run(stream, 0, 5)
    good = stream.save()
    bad = dataclasses.replace(good, arena=good.arena.copy())
    bad.arena[3] = np.nan
    stream._core.load(bad)
    with pytest.raises(StateError, match="state h"):
        run(stream, 5, 6)
    stream._core.load(good)
    assert np.isfinite(run(stream, 5, 6)[0].y).all()


def test_not_swapping_rejects_a_result(bundle: Bundle) -> None:
    binding = open_engine("native", bundle, 1).bind(2)
    binding.inputs["mask"].fill(1)
    before = binding.arena.copy()
    binding.run("1")
    first = binding.next_arena.copy()
    binding.run("4")
    binding.run("1")
    assert binding.arena.tobytes() == before.tobytes()
    assert binding.next_arena.tobytes() == first.tobytes()


def test_a_binding_outlives_its_engine(bundle: Bundle) -> None:
    engine = open_engine("native", bundle, 1)
    binding = engine.bind(1)
    engine.close()
    binding.run("1")
    with pytest.raises(StateError, match="closed; load the bundle again"):
        engine.bind(1)


def test_threads_share_a_model_and_run_beside_each_other(native: Model) -> None:
    """Python goes on counting while a long call runs, so the interpreter's lock is not held."""
    counted, finished = 0, threading.Event()
    bindings = [native.bind(2000) for _ in range(2)]

    def work(index: int) -> None:
        for _ in range(5):
            bindings[index].run("4")
        finished.set()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    while not finished.is_set():
        counted += 1
    for thread in threads:
        thread.join()
    assert counted > 100
    assert bindings[0].next_arena.tobytes() == bindings[1].next_arena.tobytes()


def without(name: str) -> Callable[[Bundle], Bundle]:
    return lambda b: changed(b, weights=tuple(entry for entry in b.manifest.weights if entry.name != name))


def with_config(**values: object) -> Callable[[Bundle], Bundle]:
    return lambda b: changed(b, config=b.manifest.config | values)


def with_size(name: str, value: int) -> Callable[[Bundle], Bundle]:
    return lambda b: changed(b, config=b.manifest.config | {"sizes": b.manifest.config["sizes"] | {name: value}})


WIDTHS = ("hidden", "field", "content", "head", "gate", "window", "slots", "heads", "keys", "values")
UNFIT: list[tuple[Callable[[Bundle], Bundle], str]] = [
    (without("field.hidden"), "weight field.hidden is missing"),
    (with_size("hidden", 7), r"weight field.decay is \[6, 1\], expected \[7, 1\]"),
    (with_size("hidden", 0), "sizes are not all between 1 and 65536"),
    (with_size("window", 1 << 40), "window 1099511627776"),
    (with_config(sizes=dict.fromkeys(WIDTHS, 1 << 16)), "memories are too large"),
    (with_size("slots", 9), "native steps over .* export it again"),
    (with_config(stores=["working", "working"]), "stores name one twice"),
    (with_config(stores=[]), "0 stores"),
    (with_config(scale=[1.0]), "1 scales and 2 centres for 2 channels"),
    (with_config(task="translate"), "cannot read the configuration"),
    (with_config(task="tokens"), "tokens come with channels or running averages"),
    (lambda b: changed(b, config={}), "native runs odestream's own cells"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT, ids=[message for _, message in UNFIT])
def test_what_the_kernels_do_not_support_is_refused(
    change: Callable[[Bundle], Bundle], message: str, bundle: Bundle
) -> None:
    with pytest.raises(CompatError, match=message):
        open_engine("native", change(bundle), 1)


def test_a_module_that_is_no_cell_is_refused(tiny_path: Path) -> None:
    with pytest.raises(CompatError, match="use the onnxruntime backend"):
        load(tiny_path, "native")


def test_what_native_cannot_run_auto_takes_to_the_next_and_tells_the_refusal(tiny_path: Path) -> None:
    with load(tiny_path) as model:
        assert model.backend == "onnxruntime"
        assert "; native runs odestream's own cells, which tiny is not" in model.why
    assert main(["verify", str(tiny_path)]) == 0


def test_a_second_thread_in_a_call_is_refused(path: Path) -> None:
    with pytest.raises(CompatError, match="threads is 2, but native runs a call on one thread"):
        load(path, "native", threads=2)


def test_a_weight_that_is_off_by_little_fails_the_self_test_and_auto_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_bundle(path)
    name = "memory.gates.read_bias"
    weights = {**plain.weights, name: plain.weights[name] + np.float32(1e-3)}
    spoilt = Bundle(plain.path, plain.manifest, plain.files, weights)

    def spoil(name: str, bundle: Bundle, threads: int) -> Engine:
        return open_engine(name, spoilt if name == "native" else bundle, threads)

    monkeypatch.setattr("odestream.runtime.model.open_engine", spoil)
    with pytest.raises(CompatError, match="native does not reproduce the bundle's stored vectors here"):
        load(path, "native")
    with load(path) as model:
        assert model.backend == "onnxruntime"
        assert "; native does not reproduce" in model.why


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("native", None), ("native-cuda", None), ("tensorrt", None), ("onnxruntime", 4), ("onnxruntime-cuda", 4)],
)
def test_only_onnxruntime_is_trusted_before_all_stored_steps_are_replayed(
    backend: str, expected: int | None, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def note(engine: Engine, bundle: Bundle, steps: int | None = None) -> list[ParityRow]:
        asked.append(steps)
        return verify_vectors(engine, bundle, steps)

    monkeypatch.setattr("odestream.runtime.model.open_engine", lambda _, *given: open_engine("onnxruntime", *given))
    monkeypatch.setattr("odestream.runtime.model.verify_vectors", note)
    load(tiny_path, backend).close()
    assert asked == [expected]


def test_without_a_library_the_command_that_builds_it_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BESIDE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompatError, match="run: python -m odestream.runtime.kernels.build"):
        load(path, "native")
    with load(path) as model:
        assert model.backend == "onnxruntime"
    part = doctor.native_part()
    assert (part.ready, part.install) == (False, "python -m odestream.runtime.kernels.build")


def test_a_machine_without_a_compiler_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sys.argv", ["build", "--force"])
    with pytest.raises(SystemExit, match="2"):
        kernels.main()
    assert "no C++ compiler is on the path; install one (Debian, Ubuntu: apt install g++)" in capsys.readouterr().err
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompatError, match="'no-such-compiler', which CXX names, is not there"):
        kernels.build(tmp_path)


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompatError, match="false cannot build the native library .* install a compiler for C"):
        kernels.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_source_asks_for_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernels.library_name()
    for source in kernels.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    assert kernels.library_name() == before
    (tmp_path / "maths.h").write_text("// changed")
    assert kernels.library_name() != before


def stub(folder: Path, code: str) -> Path:
    """A shared library of a line of C."""
    source, target = folder / "stub.cpp", folder / "stub.so"
    source.write_text(code)
    subprocess.run([kernels.find_compiler(), "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('extern "C" int odestream_abi() { return 99; }', f"ABI version 99, this odestream needs {ABI}; build it"),
        ('extern "C" int something_else() { return 1; }', "not a library of odestream"),
    ],
)
def test_a_library_of_another_version_is_refused(
    code: str, message: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(stub(tmp_path, code)))
    with pytest.raises(CompatError, match=message):
        load(path, "native")


def test_a_file_that_is_no_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF nothing")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "broken.so"))
    with pytest.raises(CompatError, match="broken.so: not a library of odestream .* --force"):
        load_library()


def test_a_machine_without_the_instructions_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    monkeypatch.setenv("ODESTREAM_ISA", "x86_64")
    with pytest.raises(CompatError, match="AVX2 and FMA .*use the onnxruntime backend"):
        load(path, "native")
