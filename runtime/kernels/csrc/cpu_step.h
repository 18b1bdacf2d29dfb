// The steps that a CPU library holds; `choose_step` in dispatch.cpp picks the one for this machine.
#pragma once

#include "model.h"

namespace odestream {

using Step = void (*)(const Cell& cell, const Call& call, int steps);
using Finite = bool (*)(const float* values, long count);

#if defined(__x86_64__)
namespace x86_64_v3 {
void step(const Cell& cell, const Call& call, int steps);
bool finite(const float* values, long count);
}
namespace x86_64_v4 {
void step(const Cell& cell, const Call& call, int steps);
bool finite(const float* values, long count);
}
#else
namespace portable {
void step(const Cell& cell, const Call& call, int steps);
bool finite(const float* values, long count);
}
#endif

// The instruction set of this machine and the functions compiled for it, which are null where the library has none.
struct Chosen {
    Step step;
    Finite finite;
    const char* name;
};

Chosen choose_step();

}  // namespace odestream
