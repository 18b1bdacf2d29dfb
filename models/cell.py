"""The cell: `step(inputs, state) -> (outputs, state')`, the one function that everything shares.

    flow      h⁻ = flow of h over dt, driven by u, the last encoded input
    expect    x̂ from h⁻, φ(t) and norm: for a forecast this is the answer, made before x is used
    content   features of x and its mask; gates, keys and values come from these alone
    memory    reads, then writes
    jump      h⁺ = h⁻ + z ⊙ (h̃(e, r, h⁻) − h⁻) with e = Enc[c, (x − x̂) ⊙ mask, log(1 + time since the last e)]

With a mask of zeros only time passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models import normalise
from odestream.models.ablation import freeze, hold
from odestream.models.config import VOCABULARY, CellConfig
from odestream.models.field import Field, FieldWeights, rotate
from odestream.models.flow import Integrator, ode_flow
from odestream.models.heads import Heads, expectation, mlp
from odestream.models.hybrid import (
    Access,
    Content,
    HybridMemory,
    HybridWeights,
    access,
    gate_names,
    hybrid_memory,
    memory_spec,
)
from odestream.models.observing import Inputs, Seen, observe
from odestream.models.surprise import SURPRISE_START, bounded, score
from odestream.runtime.contract.spec import StateSpec, StepSpec, TensorSpec

State = dict[str, Tensor]
STATISTICS = ("h", "u", "ua", "st", "norm")


class Weights(NamedTuple):
    """Folded weights of the parts that are functions of their own."""

    field: FieldWeights
    memory: HybridWeights


class Expected(NamedTuple):
    """The flowed state and what it expects: h⁻ [B, D], err [B, 1], mean and log-variance [B, X] (logits for tokens).

    centred [B, X]: the mean less the training centre, before adding a large centre costs it digits: at 350 ppm the
    difference to x would be good to 1e-5 of a scale only. None for tokens.
    """

    h: Tensor
    err: Tensor
    mean: Tensor
    log_variance: Tensor | None
    centred: Tensor | None = None


class Cell(nn.Module):
    """A hidden state that flows between observations, with working, long-term and episodic memory.

    Follows the step protocol: `spec()` and a pure `step(inputs, state)`; see `models.config.CellConfig`.
    """

    centre: Tensor
    scale: Tensor
    averages: Tensor

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        self.config = config
        z = config.sizes
        for name in ("centre", "scale", "averages"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)
        residual = VOCABULARY if config.task == "tokens" else config.channels
        self.embedding = nn.Embedding(VOCABULARY, z.content) if config.task == "tokens" else None
        self.encode_content = nn.Linear(config.feature_width, z.content)
        self.encode_residual = nn.Linear(residual, z.content, bias=False)
        self.encode = nn.Linear(z.content + 1, z.hidden)
        self.field = Field(config)
        self.memory = HybridMemory(config)
        self.update = nn.Linear(2 * z.hidden + config.read_width, 2 * z.hidden)
        self.heads = Heads(config)
        with torch.no_grad():
            self.update.bias[: z.hidden].fill_(-1.0)
        freeze(self)

    def spec(self) -> StepSpec:
        """Inputs, outputs and state members, in graph order."""
        c, features = self.config, 2 * len(self.config.frequencies)
        tokens = c.task == "tokens"
        x = TensorSpec("x", (), "int64") if tokens else TensorSpec("x", (c.channels,))
        inputs = [x, TensorSpec("mask", (c.channels,)), TensorSpec("dt", (1,))]
        inputs += [TensorSpec("phase", (features,))] if features else []
        outputs = [
            TensorSpec("y", (c.output_width,)),
            TensorSpec("err", (1,)),
            TensorSpec("gates", (len(gate_names(c)),)),
        ]
        members = [StateSpec("h", (c.sizes.hidden,)), StateSpec("u", (c.sizes.hidden,)), StateSpec("ua", (1,))]
        members += [StateSpec("st", (3,), SURPRISE_START)]
        norm = StateSpec("norm", (c.channels, 3 + len(c.averages)), normalise.start(len(c.averages), c.stationary))
        members += [norm] if c.averages else []
        return StepSpec(tuple(inputs), tuple(outputs), (*members, *memory_spec(c)))

    def initial_state(self, batch: int) -> State:
        """State of `batch` new streams."""
        like = self.field.log_decay
        rows = {m.name: torch.from_numpy(m.initial_row().copy()).to(like) for m in self.spec().state}
        return {name: row.unsqueeze(0).repeat(batch, *[1] * row.dim()) for name, row in rows.items()}

    def weights(self) -> Weights:
        """Folded weights; computed once for many steps of an unroll."""
        return Weights(self.field.weights(), self.memory.weights())

    def constrain(self) -> None:
        """Hold the field within its limits, and what is off where it is: call it after every optimiser step."""
        self.field.constrain()
        hold(self)

    def step(self, inputs: Inputs, state: State) -> tuple[dict[str, Tensor], State]:
        """One step; inputs, outputs and state as in `spec()`. The state that is passed in is not changed."""
        w = self.weights()
        seen = self.observe(inputs, state)
        expected = self.expect(inputs, state, w)
        residual, zeta, st = self._compare(inputs, seen, expected, state)
        stores = {k: v for k, v in state.items() if k not in STATISTICS}
        got = hybrid_memory(
            seen.features, expected.h, seen.observed, zeta, inputs["dt"], stores, w.memory, config=self.config
        )
        return self._finish(inputs, state, seen, expected, residual, st, got)

    def step_with(
        self,
        inputs: Inputs,
        state: State,
        seen: Seen,
        said: Content,
        w: Weights,
        steps: int | None = None,
        integrator: Integrator | None = None,
    ) -> tuple[dict[str, Tensor], State, Expected]:
        """`step` with everything that does not depend on the recurrent state computed before; used by unrolls."""
        expected = self.expect(inputs, state, w, steps, integrator)
        residual, zeta, st = self._compare(inputs, seen, expected, state)
        stores = {k: v for k, v in state.items() if k not in STATISTICS}
        got = access(said, expected.h, seen.observed, zeta, inputs["dt"], stores, w.memory, self.config)
        return *self._finish(inputs, state, seen, expected, residual, st, got), expected

    def observe(self, inputs: Inputs, state: Mapping[str, Tensor]) -> Seen:
        """Features of x, and the running statistics after it; needs only `norm` of the state."""
        return observe(inputs, state, self._scaling(), self.embedding, self.config.age_limit)

    def expect(
        self,
        inputs: Inputs,
        state: Mapping[str, Tensor],
        w: Weights,
        steps: int | None = None,
        integrator: Integrator | None = None,
    ) -> Expected:
        """Flow to now and say what is expected there; needs `h`, `u` and `norm` of the state.

        steps: solver steps, the deployed number unless given. integrator: replaces the unrolled solver; it estimates
        no error.
        """
        c, dt, phase = self.config, inputs["dt"], inputs.get("phase")
        if integrator is not None:
            h = integrator(state["h"], state["u"], phase, dt, w.field)
            return Expected(h, 0.0 * dt, *self.expect_at(h, dt, phase, state))
        options = {"method": c.method, "steps": steps or c.steps, "rtol": c.rtol, "atol": c.atol}
        h, err = ode_flow(state["h"], state["u"], phase, dt, w.field, **options)  # type: ignore[arg-type]
        return Expected(h, err, *self.expect_at(h, dt, phase, state))

    def expect_at(
        self, h: Tensor, dt: Tensor, phase: Tensor | None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a flowed h expects, however it was integrated: the last three fields of `Expected`."""
        parts = [h]
        if phase is not None and self.field.time is not None:
            parts.append(rotate(phase, dt * self.field.get_buffer("frequencies")))
        head = self.heads.expect.weights()
        if self.config.task == "tokens":
            return mlp(torch.cat(parts, dim=-1), head), None, None
        last = torch.zeros_like(self.centre)
        if self.config.averages:
            running = normalise.elapse(normalise.unpack(state["norm"]), dt, self.config.age_limit)
            parts.append(normalise.head_features(running, self._scaling()))
            last = running.last
        centred, log_variance = expectation(torch.cat(parts, dim=-1), last, self.scale, head)
        return centred + self.centre, log_variance, centred

    def _compare(self, inputs: Inputs, seen: Seen, expected: Expected, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """What was not expected: residual [B, X], ζ [B, 1], and the surprise statistics after it."""
        x, mask = inputs["x"], inputs["mask"]
        if expected.centred is None:
            places = torch.arange(VOCABULARY)
            hot = torch.where(places == x.unsqueeze(-1), 1.0, 0.0)
            chances = torch.softmax(expected.mean, dim=-1)
            residual = torch.where(seen.observed, hot - chances, 0.0)
            amount = -torch.log(torch.sum(hot * chances, dim=-1, keepdim=True) + 1e-9)
        else:
            residual = torch.where(mask > 0, (x - self.centre - expected.centred) / self.scale, 0.0)
            amount = torch.sum(residual * residual, dim=-1, keepdim=True) / torch.clamp(
                torch.sum(mask, dim=-1, keepdim=True), min=1.0
            )
        zeta, st = score(amount, seen.observed, state["st"])
        return residual, zeta, st

    def _finish(
        self, inputs: Inputs, state: State, seen: Seen, expected: Expected, residual: Tensor, st: Tensor, got: Access
    ) -> tuple[dict[str, Tensor], State]:
        elapsed = torch.clamp(state["ua"] + inputs["dt"], max=self.config.age_limit)
        e = self._encode(seen.features, residual, elapsed)
        h = torch.where(seen.observed, self._jump(e, got.reads, expected.h), expected.h)
        new = {
            "h": h,
            "u": torch.where(seen.observed, e, state["u"]),
            "ua": torch.where(seen.observed, 0.0, elapsed),
            "st": st,
        }
        if seen.norm is not None:
            new["norm"] = normalise.pack(seen.norm)
        outputs = {"y": self.answer(expected, h, got.reads), "err": expected.err, "gates": got.gates}
        return outputs, {**new, **got.memories}

    def _encode(self, features: Tensor, residual: Tensor, elapsed: Tensor) -> Tensor:
        """e = Enc[c, residual, log(1 + elapsed)], bounded by tanh since it drives the flow."""
        inner = F.silu(self.encode_content(features) + self.encode_residual(bounded(residual)))
        return torch.tanh(self.encode(torch.cat([inner, torch.log(1 + elapsed)], dim=-1)))

    def _jump(self, e: Tensor, reads: Tensor, h: Tensor) -> Tensor:
        """Gated update towards a candidate (minimal gated unit, Zhou et al. 2016, with reads as input)."""
        both, width = self.update(torch.cat([e, reads, h], dim=-1)), self.config.sizes.hidden
        z, candidate = torch.sigmoid(both.narrow(-1, 0, width)), torch.tanh(both.narrow(-1, width, width))
        return h + z * (candidate - h)

    def answer(self, expected: Expected, h: Tensor, reads: Tensor) -> Tensor:
        """y [B, Y]: the expectation itself for a forecast, else from h⁺ and the memory reads."""
        if self.heads.answer is None:
            if expected.log_variance is None:
                raise RuntimeError("a forecast without a variance; this is a defect of odestream")
            return torch.cat([expected.mean, expected.log_variance], dim=-1)
        answer = mlp(torch.cat([h, reads], dim=-1), self.heads.answer.weights())
        return answer if self.heads.recall is None else answer + self.heads.recall(reads)

    def _scaling(self) -> normalise.Scaling:
        return normalise.Scaling(self.centre, self.scale, self.averages)
