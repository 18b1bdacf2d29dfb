// The launches of the step's parts as C functions: on the CPU the device's memory is the caller's.
#include "cuda_launch.h"
#include "load.h"

#include <cstring>
#include <vector>

using namespace odestream;

namespace {

struct Run {
    Loaded loaded;
    Device device{};
    std::vector<float> scratch;

    Run(const odestream_config* config, const odestream_weight* weights, size_t count)
        : loaded(load_cell(*config, weights, count)) {
        describe(0, device);
    }
    float* room(size_t floats) {
        scratch.assign(floats, 0.0f);
        return scratch.data();
    }
};

on_cpu::Queue now;

}  // namespace

#define PART extern "C" __attribute__((visibility("default"))) int

PART part_flow(const odestream_config* config, const odestream_weight* weights, size_t count, FlowCall* call, int steps) {
    Run run(config, weights, count);
    call->scratch = run.room(flow_scratch(run.loaded.cell, call->batch, run.device));
    return launch_flow(run.loaded.cell, *call, steps, Precision::FP32, run.device, &now);
}

PART part_memory(const odestream_config* config, const odestream_weight* weights, size_t count, MemoryCall* call) {
    Run run(config, weights, count);
    call->scratch = run.room(memory_scratch(run.loaded.cell, call->batch, run.device));
    return launch_memory(run.loaded.cell, *call, Precision::FP32, run.device, &now);
}

// Whether weight [rows, columns], packed on the device in two pieces, is what the loader makes of field.hidden.
PART part_pack(const odestream_config* config, const odestream_weight* weights, size_t count, const float* weight) {
    Run run(config, weights, count);
    const Matrix& expected = run.loaded.cell.hidden;
    const int half = expected.rows / 2;
    const size_t bytes = packed_bytes(expected.rows, expected.columns, Precision::FP32);
    std::vector<char> found(bytes, '\0');
    const float* second = weight + static_cast<size_t>(half) * expected.columns;
    if (launch_pack(weight, half, expected.columns, 0, found.data(), Precision::FP32, &now) != cudaSuccess) return -1;
    if (launch_pack(second, expected.rows - half, expected.columns, half, found.data(), Precision::FP32, &now) != cudaSuccess)
        return -1;
    return std::memcmp(found.data(), expected.data, bytes) == 0;
}
