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


_ERR_FLOOR = 1.0  # err is compared in units of the tolerance, where 1.0 decides a flag
_ROUNDED_ERR = (
    "err is a difference of nearly equal stage sums, divided by the solver's tolerance (1e-3 or so of the state), so "
    "the rounding of a slope comes out several hundred times as large; the safety factor was calibrated with it"
)
_FLOAT_ERR = Tolerance(
    1e-3, _ERR_FLOOR, "as for onnxruntime: rounding of the stages, divided by the solver's tolerance"
)
_WIDENED = Tolerances(
    Tolerance(1e-5, 1e-3, "half matrices are widened when they are loaded, and all arithmetic is that of fp32"),
    _FLOAT_ERR,
)
_FP16 = Tolerances(
    Tolerance(
        2e-2,
        1e-3,
        "operands and results of products are rounded to 5e-4; two engines round sums of other orders apart, tenfold "
        "where states carry that on over the 20 steps that stored chains last; and the stored answers are not rounded",
    ),
    Tolerance(0.1, _ERR_FLOOR, _ROUNDED_ERR),
)
_BF16 = Tolerances(
    Tolerance(0.15, 1e-3, "as for fp16, with a rounding of 4e-3"), Tolerance(0.8, _ERR_FLOOR, _ROUNDED_ERR)
)
_GPU = Tolerances(
    Tolerance(
        1e-4,
        1e-3,
        "float32 without TF32; a GPU's tanh, exp and sums of other orders err by a few units in the last place, which "
        "chains of 1,000 steps may carry on tenfold",
    ),
    Tolerance(1e-2, _ERR_FLOOR, "as for onnxruntime, with the larger errors of a GPU's tanh"),
)

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
                _ERR_FLOOR,
                "err is a difference of nearly equal stage sums, divided by the solver's tolerance (1e-3 or so of the "
                "state): rounding of 6e-8 becomes 6e-5 of a tolerance a stage",
            ),
        ),
        ("fp32", "native"): Tolerances(
            values=Tolerance(
                1e-5,
                1e-3,
                "the same arithmetic in float32 with sums in another order and fused products; exp, log and tanh are "
                "polynomials that err by at most five units in the last place",
            ),
            err=_FLOAT_ERR,
        ),
        ("fp16", "native"): _WIDENED,
        ("bf16", "native"): _WIDENED,
        ("fp16", "onnxruntime"): _FP16,  # it widens on x86-64, where fp32's limits hold, and rounds on some ARM cores
        ("fp16", "torch in half precision"): _FP16,
        ("bf16", "torch in half precision"): _BF16,
        ("fp32", "tensorrt"): _GPU,
        ("fp16", "tensorrt"): _FP16,
        ("bf16", "tensorrt"): _BF16,
        ("fp32", "onnxruntime-cuda"): _GPU,
        ("fp16", "onnxruntime-cuda"): _FP16,
        ("bf16", "onnxruntime-cuda"): _BF16,
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
