"""How far a backend may be from the stored answers: one table, each entry with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from odestream.runtime.errors import CompatError


@dataclass(frozen=True)
class Tolerance:
    """limit: largest |difference| over the scale. floor: the least scale (else largest |expected|). why: the reason."""

    limit: float
    floor: float
    why: str


@dataclass(frozen=True)
class Tolerances:
    """values: for y, gates and every state member. err: for the solver's error estimate."""

    values: Tolerance
    err: Tolerance

    def of(self, tensor: str) -> Tolerance:
        """The tolerance of the output or state member called `tensor`."""
        return self.err if tensor == "err" else self.values


_NATIVE_CUDA = Tolerances(
    values=Tolerance(
        1e-5,
        1e-3,
        "native's arithmetic, sums in the order of a GPU's threads; half weights are widened as they are read, so that "
        "precision does not count: the answers come from the same rounded weights",
    ),
    err=Tolerance(1e-3, 1.0, "as for onnxruntime: rounding of the stages, divided by the solver's tolerance"),
)

TOLERANCES = MappingProxyType(
    {
        **{(precision, "native-cuda"): _NATIVE_CUDA for precision in ("fp32", "fp16", "bf16")},
        ("fp32", "onnxruntime"): Tolerances(
            values=Tolerance(
                1e-5,
                1e-3,
                "float32 rounds to 6e-8; other summation orders and other tanh and exp add a few of these a call, and "
                "leak and gates forget them, so chains of 1,000 steps stay near 3e-7",
            ),
            err=Tolerance(
                1e-3,
                1.0,
                "err is a difference of nearly equal stage sums, divided by the solver's tolerance (1e-3 or so of the "
                "state): rounding of 6e-8 becomes 6e-5 of a tolerance a stage; so it is compared in units of the "
                "tolerance, where 1.0 decides a flag",
            ),
        ),
        ("fp32", "native"): Tolerances(
            values=Tolerance(
                1e-5,
                1e-3,
                "the same arithmetic in float32 with sums in another order and fused products; exp, log and tanh are "
                "polynomials that err by at most five units in the last place",
            ),
            err=Tolerance(
                1e-3,
                1.0,
                "as for onnxruntime: rounding of the stages, divided by the solver's tolerance",
            ),
        ),
    }
)


def tolerances(precision: str, backend: str) -> Tolerances:
    """The entry for a bundle's dtype and a backend's name; CompatError where there is none."""
    try:
        return TOLERANCES[precision, backend]
    except KeyError:
        known = ", ".join(f"{p} on {b}" for p, b in TOLERANCES)
        raise CompatError(
            f"no tolerance is known for {precision} on {backend}, only for {known}; export the bundle with one of these"
        ) from None
