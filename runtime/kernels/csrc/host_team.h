// How one CPU thread does what the arithmetic asks for. Loops over elements are plain and left to the compiler; products
// are written with vector types, so that their sums stay in registers and have one order whatever the number of rows.
#pragma once

#include "tile.h"

#include <cstring>

namespace odestream {
namespace ODE_ISA {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

// Aligned to a float only: state members and inputs begin anywhere.
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

constexpr int PARTS = LANES / WIDTH;

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }

// y = init + W·x for ROWS rows and PANELS panels. Columns are dealt out to SPLIT sums, which hides the latency of few
// panels; their order is that of `SPLIT` alone.
template <int ROWS, int PANELS, int SPLIT>
inline void product(const float* w, int columns, View x, View init, Span y) {
    Vec sum[SPLIT][ROWS][PANELS][PARTS];
    const long panel = static_cast<long>(columns) * LANES;
#pragma GCC unroll 8
    for (int s = 0; s < SPLIT; ++s) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 8
                for (int v = 0; v < PARTS; ++v) {
                    const bool given = s == 0 && init.data != nullptr;
                    const float* from = init.data + static_cast<long>(r) * init.stride + p * LANES + v * WIDTH;
                    sum[s][r][p][v] = given ? load(from) : Vec{};
                }
            }
        }
    }
    const auto add = [&](int j, int s) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 8
            for (int v = 0; v < PARTS; ++v) {
                const Vec weight = load(w + p * panel + static_cast<long>(j) * LANES + v * WIDTH);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    sum[s][r][p][v] += weight * x.data[static_cast<long>(r) * x.stride + j];
                }
            }
        }
    };
    int j = 0;
    for (; j + SPLIT <= columns; j += SPLIT) {
#pragma GCC unroll 8
        for (int s = 0; s < SPLIT; ++s) add(j + s, s);
    }
    for (; j < columns; ++j) add(j, 0);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 8
            for (int v = 0; v < PARTS; ++v) {
                Vec total = sum[0][r][p][v];
#pragma GCC unroll 8
                for (int s = 1; s < SPLIT; ++s) total += sum[s][r][p][v];
                store(y.data + static_cast<long>(r) * y.stride + p * LANES + v * WIDTH, total);
            }
        }
    }
}

inline View row(View view, int r) {
    return {view.data == nullptr ? nullptr : view.data + static_cast<long>(r) * view.stride, view.stride};
}
inline Span row(Span span, int r) { return {span.data + static_cast<long>(r) * span.stride, span.stride}; }
inline View panel(View view, int p) { return {view.data == nullptr ? nullptr : view.data + p * LANES, view.stride}; }
inline Span panel(Span span, int p) { return {span.data + p * LANES, span.stride}; }

// Four panels for all rows: several rows at a time share the weights that were loaded.
inline void four_panels(const float* w, int columns, View x, View init, Span y, int rows) {
    constexpr int TOGETHER = 4, BLOCK = WIDTH == 16 ? 2 : 1;
    const long stride = static_cast<long>(columns) * LANES;
    int r = 0;
    for (; r + TOGETHER <= rows; r += TOGETHER) {
        for (int p = 0; p < 4; p += BLOCK) {
            product<TOGETHER, BLOCK, 1>(w + p * stride, columns, row(x, r), panel(row(init, r), p),
                                        panel(row(y, r), p));
        }
    }
    for (; r < rows; ++r) product<1, 4, 1>(w, columns, row(x, r), row(init, r), row(y, r));
}

inline void last_panels(const float* w, int panels, int columns, View x, View init, Span y) {
    if (panels == 1) product<1, 1, 4>(w, columns, x, init, y);
    if (panels == 2) product<1, 2, 2>(w, columns, x, init, y);
    if (panels == 3) product<1, 3, 2>(w, columns, x, init, y);
}

