"""odestream's runtime: load a bundle, stream observations through it. numpy in, numpy out; no training framework."""

from odestream.runtime.batch import Batcher
from odestream.runtime.errors import (
    BundleError,
    CheckpointError,
    CompatError,
    ExportError,
    GapError,
    InputError,
    IntegrityError,
    LogError,
    OdestreamError,
    PathError,
    SessionBusy,
    SnapshotDamaged,
    SnapshotError,
    StateError,
    TimeError,
)
from odestream.runtime.model import Model, load, restore
from odestream.runtime.records import Counters, Output
from odestream.runtime.session import Stream

__all__ = [
    "Batcher",
    "BundleError",
    "CheckpointError",
    "CompatError",
    "Counters",
    "ExportError",
    "GapError",
    "InputError",
    "IntegrityError",
    "LogError",
    "Model",
    "OdestreamError",
    "Output",
    "PathError",
    "SessionBusy",
    "SnapshotDamaged",
    "SnapshotError",
    "StateError",
    "Stream",
    "TimeError",
    "load",
    "restore",
]
