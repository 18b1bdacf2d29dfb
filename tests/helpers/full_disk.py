"""A disk that holds so many bytes, for what is written into one folder."""

import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Disk:
    """holds: bytes of all files of the folder; None for any number. refused: writes that found no room."""

    folder: Path
    holds: int | None = None
    refused: int = 0

    @property
    def taken(self) -> int:
        """Bytes of the files that are there."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def fill(self, left: int = 0) -> None:
        """Leave room for so many bytes."""
        self.holds = self.taken + left

    def room(self) -> int:
        """Bytes that can still be written; OSError where there is none."""
        left = 1 << 62 if self.holds is None else self.holds - self.taken
        if left <= 0:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return left


def mounted(folder: Path, patch: pytest.MonkeyPatch) -> Disk:
    """Have what is written into the folder go to such a disk."""
    disk, opened = Disk(folder), Path.open

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[: disk.room()])

    def on_the_disk(path: Path, mode: str = "r", buffering: int = -1, *options: Any, **named: Any) -> Any:
        if path.parent != folder or mode not in ("ab", "xb"):
            return opened(path, mode, buffering, *options, **named)
        return File(path, mode) if buffering == 0 else io.BufferedWriter(File(path, mode))

    patch.setattr(Path, "open", on_the_disk)
    return disk
