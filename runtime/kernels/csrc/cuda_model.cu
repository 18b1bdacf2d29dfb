#include "cuda_model.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <utility>

namespace odestream {
namespace {

template <class F>
void each_matrix(Cell& cell, F f) {
    for (Matrix* matrix : {&cell.hidden, &cell.drive, &cell.time, &cell.output, &cell.features, &cell.state,
                           &cell.gate_inner, &cell.gate_outer, &cell.expect_inner, &cell.expect_outer, &cell.residual,
                           &cell.encode, &cell.update, &cell.answer_inner, &cell.answer_outer, &cell.recall}) {
        f(*matrix);
    }
}

template <class F>
void each_vector(Cell& cell, F f) {
    for (const float** vector : {&cell.scale, &cell.per_scale, &cell.centre, &cell.log_scale2, &cell.rates, &cell.frequencies,
                                 &cell.decay, &cell.embedding}) {
        f(*vector);
    }
}

uint16_t round_to(float value, Precision precision) {
    if (precision == Precision::FP16) return __half_as_ushort(__float2half_rn(value));
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// In place, from the front: every weight is written where floats were that have been read.
void narrow(const Matrix& matrix, Precision precision) {
    float* const wide = static_cast<float*>(const_cast<void*>(matrix.data));
    char* const to = reinterpret_cast<char*>(wide);
    const size_t count = static_cast<size_t>(matrix.panels) * matrix.columns * LANES;
    for (size_t i = 0; i < count; ++i) {
        const uint16_t bits = round_to(wide[i], precision);
        std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
    }
}

}  // namespace

CudaModel upload(Loaded loaded, int number, Precision precision) {
    check_cuda(cudaSetDevice(number), "the device");
    CudaModel model{number, {}, precision, std::move(loaded.layout), nullptr, loaded.cell};
    check_cuda(describe(number, model.device), "the device");
    if (precision != Precision::FP32) each_matrix(loaded.cell, [=](const Matrix& m) { narrow(m, precision); });
    const size_t bytes = loaded.floats * sizeof(float);
    model.block = device_memory(bytes);
    check_cuda(cudaMemcpy(model.block.get(), loaded.block.get(), bytes, cudaMemcpyHostToDevice), "uploading the weights");
    const char* const from = reinterpret_cast<const char*>(loaded.block.get());
    const auto moved = [&](const void* place) -> const void* {
        return place == nullptr ? nullptr : model.block.get() + (static_cast<const char*>(place) - from);
    };
    each_vector(model.cell, [&](const float*& vector) { vector = static_cast<const float*>(moved(vector)); });
    each_matrix(model.cell, [&](Matrix& matrix) {
        matrix.data = moved(matrix.data);
        matrix.bias = static_cast<const float*>(moved(matrix.bias));
    });
    return model;
}

}  // namespace odestream
