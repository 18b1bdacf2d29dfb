"""Data-parallel training under `torchrun`: every process holds the cell, and gradients are summed over processes.

Each process draws the same batch from the same seed and computes its own share of the sequences. Losses are
weighted over the whole batch, so that the summed gradients are those of one process with all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from odestream.runtime.errors import InputError


@dataclass(frozen=True)
class World:
    """Which of how many processes this is; alone unless `torchrun` started several."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files, validates and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's sequences among `count` of a batch."""
        return range(self.rank, count, self.size)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradients of all processes, in one message; a missing gradient counts as zero."""
        if self.size == 1:
            return
        held = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in held])
        distributed.all_reduce(flat)
        for parameter, part in zip(held, torch.split(flat, [p.numel() for p in held]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def agree(self, *values: float) -> tuple[float, ...]:
        """The leader's values, in every process: whatever depends on a clock must be decided once."""
        if self.size == 1:
            return values
        message = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(message, src=0)
        return tuple(message.tolist())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor (all of one shape), in order of rank."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return parts


@contextmanager
def joined() -> Iterator[World]:
    """The processes that `torchrun` started (it sets WORLD_SIZE and RANK), connected by gloo; or this one alone.

    InputError where the environment names several processes, but not how to reach them.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield World()
        return
    try:
        size = int(os.environ["WORLD_SIZE"])
        distributed.init_process_group("gloo")
    except ValueError as cause:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot be joined ({cause}); "
            "start them with torchrun, or unset WORLD_SIZE"
        ) from cause
    try:
        yield World(distributed.get_rank(), size)
        distributed.barrier()  # gloo at times aborts a process that leaves while the leader still judges
    finally:
        distributed.destroy_process_group()
