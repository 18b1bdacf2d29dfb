// The step on a GPU, from the same headers as on the CPU: one block of threads for each stream.
#include "cell.h"
#include "cuda_team.h"

namespace odestream {

constexpr int THREADS = 128;

__global__ void __launch_bounds__(THREADS) step_kernel(const Cell cell, Call call, int steps) {
    const int row = blockIdx.x;
    call.scratch += static_cast<long>(row) * cell.place.row;
    ODE_ISA::step_tile(ODE_ISA::CudaTeam{}, ODE_ISA::Tile{&cell, &call, row, 1}, steps);
}

// Every pointer in cell and call is the device's; scratch holds `batch` rows.
cudaError_t launch_step(const Cell& cell, const Call& call, int steps, cudaStream_t stream) {
    step_kernel<<<call.batch, THREADS, 0, stream>>>(cell, call, steps);
    return cudaGetLastError();
}

}  // namespace odestream
