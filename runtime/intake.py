"""What a caller hands in becomes the rows that a graph reads: checked, converted and copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import vdot
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.errors import InputError
from odestream.runtime.guards import finite, held

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_BOOL = np.dtype(np.bool_)
_SQUARES_FIT = 1e76
"""A sum of squares below it is of numbers that float32 can hold: one pass, where asking each of them takes several."""

_FLOAT32_INTEGERS = 1 << 24
"""float32 holds every integer up to it, of either sign."""

Values = NDArray[Any]
Seen = NDArray[np.bool_]


class Intake:
    """Fills the inputs `x` and `mask` of one row. Nothing handed in is kept: its values are copied.

    row: what `guards.advance` may fill where nothing is missing; then `see_all`, unless mask_is_ones. shape: of one
    observation. takes_mask: whether channels may be missing. takes_tokens: whether x is an integer.
    """

    def __init__(self, manifest: Manifest, inputs: Mapping[str, Values]) -> None:
        x, mask = inputs["x"], inputs.get("mask")
        self.shape = x.shape[1:]
        self.takes_mask = mask is not None
        self.takes_tokens = x.dtype == np.int64
        self._x: Values = x.reshape(self.shape)
        self._flat: Values = x.reshape(-1)
        self.row = held(self._x)
        self._mask: Values | None = None if mask is None else mask[0]
        self._ones = b"" if self._mask is None else np.ones_like(self._mask).tobytes()
        self.mask_is_ones = mask is None
        self._columns = manifest.task.inputs
        y = manifest.spec.output("y")
        self._tokens = y.size if manifest.task.kind == "tokens" and y is not None else 1 << 63

    def observe(self, x: ArrayLike, mask: ArrayLike | None) -> None:
        """One observation; with a mask, places where it is 0 may hold anything.

        Raises InputError for a wrong shape or dtype, values that are not finite, and a mask not of zeros and ones.
        """
        seen = None if mask is None or self._all_seen(mask) else self._seen(mask)
        if type(x) is np.ndarray and x.dtype is _FLOAT32 and x.shape == self.shape and not self.takes_tokens:
            values: Values = x
        else:
            values = self._convert(x, seen)
        if seen is None:
            self._x[...] = values
            self.see_all()
        else:
            self._x.fill(0)
            np.putmask(self._x, seen, values)
        if not self.takes_tokens and not finite(self._flat):
            self._refuse_not_finite()

    def nothing(self) -> None:
        """A call in which only time passes: x = 0, mask = 0. InputError where the model takes no mask."""
        if self._mask is None:
            raise InputError("this model takes no mask, so time cannot pass without an observation; export it with one")
        self._x.fill(0)
        self._mask.fill(0)
        self.mask_is_ones = False

    def _all_seen(self, mask: ArrayLike) -> bool:
        """Whether the mask is one that is the same as none; False where only a closer look can tell."""
        if type(mask) is not np.ndarray or mask.dtype is not _FLOAT32 or self._mask is None:
            return False
        return mask.shape == self._mask.shape and mask.tobytes() == self._ones

    def see_all(self) -> None:
        """No value is missing; for whoever has written the row himself."""
        if self._mask is not None and not self.mask_is_ones:
            self._mask.fill(1)
            self.mask_is_ones = True

    def _seen(self, mask: ArrayLike) -> Seen:
        """Write the mask; where it is one, as booleans."""
        target = self._mask
        if target is None:
            raise InputError("mask: this model takes none, every value must be observed; leave mask out")
        array = as_array("mask", mask)
        if array.shape != target.shape:
            raise InputError(
                f"mask: received shape {list(array.shape)}, expected {list(target.shape)}; give 1 or 0 per channel"
            )
        if array.dtype.kind not in "biuf":
            raise InputError(
                f"mask: received dtype {array.dtype}, expected booleans or zeros and ones; convert it first"
            )
        self.mask_is_ones = False
        seen: Seen = array if array.dtype is _BOOL else array.astype(_BOOL)
        target[...] = seen
        if array is not seen and not _equal(target, array):
            raise InputError("mask: received a value other than 0 and 1; give 1 for observed and 0 for missing")
        return seen

    def _convert(self, x: ArrayLike, seen: Seen | None) -> Values:
        """`x` as an array that the graph's dtype can hold; zero where it was not seen."""
        array = as_array("x", x)
        if array.shape != self.shape:
            raise InputError(
                f"x: received shape {list(array.shape)}, expected {list(self.shape)}; give one per channel"
            )
        kinds, wanted = ("iu", "an integer") if self.takes_tokens else ("fiub", "real numbers")
        if array.dtype.kind not in kinds:
            raise InputError(f"x: received dtype {array.dtype}, expected {wanted}; convert it first")
        if seen is not None:
            array = np.where(seen if self.shape else seen[0], array, 0)
        return self._tokens_of(array) if self.takes_tokens else _narrow(array)

    def _tokens_of(self, array: Values) -> Values:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self._tokens:
            received = low if low < 0 else high
            raise InputError(
                f"x: received token {received}, expected 0 to {self._tokens - 1}; encode the text as bytes"
            )
        return array.astype(np.int64)

    def _refuse_not_finite(self) -> None:
        """Name the first channel that is not finite."""
        index = int(np.flatnonzero(~np.isfinite(self._flat))[0])
        name = f" ({self._columns[index]})" if index < len(self._columns) else ""
        remedy = "mark it missing with mask 0" if self.takes_mask else "fill it in first, this model takes no mask"
        raise InputError(f"x: received {self._flat[index]} in channel {index}{name}, expected a finite value; {remedy}")


