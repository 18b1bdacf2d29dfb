// The step for one instruction set: compiled once for each, with ODE_ISA naming it.
#include "cell.h"
#include "host_team.h"

#include "cpu_step.h"

namespace odestream {
namespace ODE_ISA {

void step(const Cell& cell, const Call& call, int steps) {
    for (int first = 0; first < call.batch; first += TILE) {
        const int left = call.batch - first;
        step_tile(HostTeam{}, tile_of(cell, call, first, left < TILE ? left : TILE, call.scratch), steps);
    }
}

// Whether none of the values is NaN or infinite: the largest exponent says so.
bool finite(const float* values, long count) {
    constexpr uint32_t EXPONENT = 0x7f800000u;
    uint32_t found = 0;
    for (long i = 0; i < count; ++i) found |= (to_bits(values[i]) & EXPONENT) == EXPONENT;
    return found == 0;
}

}  // namespace ODE_ISA
}  // namespace odestream
