// The scheduler and the runtime behind cuda_runtime_api.h. It is compiled without a sanitizer, which then sees the
// kernels' own accesses alone, and is told of fibers and barriers where it asks for that.
#include "cuda_pipeline.h"
#include "cuda_runtime_api.h"

#include <setjmp.h>
#include <ucontext.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#if defined(WITH_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(WITH_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace odestream {
namespace portable {
constexpr size_t MOST_BLOCK_MEMORY = 256 * 1024;
alignas(64) float4 memory[MOST_BLOCK_MEMORY / sizeof(float4)];  // the dynamic shared memory of the block that runs
}  // namespace portable
}  // namespace odestream

namespace on_cpu {
namespace {

constexpr unsigned WARP = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 128 * 1024;

struct Barrier {
    unsigned arrived = 0, size = 0;
    uint64_t passed = 0;
};

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

struct Fiber {
    ucontext_t context;
    jmp_buf place;  // where to go on; the context is for the start
    bool started = false;
    std::unique_ptr<char[]> stack;
    bool done = true;
    uint64_t exchanges = 0;
    std::vector<std::vector<Copy>> groups;  // the last one is not committed
#if defined(WITH_TSAN)
    void* tsan = nullptr;
#endif
#if defined(WITH_ASAN)
    void* asan = nullptr;
#endif
};

std::mutex one_at_a_time;
Fiber fibers[MOST_THREADS], outside;
Barrier block, warps[MOST_THREADS / WARP];
uint32_t slots[MOST_THREADS / WARP][2][WARP];
bool flags[2];
unsigned count, current, now_block, idle;
const std::function<void()>* body;
std::map<const void*, int> allowed;
char origin;  // what a launch and its threads are ordered by

int from_environment(const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoi(value);
}

[[noreturn]] void give_up(const char* why) {
    std::fprintf(stderr, "CUDA on the CPU: %s\n", why);
    std::abort();
}

void release(void* place) {
#if defined(WITH_TSAN)
    __tsan_release(place);
#else
    (void)place;
#endif
}

void acquire(void* place) {
#if defined(WITH_TSAN)
    __tsan_acquire(place);
#else
    (void)place;
#endif
}

#if defined(WITH_TSAN) || defined(WITH_ASAN)
void change(Fiber& from, Fiber& to) {
#if defined(WITH_TSAN)
    if (&from == &outside) outside.tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(WITH_ASAN)
    __sanitizer_start_switch_fiber(from.done ? nullptr : &from.asan, to.stack.get(), STACK);
#endif
    swapcontext(&from.context, &to.context);
#if defined(WITH_ASAN)
    __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
#endif
}
#else
// swapcontext asks the kernel for the signal mask twice; these jumps do not.
__attribute__((noinline)) void change(Fiber& from, Fiber& to) {
    if (_setjmp(from.place) != 0) return;
    if (to.started) _longjmp(to.place, 1);
    to.started = true;
    setcontext(&to.context);
}
#endif

// On to the next fiber that is not done; back to the launch after the last.
void pass_on() {
    Fiber& from = fibers[current];
    for (unsigned i = 1; i <= count; ++i) {
        const unsigned next = (current + i) % count;
        if (fibers[next].done) continue;
        current = next;
        if (&fibers[next] != &from) change(from, fibers[next]);
        return;
    }
    change(from, outside);
}

// With CUDA_ON_CPU_BLIND a barrier holds threads back but orders nothing, which a thread sanitizer must notice.
void wait(Barrier& barrier) {
    static const bool blind = std::getenv("CUDA_ON_CPU_BLIND") != nullptr;
    release(&barrier);
    const uint64_t before = barrier.passed;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.passed;
        idle = 0;
    } else {
        while (barrier.passed == before) {
            if (++idle > 4 * count) give_up("a barrier waits for threads that do not reach it");
            pass_on();
        }
    }
    if (!blind) acquire(&barrier);
}

void start() {
#if defined(WITH_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    acquire(&origin);
    (*body)();
    release(&origin);
    fibers[current].done = true;
    idle = 0;
    pass_on();
}

void prepare(Fiber& fiber) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    fiber.done = fiber.started = false;
    fiber.exchanges = 0;
    fiber.groups.assign(1, {});
#if defined(WITH_TSAN)
    fiber.tsan = __tsan_create_fiber(0);
#endif
}

