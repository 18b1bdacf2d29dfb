"""What a cell is made of: frozen configuration, and the presets that users choose by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from odestream.runtime.contract.tableau import tableau
from odestream.runtime.errors import InputError

Task = Literal["forecast", "classify", "tokens"]
Store = Literal["working", "longterm", "episodic"]
STORES: tuple[Store, ...] = ("working", "longterm", "episodic")
Part = Literal["write-gate", "read-gate", "forget-gate", "reads", "flow", "drive", "elapsed"]
PARTS: tuple[Part, ...] = ("write-gate", "read-gate", "forget-gate", "reads", "flow", "drive", "elapsed")
SWITCHES = ("without", "stationary", "episodic_sink")  # of a configuration, which older ones do not know
VOCABULARY = 256  # tokens are UTF-8 bytes
BUCKETS = (1, 2, 4, 8, 16)  # solver steps that a model is trained for and judged with


@dataclass(frozen=True)
class Sizes:
    """A preset's widths.

    hidden: D, of the continuous state. field: inner width of the flow's field. content: width of the content
    encoding. head: inner width of the heads. gate: inner width of the write gate. window: L, entries of the working
    memory. slots: S, of the episodic memory. heads, keys, values: H, dk, dv of the memories.
    """

    hidden: int
    field: int
    content: int
    head: int
    gate: int
    window: int
    slots: int
    heads: int
    keys: int
    values: int


PRESETS: dict[str, Sizes] = {
    "nano": Sizes(64, 128, 64, 128, 64, 16, 32, 1, 32, 32),
    "small": Sizes(128, 256, 128, 256, 128, 32, 64, 2, 32, 32),
    "base": Sizes(256, 512, 256, 512, 128, 64, 128, 4, 64, 64),
}


def preset(name: str) -> Sizes:
    """The sizes called `name`; InputError lists the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}") from None


@dataclass(frozen=True)
class CellConfig:
    """Everything that fixes a cell but its weights.

    channels: X, number of real inputs (1 for tokens). outputs: number of labels for `classify`, else ignored.
    scale, centre: per channel, from the training part, in the channel's units.
    averages: time constants of the running averages, in model units; empty: channels are normalised by
    `(x − centre)/scale` alone and the state has no `norm`.
    stationary: whether the channels come back to `centre`: see `normalise.start`.
    frequencies: of the time features, in rad per model unit; may be empty.
    stores: the memories that exist. surprise_gate: whether surprise takes part in the episodic write.
    episodic_sink: whether the episodic read has a learned sink, see `memory.attend`.
    without: what is switched off, see `models.ablation`.
    decay_limit: upper clamp of λ, per model unit. norm_limit: largest spectral norm of A_h and of B.
    age_limit: A_max, in model units. method, steps, rtol, atol: the unrolled solver as deployed.
    """

    task: Task
    channels: int
    sizes: Sizes
    scale: tuple[float, ...]
    centre: tuple[float, ...]
    outputs: int = 0
    averages: tuple[float, ...] = ()
    stationary: bool = False
    frequencies: tuple[float, ...] = ()
    stores: tuple[Store, ...] = STORES
    surprise_gate: bool = False
    episodic_sink: bool = False
    without: tuple[Part, ...] = ()
    decay_limit: float = 4.0
    norm_limit: float = 1.5
    age_limit: float = 1000.0
    method: str = "bosh32"
    steps: int = 4
    rtol: float = 1e-3
    atol: float = 1e-4

    def __post_init__(self) -> None:
        tableau(self.method)
        if self.channels < 1 or len(self.scale) != self.channels or len(self.centre) != self.channels:
            raise InputError(
                f"{self.channels} channels with {len(self.scale)} scales and {len(self.centre)} centres; "
                "give one of each a channel"
            )
        if any(not s > 0 for s in (*self.scale, *self.averages, self.rtol, self.atol)):
            raise InputError("scales, averages and tolerances must be above 0; correct the configuration")
        if self.task == "classify" and self.outputs < 2:
            raise InputError(f"{self.outputs} labels; a classifier needs at least two")
        if self.task == "forecast" and not self.averages:
            raise InputError("a forecast is normalised by running averages; give at least one time constant")
        if not set(self.without) <= set(PARTS):
            raise InputError(f"without {self.without}; name parts of {', '.join(PARTS)}")
        if self.steps < 1 or not self.stores or not set(self.stores) <= set(STORES):
            raise InputError(
                f"steps {self.steps}, stores {self.stores}; give at least one step and one store or more of {STORES}"
            )
        if self.episodic_sink and "episodic" not in self.stores:
            raise InputError(f"an episodic sink with stores {self.stores}; add the episodic one, or leave the sink out")

    @property
    def output_width(self) -> int:
        """Y: means and log-variances of every channel, or logits."""
        return {"forecast": 2 * self.channels, "classify": self.outputs, "tokens": VOCABULARY}[self.task]

    @property
    def feature_width(self) -> int:
        """Width of the normalised input with its mask, as the content encoder sees it."""
        if self.task == "tokens":
            return self.sizes.content
        return self.channels * (2 + len(self.averages)) if self.averages else 2 * self.channels

    @property
    def read_width(self) -> int:
        """Width of everything that the memories return."""
        widths = {
            "working": self.sizes.values,
            "longterm": self.sizes.heads * self.sizes.values,
            "episodic": self.sizes.values,
        }
        return sum(widths[store] for store in self.stores)

    def to_dict(self) -> dict[str, object]:
        """As plain JSON values; `from_dict` reads it back. What is off is left out, as in versions without it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in SWITCHES or value}

    @staticmethod
    def from_dict(data: dict[str, object]) -> CellConfig:
        """Read `to_dict`'s result; InputError names what does not fit."""
        try:
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
            values["sizes"] = Sizes(**values["sizes"])  # type: ignore[arg-type]
            return CellConfig(**values)  # type: ignore[arg-type]
        except (TypeError, KeyError) as cause:
            raise InputError(f"cell configuration does not fit this version ({cause}); train again") from cause
