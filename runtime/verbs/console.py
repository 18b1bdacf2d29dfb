"""What the verbs share: lists of numbers read, tables for people, JSON for machines, progress on standard error."""

from __future__ import annotations

import json
import os
import platform
import stat
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import rich.box
import rich.console
import rich.progress
import rich.table

from odestream.runtime.atomic import new_file, refuse_existing
from odestream.runtime.errors import InputError, PathError

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "native": ("odestream",),
    "native-cuda": ("odestream",),
    "tensorrt": ("tensorrt", "tensorrt-rtx-cu13-bindings"),
}
"""Backend → the distributions that it may come with, the one that is taken first."""


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """The numbers of an option such as `--batch 1,8,64`; InputError unless all are whole and at least 1."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} is {text!r}, expected whole numbers from 1; write them as {example}")
    return numbers


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table on standard output; the columns named in `numbers` are set to the right."""
    table = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    output().print(table)


def output() -> rich.console.Console:
    """Standard output; a pipe gets the full width, not a guessed terminal's."""
    width = None if sys.stdout.isatty() else 160
    return rich.console.Console(width=width, highlight=False, markup=False, emoji=False)


def progress_bar() -> rich.progress.Progress:
    """A bar with an estimate on standard error; silent where that is no terminal."""
    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


@contextmanager
def reading_progress(stream: BinaryIO, description: str) -> Generator[BinaryIO, None, None]:
    """The stream, with a bar for what was read of it where it is a file and standard error a terminal."""
    with progress_bar() as bar:
        size = _file_size(stream)
        yield stream if bar.disable or size is None else bar.wrap_file(stream, size, description=description)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON on standard output."""
    print(_json(value))


def save_json(path: Path, value: Any, force: bool) -> None:
    """Write `value` as indented JSON to a file that appears whole; PathError where it exists without `force`."""
    with new_file(path, force) as file:
        file.write(_json(value).encode() + b"\n")


def refuse_outputs(force: bool, *paths: Path | None) -> None:
    """PathError where a file cannot be written, before any work is done.

    It exists already and `force` is not given, its folder does not exist, or two of the files are one.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        refuse_existing(path, force)
        if not path.absolute().parent.is_dir():
            raise PathError(f"{path}: there is no folder {path.parent}; create it first")
    if len({path.resolve() for path in given}) != len(given):
        raise PathError(f"{', '.join(map(str, given))} are one file; give each output a path of its own")


def refuse_engines(engines: Path | None, backends: Sequence[str]) -> None:
    """InputError where a folder of engines is named for backends that use none."""
    if engines is not None and "tensorrt" not in backends:
        raise InputError(f"--engines {engines} is for tensorrt, not {', '.join(backends)}; add --backend tensorrt")


def versions(*packages: str) -> dict[str, str | None]:
    """Installed versions by distribution name, None where it is not installed; nothing is imported."""
    return {package: _version(package) for package in packages}


def engine_versions(*backends: str) -> dict[str, str | None]:
    """Versions of odestream, numpy and each backend; kernels of our own have odestream's, others are never loaded."""
    known = {backend: versions(*_PACKAGES.get(backend, (backend,))).values() for backend in backends}
    return versions("odestream", "numpy") | {backend: next(filter(None, each), None) for backend, each in known.items()}


def machine() -> dict[str, Any]:
    """The machine that a measurement was taken on."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": _cores(),
        "python": platform.python_version(),
    }


def size_text(size: int) -> str:
    """A number of bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _file_size(stream: BinaryIO) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor())


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
