// How threads of a GPU do what the arithmetic asks for. Every operation ends with its threads in step, so that what one
// of them wrote the others may read. Sums have one order, whatever the number of threads: a row gives the same bits in a
// block of its own and in a tile of several.
#pragma once

#include "maths.h"
#include "tile.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace odestream {
namespace ODE_ISA {

constexpr int WARP = 32;
constexpr unsigned WHOLE_WARP = 0xffffffffu;

// What the launch gave each block, aligned for the widest loads.
ODE_FN float* block_memory() {
    extern __shared__ float4 memory[];
    return reinterpret_cast<float*>(memory);
}

struct BlockThreads {
    ODE_FN static int index() { return threadIdx.x; }
    ODE_FN static int count() { return blockDim.x; }
    ODE_FN static void sync() { __syncthreads(); }
    ODE_FN static bool any(bool own) { return __syncthreads_or(own) != 0; }
};

struct WarpThreads {
    ODE_FN static int index() { return threadIdx.x % WARP; }
    ODE_FN static int count() { return WARP; }
    ODE_FN static void sync() { __syncwarp(); }
    ODE_FN static bool any(bool own) { return __any_sync(WHOLE_WARP, own) != 0; }
};

// What threads do for one row; BlockThreads or WarpThreads. Each warp takes sums for itself: no thread waits for
// another warp's part.
template <class Threads>
struct RowTeam {
    template <class F>
    ODE_FN void each(int n, F f) const {
        for (int i = Threads::index(); i < n; i += Threads::count()) f(i);
        Threads::sync();
    }

    template <class F>
    ODE_FN void each_in_turn(int n, F f) const {
        each(n, f);
    }

    template <class F>
    ODE_FN void each_of(int few, int n, F f) const {
        each(n, [=](int i) { f(i, few); });
    }

    template <class F>
    ODE_FN void once(F f) const {
        if (Threads::index() == 0) f();
        Threads::sync();
    }

    ODE_FN void copy(int n, const float* from, float* to) const {
        each(n, [=](int i) { to[i] = from[i]; });
    }

    ODE_FN void set(float* to, float value) const {
        once([=] { *to = value; });
    }

    ODE_FN float read(const float* from) const {
        const float value = *from;
        Threads::sync();
        return value;
    }

    // Whether f(i) holds for any i.
    template <class F>
    ODE_FN bool any(int n, F f) const {
        bool found = false;
#pragma unroll 8
        for (int i = Threads::index(); i < n; i += Threads::count()) found |= f(i);
        return Threads::any(found);
    }

    template <class F>
    ODE_FN float sum(int n, F f) const {
        float total = 0.0f;
        for (int i = threadIdx.x % WARP; i < n; i += WARP) total += f(i);
        for (int far = WARP / 2; far > 0; far /= 2) total += __shfl_xor_sync(WHOLE_WARP, total, far);
        Threads::sync();
        return total;
    }

    // The largest of n values, at least one. NaN is the largest here, where a host's team may pass it over. Callers allow
    // for both: NaN stays in what is made of logits and scores, and strengths are of a state that guards let pass.
    ODE_FN float max(int n, const float* values) const {
        float top = values[0];
        for (int i = threadIdx.x % WARP; i < n; i += WARP) top = larger(values[i], top);
        for (int far = WARP / 2; far > 0; far /= 2) top = larger(__shfl_xor_sync(WHOLE_WARP, top, far), top);
        Threads::sync();
        return top;
    }

    template <class F>
    ODE_FN int least(int n, F f) const {
        int first = 0;
        for (int i = threadIdx.x % WARP; i < n; i += WARP) first = f(i) < f(first) ? i : first;
        float value = f(first);
        for (int far = WARP / 2; far > 0; far /= 2) {
            const float other = __shfl_xor_sync(WHOLE_WARP, value, far);
            const int place = __shfl_xor_sync(WHOLE_WARP, first, far);
            const bool before = other < value || (other == value && place < first);
            value = before ? other : value, first = before ? place : first;
        }
        Threads::sync();
        return first;
    }

    // A thread for each column.
    ODE_FN void mix(const float* weights, const float* rows, int count, int stride, int width, float* out) const {
        each(width, [=](int d) {
            float total = 0.0f;
#pragma unroll 8
            for (int n = 0; n < count; ++n) total += weights[n] * rows[static_cast<long>(n) * stride + d];
            out[d] = total;
        });
    }

    // Eight threads for each key: its floats are read 32 bytes at a time.
    ODE_FN void dots(const float* keys, const float* query, int count, int width, float* out) const {
        constexpr int PARTS = 8;
        const int part = Threads::index() % PARTS, own = Threads::index() / PARTS;
        for (int first = 0; first < count; first += Threads::count() / PARTS) {
            const int n = first + own;
            float total = 0.0f;
            for (int k = part; n < count && k < width; k += PARTS) {
                total += keys[static_cast<long>(n) * width + k] * query[k];
            }
            for (int far = PARTS / 2; far > 0; far /= 2) total += __shfl_xor_sync(WHOLE_WARP, total, far);
            if (part == 0 && n < count) out[n] = total;
        }
        Threads::sync();
    }

