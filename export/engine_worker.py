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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TypeVar, cast

import msgspec

from odestream.export.engine import Built, Options, Profile, Report, build_engine
from odestream.runtime import errors
from odestream.runtime.backends.trt_package import load_package
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import WEIGHTS_NAME, Manifest

T = TypeVar("T")
R = TypeVar("R")

_START = "import sys; sys.path[:] = sys.argv[1:]; from odestream.export.engine_worker import serve; serve()"
_LENGTH = 8  # bytes before each message that say how long it is


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
    """`count` processes that build engines; they end with the context, whatever they are at."""
    command = [sys.executable, "-c", _START, *sys.path]  # finds the modules that this process does
    processes = list[subprocess.Popen[bytes]]()
    with ExitStack() as stack:
        for _ in range(count):
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(processes[-1].communicate)
        threads = stack.enter_context(ThreadPoolExecutor(count))
        for process in processes:
            stack.callback(process.kill)  # before the threads end, which wait for it: an interrupt takes no time
        yield Workers(processes, threads)


class Workers:
    """Processes that build engines, and a thread for each that talks to it."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], threads: ThreadPoolExecutor) -> None:
        self.processes = processes
        self._threads, self._idle = threads, SimpleQueue[subprocess.Popen[bytes]]()
        for process in processes:
            self._idle.put(process)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of each item, as many at once as there are workers; it may call `build`."""
        return list(self._threads.map(function, items))

    def build(self, job: Job, report: Report) -> Built:
        """Build one engine, without a timing cache, on a worker that is idle.

        Raises what `build_engine` does, and CompatError where the worker ends before it answers.
        """
        worker = self._idle.get()
        try:
            return _ask(worker, job, report)
        except (EOFError, BrokenPipeError) as cause:
            raise errors.CompatError(
                f"{job.manifest.graphs[job.label]}: the process that built it ended with status {worker.wait()}; "
                "free some memory and compile again, what is done is kept"
            ) from cause
        finally:
            self._idle.put(worker)


def serve() -> None:
    """What a worker runs: answers each job as it goes, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it also reaches whoever started this, who ends it
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = _receive(jobs, Job)
            _send(answers, _outcome(job, lambda phase, done: _send(answers, Answer(phase, done))))


def _ask(worker: subprocess.Popen[bytes], job: Job, report: Report) -> Built:
    _send(cast("IO[bytes]", worker.stdin), job)
    while (answer := _receive(cast("IO[bytes]", worker.stdout), Answer)).built is None:
        if answer.error:
            raise getattr(errors, answer.error)(answer.said)
        report(answer.phase, answer.done)
    return answer.built


def _outcome(job: Job, report: Report) -> Answer:
    bundle = Bundle(Path(job.path), job.manifest, job.files, weights={})
    options = Options(job.architectures, job.profiles)
    try:
        built, _ = build_engine(load_package(job.target), bundle, job.label, options, None, report)
    except errors.OdestreamError as error:
        return Answer(error=type(error).__name__, said=str(error))
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
