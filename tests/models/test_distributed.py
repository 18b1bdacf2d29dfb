"""Two processes over gloo: together they take the step that one process takes with all sequences."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from odestream.models import config as config_module
from odestream.models.checkpoint import Settings, load_checkpoint
from odestream.models.distributed import World, joined
from odestream.models.train import Job, prepare, train_run
from odestream.models.training.loop import Budget, Trainer
from odestream.models.training.resume import resume_training, save_training
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.errors import InputError
from tests.helpers.problems import TINY
from tests.helpers.tables import seasonal_csv

STEPS = 6


def job_for(folder: Path) -> Job:
    task = TaskSpec("forecast", ("level",), ("level",), (), "time")
    settings = Settings(epochs=2, period=20.0, horizons=(1, 5))
    return Job(folder / "a.csv", task, settings, folder / "run")


def train_some(folder: Path, world: World, stop_at: int = -1, resume: bool = False) -> Trainer:
    config_module.PRESETS["nano"] = TINY
    plan = prepare(job_for(folder), world)
    trainer = Trainer(plan.cell, plan.recipe, Budget(None, STEPS), 0, world)
    if resume:
        resume_training(folder, trainer, {})
    trainer.run(lambda report: None, lambda: trainer.step == stop_at, lambda: None)
    return trainer


def work(rank: int, folder: Path, port: int, size: int) -> None:
    """One process: trains, saves half-way, resumes, and writes a run."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined() as world:
        half = train_some(folder, world, stop_at=3)
        save_training(folder, half, {})
        trainer = train_some(folder, world, resume=True)
        torch.save(trainer.cell.state_dict(), folder / f"weights{rank}.pt")
        train_run(job_for(folder), world, lambda report: None)


def test_two_processes_equal_one_on_the_union_of_their_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.PRESETS, "nano", TINY)
    seasonal_csv(tmp_path / "a.csv")
    expected = train_some(tmp_path, World()).cell.state_dict()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (tmp_path, port, 2), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"weights{rank}.pt", weights_only=True)
        for name, value in expected.items():  # AdamW's first steps are signs: rounding decides where a gradient is none
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert load_checkpoint(tmp_path / "run")[1].metrics["steps"] > 0


def test_one_process_alone_has_everything() -> None:
    world = World()
    parameter = torch.nn.Parameter(torch.ones(2))
    world.sum_gradients([parameter])
    assert parameter.grad is None
    assert world.leads
    assert list(world.share(3)) == [0, 1, 2]
    assert world.agree(1.0, 2.0) == (1.0, 2.0)
    assert torch.equal(world.gather(torch.ones(2))[0], torch.ones(2))


@pytest.mark.parametrize("size", ["2", "many"])
def test_processes_that_cannot_be_joined_are_one_sentence(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="start them with torchrun"), joined():
        pass


def test_shares_are_disjoint_and_cover_all_lanes() -> None:
    shares = [list(World(rank, 3).share(7)) for rank in range(3)]
    assert sorted(lane for share in shares for lane in share) == list(range(7))
