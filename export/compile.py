"""`odestream compile`: a bundle's graphs built for a device, into a folder beside the bundle, which stays as it is.

It needs the package it builds with, and neither torch nor a training run: it runs on the board.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from odestream.runtime.atomic import write_bytes
from odestream.runtime.backends.cuda_device import Gpu, find_gpu
from odestream.runtime.backends.engine_store import check_engine, engine_folder, read_engine
from odestream.runtime.backends.plugin_library import allowed_plugin, plugin_record
from odestream.runtime.backends.trt_package import Package, load_package
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.engine import (
    SIDECAR_VERSION,
    TAGS,
    EngineRecord,
    GpuRecord,
    encode_record,
    engine_key,
    engine_name,
)
from odestream.runtime.contract.manifest import WEIGHTS_NAME
from odestream.runtime.errors import CompatError, InputError, IntegrityError
from odestream.runtime.kernels import build as kernels
from odestream.runtime.verbs.console import progress_bar, show_table, size_text, whole_numbers

if TYPE_CHECKING:
    from odestream.export.engine import Built, Options, Profile, Report

NATIVE = "native"
DEFAULT_BATCHES = {"tensorrt": "1,8,64", "trt-rtx": "64"}
TIMING_CACHE = "timing.cache"

Progress = Callable[[str, str, int, int], None]
Build = Callable[[str, "Report"], "Built"]


def compile_verb(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `odestream export` made.")],
    target: Annotated[str, typer.Option(help=f"{NATIVE}, {' or '.join(TAGS)}.", show_default=False)],
    arch: Annotated[
        str | None, typer.Option(help="trt-rtx: build for these GPUs, such as sm86,sm89, without having one.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes to optimise for, a profile up to each; 1,8,64 for tensorrt, 64 for trt-rtx.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the engines; BUNDLE.engines by default.")] = None,
    plugin: Annotated[
        Path | None, typer.Option(help="tensorrt: the library of our plugins, to run flow and memory.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: let later releases of the same major run it.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="tensorrt: let every GPU from sm80 on run it.")
    ] = False,
) -> None:
    """Build a bundle's graphs for this device: the CPU kernels, or an engine for each number of solver steps."""
    if target == NATIVE:
        read_bundle(bundle)
        print(kernels.build(out) if out else kernels.find_library() or kernels.build())
        return
    if target not in TAGS:
        raise InputError(f"unknown target {target!r}; choose {NATIVE}, {' or '.join(TAGS)}")
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def show(label: str, phase: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total)
            bar.update(tasks[label], description=f"{label}: {phase}", completed=done)

        records = compile_bundle(
            bundle,
            target,
            architectures=tuple(arch.split(",")) if arch else (),
            batches=whole_numbers("--batch", batch or DEFAULT_BATCHES[target], "1,8,64"),
            out=out,
            plugin=plugin,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            progress=show,
        )
    _show(out or engine_folder(bundle), records)


def compile_bundle(
    bundle: str | os.PathLike[str],
    target: str,
    *,
    architectures: tuple[str, ...] = (),
    batches: list[int] | tuple[int, ...] = (64,),
    out: str | os.PathLike[str] | None = None,
    plugin: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, EngineRecord]:
    """Build an engine for each of the bundle's graphs; file name → its record. What is up to date is kept.

    target: `tensorrt` or `trt-rtx`. architectures: of GPUs that need not be here, trt-rtx alone; else the GPU that is.
    batches: the profiles' upper ends. out: folder, `BUNDLE.engines` by default. plugin: library that must then run flow
    and memory. progress: called with label, phase, done and total.

    Raises CompatError where the package, a GPU or the plugin library is missing or cannot build this, PathError for a
    plugin library outside the allowed folders, InputError for options that do not fit the target, ExportError where a
    call runs another way than asked for.
    """
    if architectures and target != "trt-rtx":
        raise InputError(f"--arch is for trt-rtx, {target} builds for the GPU that is here; leave it out")
    others = {
        "--plugin": plugin,
        "--version-compatible": version_compatible,
        "--hardware-compatible": hardware_compatible,
    }
    given = [name for name, value in others.items() if value]
    if given and target != "tensorrt":
        raise InputError(f"{given[0]} is for tensorrt, {target} has no such thing; leave it out")
    package = load_package(target)
    _check_architectures(package, architectures)
    try:
        from odestream.export.engine import Options
    except ImportError as cause:
        raise CompatError(f"compile cannot start here ({cause}); pip install 'odestream[{target}]'") from cause
    library = None if plugin is None else plugin_record(allowed_plugin(plugin))
    options = Options(architectures, profiles(batches), library, version_compatible, hardware_compatible)
    folder = engine_folder(bundle) if out is None else Path(out)
    made = _Compilation(package, read_bundle(bundle), options, folder, progress)
    return made.run()


def profiles(batches: list[int] | tuple[int, ...]) -> tuple[Profile, ...]:
    """(least, best, largest) of a profile up to each batch size; together they cover every size from 1."""
    ends = sorted(set(batches))
    return tuple((least + 1, most, most) for least, most in zip([0, *ends], ends, strict=False))


def _check_architectures(package: Package, given: tuple[str, ...]) -> None:
    if not given:
        return
    known = [name.lower() for name in dir(package.module.ComputeCapability) if name.startswith("SM")]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(
            f"--arch: {', '.join(unknown)} is not among what {package.target} {package.version} builds for; "
            f"choose of {', '.join(known)}"
        )


