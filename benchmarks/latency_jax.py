"""The step of a forecaster with all three stores, written in JAX from a cell's weights, for one stream.

Names and order follow `odestream.models.cell` and what it calls; the flow is unrolled, or solved by diffrax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import Tensor

from odestream.models.cell import Cell
from odestream.runtime.contract.tableau import tableau
from work_precision_diffrax import derivative as rescaled
from work_precision_diffrax import solver as diffrax_solver

MAX_STEPS = 256
State = dict[str, Any]


def jitted_step(cell: Cell, steps: int | None, solver: str | None) -> Callable[[State, State], tuple[State, State]]:
    """(inputs, state) -> (outputs, state), arrays without a batch axis.

    steps: of the unrolled method. solver: of diffrax in its place, at the cell's tolerance.
    """
    step: Callable[[State, State], tuple[State, State]] = jax.jit(_Step(cell, steps, solver))
    return step


def initial_state(cell: Cell) -> State:
    """The state of a new stream."""
    return {m.name: jnp.asarray(m.initial_row()) for m in cell.spec().state}


class _Step:
    def __init__(self, cell: Cell, steps: int | None, solver: str | None) -> None:
        self.config, self.steps, self.solver = cell.config, steps, solver
        w = cell.weights()
        self.field = tuple(None if t is None else _array(t) for t in w.field)
        self.gates = {name: _array(t) for name, t in w.memory.gates._asdict().items()}
        self.slots = {name: _array(t) for name, t in w.memory.slots._asdict().items()}  # type: ignore[union-attr]
        self.matrix = {name: _array(t) for name, t in w.memory.matrix._asdict().items()}  # type: ignore[union-attr]
        self.sharpness, self.decay_rate = _array(w.memory.sharpness), _array(w.memory.decay_rate)
        self.age_slope = jax.nn.softplus(_array(w.memory.age_slope))
        self.linear = {name: _array(t) for name, t in cell.state_dict().items()}
        self.centre, self.scale = np.array(self.config.centre, np.float32), np.array(self.config.scale, np.float32)
        self.rates = 1 / np.array(self.config.averages, np.float32)

    def __call__(self, inputs: State, state: State) -> tuple[State, State]:
        x, mask, dt, c = inputs["x"], inputs["mask"], inputs["dt"], self.config
        observed = jnp.max(mask) > 0
        h, err = self.flow(state["h"], state["u"], inputs["phase"], dt)
        norm = state["norm"].at[:, 1].set(jnp.minimum(state["norm"][:, 1] + dt, c.age_limit))
        features, after_norm = self.observe(norm, x, mask)
        mean, log_variance, centred = self.expect(h, dt, inputs["phase"], norm)
        residual = jnp.where(mask > 0, (x - self.centre - centred) / self.scale, 0.0)
        zeta, st = _score(jnp.sum(residual**2) / jnp.maximum(jnp.sum(mask), 1.0), observed, state["st"])
        reads, memories, gates = self.memory(features, h, observed, zeta, dt, state)
        elapsed = jnp.minimum(state["ua"] + dt, c.age_limit)
        e = self.encode(features, residual, elapsed)
        both = self.apply("update", jnp.concatenate([e, reads, h]))
        width = c.sizes.hidden
        jumped = h + jax.nn.sigmoid(both[:width]) * (jnp.tanh(both[width:]) - h)
        new = {
            "h": jnp.where(observed, jumped, h),
            "u": jnp.where(observed, e, state["u"]),
            "ua": jnp.where(observed, 0.0, elapsed),
            "st": st,
            "norm": after_norm,
            **memories,
        }
        return {"y": jnp.concatenate([mean, log_variance]), "err": err, "gates": gates}, new

    def apply(self, name: str, x: Any) -> Any:
        y = self.linear[f"{name}.weight"] @ x
        bias = self.linear.get(f"{name}.bias")
        return y if bias is None else y + bias

    def flow(self, h: Any, u: Any, phase: Any, dt: Any) -> tuple[Any, Any]:
        _, _, drive, bias, *_ = self.field
        given = (drive @ u + bias, phase, dt, self.field)
        if self.solver is not None:
            solve = diffrax_solver(self.solver, False, MAX_STEPS)
            after, _ = solve((h, *given[:3]), self.field, self.config.rtol, self.config.atol)
            return jnp.where(dt > 0, after, h), jnp.zeros(1)
        return self.unrolled(h, given, dt)

    def unrolled(self, start: Any, given: tuple[Any, ...], dt: Any) -> tuple[Any, Any]:
        c, table, n = self.config, tableau(self.config.method), self.steps or self.config.steps
        size, h, errors = 1.0 / n, start, []
        slopes = [rescaled(0.0, h, given)]
        for step in range(n):
            if step > 0:
                slopes = [slopes[-1] if table.fsal else rescaled(step * size, h, given)]
            for i in range(1, table.stages):
                at = float((step + table.c[i]) * size)
                slopes.append(rescaled(at, h + size * _mix(table.a[i], slopes), given))
            after = h + size * _mix(table.b, slopes)
            if table.error is not None:
                allowed = c.atol + c.rtol * jnp.maximum(jnp.abs(h), jnp.abs(after))
                errors.append(jnp.sqrt(jnp.mean((size * _mix(table.error, slopes) / allowed) ** 2)))
            h = after
        err = jnp.max(jnp.stack(errors))[None] if errors else jnp.zeros(1)
        return jnp.where(dt > 0, h, start), err

    def observe(self, norm: Any, x: Any, mask: Any) -> tuple[Any, Any]:
        """Features of x, and `norm` after it."""
        value, observed, first = x - self.centre, mask > 0, norm[:, 2] == 0
        usable = (mask * norm[:, 2]) > 0
        last = jnp.where(usable, (value - norm[:, 0]) / self.scale, 0.0)
        averages = jnp.where(usable[:, None], (value[:, None] - norm[:, 3:]) / self.scale[:, None], 0.0)
        share = _decayed(norm[:, 1:2] * self.rates)
        moved = norm[:, 3:] + share * (value[:, None] - norm[:, 3:])
        moved = jnp.where(first[:, None], value[:, None], moved)
        columns = jnp.stack([value, jnp.zeros_like(value), jnp.ones_like(value)], axis=1)
        after = jnp.where(observed[:, None], jnp.concatenate([columns, moved], axis=1), norm)
        return jnp.concatenate([last, averages.ravel(), mask]), after

    def expect(self, h: Any, dt: Any, phase: Any, norm: Any) -> tuple[Any, Any, Any]:
        frequencies = self.field[6]
        sine, cosine = jnp.split(phase, 2)
        s, c = jnp.sin(dt * frequencies), jnp.cos(dt * frequencies)
        distance = (norm[:, :1] - norm[:, 3:]) / self.scale[:, None]
        parts = [h, sine * c + cosine * s, cosine * c - sine * s]
        parts += [distance.ravel(), jnp.log(1 + norm[:, 1]), norm[:, 2]]
        inner = jax.nn.silu(self.apply("heads.expect.inner", jnp.concatenate(parts)))
        out = self.apply("heads.expect.outer", inner)
        channels = self.config.channels
        centred = norm[:, 0] + self.scale * out[:channels]
        log_variance = jnp.clip(out[channels:], -12.0, 12.0) + 2 * jnp.log(self.scale)
        return centred + self.centre, log_variance, centred

    def encode(self, features: Any, residual: Any, elapsed: Any) -> Any:
        bounded = 4 * jnp.tanh(residual / 4)
        inner = jax.nn.silu(self.apply("encode_content", features) + self.apply("encode_residual", bounded))
        return jnp.tanh(self.apply("encode", jnp.concatenate([inner, jnp.log(1 + elapsed)])))

    def memory(self, f: Any, h: Any, observed: Any, zeta: Any, dt: Any, state: State) -> tuple[Any, State, Any]:
        """Reads, the stores' new state, gates; in the order working, longterm, episodic."""
        g, limit, heads = self.gates, self.config.age_limit, self.config.sizes.heads
        inner = jax.nn.silu(g["inner"] @ jnp.concatenate([f, f * f]) + g["inner_bias"])
        logits = g["write"] @ inner + g["write_bias"]
        shares = jax.nn.softmax(logits[1:])
        write = _hard_sigmoid(logits[0]) * shares / jnp.max(shares)
        keep = _hard_sigmoid(g["forget"] @ f + g["forget_bias"])
        opened = jax.nn.sigmoid(g["read"] @ f + g["read_bias"] + g["read_state"] @ h)
        key, value, query = self.address(self.slots, f, h, 1)
        mkey, mvalue, mquery = self.address(self.matrix, f, h, heads)
        wa, ea = jnp.minimum(state["wa"] + dt, limit), jnp.minimum(state["ea"] + dt, limit)
        m = jnp.exp(-self.decay_rate * dt) * state["m"]
        bias = -self.age_slope * jnp.log(1 + wa)
        working = _attend(query[0], state["wk"], state["wv"], state["ws"], self.sharpness[1], bias)
        episodic = _attend(query[0], state["ek"], state["ev"], state["es"], self.sharpness[0], 0.0)
        longterm = jnp.einsum("hk,hkv->hv", mquery, m).ravel()
        reads = jnp.concatenate([working * opened[0], longterm * opened[1], episodic * opened[2]])
        kept = keep * m
        error = mvalue - jnp.einsum("hk,hkv->hv", mkey, kept)
        written = kept + write[1] * mkey[:, :, None] * error[:, None, :]
        chosen = observed & (write[2] > jnp.min(state["es"]))
        place = (jnp.arange(len(ea)) == jnp.argmin(state["es"])) & chosen
        memories = {
            **{k: _shift(observed, state[k], v) for k, v in (("wk", key[0]), ("wv", value[0]), ("ws", write[0]))},
            "wa": _shift(observed, wa, 0.0),
            "m": jnp.where(observed, written, m),
            "ek": jnp.where(place[:, None], key, state["ek"]),
            "ev": jnp.where(place[:, None], value, state["ev"]),
            "es": jnp.where(place, write[2], state["es"]),
            "ea": jnp.where(place, 0.0, ea),
        }
        return reads, memories, jnp.concatenate([write, opened, keep, zeta[None]])

    def address(self, w: dict[str, Any], f: Any, h: Any, heads: int) -> tuple[Any, Any, Any]:
        key, value = (w["key"] @ f).reshape(heads, -1), (w["value"] @ f).reshape(heads, -1)
        return _unit(key), value, _unit((w["query"] @ f + w["query_state"] @ h).reshape(heads, -1))


