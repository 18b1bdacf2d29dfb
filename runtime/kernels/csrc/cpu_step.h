// The steps that a CPU library holds; `choose_step` in dispatch.cpp picks the one for this machine.
#pragma once

#include "model.h"

namespace odestream {

using Step = void (*)(const Cell& cell, const Call& call, int steps);

#if defined(__x86_64__)
namespace x86_64_v3 {
void step(const Cell& cell, const Call& call, int steps);
}
namespace x86_64_v4 {
void step(const Cell& cell, const Call& call, int steps);
}
#else
namespace portable {
void step(const Cell& cell, const Call& call, int steps);
}
#endif

// A step and the instruction set that it was compiled for; step is null where this machine has none of them.
struct Chosen {
    Step step;
    const char* name;
};

Chosen choose_step();

}  // namespace odestream
