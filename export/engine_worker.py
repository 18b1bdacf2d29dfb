"""Builds engines in processes of their own, as many side by side as there are workers.

Threads would not do: the package compiles one network at a time in a process, whoever asks. A worker is a fresh
interpreter that imports what a build needs and runs no script of its user's; it takes jobs on its standard input,
answers on its standard output, and ends when its input does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import IO, TypeVar, cast

import msgspec

from odestream.export.engine import Built, Options, Profile, Report, build_engine
from odestream.runtime import errors
from odestream.runtime.backends.trt_package import load_package
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import WEIGHTS_NAME, Manifest

T = TypeVar("T")
R = TypeVar("R")
Worker = subprocess.Popen[bytes]

_START = "import sys; sys.path[:] = sys.argv[1:]; from odestream.export.engine_worker import serve; serve()"
_LENGTH = 8  # bytes before each message that say how long it is
_LAST_SECONDS = 5  # that a process which closed its output has to end by itself


class Job(msgspec.Struct, frozen=True):
    """An engine to build, for GPUs that are not here. files: the bytes of bucket `label`'s graph and of the weights."""

    target: str
    path: str
    manifest: Manifest
    files: dict[str, bytes]
    label: str
    architectures: tuple[str, ...]
    profiles: tuple[Profile, ...]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a build is, or that it is done, or the class and the words of a typed error."""

    phase: str = ""
    done: int = 0
    built: Built | None = None
    error: str = ""
    said: str = ""


def make_job(target: str, bundle: Bundle, label: str, options: Options) -> Job:
    """The job of building bucket `label` with the package of `target`; of the options it takes what needs no GPU."""
    needed = (bundle.manifest.graphs[label], WEIGHTS_NAME)
    files = {name: bundle.files[name] for name in needed}
    return Job(target, str(bundle.path), bundle.manifest, files, label, options.architectures, options.profiles)


@contextmanager
def start_workers(count: int) -> Iterator[Workers]:
    """`count` processes that build engines, each from its first job on; they end with the context, whatever they do."""
    workers = Workers(count)
    try:
        yield workers
    finally:
        workers.close()


class Workers:
    """Processes that build engines, and a thread for each that talks to it."""

    def __init__(self, count: int) -> None:
        self.processes = list[Worker]()
        self._threads = ThreadPoolExecutor(count)
        self._idle = SimpleQueue[Worker | None]()  # None: a process that is not started yet
        self._lock, self._closed = Lock(), False
        for _ in range(count):
            self._idle.put(None)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of each item, as many at once as there are workers; it may call `build`."""
        return list(self._threads.map(function, items))

    def build(self, job: Job, report: Report) -> Built:
        """Build one engine, without a timing cache, on a worker that is idle.

        Raises what `build_engine` and `report` do, and CompatError where the worker ends before it answers.
        """
        with self._worker() as worker:
            answer = _ask(worker, job, report)
        if answer.built is None:
            raise getattr(errors, answer.error)(answer.said)
        return answer.built

    def close(self) -> None:
        """End all processes, in the middle of a build too."""
        with self._lock:
            self._closed = True
            for process in self.processes:
                process.kill()  # before the threads end, which wait for it: an interrupt takes no time
        self._threads.shutdown()
        for process in self.processes:
            process.communicate()

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """A worker that is idle. It ends where its job was broken off: what it would still say answers no other job."""
        worker = self._idle.get()
        try:
            worker = worker or self._start()
            yield worker
        except BaseException:
            if worker is not None:
                self._drop(worker)
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def _start(self) -> Worker:
        command = [sys.executable, "-c", _START, *sys.path]  # finds the modules that this process does
        with self._lock:  # none starts after all were ended
            if self._closed:
                raise errors.SessionBusy("the workers have ended; start new ones")
            self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            return self.processes[-1]

    def _drop(self, worker: Worker) -> None:
        worker.kill()
        worker.communicate()
        with self._lock:
            self.processes.remove(worker)


def serve() -> None:
    """What a worker runs: answers each job as it goes, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it also reaches whoever started this, who ends it
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = _receive(jobs, Job)
            _send(answers, _outcome(job, lambda phase, done: _send(answers, Answer(phase, done))))


def _ask(worker: Worker, job: Job, report: Report) -> Answer:
    """What the worker says in the end; `report` hears what it says before."""
    where = job.manifest.graphs[job.label]
    with _listening(worker, where):
        _send(cast("IO[bytes]", worker.stdin), job)
    while True:
        with _listening(worker, where):
            answer = _receive(cast("IO[bytes]", worker.stdout), Answer)
        if answer.built is not None or answer.error:
            return answer
        report(answer.phase, answer.done)


@contextmanager
def _listening(worker: Worker, where: str) -> Iterator[None]:
    """CompatError where the worker ends instead of listening or answering."""
    try:
        yield
    except (EOFError, BrokenPipeError) as cause:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(_LAST_SECONDS)  # so that the status is its own
        worker.kill()
        status = worker.wait()
        remedy = "free some memory" if status < 0 else "read what it printed"
        raise errors.CompatError(
            f"{where}: the process that built it ended with status {status}; "
            f"{remedy} and compile again, what is done is kept"
        ) from cause


def _outcome(job: Job, report: Report) -> Answer:
    options = Options(job.architectures, job.profiles)
    try:
        bundle = Bundle(Path(job.path), job.manifest, job.files, weights={})
        built, _ = build_engine(load_package(job.target), bundle, job.label, options, None, report)
    except errors.OdestreamError as error:
        return Answer(error=type(error).__name__, said=str(error))
    except Exception as error:  # noqa: BLE001 (whatever it is, the asker must hear of it)
        found = f"{job.manifest.graphs[job.label]}: the build failed ({type(error).__name__}: {error})"
        return Answer(error=errors.ExportError.__name__, said=f"{found}; report it with the model's configuration")
    return Answer(built=built)


def _send(stream: IO[bytes], message: Job | Answer) -> None:
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(_LENGTH, "little") + data)
    stream.flush()


def _receive(stream: IO[bytes], kind: type[T]) -> T:
    return msgspec.msgpack.decode(_read(stream, int.from_bytes(_read(stream, _LENGTH), "little")), type=kind)


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
