// exp, log, tanh and what is made of them, for whole vectors: no tables, no branches, no calls, so that a loop over them
// becomes vector code. NaN stays NaN. Errors against float64, over all arguments (checked in tests/runtime):
//
//     exp_of      2 units in the last place on [-87, 88], beyond which it stays at the ends' values
//     log_of      2 units
//     tanh_of     5 units, and at most 3e-7
//     sigmoid     4 units, silu too; hard_sigmoid 2e-7
//     decayed     5 units
//     sine_cosine 6e-8, up to angles of 1e9
//
// Coefficients: exp from a minimax fit of degree 6 (Remez, relative error 3e-9, the first two held at 1), log from Cephes
// (Moshier 1989, logf), tanh from Eigen's rational function of degrees 13 and 6, sine and cosine from Cephes (sin, cos in
// double precision). The reduction of exp is that of Cephes.
#pragma once

#include "platform.h"

#include <cstring>
#include <math.h>

namespace odestream {
namespace ODE_ISA {

ODE_INLINE float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

ODE_INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Comparisons stand so that NaN passes through.
ODE_INLINE float at_most(float x, float high) { return x > high ? high : x; }
ODE_INLINE float at_least(float x, float low) { return x < low ? low : x; }
ODE_INLINE float clamp(float x, float low, float high) { return at_most(at_least(x, low), high); }
ODE_INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }
ODE_INLINE float magnitude(float x) { return x < 0.0f ? -x : x; }

ODE_INLINE float exp_of(float x) {
    constexpr float SHIFT = 12583039.0f;  // 1.5·2^23 + 127: adding it rounds to an integer, and low bits hold n + 127
    x = clamp(x, -87.0f, 88.0f);
    const float shifted = x * 1.44269504088896341f + SHIFT;
    const float n = shifted - SHIFT;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.3814540580e-3f;
    p = p * r + 8.3687454462e-3f;
    p = p * r + 4.1668388993e-2f;
    p = p * r + 1.6666521132e-1f;
    p = p * r + 4.9999994040e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * from_bits(to_bits(shifted) << 23);
}

// For x from the smallest normal number; −∞ at 0 and below the normal numbers, NaN for negative x.
ODE_INLINE float log_of(float x) {
    constexpr uint32_t ROOT_HALF = 0x3f3504f3u;  // sqrt(1/2): fractions lie in sqrt(1/2) … sqrt(2)
    const uint32_t moved = to_bits(x) - ROOT_HALF;
    const float e = static_cast<float>(static_cast<int32_t>(moved) >> 23);
    const float r = from_bits((moved & 0x007fffffu) + ROOT_HALF) - 1.0f;
    const float z = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    const float result = (r + (p * r * z + e * -2.12194440e-4f - 0.5f * z)) + e * 0.693359375f;
    const float infinity = from_bits(0x7f800000u), nan = from_bits(0x7fc00000u);
    const float inside = x < infinity ? result : x;  // NaN and infinity as they came
    const float from_zero = x < 1.17549435e-38f ? -infinity : inside;
    return x < 0.0f ? nan : from_zero;
}

ODE_INLINE float tanh_of(float x) {
    x = clamp(x, -7.90531110763549805f, 7.90531110763549805f);
    const float z = x * x;
    float p = -2.76076847742355e-16f;
    p = p * z + 2.00018790482477e-13f;
    p = p * z - 8.60467152213735e-11f;
    p = p * z + 5.12229709037114e-08f;
    p = p * z + 1.48572235717979e-05f;
    p = p * z + 6.37261928875436e-04f;
    p = p * z + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * z + 1.18534705686654e-04f;
    q = q * z + 2.26843463243900e-03f;
    q = q * z + 4.89352518554385e-03f;
    return x * p / q;
}

// At least 6e-39, never zero: exp_of stays finite.
ODE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

ODE_INLINE float silu(float x) { return x / (1.0f + exp_of(-x)); }

// clip(1.2·σ(a) − 0.1, 0, 1): exactly zero and exactly one are within reach.
ODE_INLINE float hard_sigmoid(float logit) { return clamp(1.2f * sigmoid(logit) - 0.1f, 0.0f, 1.0f); }

// 1 − exp(−z) for z ≥ 0, with a polynomial below 0.1 where the difference would lose its digits.
ODE_INLINE float decayed(float z) {
    const float series =
        z * (1.0f - z * (1.0f / 2 - z * (1.0f / 6 - z * (1.0f / 24 - z * (1.0f / 120)))));
    return z < 0.1f ? series : 1.0f - exp_of(-z);
}

// In double: the distance to a multiple of π/2 loses the digits that a large angle does not have to spare.
ODE_INLINE void sine_cosine(float angle, float& sine, float& cosine) {
    const double x = angle;
    const double n = ::rint(x * 0.63661977236758134308);
    const double r = (x - n * 1.57079632679489655800) - n * 6.12323399573676603587e-17;
    const double z = r * r;
    double s = -2.50507477628578072866e-8;
    s = s * z + 2.75573136213857245213e-6;
    s = s * z - 1.98412698295895385996e-4;
    s = s * z + 8.33333333332211858878e-3;
    s = s * z - 1.66666666666666307295e-1;
    s = r + r * z * s;
    double c = 2.08757008419747316778e-9;
    c = c * z - 2.75573141792967388112e-7;
    c = c * z + 2.48015872888517045348e-5;
    c = c * z - 1.38888888888730564116e-3;
    c = c * z + 4.16666666666665929218e-2;
    c = 1.0 - 0.5 * z + z * z * c;
    const double quarter = n - 4.0 * ::floor(n * 0.25);  // 0, 1, 2 or 3 quarter turns
    const bool odd = quarter == 1.0 || quarter == 3.0;
    const double first = odd ? c : s, second = odd ? s : c;
    sine = static_cast<float>(quarter >= 2.0 ? -first : first);
    cosine = static_cast<float>(quarter == 1.0 || quarter == 2.0 ? -second : second);
}

}  // namespace ODE_ISA
}  // namespace odestream
