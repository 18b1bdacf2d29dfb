"""The flight recorder: keeps the input log of a fleet in a folder, a ring of segments of bounded size.

A call is written when it was answered, in one write and before the answer is handed on; the kernel has it then, so a
kill loses nothing. What a power cut may lose is bounded by `sync`, which a new segment implies. A segment begins with a
snapshot of all streams, so the oldest may go when the ring is full.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from odestream.runtime.atomic import new_file, remove_leftovers
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.spec import TensorSpec
from odestream.runtime.errors import InputError, LogError, SessionBusy
from odestream.runtime.inputlog import SUFFIX, CallEncoder, LogHead, decode_segment, encode_eviction, encode_head

if TYPE_CHECKING:
    from odestream.runtime.fleet import Answer, Fleet
    from odestream.runtime.inputlog import Segment
    from odestream.runtime.member import Observation

LIMIT = 64 << 20
SEGMENTS = 8
_LOCK = ".lock"
_CLOSED = "the recorder is closed; make a new one"
_FREE = "one process at a time records into a folder; stop the other one or choose another folder"


class Recorder:
    """Writes a log into `folder`, which is made where it is missing; a log that lies there is continued.

    limit: bytes that the segments together may take, though never less than the newest two. A folder has one recorder
    at a time: SessionBusy for a second one. InputError for a limit below 64 KiB. Where the disk fails, the call ends in
    an OSError after its streams have stepped; the next one begins a new segment, whose snapshot holds what is missing.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        if limit < 1 << 16:
            raise InputError(f"limit is {limit} bytes, expected at least 65536; leave it out for {LIMIT}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._limit = limit
        self._lock = _locked(folder / _LOCK)
        remove_leftovers(folder, lambda name: name.endswith(SUFFIX))
        self._file: BinaryIO | None = None
        self._torn = False
        self._size = 0
        self._most = limit // SEGMENTS

    def begin(self, fleet: Fleet) -> None:
        """Start a segment from the streams that the fleet has now."""
        if self._lock.closed:
            raise SessionBusy(_CLOSED)
        self._torn = True
        sequence = 1 + max(map(_sequence, segment_paths(self.folder)), default=0)
        data = encode_head(_head(fleet, sequence), fleet.snapshot() if fleet.names else b"")
        self._finish()
        path = self.folder / f"{sequence:012d}{SUFFIX}"
        with new_file(path) as file:
            file.write(data)
        self._file = path.open("ab", buffering=0)
        self._size, self._most = len(data), max(self._limit // SEGMENTS, 2 * len(data))
        self._encoder = CallEncoder(observed(fleet.model.manifest))
        self._torn = False
        self._forget_oldest()

    def record(self, fleet: Fleet, rows: Sequence[Observation], answers: Sequence[Answer]) -> None:
        """Write a call; a segment that is full is followed by a new one."""
        if not self._torn:
            self._write(self._encoder.encode(rows, answers))
        if self._torn or self._size > self._most:
            self.begin(fleet)

    def evicted(self, names: Sequence[str]) -> None:
        """Write that streams were put away."""
        if not self._torn:
            self._write(encode_eviction(names))

    def sync(self) -> None:
        """Have everything that was written on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the segment and free the folder."""
        self._finish()
        self._lock.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise SessionBusy(_CLOSED)
        self._torn = True
        written = self._file.write(data) if data else 0
        if written != len(data):
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes", str(self.folder))
        self._size += len(data)
        self._torn = False

    def _finish(self) -> None:
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _forget_oldest(self) -> None:
        paths = segment_paths(self.folder)
        sizes = [path.stat().st_size for path in paths]
        while len(paths) > 2 and sum(sizes) + self._most > self._limit:
            paths.pop(0).unlink()
            sizes.pop(0)


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a log, the oldest first; LogError where there is no such folder."""
    if not folder.is_dir():
        raise LogError(f"{folder}: no such folder; name one that `odestream run --record` wrote")
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())


def read_segments(folder: Path, newest: int = 0) -> list[Segment]:
    """The `newest` segments, all unless told, the oldest first; LogError where there is none or one cannot be read."""
    paths = segment_paths(folder)
    if not paths:
        raise LogError(f"{folder}: no segment of an input log; name a folder that `odestream run --record` wrote")
    return [decode_segment(path.read_bytes(), path) for path in paths[-newest:]]


def observed(manifest: Manifest) -> TensorSpec:
    """What an observation of the model is."""
    x = manifest.spec.input("x")
    if x is None:
        raise LogError(f"{manifest.name} has no input x; export the bundle again")
    return x


def _sequence(path: Path) -> int:
    return int(path.stem)


def _head(fleet: Fleet, sequence: int) -> LogHead:
    manifest = fleet.model.manifest
    return LogHead(
        sequence=sequence,
        identity=manifest.identity,
        name=manifest.name,
        bundle=str(fleet.model.bundle.path.absolute()),
        backend=fleet.model.backend,
        time=manifest.time,
        x=observed(manifest),
        policies=fleet.policies,
        buckets=fleet.buckets,
        largest=fleet.largest,
    )


def _locked(path: Path) -> BinaryIO:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        file.close()
        raise SessionBusy(f"{path.parent}: another process records here; {_FREE}") from cause
    return file
