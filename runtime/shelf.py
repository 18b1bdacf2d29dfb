"""Where streams lie that are put away: snapshots of one stream each, in memory or in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from odestream.runtime.atomic import remove_leftovers
from odestream.runtime.generations import previous_path, read_generation, replace_generation

SUFFIX = ".snapshot"


class Shelf:
    """Name → snapshot. folder: keeps them on the disk, two generations each; it must exist. None: in memory.

    A shelf over a folder begins empty: what an earlier process put there is overwritten, not taken over, and what
    it left half written is removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, bytes | Path] = {}
        if folder is not None:
            ours = SUFFIX, previous_path(Path(SUFFIX)).name
            remove_leftovers(folder, lambda name: name.endswith(ours))

    @property
    def names(self) -> list[str]:
        """The streams that lie here, the longest first."""
        return list(self._held)

    def put(self, name: str, snapshot: bytes) -> None:
        """Keep a stream's snapshot."""
        if self._folder is None:
            self._held[name] = snapshot
        else:
            path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{SUFFIX}"
            replace_generation(path, snapshot)
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
