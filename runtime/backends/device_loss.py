"""A GPU whose context a failure left in ruins: no call of this process can be trusted with it any more."""

from __future__ import annotations

from odestream.runtime.errors import StateError

OUT_OF_MEMORY = 2
STICKY = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
"""CUDA's errors after which every call fails: launch timeouts, illegal addresses and instructions, failed asserts."""


class DeviceLoss:
    """Whether an engine's device is lost: then its calls are refused at once, and the device is asked nothing more."""

    def __init__(self) -> None:
        self._said = ""

    def __bool__(self) -> bool:
        return bool(self._said)

    def refuse(self) -> None:
        """StateError where the device is lost."""
        if self._said:
            raise StateError(f"the GPU failed before ({self._said}); start the process again and restore a snapshot")

    def mark(self, said: str) -> StateError:
        """The device is lost from here on; the error of the call that found it so."""
        self._said = said
        return StateError(f"{said}: this process cannot use the GPU any more; start it again and restore a snapshot")
