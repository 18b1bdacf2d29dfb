"""What all rivals share: what they are told, what they are asked, and what an observation, or none, does to a state.

    state     h [D], what the heads read; ua [1], time since the last observation; norm as a cell's; and the
              architecture's own members
    signal    features of x and its mask, log(1 + ua) where the architecture knows of time, φ(t)
    expect    x̂ from h (moved on to now, where the architecture says how), log(1 + ua), φ(t) and norm, before x is used
    advance   h and the own members after an observation; a call without one leaves them as they are

So a rival gets the same information as a cell, answers at the same moments, and trains by the same losses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odestream.models import normalise
from odestream.models.baselines.config import BaselineConfig, Sizes
from odestream.models.cell import Expected, State
from odestream.models.config import VOCABULARY
from odestream.models.field import rotate
from odestream.models.heads import Mlp, expectation, mlp
from odestream.models.observing import Inputs, Seen, look, observe
from odestream.models.unrolled import Unrolled
from odestream.runtime.contract.spec import StateSpec, StepSpec, TensorSpec


class Told(NamedTuple):
    """What an architecture is told at a call; leading axes [B] or [T, B].

    signal [..., I]: see the module. value [..., X]: (x − centre)/scale, zero where missing; the embedding for tokens.
    mask [..., X] of it ([..., 1] for tokens). observed [..., 1]: whether anything came. elapsed, gap [..., 1]: time
    since the last observation and since the last call, in model units.
    """

    signal: Tensor
    value: Tensor
    mask: Tensor
    observed: Tensor
    elapsed: Tensor
    gap: Tensor


class Swept(NamedTuple):
    """Members of the state after each of T times [T, B, …], those that a forecast starts from, and the last state."""

    kept: State
    last: State


class Footprint(NamedTuple):
    """parameters: trained numbers. state_bytes: of one stream."""

    parameters: int
    state_bytes: int


class Heads(nn.Module):
    """expect: x̂ from h, log(1 + ua), φ(t) and norm; answer: labels or next byte from h after the observation."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        f, width = config.frame, config.sizes.width
        norm = f.channels * (2 + len(f.averages)) if f.averages else 0
        expected = VOCABULARY if f.task == "tokens" else 2 * f.channels
        self.expect = Mlp(width + 1 + 2 * len(f.frequencies) + norm, f.head, expected, silent=True)
        self.answer = None if f.task == "forecast" else Mlp(width, f.head, f.output_width, silent=True)


