"""Held-out streams: rows that a run was not trained on, kept beside its weights for whoever calibrates it later.

`held_out.safetensors` holds the inputs of about 1,500 calls over validation rows, cut into short streams that a cell is
walked through, with calls before them to warm it up. So a finished run contains rows of its data, in raw units: who
may see the run sees them. Runs without the file can be used all the same.

The validation rows come in two halves, the earlier and the later ones of every stream, so that what is chosen on one
half can be measured on rows that had no part in it. Where there are too few rows, they are read again with half of them
dropped at random, as a sensor with gaps would deliver them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.checkpoint import decode_tensors, encode_tensors
from odestream.models.data import Dataset, Rows, Text
from odestream.models.sequences import Calls, calls_of, calls_of_bytes, longest_call, stack
from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CheckpointError

HELD_OUT_FILE = "held_out.safetensors"
CALLS = 1500  # of both halves together
SEGMENT, WARM = 64, 64  # calls of a stream that count, and at most so many before them
WALKED_STEPS = 16  # solver steps that the streams are walked with: none of their gaps is too long for these
DROPPED, COPIES = 0.5, 16
WINDOW = 16 * SEGMENT  # rows of a long stream that are taken at once


class HeldOut(NamedTuple):
    """Streams side by side. inputs: x, mask, dt and phase (where the model has it), [T, B, …] each.

    counts: [T, B] bool, the calls over held-out rows; the others warm up or fill up. half: [B] int64, 0 or 1, which
    half of the held-out rows a stream was cut from.
    """

    inputs: dict[str, Tensor]
    counts: Tensor
    half: Tensor


class _Lane(NamedTuple):
    """Some calls of a stream, of which those from `first` on count."""

    calls: Calls
    first: int
    half: int


def hold_out_rows(cell: Cell, data: Dataset, seed: int) -> HeldOut | None:
    """Streams over the validation rows of a table, None where there are none.

    Gaps are cut as in training: no call crosses more than 16 solver steps do, whatever the weights.
    """
    random, longest = np.random.default_rng([seed, 5]), longest_call(cell.config, WALKED_STEPS)
    ranges = [_halves(p.validation, p.test) for p in data.parts]

    def read(half: int, copy: int) -> Iterator[_Lane]:
        for place in random.permutation(len(data.parts)):
            part, (start, stop) = data.parts[place], ranges[place][half]
            if stop <= start:
                continue
            start += int(random.integers(0, max(0, stop - start - WINDOW) + 1))
            rows = np.arange(max(0, start - WARM * (1 + (copy > 0))), min(stop, start + WINDOW))
            rows = rows if copy == 0 else rows[random.random(len(rows)) >= DROPPED]
            if len(rows) > 0:
                calls = calls_of(part.series, rows, data.time, longest)
                yield from _lanes(calls, int(np.searchsorted(calls.ticks, part.series.ticks[start])), half)

    return _stacked(_enough(read(half, copy) for copy in range(COPIES)) for half in (0, 1))


def hold_out_text(text: Text, seed: int) -> HeldOut | None:
    """Streams over the validation part of a text, None where it is too short for any."""
    random = np.random.default_rng([seed, 5])

    def read(start: int, stop: int, half: int) -> Iterator[_Lane]:
        begins = np.arange(start, stop, SEGMENT)
        for begin in random.permutation(begins):
            warm = max(0, int(begin) - WARM)
            calls = calls_of_bytes(text.validation[warm : min(int(begin) + SEGMENT, stop)])
            yield _Lane(calls, int(begin) - warm, half)

    ranges = _halves(0, len(text.validation))
    return _stacked(_enough([read(start, stop, half)]) for half, (start, stop) in enumerate(ranges))


def save_held_out(run: str | Path, held_out: HeldOut | None) -> None:
    """Write the streams into the folder of a run; without any, remove what an older run left there."""
    path = Path(run) / HELD_OUT_FILE
    if held_out is None:
        path.unlink(missing_ok=True)
        return
    write_bytes(path, encode_tensors({**held_out.inputs, "counts": held_out.counts, "half": held_out.half}))


def load_held_out(run: str | Path, cell: Cell) -> HeldOut | None:
    """The streams that came with a run, None without; CheckpointError where they do not fit its cell."""
    path = Path(run) / HELD_OUT_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); restore the file, or remove it") from cause
    inputs = decode_tensors(data, str(path))
    counts, half = inputs.pop("counts", torch.empty(0)), inputs.pop("half", torch.empty(0))
    held_out = HeldOut(inputs, counts, half)
    problem = describe_misfit(held_out, cell)
    if problem:
        raise CheckpointError(f"{path}: {problem}; train again, or remove the file")
    return held_out


def describe_misfit(held_out: HeldOut, cell: Cell) -> str:
    """What is wrong with streams that `cell` is to be walked through; empty where nothing is."""
    inputs, counts, half = held_out
    if counts.dim() != 2 or counts.dtype != torch.bool or half.shape != counts.shape[1:]:
        return "counts must be [T, B] of bool and half [B]"
    for tensor in cell.spec().inputs:
        found, shape = inputs.get(tensor.name), (*counts.shape, *tensor.shape)
        if found is None or tuple(found.shape) != shape or found.dtype != getattr(torch, tensor.dtype):
            what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            return f"{tensor.name} is {what}, expected {tensor.dtype} {list(shape)}"
        if not bool(torch.isfinite(found).all()):
            return f"{tensor.name} holds NaN or infinity"
    if bool((inputs["dt"] < 0).any()) or not bool(((half == 0) | (half == 1)).all()):
        return "dt must be from 0 and half 0 or 1"
    return ""


def _halves(start: int, stop: int) -> tuple[tuple[int, int], tuple[int, int]]:
    middle = (start + stop) // 2
    return (start, middle), (middle, stop)


def _lanes(calls: Calls, begin: int, half: int) -> Iterator[_Lane]:
    for start in range(begin, len(calls), SEGMENT):
        warm = max(0, start - WARM)
        yield _Lane(calls.part(warm, min(start + SEGMENT, len(calls))), start - warm, half)


def _enough(readings: Iterable[Iterator[_Lane]]) -> list[_Lane]:
    """Lanes of one reading after another until they hold half of the calls."""
    lanes, count = list[_Lane](), 0
    for reading in readings:
        for lane in reading:
            if count >= CALLS // 2:
                return lanes
            lanes.append(lane)
            count += len(lane.calls) - lane.first
    return lanes


def _stacked(halves: Iterable[Sequence[_Lane]]) -> HeldOut | None:
    lanes = [lane for half in halves for lane in half]
    if not lanes:
        return None
    inputs = stack([lane.calls for lane in lanes])
    counts = np.zeros(inputs["dt"].shape[:2], np.bool_)
    for i, lane in enumerate(lanes):
        counts[lane.first : len(lane.calls), i] = True
    counts &= inputs["dt"].numpy()[..., 0] > 0
    counts[0] = False  # nothing is known of the state before a stream's first call
    half: Rows = np.array([lane.half for lane in lanes], np.int64)
    return HeldOut(inputs, torch.from_numpy(counts), torch.from_numpy(half))
