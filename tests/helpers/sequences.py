"""Random cells and random inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.config import CellConfig


def random_cell(config: CellConfig, seed: int = 0) -> Cell:
    """A cell in which every weight, zero-initialised ones too, is random: nothing hides behind a zero."""
    torch.manual_seed(seed)
    cell = Cell(config)
    with torch.no_grad():
        for parameter in (cell.field.output, cell.memory.gates.read_state, cell.memory.gates.forget.weight):
            parameter.normal_(std=0.3)
        for head in (cell.heads.expect, cell.heads.answer):
            if head is not None:
                head.outer.weight.normal_(std=0.3)
        for projection in (cell.memory.slots, cell.memory.matrix):
            if projection is not None:
                projection.query_state.normal_(std=0.3)
        cell.memory.log_decay_rate.fill_(-2.0)
        cell.memory.gates.write.weight.normal_(std=1.0)
        cell.memory.gates.forget.bias.fill_(0.5)
        cell.constrain()
    return cell


def random_inputs(config: CellConfig, length: int, batch: int, seed: int = 0, holes: float = 0.3) -> dict[str, Tensor]:
    """Inputs [T, B, …] with irregular gaps, missing channels and pure queries."""
    make = torch.Generator().manual_seed(seed)
    shape = (length, batch)
    mask = (torch.rand(*shape, config.channels, generator=make) > holes).float()
    mask[torch.rand(shape, generator=make) < 0.2] = 0.0
    if config.task == "tokens":
        x = torch.randint(0, 256, shape, generator=make)
    else:
        noise = torch.randn(*shape, config.channels, generator=make)
        x = torch.tensor(config.centre) + torch.tensor(config.scale) * noise
    inputs = {"x": x, "mask": mask, "dt": torch.rand(*shape, 1, generator=make) * 0.5}
    inputs["dt"][0] = 0.0
    if config.frequencies:
        angle = torch.rand(*shape, len(config.frequencies), generator=make) * 6.28
        inputs["phase"] = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
    return inputs
