"""Two generations of a snapshot file: the newest, and the one before it for when the newest cannot be read.

The one before lies beside the newest as `NAME.previous`. A generation that is damaged is never kept in the place of one
that is whole, so at any moment, whatever was killed or cut off, at least one of the two is whole once two were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odestream.runtime.atomic import remove_leftovers, replace_bytes
from odestream.runtime.errors import SnapshotDamaged, SnapshotError
from odestream.runtime.snapshot import check_bytes, read_snapshot


@dataclass(frozen=True)
class Generation:
    """A generation that is whole. path: its file. origin: which of the two it is and why it was taken, for people."""

    path: Path
    data: bytes
    origin: str


def previous_path(path: Path) -> Path:
    """Where the generation before `path` lies."""
    return path.with_name(path.name + ".previous")


def write_generation(path: Path, data: bytes) -> None:
    """Write the newest generation; what `path` held becomes the one before, unless it is damaged."""
    remove_leftovers(path.parent, (path.name, previous_path(path).name).__contains__)
    current = _kept(path)
    if current is not None and current != data:
        replace_bytes(previous_path(path), current)
    replace_bytes(path, data)


def read_generation(path: Path) -> Generation:
    """The newest generation, or the one before where the newest is missing or damaged; SnapshotError if that is, too.

    A newest one that is whole is taken, whether or not it fits the model: going back would hide a mistake.
    """
    older = previous_path(path)
    try:
        return Generation(path, _whole(path), f"{path}, the newest generation")
    except SnapshotDamaged as newest:
        if not older.exists():
            raise
        try:
            return Generation(older, _whole(older), f"{older}, the generation before, because {_reason(newest)}")
        except SnapshotError as cause:
            raise type(cause)(f"{_reason(newest)}, and {cause}") from cause


def _whole(path: Path) -> bytes:
    data = read_snapshot(path)
    check_bytes(data, str(path))
    return data


def _kept(path: Path) -> bytes | None:
    """What may become the one before: a file that is whole, of whatever version."""
    try:
        return _whole(path)
    except SnapshotDamaged:
        return None
    except SnapshotError:  # of another version
        return read_snapshot(path)


def _reason(error: SnapshotDamaged) -> str:
    """What is wrong, without the remedy."""
    return str(error).rpartition("; ")[0]
