"""A finished training run on disk: `model.safetensors`, `config.json`, `metrics.json`.

`config.json` holds everything that rebuilds the module and reads data the way it was read in training. It is
written last and names the hash of the weights, so a folder without it, or with weights of another run, is refused.
Weights are safetensors only: reading a run never executes code from it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.model import OURS, Model, from_dict, to_dict
from odestream.runtime.atomic import write_bytes
from odestream.runtime.contract.manifest import Record, TaskSpec, TimeSpec
from odestream.runtime.errors import CheckpointError, InputError

RUN_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"


class Settings(Record, frozen=True):
    """How a run was trained: the options of `odestream train`, with every default filled in.

    model: the cell, or a rival with as many parameters as the preset's cell. time_unit: of a numeric time column.
    period: in the time column's units (days for dates), None without a season. horizons: in median gaps. minutes or
    epochs: the budget, the other is None. solver: a tableau's name, or `odeint:METHOD` or `odeint_adjoint:METHOD`,
    which integrated the flow in training. consistency, kinetic, jacobian: weights of what was asked of the flow, see
    `training.regularity`. without: memories, time features and other parts of the cell that were left out.
    stationary: whether the inputs of a forecast were said to come back to their mean. episodic_sink: whether the cell's
    episodic read has a sink.
    """

    preset: str = "nano"
    model: str = OURS
    solver: str = "bosh32"
    seed: int = 0
    minutes: float | None = None
    epochs: int | None = None
    time_unit: str = "s"
    period: float | None = None
    horizons: tuple[int, ...] = (1, 4, 13, 26)
    test_fraction: float = 0.2
    consistency: float = 0.003
    kinetic: float = 0.0
    jacobian: float = 0.0
    without: tuple[str, ...] = ()
    stationary: bool = False
    episodic_sink: bool = False


class DataInfo(Record, frozen=True):
    """What a run was trained on: the file's name and hash, its rows and streams, and the median gap in ticks."""

    file: str
    sha256: str
    rows: int
    streams: int
    median_gap: float


class RunInfo(Record, frozen=True):
    """Everything of a run but its weights. metrics: the content of `metrics.json`."""

    task: TaskSpec
    time: TimeSpec
    settings: Settings
    data: DataInfo
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)


class _Config(Record, frozen=True):
    version: int
    cell: dict[str, Any]
    task: TaskSpec
    time: TimeSpec
    settings: Settings
    data: DataInfo
    weights_sha256: str


class _Version(msgspec.Struct):
    version: int


class _Mark(_Version):
    """What no other program's config.json has."""

    cell: dict[str, Any]
    weights_sha256: str


def save_checkpoint(run: str | Path, cell: Model, info: RunInfo) -> None:
    """Write a run into the folder `run`, which is made if needed; each file appears whole, `config.json` last.

    Raises CheckpointError for weights that are not finite; nothing is then written.
    """
    _check_finite(cell.state_dict(), "the trained model")
    weights = encode_tensors(cell.state_dict())
    config = _Config(RUN_VERSION, to_dict(cell), info.task, info.time, info.settings, info.data, _sha256(weights))
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    write_bytes(folder / METRICS_FILE, (json.dumps(info.metrics, indent=1, allow_nan=False) + "\n").encode())
    write_bytes(folder / WEIGHTS_FILE, weights)
    write_bytes(folder / CONFIG_FILE, msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n")


def load_checkpoint(run: str | Path) -> tuple[Cell, RunInfo]:
    """The cell of a finished run; see `load_model`. CheckpointError where the run is of a rival."""
    model, info = load_model(run)
    if not isinstance(model, Cell):
        raise CheckpointError(f"{run}: holds a {info.settings.model}, not a cell; name a run of our own model")
    return model, info


def load_model(run: str | Path) -> tuple[Model, RunInfo]:
    """The model of a finished run, in evaluation mode, and what is known of it; CheckpointError says what is wrong."""
    folder = Path(run)
    config = _read_config(folder)
    weights = _read(folder / WEIGHTS_FILE)
    if _sha256(weights) != config.weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: not the weights that {CONFIG_FILE} was written for; train again"
        )
    try:
        cell = from_dict(config.cell)
    except InputError as cause:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {cause}") from cause
    load_weights(cell, decode_tensors(weights, str(folder / WEIGHTS_FILE)), str(folder / WEIGHTS_FILE))
    return cell.eval(), RunInfo(config.task, config.time, config.settings, config.data, _read_metrics(folder))


def load_weights(cell: Model, tensors: dict[str, Tensor], where: str) -> None:
    """Copy named weights into `cell`; CheckpointError, before anything is changed, unless all fit and are finite."""
    own = cell.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(f"{where}: weights {odd[:4]} are missing or unknown; train again with this version")
    for name, tensor in own.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{where}: {name} is {found.dtype} {tuple(found.shape)}, expected {tensor.dtype} "
                f"{tuple(tensor.shape)}; train again with this version"
            )
    _check_finite(tensors, where)
    cell.load_state_dict(tensors)


def holds_run(folder: Path) -> bool:
    """Whether `folder` has the configuration of a finished run, of whatever version."""
    try:
        msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=_Mark)
    except (OSError, msgspec.MsgspecError):
        return False
    return True


def encode_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Named tensors as the bytes of a safetensors file."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def decode_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CheckpointError for anything else, a pickle included."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as cause:
        raise CheckpointError(f"{where}: not a safetensors file ({cause}); train again, or restore the file") from cause


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(f"{where}: {bad[0]} holds NaN or infinity; train again, with another --seed")


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG_FILE
    if folder.is_dir() and not path.exists():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE}, so no finished training run; finish it with --resume")
    data = _read(path)
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != RUN_VERSION:
            raise CheckpointError(
                f"{path}: version {version}, this odestream reads {RUN_VERSION}; train again with this version"
            )
        return msgspec.json.decode(data, type=_Config)
    except msgspec.MsgspecError as cause:
        raise CheckpointError(f"{path}: not a run's configuration ({cause}); train again") from cause


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / METRICS_FILE
    try:
        return msgspec.json.decode(_read(path), type=dict[str, Any])
    except msgspec.MsgspecError as cause:
        raise CheckpointError(f"{path}: not JSON ({cause}); train again, or restore the file") from cause


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); name a finished training run") from cause


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
