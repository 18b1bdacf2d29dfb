"""Every error that odestream raises on purpose.

A message names the file or field, what was expected and what was found, and ends with the remedy, so that
the command line can print it as it is. Each class is also the closest built-in, so that code which knows
nothing of odestream still catches it.
"""


class OdestreamError(Exception):
    """Base of all typed errors; the command line turns it into one sentence and exit status 2."""


class BundleError(OdestreamError, ValueError):
    """A bundle's content is not what its format asks for."""


class IntegrityError(BundleError):
    """A file's size or sha256 differs from the manifest; nothing was parsed."""


class PathError(OdestreamError, ValueError):
    """A path leaves the bundle, is a link or a device, or exists where it must not."""


class CheckpointError(OdestreamError, ValueError):
    """A training run's folder cannot be read, or holds weights that are not finite."""


class CompatError(OdestreamError, RuntimeError):
    """This machine or installation cannot do what was asked; nothing else was done instead."""


class InputError(OdestreamError, ValueError):
    """A value, shape, dtype or option handed in is not usable."""


class TimeError(InputError):
    """A time does not advance, is not finite, or lies beyond the model's gap limit."""


class GapError(TimeError):
    """A time lies so far after a stream's last one that the model cannot cross the gap."""


class StateError(OdestreamError, RuntimeError):
    """A step produced a state or output that is not finite; the step was discarded."""


class SnapshotError(OdestreamError, ValueError):
    """A snapshot is damaged, of another version, or of another model."""


class SnapshotDamaged(SnapshotError):
    """A snapshot's bytes are not those that were written; the generation before may still be whole."""


class LogError(OdestreamError, ValueError):
    """An input log is of another version or model, does not reach back as far as was asked, or cannot be written."""


class ResourceError(OdestreamError, MemoryError):
    """A device has not enough memory left; nothing was changed."""


class SessionBusy(OdestreamError, RuntimeError):
    """A stream is in use by another thread, or closed; or a pool has as many rows waiting as it takes."""


class ExportError(OdestreamError, RuntimeError):
    """A module cannot be exported, or its exported graphs do not reproduce it."""
