// Half precision by arithmetic, rounding to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
    uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
    const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
    float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    if (exponent == 31) size = fraction == 0 ? INFINITY : NAN;
    return value.bits & 0x8000 ? -size : size;
}

inline __half __float2half_rn(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    const long units = std::lrint(std::ldexp(size, 10 - exponent));  // of 2^(exponent − 10)
    return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}
