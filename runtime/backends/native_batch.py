"""Many streams of the C library stepped in one call, which groups them by bucket."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from odestream.runtime.arena import aligned
from odestream.runtime.backends import Rows
from odestream.runtime.backends.native_stream import BOOL, FLOAT32, NativeCore, OutputReader
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.errors import CompatError, OdestreamError
from odestream.runtime.kernels.library import Given
from odestream.runtime.records import Output

if TYPE_CHECKING:
    from odestream.runtime.backends.native import NativeModel

_MASKS = (FLOAT32, BOOL)
_FLOATS = {FLOAT32, np.dtype(np.float64)}
_INTEGERS = {int, np.int64}
_RESULT = ["err", "bucket", "flagged", "calls", "reruns"]


class NativeBatch:
    """See `odestream.runtime.backends.StreamBatch`. Its buffers grow with the number of rows."""

    def __init__(self, model: NativeModel, manifest: Manifest) -> None:
        self._model, self._manifest = model, manifest
        self._pointer = model.library.odestream_batch_create(model.pointer)
        if not self._pointer:
            raise CompatError(f"native cannot batch: {model.library.odestream_last_error().decode()}")
        free = weakref.finalize(self, model.library.odestream_batch_destroy, self._pointer)
        free.atexit = False  # a daemon thread may be inside the library then
        self._buffers = _Buffers(manifest, 1)

    def step(self, cores: Sequence[NativeCore], x: Rows, t: Rows, mask: Rows) -> list[Output | OdestreamError]:
        """One observation for each stream; rows as in `Stream.step`. A row that fails has its error as its answer."""
        if len(cores) > self._buffers.size:
            self._buffers = _Buffers(self._manifest, len(cores))
        answers: dict[int, Output | OdestreamError] = {}
        buffers = self._buffers
        taken = range(len(cores)) if buffers.take_all(x, t, mask) else self._take_each(cores, x, t, mask, answers)
        found = [cores[row] for row in taken]
        buffers.streams[: len(found)] = [core.pointer for core in found]
        self._model.library.odestream_batch_step(
            self._pointer, buffers.streams.ctypes.data, len(found), *buffers.places
        )
        outputs = buffers.outputs(found[0].reader, len(found)) if found else []
        if not answers and not buffers.statuses[: len(found)].any():
            return outputs
        for place, (row, core, output) in enumerate(zip(taken, found, outputs, strict=True)):
            status = int(buffers.statuses[place])
            answers[row] = core.failure(status, int(buffers.t[place]), x[row], mask[row]) if status else output
        return [answers[row] for row in range(len(cores))]

    def _take_each(
        self, cores: Sequence[NativeCore], x: Rows, t: Rows, mask: Rows, answers: dict[int, Output | OdestreamError]
    ) -> list[int]:
        """Take row by row, each with its own checks; the rows that passed them."""
        taken: list[int] = []
        for row, core in enumerate(cores):
            try:
                now = core.tick(t[row])
                all_seen = core.take(now, x[row], mask[row]) is None
            except OdestreamError as error:
                answers[row] = error
                continue
            self._buffers.take(len(taken), now, core, all_seen)
            taken.append(row)
        return taken


class _Buffers:
    """What a call over at most `size` rows reads and writes. places: the addresses that it is given."""

    def __init__(self, manifest: Manifest, size: int) -> None:
        spec = manifest.spec
        x, widths = spec.inputs[0], {tensor.name: tensor.size for tensor in spec.outputs}
        self.size = size
        self.streams = np.zeros(size, np.uint64)
        self.t = np.zeros(size, np.int64)
        self.x = aligned((size, *x.shape), x.dtype)
        self._flat_x, self._x_rows = self.x.reshape(-1), self.x.reshape(size, -1)
        self.mask = aligned((size, x.size), np.float32)
        self.flat = aligned((size, widths["y"] + widths["gates"]), np.float32)
        self.given = np.zeros(size, Given)
        self.given["y"] = self.flat.ctypes.data + np.arange(size, dtype=np.uint64) * np.uint64(self.flat.strides[0])
        self.given["gates"] = self.given["y"] + np.uint64(4 * widths["y"])
        self.statuses = np.zeros(size, np.int32)
        parts = (self.t, self.x, self.mask, self.given, self.statuses)
        self.places = tuple(part.ctypes.data for part in parts)

    def take_all(self, x: Rows, t: Rows, mask: Rows) -> bool:
        """Take all rows at once; False where they need a closer look.

        The library checks values, so that nothing is asked here but that they become its own types without loss.
        """
        return self._take_times(t) and self._take_values(x) and self._take_masks(mask)

    def outputs(self, reader: OutputReader, count: int) -> list[Output | OdestreamError]:
        """What the first rows gave; of one that failed, nothing of meaning."""
        results = (self.given[name][:count].tolist() for name in _RESULT)
        return [*reader.read_all(self.flat[:count].copy(), results)]

    def _take_times(self, t: Rows) -> bool:
        if isinstance(t, np.ndarray):
            if t.dtype != np.int64 or t.ndim != 1:
                return False
        elif not set(map(type, t)) <= _INTEGERS:
            return False
        try:
            self.t[: len(t)] = t
        except OverflowError:
            return False
        return True

    def _take_values(self, x: Rows) -> bool:
        if self.x.ndim == 1:  # tokens
            return False
        if isinstance(x, np.ndarray):
            if x.dtype != FLOAT32 or x.shape[1:] != self.x.shape[1:]:
                return False
            self.x[: len(x)] = x
            return True
        if set(map(type, x)) != {np.ndarray} or not {row.dtype for row in x} <= _FLOATS:
            return False
        if {row.shape for row in x} != {self.x.shape[1:]}:
            return False
        with np.errstate(over="ignore"):  # infinity, which the library refuses where it was observed
            np.concatenate(x, out=self._flat_x[: len(x) * self._x_rows.shape[1]], casting="same_kind")
        return True

    def _take_masks(self, mask: Rows) -> bool:
        count = len(mask)
        if isinstance(mask, np.ndarray):
            if mask.dtype not in _MASKS or mask.shape[1:] != self.mask.shape[1:]:
                return False
            self.mask[:count] = mask
            return True
        self.mask[:count] = 1
        for place, seen in enumerate(mask):
            if seen is None:
                continue
            if type(seen) is not np.ndarray or seen.dtype not in _MASKS or seen.shape != self.mask.shape[1:]:
                return False
            self.mask[place] = seen
        return True

    def take(self, place: int, now: int, core: NativeCore, all_seen: bool) -> None:
        """Take what a stream has in its own buffers."""
        self.t[place], self._x_rows[place] = now, core.x
        self.mask[place] = 1 if all_seen else core.mask
