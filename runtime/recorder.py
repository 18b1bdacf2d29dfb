"""The flight recorder: keeps the input log of a fleet in a folder, a ring of segments of bounded size.

A call is written when it was answered, in one write and before the answer is handed on; the kernel has it then, so a
kill loses nothing. What a power cut may lose is bounded by `sync`, which a new segment implies. A segment begins with a
snapshot of all streams and, where late rows are taken, what these may come before: whoever resumes reads the newest
alone, and the oldest may go when the ring is full.

Where the disk is full, the oldest segments go first. Where that does not help either, calls are refused before their
streams step, until there is room: what is answered is in the log. One call alone may be answered and not be there: the
one whose write fails, since its streams have stepped; the next segment, which begins before any other call, holds what
it did. A segment that is whole goes on while the next one cannot begin, for want of room or of a stream, and takes the
place of older ones; once it has grown to the whole limit, calls are refused too.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from odestream.runtime.atomic import new_file, remove_leftovers
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.spec import TensorSpec
from odestream.runtime.errors import InputError, LogError, SessionBusy, SnapshotError
from odestream.runtime.inputlog import SUFFIX, CallEncoder, LogHead, Past, decode_segment, encode_eviction, encode_head
from odestream.runtime.locks import lock_file
from odestream.runtime.snapshot import encode_snapshot

if TYPE_CHECKING:
    from odestream.runtime.fleet import Answer, Fleet
    from odestream.runtime.history import Block
    from odestream.runtime.inputlog import Segment
    from odestream.runtime.member import Observation

    _Pasts = Mapping[str, Sequence[Block]]

_LOG = logging.getLogger(__name__)

LIMIT = 64 << 20
SEGMENTS = 8
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = "so no call is taken; make room there or record into another folder"
_LACKS = "%s: the log lacks what was done last (%s); the next segment will begin with what came of it"
_GOES_ON = "%s: the next segment cannot begin (%s); this one goes on, and calls are refused once it is %d bytes"
_CLOSED = "the recorder is closed; make a new one"
_BUSY = "another process records here; one at a time does, so stop the other one or choose another folder"


class Recorder:
    """Writes a log into `folder`, which is made where it is missing; a log that lies there is continued.

    limit: bytes that the segments together may take, though never less than the newest two. A folder has one recorder
    at a time: SessionBusy for a second one. InputError for a limit below 64 KiB.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        if limit < 1 << 16:
            raise InputError(f"limit is {limit} bytes, expected at least 65536; leave it out for {LIMIT}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._limit = limit
        self._lock = lock_file(folder / _LOCK, _BUSY)
        remove_leftovers(folder, lambda name: name.endswith(SUFFIX))
        self._file: BinaryIO | None = None
        self._torn = True
        self._lacking = False  # what failed to be written, until a segment begins with what came of it
        self._size = 0
        self._most = self._end = limit // SEGMENTS

    def begin(self, fleet: Fleet) -> None:
        """Start a segment from the streams that the fleet has now; LogError where the disk cannot take it."""
        self._torn = True
        self.ready(fleet)

    def ready(self, fleet: Fleet) -> None:
        """Mend the log where a write has failed; LogError where it cannot go on, so that no call may step."""
        if self._lock.closed:
            raise SessionBusy(_CLOSED)
        if self._refuses:
            self._go_on(fleet)

    def record(self, fleet: Fleet, rows: Sequence[Observation], answers: Sequence[Answer]) -> bool:
        """Write a call, and a new segment after a full or a torn one; whether the log has the call's rows."""
        written = self._write(self._encoder.encode(rows, answers))
        if self._torn or self._size > self._most:
            try:
                self._go_on(fleet)
            except LogError as error:
                self._lengthen(error)
        return written

    def evicted(self, names: Sequence[str]) -> None:
        """Write that streams were put away."""
        self._write(encode_eviction(names))

    def sync(self) -> None:
        """Have everything that was written on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the segment and free the folder."""
        try:
            self._finish(self._file)
        finally:
            self._file = None
            self._lock.close()

    @property
    def _refuses(self) -> bool:
        """Whether no call is taken before a new segment begins."""
        return self._torn or self._size > self._end

    def _lengthen(self, error: LogError) -> None:
        """Have a segment that is whole go on, since none can begin after it; older ones make room for it."""
        if self._refuses:
            _LOG.warning("%s", error)
            return
        more, cause = self._limit // SEGMENTS, error.__cause__
        self._most = min(self._size + more, self._end)
        _LOG.warning(_GOES_ON, self.folder, cause.strerror if isinstance(cause, OSError) else cause, self._end)
        with suppress(OSError):
            self._forget(more)

    def _write(self, data: bytes) -> bool:
        """Write a frame, if the segment is whole; afterwards it is torn where that failed."""
        if self._torn or self._file is None:
            return False
        self._torn = self._lacking = True
        try:
            written = self._file.write(data) if data else 0
        except OSError as cause:
            _LOG.warning(_LACKS, self.folder, cause.strerror)
            return False
        if written != len(data):
            _LOG.warning(_LACKS, self.folder, f"{written} of {len(data)} bytes were written")
            return False
        self._size += len(data)
        self._torn = self._lacking = False
        return True

    def _go_on(self, fleet: Fleet) -> None:
        """Go on in a new segment; after a LogError the one before goes on, unless it is torn."""
        encoder = CallEncoder(observed(fleet.model.manifest))
        sequence = 1 + max(map(_sequence, segment_paths(self.folder)), default=0)
        pasts = fleet.pasts()
        data = _beginning(fleet, pasts, sequence, encoder, self.folder)
        most = max(self._limit // SEGMENTS, 2 * len(data))
        path = self.folder / f"{sequence:012d}{SUFFIX}"
        try:
            self._forget(len(data) + most)
            file = self._published(path, data)
        except OSError as cause:
            self._torn |= path.exists()  # whoever resumes would read that one
            reason = (cause.strerror or str(cause)).lower()
            lacks = "; it lacks what was done last" if self._lacking else ""
            raise LogError(f"{self.folder}: the log cannot be written ({reason}{lacks}), {_ROOM}") from cause
        fleet.recall(pasts)  # only now: the segment before knows nothing of them
        before, self._file = self._file, file
        self._encoder, self._size, self._most, self._torn = encoder, len(data), most, False
        self._lacking = False
        self._end = max(self._limit, most)
        try:
            self._finish(before)
        except OSError as cause:
            _LOG.warning("%s: a power cut may take the end of the segment before (%s)", path, cause.strerror)

    def _published(self, path: Path, data: bytes) -> BinaryIO:
        """A new segment, open at its end; old ones go where the disk has no room for it."""
        try:
            with new_file(path) as file:
                file.write(data)
            return path.open("ab", buffering=0)
        except OSError as cause:
            path.unlink(missing_ok=True)
            paths = segment_paths(self.folder)
            if cause.errno not in _FULL or len(paths) < 2:
                raise
        paths[0].unlink()
        return self._published(path, data)

    def _finish(self, file: BinaryIO | None) -> None:
        if file is not None:
            with file:
                os.fsync(file.fileno())

    def _forget(self, room: int) -> None:
        """Have the oldest segments go until there is so much room, but for the newest."""
        paths = segment_paths(self.folder)
        sizes = [path.stat().st_size for path in paths]
        while len(paths) > 1 and sum(sizes) + room > self._limit:
            paths.pop(0).unlink()
            sizes.pop(0)


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a log, the oldest first; LogError where there is no such folder."""
    if not folder.is_dir():
        raise LogError(f"{folder}: no such folder; name one that `odestream run --record` wrote")
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())


def read_segments(folder: Path, newest: int = 0) -> list[Segment]:
    """The `newest` segments, all for 0, the oldest first; LogError where there is none or one cannot be read."""
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


def _beginning(fleet: Fleet, pasts: _Pasts, sequence: int, encoder: CallEncoder, folder: Path) -> bytes:
    """What a segment begins with; LogError where a stream that was put away can no longer be read."""
    try:
        data = encode_head(_head(fleet, sequence), fleet.snapshot() if fleet.names else b"")
    except SnapshotError as cause:
        raise LogError(f"{folder}: the log cannot go on, for want of a stream; {cause}") from cause
    return data + b"".join(map(encoder.encode_past, _layers(fleet.model.manifest, pasts)))


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
        pasts=True,
    )


def _layers(manifest: Manifest, pasts: _Pasts) -> Iterator[Past]:
    """What late rows may come before: the first checkpoint of every stream with the rows after it, then the second."""
    for layer in zip_longest(*pasts.values()):
        blocks = {name: block for name, block in zip(pasts, layer, strict=True) if block is not None}
        states = {name: replace(block.checkpoint.state, held=block.checkpoint.held) for name, block in blocks.items()}
        rows = tuple(tuple(block.rows) for block in blocks.values())
        yield Past(encode_snapshot(manifest, states), rows)
