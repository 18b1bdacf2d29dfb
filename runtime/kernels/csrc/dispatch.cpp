#include "cpu_step.h"

#include <cstdlib>
#include <cstring>

namespace odestream {

// ODESTREAM_ISA=x86_64_v3 or x86_64 holds a machine to a lower set, for tests and comparisons.
Chosen choose_step() {
#if defined(__x86_64__)
    const char* asked = std::getenv("ODESTREAM_ISA");
    const auto allowed = [&](const char* name) { return asked == nullptr || std::strcmp(asked, name) >= 0; };
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512cd");
    if (v4 && allowed("x86_64_v4")) return {x86_64_v4::step, x86_64_v4::finite, "x86_64_v4"};
    if (v3 && allowed("x86_64_v3")) return {x86_64_v3::step, x86_64_v3::finite, "x86_64_v3"};
    return {nullptr, nullptr, "x86_64"};
#else
    return {portable::step, portable::finite, "portable"};
#endif
}

}  // namespace odestream
