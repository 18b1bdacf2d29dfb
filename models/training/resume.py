"""An unfinished training on disk: one safetensors file that appears whole, its plain values as JSON in the header.

One file, so that no kill can leave tensors of one moment beside counters of another.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from odestream.models.checkpoint import decode_tensors
from odestream.models.training.loop import Curve, Trainer
from odestream.runtime.atomic import write_bytes
from odestream.runtime.errors import CheckpointError

TRAINING_FILE = "training.safetensors"
_KEY = "training"
_LATER = {"episodic_sink": False}  # options that a training begun before them was without


def save_training(folder: Path, trainer: Trainer, identity: Mapping[str, Any]) -> None:
    """Write everything that decides the next step. identity: what a resumed training must agree in.

    Every process must call it; the leader writes.
    """
    tensors = _tensors(trainer)
    if trainer.world.leads:
        header = {_KEY: json.dumps({"identity": identity, **_plain(trainer)})}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        write_bytes(folder / TRAINING_FILE, safetensors.torch.save(contiguous, header))


def resume_training(folder: Path, trainer: Trainer, identity: Mapping[str, Any]) -> None:
    """Put `trainer` where `save_training` left off.

    CheckpointError where there is nothing to resume, where the file cannot be read, or where it belongs to other data,
    other options or a number of processes that needs other lanes.
    """
    path = folder / TRAINING_FILE
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise CheckpointError(
            f"{path}: cannot be read ({cause.strerror}), so there is nothing to resume; leave --resume out"
        ) from cause
    tensors = decode_tensors(data, str(path))
    values = _header(data, path)
    begun = values["identity"]
    keys = identity.keys() | begun.keys()
    differing = sorted(key for key in keys if identity.get(key) != begun.get(key, _LATER.get(key)))
    if differing:
        raise CheckpointError(
            f"{path}: was begun with another {', '.join(differing)}; resume with the same, or start again with --force"
        )
    _check_lanes(trainer, tensors, path)
    try:
        _restore(trainer, tensors, values)
    except (KeyError, RuntimeError, TypeError, ValueError) as cause:
        raise CheckpointError(f"{path}: does not fit this version ({cause}); start again with --force") from cause


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors by name; those of the lanes are gathered from all processes."""
    named: dict[str, Tensor] = {}
    for kind, cell in (("weights", trainer.cell), ("average", trainer.average), ("best", trainer.best)):
        named.update({f"{kind}/{name}": value for name, value in cell.state_dict().items()})
    for index, moments in trainer.optimiser.state_dict()["state"].items():
        named.update({f"optimiser/{index}/{name}": value for name, value in moments.items()})
    for name, value in (trainer.recipe.carried or {}).items():
        named[f"carried/{name}"] = _interleaved(trainer.world.gather(value))
    named["lanes"] = torch.from_numpy(trainer.recipe.lanes.position.copy())
    return named


def _plain(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "smoothed": _or_none(trainer.smoothed),
        "best_score": _or_none(trainer.best_score),
        "validated": trainer.validated,
        "random": trainer.random.bit_generator.state,
        "curve": dataclasses.asdict(trainer.curve),
    }


def _restore(trainer: Trainer, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> None:
    for kind, cell in (("weights", trainer.cell), ("average", trainer.average), ("best", trainer.best)):
        cell.load_state_dict(_under(tensors, kind))
    state = trainer.optimiser.state_dict()
    state["state"] = {}
    for name, value in _under(tensors, "optimiser").items():
        index, moment = name.split("/")
        state["state"].setdefault(int(index), {})[moment] = value
    trainer.optimiser.load_state_dict(state)
    carried = _under(tensors, "carried")
    trainer.recipe.carried = {k: v[list(trainer.world.share(len(v)))] for k, v in carried.items()} or None
    trainer.recipe.lanes.position = tensors["lanes"].numpy().astype(np.int64)
    trainer.step, trainer.seconds = int(values["step"]), float(values["seconds"])
    trainer.smoothed = _or(values["smoothed"], math.nan)
    trainer.best_score, trainer.validated = _or(values["best_score"], math.inf), int(values["validated"])
    trainer.random.bit_generator.state = values["random"]
    trainer.curve = Curve(**values["curve"])


def _check_lanes(trainer: Trainer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Processes share the lanes evenly, so that how many there are depends on the number of processes."""
    found, expected = tensors.get("lanes", torch.empty(2, 0)).shape[-1], trainer.recipe.lanes.plan.count
    if found != expected:
        raise CheckpointError(
            f"{path}: holds {found} lanes, these processes need {expected}; resume with the same number of processes"
        )


def _header(data: bytes, path: Path) -> dict[str, Any]:
    """The plain values; a safetensors file begins with its header's length and the header."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        values: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
        dict(values["identity"])
    except (KeyError, TypeError, ValueError) as cause:
        raise CheckpointError(f"{path}: not an unfinished training ({cause}); start again with --force") from cause
    return values


def _under(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    start = f"{kind}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _interleaved(parts: list[Tensor]) -> Tensor:
    """Lanes in their order, from each process's share (rank, rank + size, …) of them."""
    return torch.stack(parts, dim=1).flatten(0, 1)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
