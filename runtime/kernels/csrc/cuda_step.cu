// Kernels around the headers that the CPU runs too. A block takes one stream, or where there are many a few, whose
// products then share the weights that are loaded.
#include "cell.h"
#include "cuda_launch.h"
#include "cuda_team.h"

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <type_traits>

namespace odestream {

using namespace ODE_ISA;

namespace {

constexpr int MOST_THREADS = 512;
constexpr int TOGETHER = 4;  // streams of a block where there are many
constexpr int WITHOUT_ASKING = 48 * 1024;

// Where a block keeps its rows' scratch and, for a step of one stream, the state that it comes with.
enum Room { FAR, SCRATCH, SCRATCH_AND_STATE };

struct Shape {
    int rows, threads, blocks, bytes;
    Room room;
};

// A warp has eight outputs of a product to give; a stream of its own is as fast as its widest products are parallel.
int threads_for(const Cell& cell) {
    const int widest = cell.size.field > cell.size.hidden ? cell.size.field : cell.size.hidden;
    const int threads = padded(widest) / 8 * WARP;
    return threads < 128 ? 128 : threads > MOST_THREADS ? MOST_THREADS : threads;
}

Shape shape_for(const Cell& cell, int batch, const Device& device, int row, int state) {
    const int bytes = sizeof(float);
    Shape shape{1, threads_for(cell), batch, (row + state) * bytes, SCRATCH_AND_STATE};
    if (batch > 2 * device.processors && TOGETHER * row * bytes <= device.block_memory) {
        return {TOGETHER, TOGETHER * WARP, (batch + TOGETHER - 1) / TOGETHER, TOGETHER * row * bytes, SCRATCH};
    }
    if (shape.bytes > device.block_memory) shape.bytes = row * bytes, shape.room = SCRATCH;
    if (shape.bytes > device.block_memory) shape.bytes = 0, shape.room = FAR;
    return shape;
}

// Floats of a row and its two states in a call of a part of the step.
int flow_row(const Cell& cell) { return cell.place.row + padded(2 * cell.size.hidden); }
int memory_row(const Cell& cell) { return cell.place.row + 2 * padded(cell.member.total); }

size_t scratch_of(const Shape& shape, int batch, int row) {
    return shape.room == FAR ? static_cast<size_t>(batch) * row : 0;
}

__device__ inline void fetch(const float* from, int n, float* to) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) __pipeline_memcpy_async(to + i, from + i, sizeof(float));
}

// Begin to copy the state of a block's only stream to `to`; h and u are there at the end.
__device__ inline void begin_state(const Tile& tile, float* to) {
    each_member(*tile.cell, [&](int member, int size) {
        fetch(tile.member(member, size, 0), size, to + member);
        if (member == tile.cell->member.u) __pipeline_commit();
    });
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
}

__device__ inline void end_state() {
    __pipeline_wait_prior(0);
    __syncthreads();
}

__device__ inline bool odd(float value) { return !(magnitude(value) < from_bits(0x7f800000u)); }

template <class Team>
__device__ bool finite_row(const Team& team, const Tile& tile, int r) {
    if (tile.fresh.batch == 1) {
        const float* all = tile.fresh.data;
        return !team.any(tile.cell->member.total, [=](int i) { return odd(all[i]); });
    }
    bool found = false;
    each_member(*tile.cell, [&](int member, int size) {
        const float* values = tile.next(member, size, r);
        found |= team.any(size, [=](int i) { return odd(values[i]); });
    });
    return !found;
}

template <class Weight, int ROWS>
__global__ void __launch_bounds__(MOST_THREADS)
    step_kernel(const __grid_constant__ Cell cell, const __grid_constant__ Call call, int steps, float* finite, Room room) {
    const CudaTeam<Weight, ROWS> team;
    const int first = blockIdx.x * ROWS, rows = min(ROWS, call.batch - first);
    float* scratch = room == FAR ? call.scratch + static_cast<long>(first) * cell.place.row : block_memory();
    Tile tile = tile_of(cell, call, first, rows, scratch);
    if (room == SCRATCH_AND_STATE) {
        float* const state = scratch + cell.place.row;
        begin_state(tile, state);
        tile.old = {state, 1, 0};
    }
    ode_flow(team, tile, steps);
    if (room == SCRATCH_AND_STATE) end_state();
    step_after_flow(team, tile);
    team.rows(rows, [&](const auto& own, int r) { own.set(finite + first + r, finite_row(own, tile, r) ? 1.0f : 0.0f); });
}

