"""What a fuzzer feeds bytes to: every reader of a file that may come from elsewhere.

A target returns after bytes that are read and after bytes that are refused with a typed error; anything else is a
finding. Where a digest guards a format, half of the inputs get a right one, so that the parser behind it is reached.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from odestream.runtime.contract.checks import check_manifest
from odestream.runtime.contract.manifest import Manifest, TaskSpec, TimeSpec, decode_manifest
from odestream.runtime.errors import BundleError, InputError, LogError, SnapshotError
from odestream.runtime.inputlog import MAGIC as LOG_MAGIC
from odestream.runtime.inputlog import decode_segment, frame
from odestream.runtime.snapshot import MAGIC, decode_snapshot, read_contents
from odestream.runtime.table import read_rows
from odestream.runtime.timestamps import time_spec

Target = Callable[[bytes], None]

TASKS = (
    TaskSpec("forecast", ("a", "b"), ("a",), (), "time", "id"),
    TaskSpec("classify", ("a",), ("kind",), ("x", "y"), "time", None),
    TaskSpec("forecast", ("a",), ("a",)),
)
TIMES = (TimeSpec(), TimeSpec("iso"), TimeSpec("number", "day", 86_400, 1.0, 86_400.0))


def read_manifest(data: bytes) -> None:
    """`manifest.json`: any bytes."""
    with suppress(BundleError):
        check_manifest(decode_manifest(data, "manifest.json"), "manifest.json")


def read_snapshot(manifest: Manifest) -> Target:
    """Snapshots of one model: a first byte that is even makes the rest the body of a snapshot with a right digest."""

    def target(data: bytes) -> None:
        data = sealed(MAGIC, data[1:]) if data[:1] and data[0] % 2 == 0 else data[1:]
        for reader in (lambda: decode_snapshot(data, manifest), lambda: read_contents(data)):
            with suppress(SnapshotError):
                reader()

    return target


def read_table(data: bytes) -> None:
    """CSV: the first byte chooses the task and how its time column is read."""
    task, time = TASKS[(data[0] if data else 0) % 3], TIMES[(data[0] if data else 0) // 3 % 3]
    with suppress(InputError):
        rows = list(read_rows(io.BytesIO(data[1:]), task, time, {"s": 5}))
        time_spec([row.time for row in rows])


def read_log(data: bytes) -> None:
    """Segments of an input log: a first byte that is even gives the rest, cut into frames at `|`, right checksums."""
    framed = data[:1] and data[0] % 2 == 0
    with suppress(LogError):
        decode_segment(LOG_MAGIC + b"".join(map(frame, data[1:].split(b"|"))) if framed else data[1:], Path("segment"))


def sealed(magic: bytes, body: bytes) -> bytes:
    """The bytes of a format that is magic, sha256, body."""
    return magic + hashlib.sha256(body).digest() + body


def targets(manifest: Manifest) -> Mapping[str, Target]:
    """Every target by name; `manifest`: of the model whose files are read."""
    return {"manifest": read_manifest, "snapshot": read_snapshot(manifest), "table": read_table, "log": read_log}
