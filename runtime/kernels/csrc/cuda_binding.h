// Streams of a model: their state on the device, their inputs and outputs in pinned host memory, and a graph for every
// number of solver steps and each direction between the two state buffers.
#pragma once

#include "cuda_model.h"
#include "odestream_cuda.h"

#include <array>
#include <map>

namespace odestream {

class CudaBinding {
public:
    CudaBinding(const CudaModel& model, int batch);

    const odestream_cuda_buffers& buffers() const { return buffers_; }
    bool tokens_fit() const;
    void prepare(int steps);
    void run(int steps);
    bool finite() const;
    void swap() { side_ ^= 1; }
    void set_state(bool next, const float* from);
    void get_state(bool next, float* to) const;
    float time(int steps, int repeats);

private:
    using Graphs = std::array<CudaGraphExec, 2>;  // by the side that is read

    const Graphs& graphs(int steps);
    CudaGraphExec capture(int steps, int side);
    void enqueue(int steps, int side);
    void enter() const;
    void wait() const;
    float* state(bool next) const { return states_[side_ ^ (next ? 1 : 0)]; }

    const CudaModel& model_;
    int batch_;
    size_t input_bytes_, outputs_, state_floats_;  // outputs_: floats of y, err and gates; the streams' marks follow
    PinnedMemory host_;
    DeviceMemory device_;
    odestream_cuda_buffers buffers_{};
    float* results_;  // on the device
    char* inputs_;
    Call call_{};
    std::array<float*, 2> states_;
    CudaStream stream_;
    std::map<int, Graphs> graphs_;
    int side_ = 0;
};

}  // namespace odestream
