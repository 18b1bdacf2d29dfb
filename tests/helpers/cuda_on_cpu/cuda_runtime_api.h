// Enough of CUDA for the kernels' sources to run on a CPU: one fiber for each thread of a block, blocks one after another,
// and a runtime whose device memory is host memory. It proves indexing, barriers and the order of sums, and nothing about
// speed. What a GPU leaves undefined is made to show: new memory holds NaN, and a barrier that not all threads reach ends
// the process. Under the thread sanitizer every fiber counts as a thread that only barriers order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1) : x(x) {}
};

struct float4 {
    float x, y, z, w;
};

struct uint2 {
    unsigned x, y;
};

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorContextIsDestroyed = 709,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorUnknown = 999
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1 };

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
};
struct cudaFuncAttributes {};

namespace on_cpu {

using Work = std::vector<std::function<void()>>;
struct Queue {
    Work captured;
    bool capturing = false;
};
struct Moment {
    int64_t nanoseconds = 0;
};

unsigned thread_index();
unsigned block_index();
unsigned threads();
void block_barrier();
void warp_barrier();
bool block_any(bool own);
uint32_t exchange(uint32_t own, int other);  // among the lanes of a warp

cudaError_t enqueue(Queue* stream, std::function<void()> work);
cudaError_t allow(const void* kernel, int bytes);
cudaError_t check(const void* kernel, size_t bytes, unsigned threads);
void run_blocks(unsigned blocks, unsigned threads, size_t bytes, const std::function<void()>& kernel);

}  // namespace on_cpu

template <unsigned (*now)()>
struct OneAxis {
    struct {
        operator unsigned() const { return now(); }
    } x;
};
constexpr OneAxis<on_cpu::thread_index> threadIdx{};
constexpr OneAxis<on_cpu::block_index> blockIdx{};
constexpr OneAxis<on_cpu::threads> blockDim{};

using cudaStream_t = on_cpu::Queue*;
using cudaGraph_t = on_cpu::Work*;
using cudaGraphExec_t = on_cpu::Work*;
using cudaEvent_t = on_cpu::Moment*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
    return on_cpu::allow(reinterpret_cast<const void*>(kernel), value);
}

template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)(Parameters...)) {
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
    const cudaLaunchConfig_t c = *config;
    const cudaError_t status =
        on_cpu::check(reinterpret_cast<const void*>(kernel), c.dynamicSmemBytes, c.blockDim.x);
    if (status != cudaSuccess) return status;
    const auto kept = std::make_shared<std::tuple<std::decay_t<Parameters>...>>(arguments...);
    return on_cpu::enqueue(c.stream, [=] {
        on_cpu::run_blocks(c.gridDim.x, c.blockDim.x, c.dynamicSmemBytes, [&] { std::apply(kernel, *kept); });
    });
}

inline int min(int a, int b) { return a < b ? a : b; }
inline void __syncthreads() { on_cpu::block_barrier(); }
inline void __syncwarp() { on_cpu::warp_barrier(); }
inline int __syncthreads_or(int own) { return on_cpu::block_any(own != 0); }

template <class T>
T __ldg(const T* from) {
    return *from;
}

template <class T>
T __shfl_xor_sync(unsigned, T own, int distance) {
    static_assert(sizeof(T) == sizeof(uint32_t), "a lane exchanges 32 bits");
    uint32_t bits;
    std::memcpy(&bits, &own, sizeof bits);
    bits = on_cpu::exchange(bits, static_cast<int>(on_cpu::thread_index() % 32) ^ distance);
    std::memcpy(&own, &bits, sizeof bits);
    return own;
}

inline int __any_sync(unsigned mask, bool own) {
    uint32_t any = own;
    for (int far = 16; far > 0; far /= 2) any |= __shfl_xor_sync(mask, any, far);
    return any != 0;
}