def rows(name: str, values: object) -> Sequence[Any]:
    """A sequence of rows; arrays stay arrays, so that their rows keep their dtype."""
    if hasattr(values, "__array__"):
        values = np.asarray(values)
        if values.ndim == 0:
            raise InputError(f"{name}: received a single value, expected a sequence; use step for one observation")
        return values  # type: ignore[return-value]
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}: received {type(values).__name__}, expected a sequence; give a list or an array")
    return values


def matching(name: str, values: object, count: int) -> Sequence[Any]:
    """`count` rows; InputError where there are more or fewer."""
    found = rows(name, values)
    if len(found) != count:
        raise InputError(f"{name}: received {len(found)} rows, expected {count} as x; give one per observation")
    return found


def _narrow(array: Values) -> NDArray[np.float32]:
    """float32 of the same values; InputError where a finite value becomes infinite, or an integer another one.

    Real numbers are rounded: that is what a column of measurements is. An integer that changes is none, but a code.
    """
    if array.dtype is _FLOAT64 and vdot(array, array) < _SQUARES_FIT:
        return array.astype(np.float32)
    if array.dtype.kind in "iu":
        _refuse_inexact(array)
        return array.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    if not _finite(narrow):
        lost = np.isfinite(array) & ~np.isfinite(narrow)
        if lost.any():
            raise InputError(f"x: received {array[lost].flat[0]}, beyond float32's ±3.4e38; give it in a larger unit")
    return narrow


def _refuse_inexact(array: Values) -> None:
    """InputError where an integer is none of float32's, which has all up to 2^24; told by Python's own, of any size."""
    for value in array[(array > _FLOAT32_INTEGERS) | (array < -_FLOAT32_INTEGERS)].tolist():
        rounded = int(np.float32(value))
        if rounded != value:
            raise InputError(
                f"x: received {value}, which float32 would make {rounded}; subtract an offset, or give it as a float "
                "to have it rounded"
            )


def _finite(array: Values) -> bool:
    return bool(np.isfinite(array).all())


def _equal(a: Values, b: Values) -> bool:
    """Whether two arrays of one shape are equal; False where either holds NaN, which `a` does not."""
    return (a.dtype == b.dtype and a.tobytes() == b.tobytes()) or bool((a == b).all())


def as_array(name: str, value: ArrayLike) -> Values:
    """The value as an array, itself where it is one; InputError where it is not rectangular."""
    if type(value) is np.ndarray:
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as cause:
        raise InputError(
            f"{name}: cannot be read as an array ({cause}); give numbers in one rectangular array"
        ) from cause
