"""The C interface to bundles, called the way a C program calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.kernels.library import Given, Solving, load_library

OK = 0
(BAD_CALL, BUSY, NO_MEMORY, UNSUPPORTED, BAD_PATH, BAD_HASH, BAD_BUNDLE, BAD_SNAPSHOT) = (1, 8, 9, 10, 11, 12, 13, 14)


class Refused(Exception):
    """A status that is not ODESTREAM_OK, and its sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CModel:
    """A bundle that C opened."""

    def __init__(self, path: Path, library: ctypes.CDLL | None = None) -> None:
        self.library = library or load_library()
        for name, arguments in {
            "odestream_open": [c_char_p, POINTER(c_void_p)],
            "odestream_snapshot": [c_void_p, c_void_p, c_size_t, POINTER(c_size_t)],
            "odestream_restore": [c_void_p, c_char_p, c_size_t, POINTER(c_void_p)],
        }.items():
            getattr(self.library, name).argtypes = arguments
        self.library.odestream_model_solving.restype = POINTER(Solving)
        self.library.odestream_model_solving.argtypes = [c_void_p]
        pointer = c_void_p()
        self.check(self.library.odestream_open(str(path).encode(), byref(pointer)))
        self.pointer = pointer.value

    def check(self, status: int) -> None:
        """Raise what the library says."""
        if status != OK:
            raise Refused(status, self.library.odestream_last_error().decode())

    @property
    def solving(self) -> Solving:
        """How its streams count time and solve."""
        found: Solving = self.library.odestream_model_solving(self.pointer).contents
        return found

    def stream(self, manifest: Manifest, solving: Solving | None = None) -> CStream:
        """A new stream; the manifest tells how wide its outputs are."""
        given = None if solving is None else byref(solving)
        return CStream(self, self.library.odestream_stream_create(self.pointer, given), manifest)

    def restore(self, data: bytes, manifest: Manifest) -> CStream:
        """The stream of a snapshot."""
        pointer = c_void_p()
        self.check(self.library.odestream_restore(self.pointer, data, len(data), byref(pointer)))
        return CStream(self, pointer.value, manifest)

    def close(self) -> None:
        """Free it."""
        self.library.odestream_destroy(self.pointer)


class CStream:
    """A stream of an opened model."""

    def __init__(self, model: CModel, pointer: int | None, manifest: Manifest) -> None:
        assert pointer
        self.model, self.pointer = model, pointer
        sizes = {tensor.name: tensor.size for tensor in manifest.spec.outputs}
        self.y, self.gates = np.zeros(sizes["y"], np.float32), np.zeros(sizes["gates"], np.float32)
        self.given = Given(y=self.y.ctypes.data, gates=self.gates.ctypes.data)

    def step(self, x: Any, t: int, mask: Any = None) -> tuple[Any, ...]:
        """What a step gave: y, err, gates, bucket, flagged, calls, re-runs."""
        x = np.ascontiguousarray(x, np.int64 if np.ndim(x) == 0 else np.float32)
        seen = None if mask is None else np.ascontiguousarray(mask, np.float32)
        self.model.check(
            self.model.library.odestream_stream_step(
                self.pointer, t, x.ctypes.data, None if seen is None else seen.ctypes.data, byref(self.given)
            )
        )
        return self._read()

    def predict(self, t: int) -> tuple[Any, ...]:
        """What a prediction gave."""
        self.model.check(self.model.library.odestream_stream_predict(self.pointer, t, byref(self.given)))
        return self._read()

    def snapshot(self) -> bytes:
        """The stream as bytes."""
        size, library = c_size_t(), self.model.library
        assert library.odestream_snapshot(self.pointer, None, 0, byref(size)) == BAD_CALL
        data = ctypes.create_string_buffer(size.value)
        self.model.check(library.odestream_snapshot(self.pointer, data, size.value, byref(size)))
        return data.raw

    def close(self) -> None:
        """Free it."""
        self.model.library.odestream_stream_destroy(self.pointer)

    def _read(self) -> tuple[Any, ...]:
        g = self.given
        return self.y.tobytes(), g.err, self.gates.tobytes(), g.bucket, bool(g.flagged), g.calls, g.reruns


@contextmanager
def opened(path: Path) -> Iterator[CModel]:
    """A bundle opened by C, freed at the end."""
    model = CModel(path)
    try:
        yield model
    finally:
        model.close()
