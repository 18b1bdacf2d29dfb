// How one block of threads does what the arithmetic asks for. Every operation ends with the block in step, so that what
// one thread wrote the others may read.
#pragma once

#include "tile.h"

namespace odestream {
namespace ODE_ISA {

constexpr int WARP = 32;
constexpr int MOST_WARPS = 32;

struct CudaTeam {
    template <class F>
    __device__ void each(int n, F f) const {
        for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
        __syncthreads();
    }

    template <class F>
    __device__ void each_in_turn(int n, F f) const {
        each(n, f);
    }

    template <class F>
    __device__ void once(F f) const {
        if (threadIdx.x == 0) f();
        __syncthreads();
    }

    template <class F>
    __device__ float sum(int n, F f) const {
        float own = 0.0f;
        for (int i = threadIdx.x; i < n; i += blockDim.x) own += f(i);
        return reduce(own, 0.0f, [](float a, float b) { return a + b; });
    }

    template <class F>
    __device__ float max(int n, F f) const {
        float own = f(0);
        for (int i = threadIdx.x; i < n; i += blockDim.x) own = most(f(i), own);
        return reduce(own, own, [](float a, float b) { return most(a, b); });
    }

    __device__ void copy(int n, const float* from, float* to) const {
        each(n, [=](int i) { to[i] = from[i]; });
    }

    __device__ void set(float* to, float value) const {
        once([=] { *to = value; });
    }

    // y = init + W·x: a thread for each row of W; neighbours read neighbouring lanes.
    __device__ void linear(const Matrix& w, View x, View init, Span y, int rows) const {
        const int length = w.panels * LANES;
        each(length * rows, [=](int i) {
            const int r = i / length, o = i % length;
            const float* weight = w.data + static_cast<long>(o / LANES) * w.columns * LANES + o % LANES;
            const float* from = x.data + static_cast<long>(r) * x.stride;
            float total = init.data == nullptr ? 0.0f : init.data[static_cast<long>(r) * init.stride + o];
            for (int j = 0; j < w.columns; ++j) total += weight[static_cast<long>(j) * LANES] * from[j];
            y.data[static_cast<long>(r) * y.stride + o] = total;
        });
    }

    __device__ void mix(const float* weights, const float* rows, int count, int stride, int width, float* out) const {
        each(width, [=](int d) {
            float total = 0.0f;
            for (int n = 0; n < count; ++n) total += weights[n] * rows[static_cast<long>(n) * stride + d];
            out[d] = total;
        });
    }

    __device__ void dots(const float* keys, const float* query, int count, int width, float* out) const {
        each(count, [=](int n) {
            float total = 0.0f;
            for (int k = 0; k < width; ++k) total += keys[static_cast<long>(n) * width + k] * query[k];
            out[n] = total;
        });
    }

    __device__ void add_outer(const float* m, float keep, float strength, const float* key, const float* error,
                              int keys, int values, float* out) const {
        each(keys * values, [=](int i) { out[i] = keep * m[i] + strength * key[i / values] * error[i % values]; });
    }

private:
    __device__ static float most(float a, float b) { return a > b || a != a ? a : b; }

    // The same for every thread. The tree is that of the block's size alone, so that equal launches give equal bits.
    template <class F>
    __device__ float reduce(float own, float neutral, F f) const {
        __shared__ float partial[MOST_WARPS];
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            own = f(own, __shfl_xor_sync(0xffffffffu, own, distance));
        }
        if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = own;
        __syncthreads();
        const int warps = blockDim.x / WARP;
        float total = neutral;
        for (int i = 0; i < warps; ++i) total = f(total, partial[i]);
        __syncthreads();
        return total;
    }
};

}  // namespace ODE_ISA
}  // namespace odestream
