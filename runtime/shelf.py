"""Where streams lie that are put away: snapshots of one stream each, in memory or in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from odestream.runtime.atomic import remove_leftovers, replace_bytes
from odestream.runtime.errors import InputError, SessionBusy, SnapshotDamaged
from odestream.runtime.locks import lock_file
from odestream.runtime.snapshot import read_snapshot

_SUFFIX, _LOCK = ".snapshot", ".shelf.lock"
_BUSY = "another fleet puts its streams away here; close it or choose another shelf"


class _File(NamedTuple):
    """A snapshot on the disk. digest: its sha256, which tells it from an older one and from another fleet's."""

    path: Path
    digest: bytes


class Shelf:
    """A place for streams. folder: keeps them on the disk, a file each; it must exist. None: in memory.

    A shelf, and its folder, is one fleet's at a time. It begins empty: what an earlier fleet put there is overwritten,
    not taken over, and what it left half written is removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._claim: Claim | None = None

    def claim(self) -> Claim:
        """Serve one fleet until it closes the claim; SessionBusy where another one has the shelf or its folder.

        InputError where there is no such folder.
        """
        if self._claim is not None and not self._claim.closed:
            raise SessionBusy(f"the shelf: {_BUSY}")
        self._claim = Claim(self._folder)
        return self._claim


class Claim:
    """Name → snapshot, of the fleet that claimed the shelf: no later fleet's are read, written or ended by it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, bytes | _File] = {}
        self._lock: BinaryIO | None = None
        self.closed = False
        if folder is not None:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder to put streams away in; make it or choose another shelf")
            self._lock = lock_file(folder / _LOCK, _BUSY)
            remove_leftovers(folder, lambda name: name.endswith(_SUFFIX))

    def close(self) -> None:
        """Leave the shelf, and its folder, to other fleets; again does nothing."""
        self.closed = True
        if self._lock is not None:
            self._lock.close()

    @property
    def names(self) -> list[str]:
        """The streams that lie here, the longest first."""
        return list(self._held)

    def put(self, name: str, snapshot: bytes) -> None:
        """Keep a stream's snapshot; SessionBusy where the shelf may be another fleet's by now."""
        if self.closed:
            raise SessionBusy("the shelf's fleet is closed; put streams away before, or make a new fleet")
        if self._folder is None:
            self._held[name] = snapshot
        else:
            path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{_SUFFIX}"
            replace_bytes(path, snapshot)
            self._held[name] = _File(path, hashlib.sha256(snapshot).digest())

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def get(self, name: str) -> bytes:
        """The snapshot of a stream that lies here; SnapshotDamaged where the disk no longer has the one put there."""
        held = self._held[name]
        if isinstance(held, bytes):
            return held
        try:
            data = read_snapshot(held.path)
        except SnapshotDamaged as cause:
            raise _lost(name, held.path, "cannot be read") from cause
        if hashlib.sha256(data).digest() != held.digest:
            raise _lost(name, held.path, "is not what was put there, its sha256 differs")
        return data

    def discard(self, name: str) -> None:
        """Forget the stream, if it lies here."""
        self._held.pop(name, None)


def _lost(name: str, path: Path, what: str) -> SnapshotDamaged:
    return SnapshotDamaged(f"stream {name!r}, put away: {path}: {what}; restore it from a snapshot, or forget it")