def _array(tensor: Tensor) -> Any:
    return jnp.asarray(tensor.detach().numpy())


def _mix(row: Any, slopes: list[Any]) -> Any:
    return sum(float(weight) * slope for weight, slope in zip(row, slopes, strict=False) if weight != 0)


def _unit(vector: Any) -> Any:
    return vector / jnp.sqrt(jnp.sum(vector**2, axis=-1, keepdims=True) + 1e-12)


def _hard_sigmoid(logit: Any) -> Any:
    return jnp.clip(1.2 * jax.nn.sigmoid(logit) - 0.1, 0.0, 1.0)


def _decayed(z: Any) -> Any:
    series = z * (1 - z * (1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120)))))
    return jnp.where(z < 0.1, series, 1 - jnp.exp(-z))


def _attend(query: Any, keys: Any, values: Any, strengths: Any, sharpness: Any, bias: Any) -> Any:
    strongest = jnp.max(strengths)
    logits = sharpness * (keys @ query) + jnp.log(strengths / jnp.maximum(strongest, 1e-20) + 1e-6) + bias
    return jnp.where(strongest > 0, jax.nn.softmax(logits) @ values, 0.0)


def _shift(observed: Any, window: Any, entry: Any) -> Any:
    shifted = jnp.concatenate([window[1:], jnp.broadcast_to(entry, window[:1].shape)])
    return jnp.where(observed, shifted, window)


def _score(amount: Any, observed: Any, st: Any) -> tuple[Any, Any]:
    mean, variance, seen = st
    counted, distance = observed & (seen > 0), jnp.minimum(amount, 100.0) - mean
    zeta = jnp.clip(distance / jnp.sqrt(variance + 1e-3), -4.0, 4.0)
    moved = jnp.stack([mean + distance / 32, variance + (distance**2 - variance) / 32, seen])
    first = jnp.stack([mean, variance, jnp.ones_like(seen)])
    return jnp.where(counted, zeta, 0.0), jnp.where(counted, moved, jnp.where(observed, first, st))