// A tile whose own states, each of `rows` streams, lie elsewhere than those of the call.
__device__ inline Tile tile_aside(const Cell& cell, const Call& call, int rows, float* scratch, float* old, float* fresh) {
    return {&cell, &call, 0, rows, scratch, {old, rows, 0}, {fresh, rows, 0}};
}

template <class Weight, int ROWS>
__global__ void __launch_bounds__(MOST_THREADS)
    flow_kernel(const __grid_constant__ Cell cell, const __grid_constant__ FlowCall call, int steps, int row, Room room) {
    const CudaTeam<Weight, ROWS> team;
    const RowTeam<BlockThreads> all;
    const int first = blockIdx.x * ROWS, rows = min(ROWS, call.batch - first), width = cell.size.hidden;
    float* scratch = room == FAR ? call.scratch + static_cast<long>(first) * row : block_memory();
    Call inner{};
    inner.dt = call.dt + first, inner.phase = call.phase + static_cast<long>(first) * 2 * cell.size.frequencies;
    float* const state = scratch + static_cast<long>(rows) * cell.place.row;
    const Tile tile = tile_aside(cell, inner, rows, scratch, state, nullptr);
    const long begin = static_cast<long>(first) * width;
    all.copy(rows * width, call.h + begin, state + cell.member.h * rows);
    all.copy(rows * width, call.u + begin, state + cell.member.u * rows);
    ode_flow(team, tile, steps);
    team.rows(rows, [&](const auto& own, int r) {
        own.copy(width, tile.at(cell.place.h, r), call.moved + begin + r * width);
        own.set(call.err + first + r, *tile.fact(ERR, r));
    });
}

template <class Weight, int ROWS>
__global__ void __launch_bounds__(MOST_THREADS)
    memory_kernel(const __grid_constant__ Cell cell, const __grid_constant__ MemoryCall call, int row, Room room) {
    const CudaTeam<Weight, ROWS> team;
    const RowTeam<BlockThreads> all;
    const Sizes& z = cell.size;
    const int first = blockIdx.x * ROWS, rows = min(ROWS, call.batch - first);
    float* scratch = room == FAR ? call.scratch + static_cast<long>(first) * row : block_memory();
    Call inner{};
    inner.dt = call.dt + first, inner.gates = call.gates + static_cast<long>(first) * z.gates;
    float* const old = scratch + static_cast<long>(rows) * cell.place.row;
    float* const fresh = old + static_cast<long>(rows) * padded(cell.member.total);
    const Tile tile = tile_aside(cell, inner, rows, scratch, old, fresh);
    int which = 0;
    each_memory(cell, [&](int member, int size) {
        const float* from = call.old[which++] + static_cast<long>(first) * size;
        all.copy(rows * size, from, old + member * rows);
    });
    team.rows(rows, [&](const auto& own, int r) {
        own.copy(z.features, call.features + static_cast<long>(first + r) * z.features, tile.at(cell.place.features, r));
        own.copy(z.hidden, call.h + static_cast<long>(first + r) * z.hidden, tile.at(cell.place.h, r));
        own.set(tile.fact(OBSERVED, r), call.observed[first + r]);
        own.set(tile.fact(ZETA, r), call.surprise[first + r]);
    });
    hybrid_memory(team, tile);
    team.rows(rows, [&](const auto& own, int r) {
        const float* reads = tile.at(cell.place.updating, r) + z.hidden;
        own.copy(z.reads, reads, call.reads + static_cast<long>(first + r) * z.reads);
    });
    which = 0;
    each_memory(cell, [&](int member, int size) {
        float* to = call.fresh[which++] + static_cast<long>(first) * size;
        all.copy(rows * size, fresh + member * rows, to);
    });
}

