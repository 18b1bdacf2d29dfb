// Starts the step, or one part of it, on a GPU and on the caller's stream. Every pointer is the device's, and so are
// those inside a Cell; nothing is allocated, nothing waits, so that each launch can be captured in a graph.
#pragma once

#include "model.h"

#include <cuda_runtime_api.h>

namespace odestream {

// Type of the weights in the cell's matrices; all else is float.
enum class Precision { FP32, FP16, BF16 };

// processors: multiprocessors; block_memory: bytes of shared memory that a block may ask for.
struct Device {
    int processors, block_memory;
};

// CUDA's error if the device's numbers cannot be had.
cudaError_t describe(int device, Device& found);

// Success where this library holds code for the device.
cudaError_t usable(int device);

// Floats that `scratch` of a call below must hold; 0 where blocks have room for it themselves, and it may be null.
size_t step_scratch(const Cell& cell, int batch, const Device& device);
size_t flow_scratch(const Cell& cell, int batch, const Device& device);
size_t memory_scratch(const Cell& cell, int batch, const Device& device);

// finite [batch]: 1 where a stream's new state holds neither NaN nor infinity, else 0.
cudaError_t launch_step(const Cell& cell, const Call& call, int steps, float* finite, Precision precision,
                        const Device& device, cudaStream_t stream);

// `odestream.models.flow.ode_flow`: moved [batch, D] and err [batch] from h, u [batch, D], phase [batch, 2K] and dt
// [batch]. Of the cell it needs sizes `hidden`, `field`, `frequencies`, members h = 0 and u = D, places, method,
// tolerances, decay, frequencies and the field's four matrices.
struct FlowCall {
    const float *h, *u, *phase, *dt;
    float *moved, *err, *scratch;
    int batch;
};

cudaError_t launch_flow(const Cell& cell, const FlowCall& call, int steps, Precision precision, const Device& device,
                        cudaStream_t stream);

constexpr int MOST_MEMORIES = 9;

// `odestream.models.hybrid.hybrid_memory`: reads [batch, R], gates [batch, G] and new memories from features [batch, f],
// h [batch, D], observed, surprise and dt [batch]. old, fresh: the memories' members [batch, …] in the order of the state.
// Of the cell it needs sizes, members (as in a state), parts, places, the scalars of gates and memories, and the matrices
// `features`, `state`, `gate_inner` and `gate_outer`; the content's rows of `features` may be zero.
struct MemoryCall {
    const float *features, *h, *observed, *surprise, *dt, *old[MOST_MEMORIES];
    float *reads, *gates, *fresh[MOST_MEMORIES], *scratch;
    int batch;
};

cudaError_t launch_memory(const Cell& cell, const MemoryCall& call, Precision precision, const Device& device,
                          cudaStream_t stream);

// Bytes of a matrix in the layout of Matrix::data.
size_t packed_bytes(int rows, int columns, Precision precision);

// Pack weight [rows, columns], rows one after another in floats, into `to`, a matrix of as many columns and at least
// `first + rows` rows. What no piece fills must be zero.
cudaError_t launch_pack(const float* weight, int rows, int columns, int first, void* to, Precision precision,
                        cudaStream_t stream);

}  // namespace odestream