def _gpu(package: Package) -> Gpu:
    """The GPU that is here; CompatError where there is none, which says how trt-rtx builds without."""
    try:
        return find_gpu()
    except CompatError as cause:
        if package.target != "trt-rtx":
            raise
        raise CompatError(
            f"no GPU to build for ({cause}); without one, name the GPUs that will run it, such as --arch sm89"
        ) from cause


class _Compilation:
    """Builds a bundle's engines: side by side without a GPU, one after another where timings are taken on it."""

    def __init__(self, package: Package, bundle: Bundle, options: Options, folder: Path, progress: Progress) -> None:
        self.package, self.bundle, self.options, self.folder, self.progress = package, bundle, options, folder, progress
        self.gpu: Gpu | None = None
        if not options.architectures:
            self.gpu = _gpu(package)

    def run(self) -> dict[str, EngineRecord]:
        self.folder.mkdir(parents=True, exist_ok=True)
        drafts = {label: self._draft(label) for label in self.bundle.manifest.graphs}
        records = {label: record for label, draft in drafts.items() if (record := self._known(draft))}
        missing = [draft for label, draft in drafts.items() if label not in records]
        # The largest graphs first, so that the last to end is not the one that takes longest.
        missing.sort(key=lambda draft: -len(self.bundle.graph(draft.label)))
        records |= {record.label: record for record in self._build_all(missing)}
        return {self._path(draft).name: records[label] for label, draft in drafts.items()}

    def _build_all(self, drafts: list[EngineRecord]) -> list[EngineRecord]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(cores, len(drafts))
        if self.gpu is not None or count < 2:
            return [self._engine(draft, self._build_here) for draft in drafts]
        from odestream.export.engine_worker import make_job, start_workers

        with start_workers(count) as workers:

            def build(label: str, report: Report) -> Built:
                return workers.build(make_job(self.package.target, self.bundle, label, self.options), report)

            return workers.map(lambda draft: self._engine(draft, build), drafts)

    def _engine(self, draft: EngineRecord, build: Build) -> EngineRecord:
        """One engine and its sidecar, built by `build` and written."""
        from odestream.export.engine import PHASES

        started, path = time.monotonic(), self._path(draft)
        built = build(draft.label, lambda phase, done: self.progress(draft.label, phase, done, PHASES))
        record = _completed(draft, built, time.monotonic() - started)
        write_bytes(path, built.data)
        write_bytes(path.with_name(path.name + ".json"), encode_record(record))
        return record

    def _build_here(self, label: str, report: Report) -> Built:
        from odestream.export.engine import build_engine

        given = None if self.gpu is None else self._timing_cache()
        built, cache = build_engine(self.package, self.bundle, label, self.options, given, report)
        if cache is not None:
            write_bytes(self.folder / TIMING_CACHE, cache)
        return built

    def _known(self, draft: EngineRecord) -> EngineRecord | None:
        """The record of an engine that lies there unharmed and has the key of the one that would be built."""
        from odestream.export.engine import PHASES

        path = self._path(draft)
        try:
            record = read_engine(path)
            check_engine(path, record)
        except (CompatError, IntegrityError):
            return None
        if not record.key == draft.key == engine_key(record):
            return None
        self.progress(draft.label, "up to date", PHASES, PHASES)
        return record

    def _path(self, draft: EngineRecord) -> Path:
        return self.folder / engine_name(self.bundle.manifest.graphs[draft.label], draft)

    def _timing_cache(self) -> bytes:
        path = self.folder / TIMING_CACHE
        return path.read_bytes() if path.is_file() else b""

    def _draft(self, label: str) -> EngineRecord:
        """The record but for what the build brings; its key is final."""
        gpu, files = self.gpu, self.bundle.manifest.files
        architectures = self.options.architectures or ((gpu.architecture,) if gpu else ())
        record = EngineRecord(
            sidecar=SIDECAR_VERSION,
            target=self.package.target,
            version=self.package.version,
            label=label,
            sha256="",
            size=0,
            graph_sha256=files[self.bundle.manifest.graphs[label]].sha256,
            weights_sha256=files[WEIGHTS_NAME].sha256,
            plugin=self.options.plugin,
            calls={},
            proof="",
            architectures=architectures,
            gpu=None if gpu is None else GpuRecord(gpu.name, gpu.multiprocessors, gpu.capability),
            cuda="" if gpu is None else gpu.runtime,
            driver="" if gpu is None else gpu.driver,
            flags=self.options.flags,
            profiles=self.options.profiles,
            host=f"{platform.system()} {platform.machine()}",
            layers=0,
            build_seconds=0.0,
            odestream=metadata.version("odestream"),
            key="",
        )
        return msgspec.structs.replace(record, key=engine_key(record))


def _completed(draft: EngineRecord, built: Built, seconds: float) -> EngineRecord:
    return msgspec.structs.replace(
        draft,
        sha256=hashlib.sha256(built.data).hexdigest(),
        size=len(built.data),
        calls=built.calls,
        proof=built.proof,
        layers=built.layers,
        build_seconds=round(seconds, 2),
    )


def _show(folder: Path, records: dict[str, EngineRecord]) -> None:
    rows = [
        (
            name,
            size_text(record.size),
            f"{record.build_seconds:.1f}",
            ", ".join(f"{call} by {way}" for call, way in record.calls.items()) or "no calls",
        )
        for name, record in records.items()
    ]
    show_table(f"Engines in {folder}", ("engine", "size", "built in s", "runs"), rows, ("size", "built in s"))
    proofs = {record.proof for record in records.values()}
    print(f"What runs the calls was read from: {', '.join(sorted(proofs))}.")
