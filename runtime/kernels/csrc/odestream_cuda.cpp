// The C interface of the CUDA library: checks what comes in, and lets no exception out.
#include "odestream_cuda.h"

#include "cuda_binding.h"

#include <cstdio>
#include <exception>

struct odestream_cuda_model {
    odestream::CudaModel model;
};

struct odestream_cuda_binding {
    odestream::CudaBinding binding;
};

namespace {

using odestream::check_cuda;
using odestream::CudaFailed;

thread_local char last_error[512] = "";

int32_t fail(int32_t status, const char* message) {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

int32_t status_of(cudaError_t error) {
    switch (error) {
        case cudaErrorInsufficientDriver: return ODESTREAM_CUDA_NO_DRIVER;
        case cudaErrorNoDevice:
        case cudaErrorInvalidDevice: return ODESTREAM_CUDA_NO_DEVICE;
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorInvalidDeviceFunction:
        case cudaErrorUnsupportedPtxVersion: return ODESTREAM_CUDA_NOT_BUILT;
        case cudaErrorMemoryAllocation: return ODESTREAM_CUDA_NO_MEMORY;
        case cudaErrorECCUncorrectable:
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorContextIsDestroyed:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
        case cudaErrorUnknown: return ODESTREAM_CUDA_LOST;
        default: return ODESTREAM_CUDA_FAILED;
    }
}

template <class F>
int32_t guarded(F f) {
    try {
        f();
        return ODESTREAM_CUDA_OK;
    } catch (const CudaFailed& error) {
        cudaGetLastError();  // so that the next call does not report it again
        return fail(status_of(error.code), error.what());
    } catch (const odestream::Refused& error) {
        return fail(ODESTREAM_CUDA_BAD_CALL, error.what());
    } catch (const std::exception& error) {
        return fail(ODESTREAM_CUDA_FAILED, error.what());
    } catch (...) {
        return fail(ODESTREAM_CUDA_FAILED, "an unknown failure");
    }
}

void require(bool good, const char* message) {
    if (!good) throw odestream::Refused(message);
}

void describe(int32_t device, odestream_cuda_device& found) {
    int count = 0;
    check_cuda(cudaGetDeviceCount(&count), "looking for a GPU");
    if (device < 0 || device >= count) throw CudaFailed(cudaErrorInvalidDevice, "looking for a GPU");
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, device), "the GPU's properties");
    std::snprintf(found.name, sizeof found.name, "%s", properties.name);
    found.major = properties.major, found.minor = properties.minor, found.processors = properties.multiProcessorCount;
    check_cuda(cudaDriverGetVersion(&found.driver), "the driver's version");
    check_cuda(cudaRuntimeGetVersion(&found.runtime), "the library's version");
    check_cuda(odestream::usable(device), "code for this GPU");
}

}  // namespace

int32_t odestream_cuda_abi(void) { return ODESTREAM_CUDA_ABI; }

const char* odestream_cuda_last_error(void) { return last_error; }

int32_t odestream_cuda_describe(int32_t device, odestream_cuda_device* found) {
    return guarded([&] { describe(device, *found); });
}

int32_t odestream_cuda_create(const odestream_config* config, const odestream_weight* weights, size_t count,
                              int32_t device, int32_t precision, odestream_cuda_model** model) {
    return guarded([&] {
        require(precision >= ODESTREAM_CUDA_FP32 && precision <= ODESTREAM_CUDA_BF16, "the precision is unknown");
        odestream::Loaded loaded = odestream::load_cell(*config, weights, count);
        odestream_cuda_device found;
        describe(device, found);
        const auto type = static_cast<odestream::Precision>(precision);
        *model = new odestream_cuda_model{odestream::upload(std::move(loaded), device, type)};
    });
}

void odestream_cuda_destroy(odestream_cuda_model* model) { delete model; }

const char* odestream_cuda_layout(const odestream_cuda_model* model) { return model->model.layout.c_str(); }

int32_t odestream_cuda_bind(const odestream_cuda_model* model, int32_t batch, odestream_cuda_binding** binding) {
    return guarded([&] {
        require(batch >= 1, "batch must be at least 1");
        *binding = new odestream_cuda_binding{{model->model, batch}};
    });
}

void odestream_cuda_release(odestream_cuda_binding* binding) { delete binding; }

odestream_cuda_buffers odestream_cuda_buffers_of(const odestream_cuda_binding* binding) {
    return binding->binding.buffers();
}

int32_t odestream_cuda_prepare(odestream_cuda_binding* binding, int32_t steps) {
    return guarded([&] {
        require(steps >= 1, "steps must be at least 1");
        binding->binding.prepare(steps);
    });
}

int32_t odestream_cuda_run(odestream_cuda_binding* binding, int32_t steps) {
    if (!binding->binding.tokens_fit()) return fail(ODESTREAM_CUDA_BAD_TOKEN, "a token is not between 0 and 255");
    return guarded([&] {
        require(steps >= 1, "steps must be at least 1");
        binding->binding.run(steps);
    });
}

int32_t odestream_cuda_finite(const odestream_cuda_binding* binding) { return binding->binding.finite() ? 1 : 0; }

void odestream_cuda_swap(odestream_cuda_binding* binding) { binding->binding.swap(); }

int32_t odestream_cuda_set_state(odestream_cuda_binding* binding, int32_t next, const float* from) {
    return guarded([&] { binding->binding.set_state(next != 0, from); });
}

int32_t odestream_cuda_get_state(const odestream_cuda_binding* binding, int32_t next, float* to) {
    return guarded([&] { binding->binding.get_state(next != 0, to); });
}

int32_t odestream_cuda_time(odestream_cuda_binding* binding, int32_t steps, int32_t repeats, float* microseconds) {
    if (!binding->binding.tokens_fit()) return fail(ODESTREAM_CUDA_BAD_TOKEN, "a token is not between 0 and 255");
    return guarded([&] {
        require(steps >= 1 && repeats >= 1, "steps and repeats must be at least 1");
        *microseconds = binding->binding.time(steps, repeats);
    });
}
