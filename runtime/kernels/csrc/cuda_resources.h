// What belongs to CUDA and must be given back, each with an owner; errors become exceptions until the C interface.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace odestream {

struct CudaFailed : std::runtime_error {
    CudaFailed(cudaError_t error, const char* where)
        : std::runtime_error(std::string(where) + ": " + cudaGetErrorString(error)), code(error) {}
    cudaError_t code;
};

inline void check_cuda(cudaError_t status, const char* where) {
    if (status != cudaSuccess) throw CudaFailed(status, where);
}

template <auto give_back>
struct GivenBack {
    template <class T>
    void operator()(T* what) const {
        give_back(what);
    }
};

using DeviceMemory = std::unique_ptr<char, GivenBack<cudaFree>>;
using PinnedMemory = std::unique_ptr<char, GivenBack<cudaFreeHost>>;
using CudaStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, GivenBack<cudaStreamDestroy>>;
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, GivenBack<cudaEventDestroy>>;
using CudaGraph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GivenBack<cudaGraphDestroy>>;
using CudaGraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GivenBack<cudaGraphExecDestroy>>;

inline DeviceMemory device_memory(size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "memory on the device");
    return DeviceMemory(static_cast<char*>(memory));
}

inline PinnedMemory pinned_memory(size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, bytes), "pinned memory");
    return PinnedMemory(static_cast<char*>(memory));
}

inline CudaStream new_stream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    return CudaStream(stream);
}

inline CudaEvent new_event() {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event), "an event");
    return CudaEvent(event);
}

}  // namespace odestream
