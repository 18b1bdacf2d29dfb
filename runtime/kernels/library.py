"""The CPU library through ctypes: its structs and functions as `csrc/odestream.h` declares them."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from odestream.runtime.errors import CompatError
from odestream.runtime.kernels.build import COMMAND, find_library

ABI = 3
MAX_STORES = 3
MAX_BUCKETS = 64
BAD_VALUE, BAD_MASK, BAD_TIME, LONG_GAP, NOT_FINITE = 3, 4, 5, 6, 7
LIBRARY_VARIABLE = "ODESTREAM_NATIVE_LIBRARY"
"""Names a library to load instead of the one that was built here."""

_Floats = POINTER(c_float)
_Doubles = POINTER(c_double)


class Config(Structure):
    """`odestream_config`."""

    _fields_ = [
        *((name, c_int32) for name in ("task", "channels", "outputs", "hidden", "field", "content", "head", "gate")),
        *((name, c_int32) for name in ("window", "slots", "heads", "keys", "values", "stores")),
        ("store", c_int32 * MAX_STORES),
        *((name, c_int32) for name in ("surprise_gate", "episodic_sink", "averages", "frequencies")),
        *((name, _Floats) for name in ("scale", "centre", "average", "frequency")),
        *((name, c_float) for name in ("age_limit", "rtol", "atol")),
        *((name, c_int32) for name in ("stages", "fsal", "estimates")),
        *((name, _Doubles) for name in ("a", "b", "c", "error")),
    ]


class Weight(Structure):
    """`odestream_weight`."""

    _fields_ = [("name", c_char_p), ("data", c_void_p), ("rows", c_int64), ("columns", c_int64)]


class Call(Structure):
    """`odestream_call`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "mask", "dt", "phase", "state")),
        *((name, c_void_p) for name in ("y", "err", "gates", "next_state", "scratch")),
        ("batch", c_int32),
    ]


class Solving(Structure):
    """`odestream_solving`."""

    _fields_ = [
        ("ticks_per_unit", c_double),
        ("origin", c_int64),
        ("frequency", _Doubles),
        ("initial", c_void_p),
        ("buckets", c_int32),
        ("bucket", POINTER(c_int32)),
        ("limit", POINTER(c_uint64)),
        ("ratio", _Doubles),
        ("factor", c_double),
        *((name, c_int32) for name in ("order", "max_calls", "default_bucket")),
    ]


class Given(Structure):
    """`odestream_output`."""

    _fields_ = [
        *((name, c_void_p) for name in ("y", "gates")),
        ("err", c_double),
        *((name, c_int32) for name in ("bucket", "flagged", "calls", "reruns")),
    ]


class Progress(Structure):
    """`odestream_progress`."""

    _fields_ = [
        ("tick", c_int64),
        ("begun", c_int32),
        *((name, c_uint64) for name in ("previous_gap", "previous_steps")),
        ("previous_err", c_double),
        *((name, c_uint64) for name in ("steps", "flagged", "split", "rerun")),
        *((name, c_uint64 * MAX_BUCKETS) for name in ("accepted", "rejected")),
    ]


def load_library() -> ctypes.CDLL:
    """The CPU library, its functions typed; ctypes releases the GIL while one of them runs.

    Raises CompatError where none is built, where it cannot be loaded, is of another ABI version, or holds no step for
    this machine's instruction set.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    path = Path(named) if named else find_library()
    if path is None:
        raise CompatError(f"native is not built for this version and machine; run: {COMMAND}")
    library = _load(path.absolute())
    if library.odestream_instruction_set() is None:
        raise CompatError("native needs a processor with AVX2 and FMA (x86-64-v3); use the onnxruntime backend")
    return library


@cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.odestream_abi())
    except (OSError, AttributeError) as cause:
        raise CompatError(f"{path}: not a library of odestream ({cause}); build it again: {COMMAND} --force") from cause
    if found != ABI:
        raise CompatError(f"{path}: ABI version {found}, this odestream needs {ABI}; build it again: {COMMAND} --force")
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    signatures: dict[str, tuple[object, list[object]]] = {
        "odestream_instruction_set": (c_char_p, []),
        "odestream_last_error": (c_char_p, []),
        "odestream_create": (c_void_p, [POINTER(Config), POINTER(Weight), c_size_t]),
        "odestream_destroy": (None, [c_void_p]),
        "odestream_layout": (c_char_p, [c_void_p]),
        "odestream_scratch_bytes": (c_size_t, [c_void_p]),
        "odestream_step": (c_int32, [c_void_p, c_void_p, c_int32]),
        "odestream_stream_create": (c_void_p, [c_void_p, POINTER(Solving)]),
        "odestream_stream_destroy": (None, [c_void_p]),
        "odestream_stream_step": (c_int32, [c_void_p, c_int64, c_void_p, c_void_p, c_void_p]),
        "odestream_stream_predict": (c_int32, [c_void_p, c_int64, c_void_p]),
        "odestream_stream_state": (c_void_p, [c_void_p]),
        "odestream_stream_progress": (POINTER(Progress), [c_void_p]),
        "odestream_stream_load": (c_int32, [c_void_p, c_void_p, POINTER(Progress)]),
        "odestream_stream_error": (c_char_p, [c_void_p]),
        "odestream_batch_create": (c_void_p, [c_void_p]),
        "odestream_batch_destroy": (None, [c_void_p]),
        "odestream_batch_step": (c_int32, [c_void_p, c_void_p, c_size_t, *[c_void_p] * 5]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
