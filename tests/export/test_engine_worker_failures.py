"""Whatever breaks off a build, no later one gets its answer, nobody waits for ever, and the cause is told."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from threading import Event
from time import monotonic

import pytest

from odestream.export import engine_worker
from odestream.export.engine import Options
from odestream.export.engine_worker import Job, Workers, make_job, start_workers
from odestream.runtime import CompatError, ExportError
from odestream.runtime.bundle import Bundle, read_bundle
from tests.helpers.tiny_bundle import write_tiny

MINUTE = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_tiny(tmp_path_factory.mktemp("workers") / "bundle"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do what their jobs' targets say."""
    start = engine_worker._START.replace("odestream.export.engine_worker", "tests.helpers.scripted_worker")
    assert start != engine_worker._START
    monkeypatch.setattr(engine_worker, "_START", start)


@pytest.fixture
def workers(scripted: None) -> Iterator[Workers]:
    """One scripted worker."""
    del scripted
    with start_workers(1) as one:
        yield one


def job(bundle: Bundle, script: str) -> Job:
    return make_job(script, bundle, min(bundle.manifest.graphs), Options(("sm89",), ()))


def ignore(*_: object) -> None:
    pass


@pytest.mark.parametrize(("error", "script"), [(ValueError, "first"), (BrokenPipeError, "first sleep")])
def test_a_build_that_its_report_breaks_off_is_not_the_next_ones_answer(
    error: type[Exception], script: str, workers: Workers, bundle: Bundle
) -> None:
    """A report that cannot write, as to a closed terminal, is no death of the worker, which would go on."""

    def stop(*_: object) -> None:
        raise error("of the report")

    with pytest.raises(error, match="of the report"):
        workers.build(job(bundle, script), stop)
    heard: list[tuple[str, int]] = []
    assert workers.build(job(bundle, "second third"), lambda *said: heard.append(said)).data == b"third"
    assert heard == [("second", 0), ("third", 1)]


def test_an_error_that_a_worker_answers_is_typed_and_the_worker_goes_on(workers: Workers, bundle: Bundle) -> None:
    with pytest.raises(CompatError, match=r"^too old; take another$"):
        workers.build(job(bundle, "refuse"), ignore)
    (process,) = workers.processes
    with pytest.raises(ExportError, match=r"onnx: the build failed \(ValueError: 3 is no place\); report it with"):
        workers.build(job(bundle, "fail"), ignore)
    assert workers.build(job(bundle, "last"), ignore).data == b"last"
    assert workers.processes == [process]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit", r"onnx: the process that built it ended with status 3; read what it printed and compile again"),
        ("kill", r"onnx: the process that built it ended with status -9; free some memory and compile again"),
    ],
)
def test_a_worker_that_ends_is_told_with_its_status_and_replaced(
    script: str, said: str, workers: Workers, bundle: Bundle
) -> None:
    with pytest.raises(CompatError, match=said):
        workers.build(job(bundle, script), ignore)
    assert workers.build(job(bundle, "next"), ignore).data == b"next"


def test_an_error_in_between_ends_the_other_builds_in_their_middle(scripted: None, bundle: Bundle) -> None:
    del scripted
    asleep, begun = Event(), list[subprocess.Popen[bytes]]()

    def heard(*_: object) -> None:
        begun.extend(workers.processes)
        asleep.set()

    def build(script: str) -> None:
        if script:
            workers.build(job(bundle, script), heard)
        asleep.wait(MINUTE)
        raise KeyboardInterrupt

    started = monotonic()
    with pytest.raises(KeyboardInterrupt), start_workers(2) as workers:
        workers.map(build, ("", "sleep"))
    assert [process.returncode for process in begun] == [-signal.SIGKILL]
    assert monotonic() - started < MINUTE
