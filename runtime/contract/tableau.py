"""Runge-Kutta methods as data: one frozen Butcher tableau each, checked when it is made.

Convention, for `dh/ds = f(s, h)` and a step from `(s, h)` of size `δ`:

    k_i = f(s + c_i·δ, h + δ·Σ_{j<i} a_ij·k_j)          i = 0 … stages−1
    h'  = h + δ·Σ_i b_i·k_i
    e   = δ·Σ_i error_i·k_i                              embedded estimate of the local error

`error` is `b − b̂`, with `b̂` the weights of the embedded method of order `error_order`. Where the method is
*first same as last* (`fsal`), the last stage is `f(s + δ, h')` and serves as the next step's first, so N steps
cost `(stages − 1)·N + 1` evaluations. Example, Heun's method: `c = (0, 1)`, `a = ((), (1,))`, `b = (½, ½)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from odestream.runtime.errors import InputError


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method.

    name: the method's usual name.
    order: order of `b`; error_order: order of the embedded weights, 0 where there are none.
    a, b, c, error: the coefficients of the module's convention, exact fractions.
    real_bound: largest z for which |R(−z)| ≤ 1, with R the stability function (real-axis bound).
    source: where the coefficients were published.

    Raises InputError where row sums, Σb = 1, Σerror = 0, the order conditions up to third order, the real-axis
    bound or the FSAL layout do not hold.
    """

    name: str
    order: int
    error_order: int
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    c: tuple[Fraction, ...]
    error: tuple[Fraction, ...] | None
    real_bound: float
    source: str

    def __post_init__(self) -> None:
        for problem in (*self._shape_problems(), *self._order_problems(), *self._bound_problems()):
            raise InputError(f"tableau {self.name}: {problem}; correct its coefficients")

    @property
    def stages(self) -> int:
        """Number of stages, the reused one included."""
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the next step's first."""
        return self.stages > 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0

    def evaluations(self, steps: int) -> int:
        """Field evaluations that `steps` steps cost."""
        return (self.stages - 1) * steps + 1 if self.fsal else self.stages * steps

    def stability(self, z: float) -> float:
        """The stability function R(z) = 1 + z·bᵀ(I − zA)⁻¹1, for real z."""
        stages: list[float] = []
        for row in self.a:
            stages.append(1.0 + z * sum(float(a) * k for a, k in zip(row, stages, strict=True)))
        return 1.0 + z * sum(float(b) * k for b, k in zip(self.b, stages, strict=True))

    def _shape_problems(self) -> list[str]:
        problems = []
        lengths = [len(row) for row in self.a]
        if lengths != list(range(self.stages)) or len(self.c) != self.stages:
            problems.append(f"rows of lengths {lengths} do not make {self.stages} explicit stages")
        if any(sum(row) != c for row, c in zip(self.a, self.c, strict=True)):
            problems.append("a row of a does not sum to its c")
        if sum(self.b) != 1:
            problems.append("b does not sum to 1")
        if self.error is not None and (len(self.error) != self.stages or sum(self.error) != 0):
            problems.append("error weights do not sum to 0")
        if (self.error is None) != (self.error_order == 0):
            problems.append("error weights and error_order must come together")
        return problems

    def _order_problems(self) -> list[str]:
        embedded = None if self.error is None else tuple(b - e for b, e in zip(self.b, self.error, strict=True))
        problems = [f"b is not of order {self.order}"] if not self._has_order(self.b, self.order) else []
        if embedded is not None and not self._has_order(embedded, self.error_order):
            problems.append(f"b − error is not of order {self.error_order}")
        return problems

    def _has_order(self, b: tuple[Fraction, ...], order: int) -> bool:
        """Order conditions up to three (Hairer, Nørsett, Wanner, Solving ODEs I, table II.2.1)."""
        c = self.c
        ac = [sum((x * y for x, y in zip(row, c, strict=False)), Fraction(0)) for row in self.a]
        two = sum(x * y for x, y in zip(b, c, strict=True)) == Fraction(1, 2)
        three = sum(x * y * y for x, y in zip(b, c, strict=True)) == Fraction(1, 3)
        tree = sum(x * y for x, y in zip(b, ac, strict=True)) == Fraction(1, 6)
        return (order < 2 or two) and (order < 3 or (three and tree))

    def _bound_problems(self) -> list[str]:
        inside = all(abs(self.stability(-self.real_bound * i / 64)) <= 1 + 1e-9 for i in range(65))
        tight = abs(self.stability(-self.real_bound * 1.02)) > 1
        return [] if inside and tight else [f"{self.real_bound} is not its real-axis stability bound"]


