"""Tensors one after another in device memory, aligned as engines want them, with a mirror on the host."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.backends.cuda_device import Cuda, padded

Tensor = tuple[str, tuple[int, ...], str]


class DeviceBlock:
    """`tensors` (name, shape with batch, dtype) in `copies` blocks of device memory that one host mirror serves.

    host: name → view of the mirror, in memory that the device copies from and to by itself. ResourceError where either
    memory is not to be had.
    """

    def __init__(self, cuda: Cuda, tensors: Iterable[Tensor], copies: int = 1) -> None:
        self._cuda, self.offsets, self.size = cuda, dict[str, int](), 0
        places: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, shape, dtype in tensors:
            self.offsets[name], places[name] = self.size, (shape, dtype)
            self.size += padded(math.prod(shape) * np.dtype(dtype).itemsize)
        self.size = max(self.size, 1)
        mirror = _Mirror(cuda, self.size)
        self._pinned, memory = mirror.address, np.asarray(mirror)
        held: list[int] = []
        free = weakref.finalize(self, _release, cuda, held)
        free.atexit = False  # a daemon thread may be inside the library then
        self.addresses = [_allocate(cuda, self.size, held) for _ in range(copies)]
        self.host: dict[str, NDArray[Any]] = {
            name: memory[start : start + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
            for (name, (shape, dtype)), start in zip(places.items(), self.offsets.values(), strict=True)
        }

    def address(self, name: str, copy: int = 0) -> int:
        """Where a tensor lies on the device."""
        return self.addresses[copy] + self.offsets[name]

    def upload(self, stream: Any, copy: int = 0) -> None:
        """Start copying the mirror to the device."""
        self._cuda.copy_in(self.addresses[copy], self._pinned, self.size, stream)

    def download(self, stream: Any, copy: int = 0) -> None:
        """Start copying the device's block to the mirror."""
        self._cuda.copy_out(self._pinned, self.addresses[copy], self.size, stream)


class _Mirror:
    """Owns pinned memory; arrays over it keep it alive, longer than the block where need be."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.address, memory = cuda.pinned(size)
        self.__array_interface__ = memory.__array_interface__
        free = weakref.finalize(self, cuda.free_pinned, self.address)
        free.atexit = False  # a daemon thread may be inside the library then


def _allocate(cuda: Cuda, size: int, held: list[int]) -> int:
    address = cuda.allocate(size)
    held.append(address)
    return address


def _release(cuda: Cuda, held: list[int]) -> None:
    for address in held:
        cuda.free(address)