void run_block(unsigned index, size_t bytes) {
    using odestream::portable::memory;
    now_block = index, idle = 0, current = 0;
    outside.started = true;
    std::memset(memory, 0xff, sizeof memory);
    bytes -= static_cast<size_t>(from_environment("CUDA_ON_CPU_SHORT", 0));  // which an address sanitizer must notice
#if defined(WITH_ASAN)
    __asan_unpoison_memory_region(memory, sizeof memory);
    __asan_poison_memory_region(reinterpret_cast<char*>(memory) + bytes, sizeof memory - bytes);
#endif
    block = {0, count, 0};
    for (unsigned w = 0; w < count / WARP; ++w) warps[w] = {0, WARP, 0};
    for (unsigned i = 0; i < count; ++i) prepare(fibers[i]);
    release(&origin);
    change(outside, fibers[0]);
    acquire(&origin);
#if defined(WITH_TSAN)
    for (unsigned i = 0; i < count; ++i) __tsan_destroy_fiber(fibers[i].tsan);
#endif
#if defined(WITH_ASAN)
    __asan_unpoison_memory_region(memory, sizeof memory);
#endif
}

}  // namespace

unsigned thread_index() { return current; }
unsigned block_index() { return now_block; }
unsigned threads() { return count; }
void block_barrier() { wait(block); }
void warp_barrier() { wait(warps[current / WARP]); }

bool block_any(bool own) {
    bool& flag = flags[block.passed % 2];
    if (block.arrived == 0) flag = false;
    flag |= own;
    wait(block);
    return flag;
}

// Two rows of slots in turn: a lane can be one exchange ahead of another, not two.
uint32_t exchange(uint32_t own, int other) {
    const unsigned warp = current / WARP;
    uint32_t(&row)[WARP] = slots[warp][fibers[current].exchanges++ % 2];
    row[current % WARP] = own;
    wait(warps[warp]);
    return row[other];
}

void later(void* to, const void* from, size_t bytes) { fibers[current].groups.back().push_back({to, from, bytes}); }
void commit() { fibers[current].groups.emplace_back(); }

void wait_prior(size_t newest) {
    auto& groups = fibers[current].groups;
    while (groups.size() > newest + 1) {
        for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
        groups.erase(groups.begin());
    }
}

cudaError_t enqueue(Queue* stream, std::function<void()> work) {
    if (stream->capturing) {
        stream->captured.push_back(std::move(work));
    } else {
        work();
    }
    return cudaSuccess;
}

cudaError_t allow(const void* kernel, int bytes) {
    if (bytes > from_environment("CUDA_ON_CPU_BLOCK_MEMORY", 99 * 1024)) return cudaErrorInvalidValue;
    allowed[kernel] = bytes;
    return cudaSuccess;
}

cudaError_t check(const void* kernel, size_t bytes, unsigned threads) {
    const auto found = allowed.find(kernel);
    const size_t most = found == allowed.end() ? 48 * 1024 : static_cast<size_t>(found->second);
    return bytes <= most && threads <= MOST_THREADS && threads % WARP == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

void run_blocks(unsigned blocks, unsigned threads, size_t bytes, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    count = threads;
    body = &kernel;
    for (unsigned i = 0; i < blocks; ++i) run_block(i, bytes);
}

}  // namespace on_cpu

using on_cpu::Moment;
using on_cpu::Queue;
using on_cpu::Work;

namespace {

// The error that a test wants; none where it does not say.
cudaError_t asked_for(const char* name) { return static_cast<cudaError_t>(on_cpu::from_environment(name, cudaSuccess)); }

// New memory holds NaN.
cudaError_t allocate(void** memory, size_t bytes, const char* name) {
    if (const cudaError_t error = asked_for(name); error != cudaSuccess) return error;
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*memory == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*memory, 0xff, bytes);
    return cudaSuccess;
}

cudaError_t release_memory(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    if (const cudaError_t error = asked_for("CUDA_ON_CPU_PROPERTIES_ERROR"); error != cudaSuccess) return error;
    *properties = {"CUDA on the CPU", 8, 0, 0};
    return cudaDeviceGetAttribute(&properties->multiProcessorCount, cudaDevAttrMultiProcessorCount, 0);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount
                 ? on_cpu::from_environment("CUDA_ON_CPU_PROCESSORS", 8)
                 : on_cpu::from_environment("CUDA_ON_CPU_BLOCK_MEMORY", 99 * 1024);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaMalloc(void** memory, size_t bytes) {
    return allocate(memory, bytes, "CUDA_ON_CPU_DEVICE_MEMORY_ERROR");
}
cudaError_t cudaFree(void* memory) { return release_memory(memory); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    return allocate(memory, bytes, "CUDA_ON_CPU_PINNED_MEMORY_ERROR");
}
cudaError_t cudaFreeHost(void* memory) { return release_memory(memory); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return on_cpu::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
    return on_cpu::enqueue(stream, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new Queue, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream->capturing ? cudaErrorInvalidValue : asked_for("CUDA_ON_CPU_SYNCHRONIZE_ERROR");
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    return stream->capturing = true, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = new Work(std::move(stream->captured));
    stream->captured.clear();
    stream->capturing = false;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    return *exec = new Work(*graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (const auto& work : *exec) work();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new Moment, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    event->nanoseconds = std::chrono::steady_clock::now().time_since_epoch().count();
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    return *milliseconds = static_cast<float>(end->nanoseconds - begin->nanoseconds) * 1e-6f, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
