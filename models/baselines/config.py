"""What a rival is made of: the frame, which says what it is told and asked, and the sizes of its architecture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from odestream.models.config import SWITCHES, VOCABULARY, CellConfig, Task
from odestream.runtime.errors import InputError


@dataclass(frozen=True)
class Frame:
    """What every rival of a cell shares with it: the task, the normalisation and the time features.

    The fields mean what they mean in `CellConfig`; head: inner width of the heads.
    """

    task: Task
    channels: int
    scale: tuple[float, ...]
    centre: tuple[float, ...]
    head: int
    outputs: int = 0
    averages: tuple[float, ...] = ()
    stationary: bool = False
    frequencies: tuple[float, ...] = ()
    age_limit: float = 1000.0

    @staticmethod
    def of(config: CellConfig) -> Frame:
        """The frame of a cell, so that a rival is told and asked the same."""
        names = [f.name for f in dataclasses.fields(Frame) if f.name != "head"]
        return Frame(**{name: getattr(config, name) for name in names}, head=config.sizes.head)

    @property
    def output_width(self) -> int:
        """Y: means and log-variances of every channel, or logits."""
        return {"forecast": 2 * self.channels, "classify": self.outputs, "tokens": VOCABULARY}[self.task]

    @property
    def typical_gap(self) -> float:
        """The usual time between observations, in model units: a byte lasts one, rows are ten to a unit."""
        return 1.0 if self.task == "tokens" else 0.1


@dataclass(frozen=True)
class Sizes:
    """width: D, of what the heads read, and of everything in the architecture that follows from it."""

    width: int = 64

    @property
    def width_step(self) -> int:
        """What a width must be a multiple of."""
        return 1

    def __post_init__(self) -> None:
        wrong = [f.name for f in dataclasses.fields(self) if not getattr(self, f.name) >= 1]
        if wrong:
            raise InputError(f"{wrong[0]} is {getattr(self, wrong[0])}; give a whole number from 1")


@dataclass(frozen=True)
class StackSizes(Sizes):
    """layers: residual blocks, one after another."""

    layers: int = 2


@dataclass(frozen=True)
class FedSizes(StackSizes):
    """expansion: inner width of the feed-forward part of each block, in widths."""

    expansion: int = 2


@dataclass(frozen=True)
class BaselineConfig:
    """Everything that fixes a rival but its name and its weights."""

    frame: Frame
    sizes: Sizes
    steps = 1  # a rival has no solver: every number of its steps is as good

    @property
    def task(self) -> Task:
        """The frame's."""
        return self.frame.task

    @property
    def channels(self) -> int:
        """The frame's."""
        return self.frame.channels

    @property
    def age_limit(self) -> float:
        """The frame's."""
        return self.frame.age_limit

    def to_dict(self) -> dict[str, object]:
        """As plain JSON values; `from_dict` reads it back. What is off is left out, as in versions without it."""
        frame = {key: value for key, value in dataclasses.asdict(self.frame).items() if key not in SWITCHES or value}
        return {"frame": frame, "sizes": dataclasses.asdict(self.sizes)}

    @staticmethod
    def from_dict(data: dict[str, object], sizes: type[Sizes]) -> BaselineConfig:
        """Read `to_dict`'s result; InputError names what does not fit."""
        try:
            frame = {k: tuple(v) if isinstance(v, list) else v for k, v in data["frame"].items()}  # type: ignore[attr-defined]
            return BaselineConfig(Frame(**frame), sizes(**data["sizes"]))  # type: ignore[arg-type]
        except (AttributeError, TypeError, KeyError) as cause:
            raise InputError(f"model configuration does not fit this version ({cause}); train again") from cause