__device__ inline void convert(float value, float& to) { to = value; }
__device__ inline void convert(float value, __half& to) { to = __float2half_rn(value); }
__device__ inline void convert(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

template <class Weight>
__global__ void pack_kernel(const float* weight, int rows, int columns, int first, Weight* to) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = first + i / columns, column = i % columns;
    if (i >= rows * columns) return;
    convert(weight[i], to[(static_cast<long>(row / LANES) * columns + column) * LANES + row % LANES]);
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream,
                   const std::common_type_t<Parameters>&... arguments) {
    if (shape.bytes > WITHOUT_ASKING) {
        const cudaError_t status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.bytes);
        if (status != cudaSuccess) return status;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(shape.blocks), config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.bytes, config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// with(Weight{}) for the type that `precision` names.
template <class F>
cudaError_t of_type(Precision precision, F with) {
    switch (precision) {
        case Precision::FP32: return with(float{});
        case Precision::FP16: return with(__half{});
        case Precision::BF16: return with(__nv_bfloat16{});
    }
    return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t describe(int device, Device& found) {
    const cudaError_t status = cudaDeviceGetAttribute(&found.processors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    return cudaDeviceGetAttribute(&found.block_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

cudaError_t usable(int device) {
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) return status;
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, step_kernel<float, 1>);
}

size_t step_scratch(const Cell& cell, int batch, const Device& device) {
    return scratch_of(shape_for(cell, batch, device, cell.place.row, cell.member.total), batch, cell.place.row);
}

size_t flow_scratch(const Cell& cell, int batch, const Device& device) {
    return scratch_of(shape_for(cell, batch, device, flow_row(cell), 0), batch, flow_row(cell));
}

size_t memory_scratch(const Cell& cell, int batch, const Device& device) {
    return scratch_of(shape_for(cell, batch, device, memory_row(cell), 0), batch, memory_row(cell));
}

cudaError_t launch_step(const Cell& cell, const Call& call, int steps, float* finite, Precision precision,
                        const Device& device, cudaStream_t stream) {
    const Shape shape = shape_for(cell, call.batch, device, cell.place.row, cell.member.total);
    return of_type(precision, [&](auto weight) {
        using Weight = decltype(weight);
        const auto kernel = shape.rows == 1 ? step_kernel<Weight, 1> : step_kernel<Weight, TOGETHER>;
        return launch(kernel, shape, stream, cell, call, steps, finite, shape.room);
    });
}

cudaError_t launch_flow(const Cell& cell, const FlowCall& call, int steps, Precision precision, const Device& device,
                        cudaStream_t stream) {
    const int row = flow_row(cell);
    const Shape shape = shape_for(cell, call.batch, device, row, 0);
    return of_type(precision, [&](auto weight) {
        using Weight = decltype(weight);
        const auto kernel = shape.rows == 1 ? flow_kernel<Weight, 1> : flow_kernel<Weight, TOGETHER>;
        return launch(kernel, shape, stream, cell, call, steps, row, shape.room);
    });
}

cudaError_t launch_memory(const Cell& cell, const MemoryCall& call, Precision precision, const Device& device,
                          cudaStream_t stream) {
    const int row = memory_row(cell);
    const Shape shape = shape_for(cell, call.batch, device, row, 0);
    return of_type(precision, [&](auto weight) {
        using Weight = decltype(weight);
        const auto kernel = shape.rows == 1 ? memory_kernel<Weight, 1> : memory_kernel<Weight, TOGETHER>;
        return launch(kernel, shape, stream, cell, call, row, shape.room);
    });
}

size_t packed_bytes(int rows, int columns, Precision precision) {
    return static_cast<size_t>(padded(rows)) * columns * (precision == Precision::FP32 ? sizeof(float) : sizeof(__half));
}

cudaError_t launch_pack(const float* weight, int rows, int columns, int first, void* to, Precision precision,
                        cudaStream_t stream) {
    constexpr int THREADS = 256;
    const Shape shape{1, THREADS, (rows * columns + THREADS - 1) / THREADS, 0, FAR};
    return of_type(precision, [&](auto type) {
        using Weight = decltype(type);
        return launch(pack_kernel<Weight>, shape, stream, weight, rows, columns, first, static_cast<Weight*>(to));
    });
}

}  // namespace odestream
