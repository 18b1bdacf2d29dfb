"""Reads a bundle: paths, sizes and hashes first, and only then a parser.

Every file is opened once, without following links, read whole and hashed; the bytes that were hashed are the
bytes that are parsed, so that a file swapped on the disk in between changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import aligned
from odestream.runtime.contract.checks import check_manifest
from odestream.runtime.contract.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    VECTORS_NAME,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
    WeightEntry,
    decode_manifest,
)
from odestream.runtime.contract.vectors import Vectors, decode_vectors
from odestream.runtime.errors import BundleError, IntegrityError, PathError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LINK_OR_DEVICE = (errno.ELOOP, errno.ENXIO)
_AGAIN = "export or copy the bundle again"
_RUN_FILES = {"config.json", "model.safetensors"}  # of a training run, which is easily taken for its bundle
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory, checked.

    path: where it was read, for messages only. files: name → bytes of every file but the manifest.
    weights: name → read-only array over one copy of the weights file, aligned to 64 bytes (bfloat16 as uint16).
    engines: the folder of its compiled engines, None for the usual one.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    weights: Mapping[str, NDArray[np.generic]]
    engines: Path | None = None

    def graph(self, label: str) -> bytes:
        """The ONNX bytes of one bucket."""
        return self.files[self.manifest.graphs[label]]

    def vectors(self) -> Vectors:
        """The stored vectors, parsed; BundleError where they do not fit the manifest."""
        return decode_vectors(self.files[VECTORS_NAME], self.manifest, str(self.path / VECTORS_NAME))


def read_bundle(path: str | os.PathLike[str], engines: Path | None = None) -> Bundle:
    """Read and check the bundle at `path`; `engines` is kept, see `Bundle`.

    Raises BundleError (a file missing or extra, content against the format), IntegrityError (size or sha256
    against the manifest) and PathError (a link, a device, a name that is not plain).
    """
    where = Path(path)
    try:
        directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as cause:
        raise BundleError(
            f"{where}: not a bundle directory ({_reason(cause)}); name a directory that odestream export made"
        ) from cause
    try:
        manifest = _read_manifest(where, directory)
        _refuse_other_files(where, directory, manifest)
        files = {name: _read_listed(where, directory, name, entry) for name, entry in manifest.files.items()}
    finally:
        os.close(directory)
    check_manifest(manifest, str(where / MANIFEST_NAME))
    return Bundle(where, manifest, files, _weights(manifest, files[WEIGHTS_NAME]), engines)


def _read_manifest(where: Path, directory: int) -> Manifest:
    present = set(os.listdir(directory))
    if MANIFEST_NAME not in present and present >= _RUN_FILES:
        raise BundleError(
            f"{where}: a training run, not a bundle; export it first: odestream export {where} --out BUNDLE"
        )
    if MANIFEST_NAME not in present:
        raise BundleError(f"{where}: no {MANIFEST_NAME}; name a directory that odestream export made")
    descriptor, size = _open(where, directory, MANIFEST_NAME)
    data = _read(descriptor, min(size, MAX_MANIFEST_BYTES + 1))
    return decode_manifest(data, str(where / MANIFEST_NAME))


def _refuse_other_files(where: Path, directory: int, manifest: Manifest) -> None:
    for name in manifest.files:
        _check_name(where, name)
    if len({name.casefold() for name in manifest.files}) != len(manifest.files):
        raise PathError(f"{where / MANIFEST_NAME}: two files differ in case alone; {_AGAIN}")
    present = set(os.listdir(directory)) - {MANIFEST_NAME}
    missing, extra = sorted(set(manifest.files) - present), sorted(present - set(manifest.files))
    if missing:
        raise BundleError(f"{where}: {', '.join(missing)} missing; {_AGAIN}")
    if extra:
        raise BundleError(
            f"{where}: {', '.join(extra)} not listed in {MANIFEST_NAME}; move what is not the bundle's elsewhere"
        )


def _check_name(where: Path, name: str) -> None:
    """A file of a bundle lies in it: its name is one plain component."""
    plain = name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
    if not plain or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise PathError(f"{where / MANIFEST_NAME}: {name[:300]!r} is not a plain file name; {_AGAIN}")


def _read_listed(where: Path, directory: int, name: str, entry: FileEntry) -> bytes:
    descriptor, size = _open(where, directory, name)
    if size != entry.size:
        os.close(descriptor)
        raise IntegrityError(f"{where / name}: {size} bytes, the manifest says {entry.size}; {_AGAIN}")
    data = _read(descriptor, size)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise IntegrityError(f"{where / name}: sha256 is {found}, the manifest says {entry.sha256}; {_AGAIN}")
    return data


def _open(where: Path, directory: int, name: str) -> tuple[int, int]:
    """Descriptor and size of a regular file with one name."""
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=directory)
    except OSError as cause:
        kind = PathError if cause.errno in _LINK_OR_DEVICE else BundleError
        raise kind(f"{where / name}: cannot be read ({_reason(cause)}); {_AGAIN}") from cause
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        found = f"has {status.st_nlink} hard links" if stat.S_ISREG(status.st_mode) else "is no regular file"
        raise PathError(f"{where / name}: {found}, expected a file of its own; {_AGAIN}")
    return descriptor, status.st_size


def _read(descriptor: int, size: int) -> bytes:
    """At most `size` bytes; a file that grew meanwhile fails its hash, one that shrank too."""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(size)


def _reason(cause: Exception) -> str:
    return (cause.strerror or str(cause)).lower() if isinstance(cause, OSError) else str(cause)


def _weights(manifest: Manifest, data: bytes) -> dict[str, NDArray[np.generic]]:
    buffer = aligned((len(data),), np.uint8)
    buffer[:] = np.frombuffer(data, np.uint8)
    buffer.setflags(write=False)
    return {entry.name: _weight(buffer, entry) for entry in manifest.weights}


def _weight(buffer: NDArray[np.generic], entry: WeightEntry) -> NDArray[np.generic]:
    dtype = np.dtype("uint16" if entry.dtype == "bfloat16" else entry.dtype)
    part = buffer[entry.offset : entry.offset + entry.length]
    if entry.offset % dtype.itemsize:
        part = part.copy()
    view: NDArray[np.generic] = part.view(dtype).reshape(entry.shape)
    return view
