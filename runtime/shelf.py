"""Where streams lie that are put away: snapshots of one stream each, in memory or in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from odestream.runtime.generations import read_generation, write_generation


class Shelf:
    """Name → snapshot. folder: keeps them on the disk, two generations each; it must exist. None: in memory.

    A shelf over a folder begins empty: what an earlier process put there is overwritten, not taken over.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, bytes | Path] = {}

    @property
    def names(self) -> list[str]:
        """The streams that lie here, the longest first."""
        return list(self._held)

    def put(self, name: str, snapshot: bytes) -> None:
        """Keep a stream's snapshot."""
        if self._folder is None:
            self._held[name] = snapshot
        else:
            path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.snapshot"
            write_generation(path, snapshot)
            self._held[name] = path

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def get(self, name: str) -> bytes:
        """The snapshot of a stream that lies here; SnapshotDamaged where the disk lost it."""
        held = self._held[name]
        return read_generation(held).data if isinstance(held, Path) else held

    def discard(self, name: str) -> None:
        """Forget the stream, if it lies here."""
        self._held.pop(name, None)