    ODE_FN void add_outer(const float* m, float keep, float strength, const float* key, const float* error, int keys,
                          int values, float* out) const {
        each(keys * values, [=](int i) { out[i] = keep * m[i] + strength * key[i / values] * error[i % values]; });
    }
};

struct Four {
    float a, b, c, d;
};

// Four neighbouring weights in one load.
ODE_INLINE Four load_four(const float* from) {
    const float4 value = __ldg(reinterpret_cast<const float4*>(from));
    return {value.x, value.y, value.z, value.w};
}

ODE_INLINE Four load_four(const __half* from) {
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
    const auto half = [](unsigned value) { return __half2float(__ushort_as_half(static_cast<unsigned short>(value))); };
    return {half(bits.x & 0xffffu), half(bits.x >> 16), half(bits.y & 0xffffu), half(bits.y >> 16)};
}

ODE_INLINE Four load_four(const __nv_bfloat16* from) {
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
    return {from_bits(bits.x << 16), from_bits(bits.x & 0xffff0000u), from_bits(bits.y << 16),
            from_bits(bits.y & 0xffff0000u)};
}

// The sums of four values over the lanes that differ in bits 1 to 4: value 2·(bit 4) + (bit 3), in every lane.
ODE_INLINE float fold(const Four& own) {
    const bool upper = threadIdx.x & 16, second = threadIdx.x & 8;
    const float sent[2] = {upper ? own.a : own.c, upper ? own.b : own.d};
    float first = (upper ? own.c : own.a) + __shfl_xor_sync(WHOLE_WARP, sent[0], 16);
    float other = (upper ? own.d : own.b) + __shfl_xor_sync(WHOLE_WARP, sent[1], 16);
    float total = (second ? other : first) + __shfl_xor_sync(WHOLE_WARP, second ? first : other, 8);
    total += __shfl_xor_sync(WHOLE_WARP, total, 4);
    return total + __shfl_xor_sync(WHOLE_WARP, total, 2);
}

// y = init + W·x for ROWS rows. A warp takes half a panel, that is eight outputs: two lanes hold the eight weights of one
// column, sixteen columns are read at a time, and the lanes' sums are then folded. So the order of a sum follows from
// the number of columns alone.
template <class Element, int ROWS>
ODE_CALL void product(const Matrix& w, View x, View init, Span y) {
    constexpr int UNIT = LANES / 2, COLUMNS = WARP / 2;
    const int lane = threadIdx.x % WARP, quad = lane % 2 * 4;
    const int place = quad + (lane & 16 ? 2 : 0) + (lane & 8 ? 1 : 0);
    for (int unit = threadIdx.x / WARP; unit < w.panels * 2; unit += blockDim.x / WARP) {
        const Element* from = static_cast<const Element*>(w.data) +
                              static_cast<long>(unit / 2) * w.columns * LANES + unit % 2 * UNIT + quad;
        Four sum[ROWS] = {};
#pragma unroll 4
        for (int j = lane / 2; j < w.columns; j += COLUMNS) {
            const Four weight = load_four(from + static_cast<long>(j) * LANES);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float value = x.data[static_cast<long>(r) * x.stride + j];
                sum[r].a += weight.a * value, sum[r].b += weight.b * value;
                sum[r].c += weight.c * value, sum[r].d += weight.d * value;
            }
        }
        const int o = unit * UNIT + place;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float total = fold(sum[r]);
            if (lane & 6) continue;
            const float begin = init.data == nullptr ? 0.0f : init.data[static_cast<long>(r) * init.stride + o];
            y.data[static_cast<long>(r) * y.stride + o] = begin + total;
        }
    }
    __syncthreads();
}

// A block of threads for up to ROWS rows: one row gets the whole block, of several each gets a warp.
template <class Weight, int ROWS>
struct CudaTeam {
    template <class F>
    ODE_FN void rows(int n, F f) const {
        if constexpr (ROWS == 1) {
            f(RowTeam<BlockThreads>{}, 0);
        } else {
            for (int r = threadIdx.x / WARP; r < n; r += blockDim.x / WARP) f(RowTeam<WarpThreads>{}, r);
            __syncthreads();
        }
    }

    template <class Angle, class Use>
    ODE_FN void sines_cosines(int n, int count, Angle angle, Use use) const {
        rows(n, [&](const auto& own, int r) {
            own.each(count, [&](int k) {
                float sine, cosine;
                sine_cosine(angle(r, k), sine, cosine);
                use(r, k, sine, cosine);
            });
        });
    }

    ODE_FN void linear(const Matrix& w, View x, View init, Span y, int rows) const {
        if (rows == ROWS) return product<Weight, ROWS>(w, x, init, y);
        for (int r = 0; r < rows; ++r) product<Weight, 1>(w, row(x, r), row(init, r), row(y, r));
    }

private:
    ODE_FN static View row(View view, int r) {
        return {view.data == nullptr ? nullptr : view.data + static_cast<long>(r) * view.stride, view.stride};
    }
    ODE_FN static Span row(Span span, int r) { return {span.data + static_cast<long>(r) * span.stride, span.stride}; }
};

}  // namespace ODE_ISA
}  // namespace odestream