class Baseline(nn.Module, ABC):
    """A rival behind the step protocol: `spec()` and a pure `step(inputs, state)`; `forward` runs a whole sequence.

    An architecture is a subclass that brings `members`, `advance` and, where it has them, `evolve` and a parallel
    `sweep`. sizes_type: its sizes. knows_time: whether the signal tells it of log(1 + ua). starts_from: own members
    that `evolve` needs.
    """

    sizes_type: type[Sizes] = Sizes
    knows_time = True
    starts_from: tuple[str, ...] = ()
    centre: Tensor
    scale: Tensor
    averages: Tensor
    frequencies: Tensor

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        if type(config.sizes) is not self.sizes_type:
            raise TypeError(
                f"{type(self).__name__} takes {self.sizes_type.__name__}, not {type(config.sizes).__name__}"
            )
        self.config, frame = config, config.frame
        for name in ("centre", "scale", "averages", "frequencies"):
            self.register_buffer(name, torch.tensor(getattr(frame, name)), persistent=False)
        tokens = frame.task == "tokens"
        self.embedding = nn.Embedding(VOCABULARY, config.sizes.width) if tokens else None
        self.heads = Heads(config)

    def members(self) -> tuple[StateSpec, ...]:
        """The architecture's own state, beside `h`, `ua` and `norm`; none unless it says so."""
        return ()

    @abstractmethod
    def advance(self, told: Told, state: State) -> State:
        """`h` and the own members after an observation: told and state are [B, …]."""

    def elapse(self, state: State, dt: Tensor) -> State:
        """The own members after dt [B, 1] without an observation; as they were unless an architecture says more."""
        del dt
        return {member.name: state[member.name] for member in self.members()}

    def evolve(self, state: Mapping[str, Tensor], elapsed: Tensor, dt: Tensor) -> Tensor:
        """h [..., D] as it stands `elapsed` after the last observation, dt after the last call; it stands still."""
        del elapsed, dt
        return state["h"]

    def sweep(self, told: Told, state: State) -> Swept:
        """All of T times [T, B, …], one by one unless an architecture can do better."""
        kept: dict[str, list[Tensor]] = {name: [] for name in ("h", *self.starts_from)}
        now = {name: state[name] for name in ("h", *(m.name for m in self.members()))}
        for t in range(len(told.gap)):
            one = Told(*(part[t] for part in told))
            now = self._moved(one, now)
            for name, values in kept.items():
                values.append(now[name])
        return Swept({name: torch.stack(values) for name, values in kept.items()}, now)

    def spec(self) -> StepSpec:
        """Inputs, outputs and state members, in graph order."""
        f, features = self.config.frame, 2 * len(self.config.frame.frequencies)
        x = TensorSpec("x", (), "int64") if f.task == "tokens" else TensorSpec("x", (f.channels,))
        inputs = [x, TensorSpec("mask", (f.channels,)), TensorSpec("dt", (1,))]
        inputs += [TensorSpec("phase", (features,))] if features else []
        members = [StateSpec("h", (self.config.sizes.width,)), StateSpec("ua", (1,))]
        norm = StateSpec("norm", (f.channels, 3 + len(f.averages)), normalise.start(len(f.averages), f.stationary))
        members += [norm] if f.averages else []
        outputs = (TensorSpec("y", (f.output_width,)),)
        return StepSpec(tuple(inputs), outputs, (*members, *self.members()))

    def initial_state(self, batch: int) -> State:
        """State of `batch` new streams."""
        like = self.heads.expect.outer.bias
        rows = {m.name: torch.from_numpy(m.initial_row().copy()).to(like) for m in self.spec().state}
        return {name: row.unsqueeze(0).repeat(batch, *[1] * row.dim()) for name, row in rows.items()}

    def step(self, inputs: Inputs, state: State) -> tuple[dict[str, Tensor], State]:
        """One step; inputs, outputs and state as in `spec()`. The state that is passed in is not changed."""
        seen = self.observe(inputs, state)
        elapsed = self._since(state["ua"], inputs["dt"])
        new = self._moved(self.told(inputs, seen, elapsed), state)
        new["ua"] = torch.where(seen.observed, 0.0, elapsed)
        if seen.norm is not None:
            new["norm"] = normalise.pack(seen.norm)
        return {"y": self.answer(self.expect(inputs, state), new["h"])}, new

    def forward(self, inputs: Inputs, state: State | None = None) -> Unrolled:
        """Run over inputs with a leading time axis [T, B, …], from new streams unless a state is given.

        Equal to `step` once a time. Everything that is kept of the state after each time is what a forecast starts
        from, so `kept` names no members.
        """
        state = self.initial_state(inputs["dt"].shape[1]) if state is None else state
        seen, elapsed = look(self, inputs, state), self._since_each(inputs, state["ua"])
        path = self.sweep(self.told(inputs, seen, elapsed), state)
        kept = {**path.kept, "ua": torch.where(seen.observed, 0.0, elapsed)}
        if seen.norm is not None:
            kept["norm"] = normalise.pack(seen.norm)
        before = {name: torch.cat([state[name].unsqueeze(0), after[:-1]]) for name, after in kept.items()}
        expected = self.expect(inputs, before)
        last = {**{name: after[-1] for name, after in kept.items()}, **path.last}
        y = self.answer(expected, kept["h"])
        return Unrolled(y, y.new_zeros(*y.shape[:2], 0), expected.mean, expected.log_variance, kept, last)

    def observe(self, inputs: Inputs, state: Mapping[str, Tensor]) -> Seen:
        """Features of x, and the running statistics after it; needs only `norm` of the state."""
        return observe(inputs, state, self._scaling(), self.embedding, self.config.frame.age_limit)

    def expect(self, inputs: Inputs, state: Mapping[str, Tensor]) -> Expected:
        """What is expected dt after a call that left `state`: `h`, `ua`, `norm` and what `evolve` needs."""
        dt, frame = inputs["dt"], self.config.frame
        elapsed = self._since(state["ua"], dt)
        h = self.evolve(state, elapsed, dt)
        parts = [h, torch.log(1 + elapsed), *self._phase(inputs)]
        head = self.heads.expect.weights()
        if frame.task == "tokens":
            return Expected(h, 0.0 * dt, mlp(torch.cat(parts, dim=-1), head), None)
        last = torch.zeros_like(self.centre)
        if frame.averages:
            running = normalise.elapse(normalise.unpack(state["norm"]), dt, frame.age_limit)
            parts.append(normalise.head_features(running, self._scaling()))
            last = running.last
        centred, log_variance = expectation(torch.cat(parts, dim=-1), last, self.scale, head)
        return Expected(h, 0.0 * dt, centred + self.centre, log_variance, centred)

    def answer(self, expected: Expected, h: Tensor) -> Tensor:
        """y [..., Y]: the expectation itself for a forecast, else from h after the observation."""
        if self.heads.answer is not None:
            return mlp(h, self.heads.answer.weights())
        if expected.log_variance is None:
            raise RuntimeError("a forecast without a variance; this is a defect of odestream")
        return torch.cat([expected.mean, expected.log_variance], dim=-1)

    def told(self, inputs: Inputs, seen: Seen, elapsed: Tensor) -> Told:
        """What the architecture is told; inputs and seen [B, …] or [T, B, …]."""
        time = [torch.log(1 + elapsed)] if self.knows_time else []
        signal = torch.cat([seen.features, *time, *self._phase(inputs)], dim=-1)
        if self.embedding is not None:
            return Told(signal, seen.features, inputs["mask"], seen.observed, elapsed, inputs["dt"])
        mask = inputs["mask"]
        value = torch.where(mask > 0, (inputs["x"] - self.centre) / self.scale, 0.0)
        return Told(signal, value, mask, seen.observed, elapsed, inputs["dt"])

    def constrain(self) -> None:
        """Nothing to hold: called after every optimiser step, where a cell bounds its field."""

    @property
    def signal_width(self) -> int:
        """I: width of the signal."""
        f = self.config.frame
        values = f.channels * (2 + len(f.averages)) if f.averages else 2 * f.channels
        features = self.config.sizes.width if f.task == "tokens" else values
        return features + int(self.knows_time) + 2 * len(f.frequencies)

    @property
    def value_width(self) -> int:
        """Width of `Told.value`."""
        return self.config.sizes.width if self.config.frame.task == "tokens" else self.config.frame.channels

    @property
    def forecast_from(self) -> Sequence[str]:
        """Members of the state that a forecast starts from."""
        norm = ("norm",) if self.config.frame.averages else ()
        return ("h", "ua", *norm, *self.starts_from)

    def _moved(self, told: Told, state: State) -> State:
        """h and the own members after a call, with an observation or without."""
        idle, moved = {"h": state["h"], **self.elapse(state, told.gap)}, self.advance(told, state)
        return {name: torch.where(_beside(told.observed, old), moved[name], old) for name, old in idle.items()}

    def _since(self, ua: Tensor, dt: Tensor) -> Tensor:
        return torch.clamp(ua + dt, max=self.config.frame.age_limit)

    def _since_each(self, inputs: Inputs, ua: Tensor) -> Tensor:
        """Time since the last observation at each call, before its own: [T, B, 1]."""
        observed, found = torch.amax(inputs["mask"], dim=-1, keepdim=True) > 0, []
        for dt, here in zip(inputs["dt"], observed, strict=True):
            found.append(self._since(ua, dt))
            ua = torch.where(here, 0.0, found[-1])
        return torch.stack(found)

    def _phase(self, inputs: Inputs) -> list[Tensor]:
        """φ(t) at the call's own time, where there are time features."""
        phase = inputs.get("phase")
        return [] if phase is None or len(self.frequencies) == 0 else [rotate(phase, inputs["dt"] * self.frequencies)]

    def _scaling(self) -> normalise.Scaling:
        return normalise.Scaling(self.centre, self.scale, self.averages)


def _beside(observed: Tensor, member: Tensor) -> Tensor:
    """observed [B, 1] with as many axes as the member [B, …]."""
    return observed.view(-1, *[1] * (member.dim() - 1)) if member.dim() > 2 else observed


def footprint(module: Any) -> Footprint:
    """Parameters and state bytes of a cell or a rival."""
    return Footprint(sum(p.numel() for p in module.parameters()), module.spec().state_bytes)
