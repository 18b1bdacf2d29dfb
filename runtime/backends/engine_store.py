"""Finds a bundle's engines and refuses, before anything is loaded, those that do not belong on this machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from odestream.runtime.backends.cuda_device import Gpu
from odestream.runtime.backends.plugin_library import PluginLibrary, find_plugin
from odestream.runtime.backends.trt_package import Package
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.engine import (
    PLUGIN,
    SUFFIX,
    EngineRecord,
    decode_record,
    engine_key,
)
from odestream.runtime.contract.manifest import WEIGHTS_NAME
from odestream.runtime.errors import CompatError, IntegrityError

ENGINES_VARIABLE = "ODESTREAM_ENGINES"
_OLDEST_HARDWARE_COMPATIBLE = 8.0


@dataclass(frozen=True)
class Here:
    """What engines must fit: the package that is installed, the GPU, system and processor."""

    package: Package
    gpu: Gpu
    host: str = f"{platform.system()} {platform.machine()}"


@dataclass(frozen=True)
class Stored:
    """An engine on the disk that fits this machine. plugin: the library to register before it is loaded."""

    path: Path
    record: EngineRecord
    plugin: PluginLibrary | None


def engine_folder(bundle: str | os.PathLike[str]) -> Path:
    """Where a bundle's engines lie by default: what ODESTREAM_ENGINES names, or `BUNDLE.engines` beside it."""
    named = os.environ.get(ENGINES_VARIABLE)
    return Path(named) if named else Path(f"{Path(bundle)}.engines")


def engines_of(bundle: Bundle) -> Path:
    """Where this bundle's engines are looked for: the folder it was read with, or the default one."""
    return bundle.engines or engine_folder(bundle.path)


def compile_command(bundle: Bundle, target: str) -> str:
    """The command that builds a bundle's engines where they are looked for."""
    out = "" if bundle.engines is None else f" --out {bundle.engines}"
    return f"odestream compile {bundle.path} --target {target}{out}"


def built_targets(bundle: Bundle) -> tuple[str, ...]:
    """Packages that some engine in the bundle's folder was built with."""
    records = (_quiet_record(path) for path in _engines(engines_of(bundle)))
    return tuple(dict.fromkeys(record.target for record in records if record is not None))


def find_engine(bundle: Bundle, label: str, here: Here) -> Stored:
    """The engine of bucket `label` that belongs to this bundle and this machine.

    Raises CompatError: where there is none, with what the nearest one lacks and the command that builds it.
    """
    folder, refusals = engines_of(bundle), list[str]()
    stem = bundle.manifest.graphs[label].removesuffix(".onnx")
    for path in _engines(folder):
        if not path.name.startswith(f"{stem}."):
            continue
        record = read_engine(path)
        problem = next(_problems(record, bundle, label, here), None)
        if problem is None:
            return Stored(path, record, None if record.plugin is None else find_plugin(record.plugin))
        refusals.append(f"{path.name}: {problem}")
    command = compile_command(bundle, here.package.target)
    if not refusals:
        raise CompatError(f"{folder}: no engine of {stem}; run on this machine: {command}")
    raise CompatError(
        f"{folder}: no engine of {stem} fits here ({'; '.join(refusals)}); run on this machine: {command}"
    )


def read_engine(path: Path) -> EngineRecord:
    """The sidecar of an engine; CompatError where it is missing or not one."""
    sidecar = path.with_name(path.name + ".json")
    try:
        data = sidecar.read_bytes()
    except OSError as cause:
        raise CompatError(f"{sidecar}: cannot be read ({cause.strerror}); compile the bundle again") from cause
    return decode_record(data, str(sidecar))


def check_engine(path: Path, record: EngineRecord) -> bytes:
    """The engine's bytes, once they are what the sidecar says; IntegrityError otherwise. Load these and no others."""
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise CompatError(f"{path}: cannot be read ({cause.strerror}); compile the bundle again") from cause
    found = hashlib.sha256(data).hexdigest()
    if len(data) != record.size or found != record.sha256:
        raise IntegrityError(
            f"{path}: {len(data)} bytes with sha256 {found}, the sidecar says {record.size} with {record.sha256}; "
            "compile the bundle again"
        )
    return data


def _engines(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def _quiet_record(path: Path) -> EngineRecord | None:
    try:
        return read_engine(path)
    except CompatError:
        return None


def _problems(record: EngineRecord, bundle: Bundle, label: str, here: Here) -> Iterator[str]:
    """What keeps an engine from running this bundle here, the nearest cause first."""
    if record.target != here.package.target:
        yield f"built with {record.target}, {here.package.target} was asked for"
    yield from _origin_problems(record, bundle, label)
    yield from _gpu_problems(record, here.gpu)
    yield from _version_problems(record, here)
    if record.host != here.host:
        yield f"built on {record.host}, this is {here.host}"
    if record.plugin is None and PLUGIN in record.calls.values():
        yield "it calls plugins, and its sidecar names no library"


def _origin_problems(record: EngineRecord, bundle: Bundle, label: str) -> Iterator[str]:
    files = bundle.manifest.files
    if record.label != label or record.graph_sha256 != files[bundle.manifest.graphs[label]].sha256:
        yield "built from another graph"
    if record.weights_sha256 != files[WEIGHTS_NAME].sha256:
        yield "built from other weights"
    if record.key != engine_key(record):
        yield "its key does not cover what the sidecar says (weights, graph, plugin, versions, GPU)"


def _gpu_problems(record: EngineRecord, gpu: Gpu) -> Iterator[str]:
    capability = float(gpu.capability)
    if "hardware_compatible" in record.flags:
        if capability < _OLDEST_HARDWARE_COMPATIBLE:
            yield f"built for compute capability {_OLDEST_HARDWARE_COMPATIBLE} and later, {gpu.name} has {capability}"
        return
    if gpu.architecture not in record.architectures:
        yield f"built for {', '.join(record.architectures)}, {gpu.name} is {gpu.architecture}"
    if record.gpu is None:
        return
    if record.gpu.name != gpu.name:
        yield f"built on {record.gpu.name}, this is {gpu.name}"
    if record.gpu.multiprocessors != gpu.multiprocessors:
        yield f"built for {record.gpu.multiprocessors} multiprocessors, {gpu.name} has {gpu.multiprocessors} here"


def _version_problems(record: EngineRecord, here: Here) -> Iterator[str]:
    """A newer driver runs what an older one built; nothing else may differ."""
    package = here.package
    if record.version != package.version and not _later_of_same_major(record, package):
        yield f"built with {record.target} {record.version}, installed is {package.version}"
    if record.cuda and record.cuda.split(".")[0] != here.gpu.runtime.split(".")[0]:
        yield f"built with CUDA {record.cuda}, this is {here.gpu.runtime}"
    if record.driver and _numbers(here.gpu.driver) < _numbers(record.driver):
        yield f"built under a driver for CUDA {record.driver}, this one is for {here.gpu.driver}"


def _later_of_same_major(record: EngineRecord, package: Package) -> bool:
    built, installed = _numbers(record.version), _numbers(package.version)
    return "version_compatible" in record.flags and built[:1] == installed[:1] and built <= installed


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
