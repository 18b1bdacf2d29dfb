"""The two checks of numbers that every step makes: `advance` of what comes in, `finite` of what an engine left.

They are compiled where `odestream.runtime.kernels.build` has built them, else numpy's, and say the same. Between two
calls of an engine numpy's leave the caches cold and have to come back: compiled, they take a tenth of that.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import vdot
from numpy.typing import NDArray

from odestream.runtime.kernels.build_guards import MODULE, STABLE_ABI, find_guards

_BLAS_STAYS_SINGLE_THREADED = 8192
_FEW = 16  # values that Python adds up in half the time that `vdot` takes for any; at some 50 they are even
_FLOAT32 = np.dtype(np.float32)
_INT64 = 1 << 63


class Guards(NamedTuple):
    """finite(values): whether a contiguous array of float32 holds neither NaN nor infinity.

    advance(values, target, tick, last): copies values into target, a contiguous array of float32, and tells whether all
    is plainly well: they are float32 of its shape and finite, and tick is an int of 64 bits after last. Where it is
    not, target may hold anything, and a closer look finds out why, or that all is well after all.

    held(array): what both read sooner than the array, for one that is checked again and again.
    """

    finite: Callable[[Any], bool]
    advance: Callable[[Any, Any, Any, int], bool]
    held: Callable[[NDArray[Any]], Any]
    compiled: bool


def finite_by_numpy(values: NDArray[np.float32]) -> bool:
    """See `Guards`.

    A finite x·x proves it in one pass of BLAS, without a temporary or a warning (half the cost of `isfinite`); an
    overflowing one proves nothing. Above the limit BLAS may wake threads, which costs more than it saves.
    """
    if values.size <= _BLAS_STAYS_SINGLE_THREADED and isfinite(vdot(values, values)):
        return True
    return bool(np.isfinite(values).all())


def advance_by_numpy(values: Any, target: NDArray[np.float32], tick: Any, last: int) -> bool:
    """See `Guards`."""
    if type(tick) is not int or not last < tick < _INT64:
        return False
    if type(values) is not np.ndarray or values.dtype is not _FLOAT32:
        return False
    if target.dtype is not _FLOAT32 or values.shape != target.shape:
        return False
    target[...] = values
    # Of a few values the sum, in Python's double precision, which cannot overflow; else a sum of squares.
    flat = target.reshape(-1)
    return isfinite(sum(flat.tolist())) if flat.size <= _FEW else finite_by_numpy(flat)


BY_NUMPY = Guards(finite_by_numpy, advance_by_numpy, held=lambda array: array, compiled=False)


def compiled_guards(path: Path | None) -> Guards | None:
    """The guards of the module at `path`; None where there is none, or this Python cannot load it."""
    if path is None or STABLE_ABI not in EXTENSION_SUFFIXES:  # the objects of a free-threaded CPython look otherwise
        return None
    loader = ExtensionFileLoader(MODULE, str(path))
    try:
        module = module_from_spec(ModuleSpec(MODULE, loader, origin=str(path)))
        loader.exec_module(module)
    except ImportError:
        return None
    return Guards(module.finite, module.advance, held=_view, compiled=True)


def _view(array: NDArray[Any]) -> memoryview:
    """What an array says of itself it says anew each time; a view of it has it ready."""
    return array.data


GUARDS = compiled_guards(find_guards()) or BY_NUMPY
finite, advance, held = GUARDS.finite, GUARDS.advance, GUARDS.held
