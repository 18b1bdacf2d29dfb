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
    ResourceError,
    SessionBusy,
    SnapshotDamaged,
    SnapshotError,
    StateError,
    TimeError,
)
from odestream.runtime.fleet import Fleet
from odestream.runtime.member import Observation
from odestream.runtime.model import Model, load, restore
from odestream.runtime.policies import Policies
from odestream.runtime.pool import Pool
from odestream.runtime.records import Counters, Output
from odestream.runtime.session import Stream

__all__ = [
    "Batcher",
    "BundleError",
    "CheckpointError",
    "CompatError",
    "Counters",
    "ExportError",
    "Fleet",
    "GapError",
    "InputError",
    "IntegrityError",
    "LogError",
    "Model",
    "Observation",
    "OdestreamError",
    "Output",
    "PathError",
    "Policies",
    "Pool",
    "ResourceError",
    "SessionBusy",
    "SnapshotDamaged",
    "SnapshotError",
    "StateError",
    "Stream",
    "TimeError",
    "load",
    "restore",
]