def _f(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(part) for part in text.split())


def _method(
    name: str, order: int, a: str, b: str, bound: float, source: str, embedded: str = "", p: int = 0
) -> ButcherTableau:
    rows = tuple(_f(row) for row in a.split(";"))
    weights = _f(b)
    error = tuple(x - y for x, y in zip(weights, _f(embedded), strict=True)) if embedded else None
    return ButcherTableau(
        name, order, p, rows, weights, tuple(sum(row, Fraction(0)) for row in rows), error, bound, source
    )


_HNW = "Hairer, Nørsett, Wanner: Solving Ordinary Differential Equations I (1993)"
_RK3_BOUND = 2.512745
_RK4_BOUND = 2.785293

TABLEAUS = MappingProxyType(
    {
        t.name: t
        for t in (
            _method("euler", 1, "", "1", 2.0, _HNW),
            _method("midpoint", 2, ";1/2", "0 1", 2.0, _HNW),
            _method("heun", 2, ";1", "1/2 1/2", 2.0, _HNW),
            _method("rk4", 4, ";1/2;0 1/2;0 0 1", "1/6 1/3 1/3 1/6", _RK4_BOUND, _HNW),
            _method("heun21", 2, ";1", "1/2 1/2", 2.0, _HNW + ", Heun with embedded Euler", "1 0", 1),
            _method(
                "bosh32",
                3,
                ";1/2;0 3/4;2/9 1/3 4/9",
                "2/9 1/3 4/9 0",
                _RK3_BOUND,
                "Bogacki, Shampine: A 3(2) pair of Runge-Kutta formulas (1989)",
                "7/24 1/4 1/3 1/8",
                2,
            ),
            _method(
                "dopri54",
                5,
                ";1/5;3/40 9/40;44/45 -56/15 32/9;19372/6561 -25360/2187 64448/6561 -212/729;"
                "9017/3168 -355/33 46732/5247 49/176 -5103/18656;35/384 0 500/1113 125/192 -2187/6784 11/84",
                "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
                3.3065,
                "Dormand, Prince: A family of embedded Runge-Kutta formulae (1980)",
                "5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
                4,
            ),
        )
    }
)


def tableau(name: str) -> ButcherTableau:
    """The method called `name`; InputError lists the known ones."""
    try:
        return TABLEAUS[name]
    except KeyError:
        known = ", ".join(TABLEAUS)
        raise InputError(f"unknown solver method {name!r}; choose one of {known}") from None


def longest_gap(steps: int, stiffness: float, method: str) -> float:
    """Longest gap, in model units, that `steps` solver steps cross inside the stability bound; infinite without one.

    stiffness: bound on the spectral radius of the field's Jacobian (λ_max + 1.1·‖A_h‖·‖B‖), per model unit. The rule
    is `gap / steps · stiffness ≤ real_bound`.
    """
    return steps * tableau(method).real_bound / stiffness if stiffness > 0 else math.inf


def calls_needed(gap: float, steps: int, stiffness: float, method: str) -> int:
    """Into how many equal calls of `steps` solver steps a gap must be split for stability; see `longest_gap`."""
    return max(1, math.ceil(gap / longest_gap(steps, stiffness, method) - 1e-9))