// out[0 … ROWS·LANES) = Σ weights[n] · rows[n·stride …)
template <int BLOCKS>
inline void mix_block(const float* weights, const float* rows, int count, int stride, float* out) {
    Vec sum[BLOCKS * PARTS] = {};
    for (int n = 0; n < count; ++n) {
#pragma GCC unroll 16
        for (int v = 0; v < BLOCKS * PARTS; ++v) {
            sum[v] += load(rows + static_cast<long>(n) * stride + v * WIDTH) * weights[n];
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < BLOCKS * PARTS; ++v) store(out + v * WIDTH, sum[v]);
}

inline float dot(const float* a, const float* b, int n) {
    Vec sum[PARTS] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma GCC unroll 4
        for (int v = 0; v < PARTS; ++v) sum[v] += load(a + i + v * WIDTH) * load(b + i + v * WIDTH);
    }
    float lanes[LANES];
#pragma GCC unroll 4
    for (int v = 0; v < PARTS; ++v) store(lanes + v * WIDTH, sum[v]);
    for (int k = 0; i + k < n; ++k) lanes[k] += a[i + k] * b[i + k];
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    }
    return lanes[0];
}

struct HostTeam {
    // f(i) for i in 0 … n, in any order; no two of them may touch the same element.
    template <class F>
    ODE_INLINE void each(int n, F f) const {
#pragma GCC ivdep
        for (int i = 0; i < n; ++i) f(i);
    }

    // The same for few elements with much to do each.
    template <class F>
    void each_in_turn(int n, F f) const {
        for (int i = 0; i < n; ++i) f(i);
    }

    template <class F>
    void once(F f) const {
        f();
    }

    template <class F>
    ODE_INLINE float sum(int n, F f) const {
        float lanes[LANES] = {};
        int i = 0;
        for (; i + LANES <= n; i += LANES) {
            for (int k = 0; k < LANES; ++k) lanes[k] += f(i + k);
        }
        for (int k = 0; i + k < n; ++k) lanes[k] += f(i + k);
        for (int half = LANES / 2; half > 0; half /= 2) {
            for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
        }
        return lanes[0];
    }

    // The largest f(i), NaN if one is; n is at least 1.
    template <class F>
    ODE_INLINE float max(int n, F f) const {
        float most = f(0);
        for (int i = 1; i < n; ++i) {
            const float value = f(i);
            most = value > most || value != value ? value : most;
        }
        return most;
    }

    void copy(int n, const float* from, float* to) const { std::memcpy(to, from, sizeof(float) * n); }
    void set(float* to, float value) const { *to = value; }

    // y = init + W·x, a row of y and init being as long as W's panels.
    void linear(const Matrix& w, View x, View init, Span y, int rows) const {
        const long stride = static_cast<long>(w.columns) * LANES;
        int p = 0;
        for (; p + 4 <= w.panels; p += 4) {
            four_panels(w.data + p * stride, w.columns, x, panel(init, p), panel(y, p), rows);
        }
        for (int r = 0; r < rows && p < w.panels; ++r) {
            last_panels(w.data + p * stride, w.panels - p, w.columns, row(x, r), panel(row(init, r), p),
                        panel(row(y, r), p));
        }
    }

    // out[0 … width) = Σ weights[n] · rows[n·stride …)
    void mix(const float* weights, const float* rows, int count, int stride, int width, float* out) const {
        int d = 0;
        for (; d + 4 * LANES <= width; d += 4 * LANES) mix_block<4>(weights, rows + d, count, stride, out + d);
        for (; d + LANES <= width; d += LANES) mix_block<1>(weights, rows + d, count, stride, out + d);
        for (; d < width; ++d) {
            float sum = 0.0f;
            for (int n = 0; n < count; ++n) sum += weights[n] * rows[static_cast<long>(n) * stride + d];
            out[d] = sum;
        }
    }

    // out[n] = keys[n] · query
    void dots(const float* keys, const float* query, int count, int width, float* out) const {
        for (int n = 0; n < count; ++n) out[n] = dot(keys + static_cast<long>(n) * width, query, width);
    }

    // m = keep·m + strength · key ⊗ error, m [keys, values]
    void add_outer(float* m, float keep, float strength, const float* key, const float* error, int keys,
                   int values) const {
        for (int k = 0; k < keys; ++k) {
            const float share = strength * key[k];
            float* to = m + static_cast<long>(k) * values;
            each(values, [=](int i) { to[i] = keep * to[i] + share * error[i]; });
        }
    }
};

}  // namespace ODE_ISA
}  // namespace odestream
