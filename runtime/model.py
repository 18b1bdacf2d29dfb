"""A bundle loaded on one backend."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from odestream.runtime.backends import AUTOMATIC, Binding, Engine, StreamBatch, StreamCore, Streamer, open_engine
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.core import EngineCore
from odestream.runtime.engine_batch import EngineBatch
from odestream.runtime.errors import CompatError, SessionBusy, SnapshotError
from odestream.runtime.generations import read_generation
from odestream.runtime.replay import failures, verify_vectors
from odestream.runtime.session import Stream
from odestream.runtime.snapshot import decode_snapshot, encode_snapshot
from odestream.runtime.timestamps import parse_time

AUTO = "auto"

Saved = bytes | str | os.PathLike[str]
"""A snapshot: its bytes, or the path of its newest generation."""

_SELF_TEST_STEPS = {"onnxruntime": 4, "onnxruntime-cuda": 4}
"""Stored steps that a backend must reproduce when it is loaded; those not named here, all of them.

ONNX Runtime reads the weights through the graphs that were verified. The others read and pack them by themselves, or
run an engine compiled elsewhere, so that a wrong one may show late and in one bucket alone; all stored steps take
native some ten milliseconds.
"""


def load(
    path: str | os.PathLike[str], backend: str = AUTO, threads: int = 1, engines: str | os.PathLike[str] | None = None
) -> Model:
    """Load the bundle at `path`.

    backend: a name, which is given or refused, or `auto`: the first of `backends.AUTOMATIC` that can run it here.
    Either must reproduce the bundle's stored vectors on this machine: ONNX Runtime the first of them, others all.
    threads: threads of one call. engines: folder of the bundle's compiled engines, for `tensorrt`; by default what
    ODESTREAM_ENGINES names, or `BUNDLE.engines`.
    Raises BundleError, IntegrityError or PathError for the bundle, CompatError for the backend.
    """
    bundle = read_bundle(path, None if engines is None else Path(engines))
    if backend != AUTO:
        engine = _tested(backend, bundle, threads)
        return Model(bundle, engine, f"{backend} was asked for and reproduces the bundle's stored vectors here")
    refusals = []
    for name in AUTOMATIC:
        try:
            engine = _tested(name, bundle, threads)
        except CompatError as error:
            refusals.append(str(error))
            continue
        why = f"{name} is the first backend of auto that runs the bundle and reproduces its stored vectors here"
        return Model(bundle, engine, why + "".join(f"; {refusal}" for refusal in refusals))
    raise CompatError("; ".join(refusals))


def restore(
    snapshot: Saved,
    bundle: str | os.PathLike[str],
    backend: str = AUTO,
    threads: int = 1,
    buckets: Sequence[int] | None = None,
) -> Stream:
    """The stream of a snapshot on a bundle loaded for it; `stream.model.close()` ends both.

    snapshot: see `Model.restore`, buckets: see `Model.stream`.
    """
    model = load(bundle, backend, threads)
    try:
        return model.restore(snapshot, buckets)
    except BaseException:
        model.close()
        raise


class Model:
    """A loaded bundle; may be shared by threads, each with its own streams. Use it as a context manager.

    bundle: what was read. backend: the engine's name. why: one sentence on how it was chosen.
    """

    def __init__(self, bundle: Bundle, engine: Engine, why: str) -> None:
        self.bundle = bundle
        self.backend = engine.name
        self.why = why
        self.closed = False
        self._engine = engine

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def tick(self, time: str) -> int:
        """The tick of a time as a table writes it: an ISO date (naive is UTC), or a number of the column's unit.

        Raises InputError or TimeError for what is neither. Dates count from 1970-01-01T00:00 UTC.
        """
        return parse_time(time, self.manifest.time)

    def stream(self, buckets: Sequence[int] | None = None) -> Stream:
        """A new stream at the spec's initial state; SessionBusy where the model is closed.

        buckets: the solver steps it may choose among, all of the bundle's unless given. One alone fixes the steps:
        nothing is run again, and a result above the safety factor is flagged. The factor was calibrated with all of
        them. InputError for others than the bundle's.
        """
        return Stream(self, buckets=buckets)

    def restore(self, snapshot: Saved, buckets: Sequence[int] | None = None) -> Stream:
        """The stream of a snapshot of one stream; SnapshotError where it holds several or does not fit.

        snapshot: bytes, or a file, whose generation before is taken where the newest is damaged (see `generations`);
        `Stream.origin` tells which and why. buckets: see `stream`; a snapshot does not say which its stream was
        limited to.
        """
        streams = self.restore_streams(snapshot, buckets=buckets)
        if len(streams) != 1:
            raise SnapshotError(
                f"the snapshot holds {len(streams)} streams ({', '.join(streams)}); use restore_streams"
            )
        return next(iter(streams.values()))

    def snapshot_streams(self, streams: Mapping[str, Stream]) -> bytes:
        """One snapshot of several streams of this model, under their names."""
        strangers = [
            name for name, stream in streams.items() if stream.model.manifest.identity != self.manifest.identity
        ]
        if strangers:
            raise SnapshotError(f"streams {', '.join(strangers)} belong to another model; save them with their own")
        return encode_snapshot(self.manifest, {name: stream.save() for name, stream in streams.items()})

    def restore_streams(
        self, snapshot: Saved, where: str = "snapshot", buckets: Sequence[int] | None = None
    ) -> dict[str, Stream]:
        """Name → stream of a snapshot, in the order of saving; `where` names bytes in messages. See `restore`."""
        if isinstance(snapshot, bytes):
            data, origin = snapshot, f"{where}, given as bytes"
        else:
            found = read_generation(Path(snapshot))
            data, where, origin = found.data, str(found.path), found.origin
        states = decode_snapshot(data, self.manifest, where)
        return {name: Stream(self, state, buckets, origin) for name, state in states.items()}

    def verify(self, steps: int | None = None) -> list[ParityRow]:
        """Compare this backend with the bundle's stored vectors; see `replay.verify_vectors`."""
        self._refuse_closed()
        return verify_vectors(self._engine, self.bundle, steps)

    def bind(self, batch: int = 1) -> Binding:
        """Buffers for `batch` streams; for those who drive the engine themselves."""
        self._refuse_closed()
        return self._engine.bind(batch)

    def core(self, buckets: Sequence[int] | None = None) -> StreamCore:
        """What a new stream steps with, at the spec's initial state. buckets: see `stream`."""
        self._refuse_closed()
        if isinstance(self._engine, Streamer):
            return self._engine.core(buckets)
        return EngineCore(self.manifest, self._engine.bind(1), buckets)

    def batch(self, largest: int) -> StreamBatch:
        """What steps the cores of streams together. largest: see `Batcher`."""
        self._refuse_closed()
        if isinstance(self._engine, Streamer):
            return self._engine.batch()
        return EngineBatch(self._engine, self.manifest.spec, largest)

    def close(self) -> None:
        """Free the engine; the model's streams raise SessionBusy from now on. Closing twice is allowed."""
        if not self.closed:
            self.closed = True
            self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise SessionBusy(f"the model {self.manifest.name} is closed; load it again")


def _tested(name: str, bundle: Bundle, threads: int) -> Engine:
    """An engine that has reproduced stored vectors on this machine; CompatError otherwise."""
    engine = open_engine(name, bundle, threads)
    try:
        wrong = failures(verify_vectors(engine, bundle, _SELF_TEST_STEPS.get(name)))
        if wrong:
            worst = max(wrong, key=lambda row: row.error)
            raise CompatError(
                f"{name} does not reproduce the bundle's stored vectors here: {worst.tensor} is off by "
                f"{worst.error:.1e} of its scale, allowed {worst.tolerance:.0e}; "
                "choose another backend or export the bundle again"
            )
    except BaseException:
        engine.close()
        raise
    return engine
