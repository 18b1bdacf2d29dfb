"""What happens to inputs that a stream by itself refuses: an error unless a user asks for something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.errors import InputError

ERROR, MASK, HOLD, RESET, REPLAY = "error", "mask", "hold", "reset", "replay"

Held = tuple[float | None, ...]
"""The last finite value of each channel, None before the first."""

_CHOICES = {"on_missing": (ERROR, MASK, HOLD), "on_gap": (ERROR, RESET), "on_late": (ERROR, REPLAY)}


@dataclass(frozen=True)
class Policies:
    """What to do with inputs that a stream refuses.

    on_missing: NaN or infinity in x: `error`; `mask`: the channel was not observed; `hold`: it has its last finite
    value, and was not observed before the first. on_gap: a gap that the model cannot cross: `error`, or `reset`: a new
    stream begins. on_late: a time at or before the stream's last: `error`, or `replay`: the stream goes back to a
    checkpoint before it, and takes it and what came after in order of time (an equal time stays an error). window: at
    least how many rows a stream can go back. Raises InputError for other choices.
    """

    on_missing: str = ERROR
    on_gap: str = ERROR
    on_late: str = ERROR
    window: int = 1024

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.window < 1:
            raise InputError(f"window is {self.window} rows, expected at least 1; leave it out for {Policies.window}")


class Filler:
    """Applies `on_missing` to one stream's observations. held: what `hold` would fill in.

    A token is never missing: its integer is neither NaN nor infinite.
    """

    def __init__(self, manifest: Manifest, policy: str, held: Held = ()) -> None:
        x = manifest.spec.input("x")
        fills = x is not None and x.dtype == "float32"
        self._shape = () if x is None else x.shape
        self._policy = policy if fills else ERROR
        self.held: Held = (held or (None,) * math.prod(self._shape)) if self._policy == HOLD else ()

    def fill(self, x: ArrayLike, mask: ArrayLike | None) -> tuple[ArrayLike, ArrayLike | None]:
        """The observation as the stream is to see it; what only a stream can judge is left to it."""
        if self._policy == ERROR:
            return x, mask
        values, seen = _floats(x, self._shape), _seen(mask, self._shape)
        if values is None or seen is None:
            return x, mask
        missing = seen & ~np.isfinite(values)
        if not missing.any():
            return x, mask
        known = [np.nan if value is None else value for value in self.held or (None,) * values.size]
        filled = np.array(known).reshape(self._shape)
        held = missing & np.isfinite(filled)
        return np.where(missing, filled, values), (seen & ~missing) | held

    def remember(self, x: ArrayLike, mask: ArrayLike | None) -> None:
        """Take over the values of an observation that was accepted, as `fill` gave it."""
        if self._policy == HOLD:
            values = np.asarray(x, np.float32).ravel().tolist()
            seen = [True] * len(values) if mask is None else np.asarray(mask).ravel().tolist()
            self.held = tuple(v if s else h for v, s, h in zip(values, seen, self.held, strict=True))


def _floats(x: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        values = np.asarray(x)
    except (ValueError, TypeError, OverflowError):
        return None
    return values if values.shape == shape and values.dtype.kind == "f" else None


def _seen(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if mask is None:
        return np.ones(shape, np.bool_)
    try:
        array = np.asarray(mask)
    except (ValueError, TypeError, OverflowError):
        return None
    valid = array.shape == shape and array.dtype.kind in "biuf" and bool(((array == 0) | (array == 1)).all())
    return array.astype(np.bool_) if valid else None
