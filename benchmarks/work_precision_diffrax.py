"""The field and its flow in JAX, solved by diffrax under jit; needs the extra `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from torch import Tensor


def array_of(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Tensors as JAX arrays of the same precision, None kept."""
    return tuple(None if t is None else jnp.asarray(t.detach().numpy()) for t in tensors)


def derivative(s: Any, h: Any, given: tuple[Any, ...]) -> Any:
    """dh/ds = dt·f(s, h) of one gap, s from 0 to 1.

    given: (fixed [F], phase [2K] or None, dt [1], weights as `FieldWeights`), fixed being what of A·[h, u, φ] depends
    on u alone.
    """
    fixed, phase, dt, (decay, hidden, _, _, output, time, frequencies) = given
    if phase is not None and time is not None:
        sine, cosine = jnp.split(phase, 2)
        angle = s * dt * frequencies
        turned_s, turned_c = jnp.sin(angle), jnp.cos(angle)
        moved = jnp.concatenate([sine * turned_c + cosine * turned_s, cosine * turned_c - sine * turned_s])
        fixed = fixed + time @ moved
    return dt * (jnp.tanh(output @ jax.nn.silu(hidden @ h + fixed)) - decay * h)


@cache
def solver(name: str, vectorised: bool, max_steps: int) -> Callable[..., tuple[Any, Any]]:
    """A jitted (gap, weights, rtol, atol) -> (h', solver steps, rejected ones too) with diffrax's solver `name`.

    gap: (h, fixed, phase, dt) of one gap, or of many where `vectorised`; each row then has a step size of its own.
    h' is NaN where `max_steps` do not suffice.
    """
    method = getattr(diffrax, name)()

    def solve(gap: tuple[Any, ...], weights: tuple[Any, ...], rtol: Any, atol: Any) -> tuple[Any, Any]:
        h, fixed, phase, dt = gap
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(derivative),
            method,
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=h,
            args=(fixed, phase, dt, weights),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=max_steps,
            throw=False,
        )
        after = solution.ys[0]
        good = solution.result == diffrax.RESULTS.successful
        return jnp.where(good, after, jnp.nan), solution.stats["num_steps"]

    mapped = jax.vmap(solve, in_axes=(0, None, None, None)) if vectorised else solve
    compiled: Callable[..., tuple[Any, Any]] = jax.jit(mapped)
    return compiled


def derivative_in_float64(gap: Sequence[Tensor | None], weights: Sequence[Tensor | None], s: float) -> Any:
    """`derivative` at s for one gap (h, fixed, phase, dt), all float64, as a numpy array."""
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        h, *rest = array_of(gap)
        return jax.device_get(derivative(s, h, (*rest, array_of(weights))))
