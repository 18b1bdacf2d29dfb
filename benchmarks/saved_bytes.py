"""How many bytes autograd keeps for the backward pass, counted as it saves and frees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor


class SavedBytes:
    """Within the context: bytes of saved tensors now (`held`) and at their highest (`peak`), each storage once.

    ignored: tensors that exist anyway, such as weights. The count goes on through a backward pass inside the context,
    where checkpoints and adjoints save anew what they compute again.
    """

    def __init__(self, ignored: Sequence[Tensor] = ()) -> None:
        self.held = self.peak = 0
        self._ignored = {_address(tensor) for tensor in ignored}
        self._times: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def forget(self, tensor: Tensor) -> None:
        """Autograd has dropped a tensor that it had saved."""
        address = _address(tensor)
        self._times[address] -= 1
        if self._times[address] == 0:
            self.held -= tensor.untyped_storage().nbytes()

    def _pack(self, tensor: Tensor) -> Tensor | _Held:
        tensor = tensor.detach()  # an operation may save its own output: held with its graph, it would never go
        address = _address(tensor)
        if address in self._ignored:
            return tensor
        if self._times[address] == 0:
            self.held += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self.held)
        self._times[address] += 1
        return _Held(self, tensor)


class _Held:
    """A saved tensor; tells its counter when it goes."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor

    def __del__(self) -> None:
        self.counter.forget(self.tensor)


def _unpack(held: Tensor | _Held) -> Tensor:
    return held.tensor if isinstance(held, _Held) else held


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
