#include "cuda_binding.h"

#include <algorithm>
#include <cmath>

namespace odestream {
namespace {

constexpr size_t ALIGNMENT = 256;

// Places one after another, in bytes.
struct Room {
    size_t end = 0;
    size_t take(size_t bytes) {
        const size_t begin = end;
        end += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        return begin;
    }
};

bool all_finite(const float* values, size_t count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace

CudaBinding::CudaBinding(const CudaModel& model, int batch) : model_(model), batch_(batch) {
    enter();
    const Sizes& z = model.cell.size;
    const size_t rows = static_cast<size_t>(batch), word = sizeof(float);
    const size_t x_bytes = rows * (z.task == TOKENS ? sizeof(int64_t) : z.channels * word);
    Room room;
    const size_t x = room.take(x_bytes), mask = room.take(rows * z.channels * word), dt = room.take(rows * word);
    const size_t phase = room.take(rows * 2 * z.frequencies * word);
    input_bytes_ = room.end;
    outputs_ = rows * (z.answers + 1 + z.gates);
    state_floats_ = rows * model.cell.member.total;
    const size_t results = room.take((outputs_ + rows) * word);
    host_ = pinned_memory(room.end);
    std::fill_n(host_.get(), room.end, '\0');
    const size_t first = room.take(state_floats_ * word), second = room.take(state_floats_ * word);
    const size_t scratch = room.take(step_scratch(model.cell, batch, model.device) * word);
    device_ = device_memory(room.end);
    stream_ = new_stream();
    check_cuda(cudaMemsetAsync(device_.get(), 0, room.end, stream_.get()), "clearing the state");
    wait();

    const auto on_host = [&](size_t place) { return reinterpret_cast<float*>(host_.get() + place); };
    const auto on_device = [&](size_t place) { return reinterpret_cast<float*>(device_.get() + place); };
    buffers_ = {on_host(x), on_host(mask), on_host(dt), z.frequencies > 0 ? on_host(phase) : nullptr, on_host(results)};
    inputs_ = device_.get();
    results_ = on_device(results);
    states_ = {on_device(first), on_device(second)};
    call_.x = on_device(x), call_.mask = on_device(mask), call_.dt = on_device(dt), call_.phase = on_device(phase);
    call_.y = results_, call_.err = call_.y + rows * z.answers, call_.gates = call_.err + rows;
    call_.scratch = on_device(scratch), call_.batch = batch;
}

bool CudaBinding::tokens_fit() const {
    if (model_.cell.size.task != TOKENS) return true;
    const int64_t* const tokens = static_cast<const int64_t*>(buffers_.x);
    for (int r = 0; r < batch_; ++r) {
        if (buffers_.mask[r] > 0.0f && (tokens[r] < 0 || tokens[r] >= VOCABULARY)) return false;
    }
    return true;
}

void CudaBinding::prepare(int steps) { graphs(steps); }

void CudaBinding::run(int steps) {
    const Graphs& both = graphs(steps);
    check_cuda(cudaGraphLaunch(both[side_].get(), stream_.get()), "starting the step");
    wait();
}

// The device marks states, a stream each; outputs are few and lie here.
bool CudaBinding::finite() const {
    const float* const marks = buffers_.outputs + outputs_;
    return std::all_of(marks, marks + batch_, [](float mark) { return mark == 1.0f; }) &&
           all_finite(buffers_.outputs, outputs_);
}

void CudaBinding::set_state(bool next, const float* from) {
    enter();
    check_cuda(cudaMemcpyAsync(state(next), from, state_floats_ * sizeof(float), cudaMemcpyHostToDevice, stream_.get()),
               "copying a state to the device");
    wait();
    if (next) std::fill_n(buffers_.outputs + outputs_, batch_, all_finite(from, state_floats_) ? 1.0f : 0.0f);
}

void CudaBinding::get_state(bool next, float* to) const {
    enter();
    check_cuda(cudaMemcpyAsync(to, state(next), state_floats_ * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
               "copying a state from the device");
    wait();
}

float CudaBinding::time(int steps, int repeats) {
    const Graphs& both = graphs(steps);
    const CudaEvent begin = new_event(), end = new_event();
    check_cuda(cudaEventRecord(begin.get(), stream_.get()), "timing");
    for (int i = 0; i < repeats; ++i) check_cuda(cudaGraphLaunch(both[side_].get(), stream_.get()), "starting the step");
    check_cuda(cudaEventRecord(end.get(), stream_.get()), "timing");
    wait();
    float milliseconds = 0.0f;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "timing");
    return milliseconds * 1000.0f / static_cast<float>(repeats);
}

const CudaBinding::Graphs& CudaBinding::graphs(int steps) {
    enter();
    const auto found = graphs_.find(steps);
    if (found != graphs_.end()) return found->second;
    Graphs made{capture(steps, 0), capture(steps, 1)};
    return graphs_.emplace(steps, std::move(made)).first->second;
}

// Capturing runs nothing, so that no state is touched.
CudaGraphExec CudaBinding::capture(int steps, int side) {
    check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "capturing the step");
    std::exception_ptr failure;
    try {
        enqueue(steps, side);
    } catch (...) {
        failure = std::current_exception();
    }
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &captured);
    const CudaGraph graph(captured);
    if (failure) std::rethrow_exception(failure);
    check_cuda(ended, "capturing the step");
    cudaGraphExec_t exec = nullptr;
    check_cuda(cudaGraphInstantiateWithFlags(&exec, graph.get(), 0), "making the step's graph");
    return CudaGraphExec(exec);
}

void CudaBinding::enqueue(int steps, int side) {
    const cudaStream_t stream = stream_.get();
    check_cuda(cudaMemcpyAsync(inputs_, buffers_.x, input_bytes_, cudaMemcpyHostToDevice, stream), "copying the inputs");
    Call call = call_;
    call.state = states_[side], call.next_state = states_[side ^ 1];
    check_cuda(launch_step(model_.cell, call, steps, results_ + outputs_, model_.precision, model_.device, stream),
               "starting the step");
    const size_t bytes = (outputs_ + batch_) * sizeof(float);
    check_cuda(cudaMemcpyAsync(buffers_.outputs, results_, bytes, cudaMemcpyDeviceToHost, stream), "copying the outputs");
}

// A thread that comes from elsewhere may have another device current.
void CudaBinding::enter() const { check_cuda(cudaSetDevice(model_.number), "the device"); }

void CudaBinding::wait() const { check_cuda(cudaStreamSynchronize(stream_.get()), "the step"); }

}  // namespace odestream
