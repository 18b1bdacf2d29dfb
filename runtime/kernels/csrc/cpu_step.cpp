// The step for one instruction set: compiled once for each, with ODE_ISA naming it.
#include "cell.h"
#include "host_team.h"

#include "cpu_step.h"

namespace odestream {
namespace ODE_ISA {

void step(const Cell& cell, const Call& call, int steps) {
    for (int first = 0; first < call.batch; first += TILE) {
        const int left = call.batch - first;
        step_tile(HostTeam{}, Tile{&cell, &call, first, left < TILE ? left : TILE}, steps);
    }
}

}  // namespace ODE_ISA
}  // namespace odestream
