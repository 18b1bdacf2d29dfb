// How one CPU thread does what the arithmetic asks for. Loops over elements are plain and left to the compiler; products
// are written with vector types, so that their sums stay in registers and have one order whatever the number of rows.
#pragma once

#include "maths.h"
#include "tile.h"

namespace odestream {
namespace ODE_ISA {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#define ODE_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODE_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#define ODE_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODE_ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
constexpr int WIDTH = 4;
#define ODE_EVEN 0, 2, 4, 6
#define ODE_ODD 1, 3, 5, 7
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

// Four panels for as many of the rows from r on as ROWS goes into, BLOCK panels at a time; the next row.
template <int ROWS, int BLOCK>
inline int some_rows(const float* w, int columns, View x, View init, Span y, int r, int rows) {
    const long stride = static_cast<long>(columns) * LANES;
    for (; r + ROWS <= rows; r += ROWS) {
        for (int p = 0; p < 4; p += BLOCK) {
            product<ROWS, BLOCK, 1>(w + p * stride, columns, row(x, r), panel(row(init, r), p), panel(row(y, r), p));
        }
    }
    return r;
}

// Four panels for all rows. Several rows share the weights that were loaded; their sums take half the registers of a
// wide machine, which then waits for no sum and seldom begins a new block.
inline void four_panels(const float* w, int columns, View x, View init, Span y, int rows) {
    int r = 0;
    if (WIDTH == 16) r = some_rows<8, 2>(w, columns, x, init, y, r, rows);
    r = some_rows<4, WIDTH == 16 ? 4 : 1>(w, columns, x, init, y, r, rows);
    some_rows<1, 4>(w, columns, x, init, y, r, rows);
}

template <int ROWS>
inline void some_panels(const float* w, int panels, int columns, View x, View init, Span y) {
    if (panels == 1) product<ROWS, 1, 4>(w, columns, x, init, y);
    if (panels == 2) product<ROWS, 2, 2>(w, columns, x, init, y);
    if (panels == 3) product<ROWS, 3, 2>(w, columns, x, init, y);
}

// Fewer than four panels. The sums of one row fill the registers of a narrow machine already.
inline void last_panels(const float* w, int panels, int columns, View x, View init, Span y, int rows) {
    constexpr int TOGETHER = WIDTH == 16 ? 4 : 1;
    int r = 0;
    for (; r + TOGETHER <= rows; r += TOGETHER) {
        some_panels<TOGETHER>(w, panels, columns, row(x, r), row(init, r), row(y, r));
    }
    for (; r < rows; ++r) some_panels<1>(w, panels, columns, row(x, r), row(init, r), row(y, r));
}

// out[0 … BLOCKS·LANES) = Σ weights[n] · rows[n·stride …), the terms dealt out to SPLIT sums.
template <int BLOCKS, int SPLIT>
inline void mix_block(const float* weights, const float* rows, int count, int stride, float* out) {
    Vec sum[SPLIT][BLOCKS * PARTS] = {};
    const auto add = [&](int n, int s) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int v = 0; v < BLOCKS * PARTS; ++v) {
            sum[s][v] += load(rows + static_cast<long>(n) * stride + v * WIDTH) * weights[n];
        }
    };
    int n = 0;
    for (; n + SPLIT <= count; n += SPLIT) {
#pragma GCC unroll 8
        for (int s = 0; s < SPLIT; ++s) add(n + s, s);
    }
    for (; n < count; ++n) add(n, 0);
#pragma GCC unroll 16
    for (int v = 0; v < BLOCKS * PARTS; ++v) {
        Vec total = sum[0][v];
#pragma GCC unroll 8
        for (int s = 1; s < SPLIT; ++s) total += sum[s][v];
        store(out + v * WIDTH, total);
    }
}

// Every second lane of a and then of b, from the first or the second on.
#if defined(__clang__)
inline Vec even(Vec a, Vec b) { return __builtin_shufflevector(a, b, ODE_EVEN); }
inline Vec odd(Vec a, Vec b) { return __builtin_shufflevector(a, b, ODE_ODD); }
#else
typedef int Places __attribute__((vector_size(4 * WIDTH)));
inline Vec even(Vec a, Vec b) { return __builtin_shuffle(a, b, Places{ODE_EVEN}); }
inline Vec odd(Vec a, Vec b) { return __builtin_shuffle(a, b, Places{ODE_ODD}); }
#endif

// Sums of neighbours, those of a before those of b.
inline Vec neighbours(Vec a, Vec b) { return even(a, b) + odd(a, b); }

inline Vec larger_of(Vec a, Vec b) { return a > b ? a : b; }

// The sums of N vectors' lanes, WIDTH/N of them a vector, in the vectors' order.
template <int N>
inline Vec lane_sums(const Vec* vectors) {
    return neighbours(lane_sums<N / 2>(vectors), lane_sums<N / 2>(vectors + N / 2));
}
template <>
inline Vec lane_sums<1>(const Vec* vectors) {
    return *vectors;
}

// The sum of LANES floats in memory.
inline float sum_lanes(const float* lanes) {
    Vec total = load(lanes);
#pragma GCC unroll 4
    for (int v = 1; v < PARTS; ++v) total += load(lanes + v * WIDTH);
#pragma GCC unroll 4
    for (int width = WIDTH; width > 1; width /= 2) total = neighbours(total, total);
    return total[0];
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
    return sum_lanes(lanes);
}

// out[n] = keys[n] · query for WIDTH keys, whose sums across lanes are taken together.
inline void dots_block(const float* keys, const float* query, int width, float* out) {
    Vec sum[WIDTH] = {};
    int i = 0;
    for (; i + WIDTH <= width; i += WIDTH) {
        const Vec part = load(query + i);
#pragma GCC unroll 16
        for (int n = 0; n < WIDTH; ++n) sum[n] += load(keys + static_cast<long>(n) * width + i) * part;
    }
    store(out, lane_sums<WIDTH>(sum));
    for (; i < width; ++i) {
        for (int n = 0; n < WIDTH; ++n) out[n] += keys[static_cast<long>(n) * width + i] * query[i];
    }
}

// A number as a type of its own; the standard library's would be one for all instruction sets.
struct Four {
    constexpr operator int() const { return 4; }
};

struct HostTeam {
    // f(team, r) for the rows of a tile, each with what works for one row alone.
    template <class F>
    ODE_INLINE void rows(int n, F f) const {
        for (int r = 0; r < n; ++r) f(*this, r);
    }

    // use(r, k, sine, cosine) of angle(r, k) for the rows of a tile and k in 0 … count. Rows of few angles are taken
    // together, so that all of them are vector code.
    template <class Angle, class Use>
    void sines_cosines(int rows, int count, Angle angle, Use use) const {
        constexpr int MOST = 32;
        float angles[MOST], sines[MOST], cosines[MOST];
        for (int first = 0; first < rows * count; first += MOST) {
            const int n = rows * count - first < MOST ? rows * count - first : MOST;
            for (int i = 0; i < n; ++i) angles[i] = angle((first + i) / count, (first + i) % count);
            each(n, [&](int i) { sine_cosine(angles[i], sines[i], cosines[i]); });
            for (int i = 0; i < n; ++i) use((first + i) / count, (first + i) % count, sines[i], cosines[i]);
        }
    }

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

    // f(i, few) for i in 0 … n, `few` being a number that loops in f run to: the usual one is known to the compiler, which
    // makes one vector of such a loop.
    template <class F>
    ODE_INLINE void each_of(int few, int n, F f) const {
        constexpr Four usual;
        for (int i = 0; few == usual && i < n; ++i) f(i, usual);
        for (int i = 0; few != usual && i < n; ++i) f(i, few);
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
        return sum_lanes(lanes);
    }

    // The largest of n values, at least one. NaN may be passed over, where on GPUs it is the largest: it stays in what is
    // made of logits and scores, and strengths are of a state that guards let pass.
    float max(int n, const float* values) const {
        float first[WIDTH];
        for (int k = 0; n < WIDTH && k < WIDTH; ++k) first[k] = values[k < n ? k : 0];
        Vec top = n < WIDTH ? load(first) : load(values + n - WIDTH);
        for (int i = 0; i + WIDTH <= n; i += WIDTH) top = larger_of(load(values + i), top);
#pragma GCC unroll 4
        for (int width = WIDTH; width > 1; width /= 2) top = larger_of(even(top, top), odd(top, top));
        return top[0];
    }

    // The first i with the smallest f(i).
    template <class F>
    ODE_INLINE int least(int n, F f) const {
        int first = 0;
        for (int i = 1; i < n; ++i) first = f(i) < f(first) ? i : first;
        return first;
    }

    // What stands there now, before anything after this call can change it.
    float read(const float* from) const { return *from; }
    // Most copies are short, where a call of the library's function would take longest. The last vector overlaps.
    void copy(int n, const float* from, float* to) const {
        for (int i = 0; i + WIDTH <= n; i += WIDTH) store(to + i, load(from + i));
        if (n >= WIDTH) return store(to + n - WIDTH, load(from + n - WIDTH));
        for (int i = 0; i < n; ++i) to[i] = from[i];
    }
    void set(float* to, float value) const { *to = value; }

    // y = init + W·x, a row of y and init being as long as W's panels.
    void linear(const Matrix& w, View x, View init, Span y, int rows) const {
        const float* const weights = static_cast<const float*>(w.data);
        const long stride = static_cast<long>(w.columns) * LANES;
        int p = 0;
        for (; p + 4 <= w.panels; p += 4) {
            four_panels(weights + p * stride, w.columns, x, panel(init, p), panel(y, p), rows);
        }
        if (p == w.panels) return;
        last_panels(weights + p * stride, w.panels - p, w.columns, x, panel(init, p), panel(y, p), rows);
    }

    // out[0 … width) = Σ weights[n] · rows[n·stride …)
    void mix(const float* weights, const float* rows, int count, int stride, int width, float* out) const {
        int d = 0;
        for (; d + 4 * LANES <= width; d += 4 * LANES) mix_block<4, 1>(weights, rows + d, count, stride, out + d);
        for (; d + 2 * LANES <= width; d += 2 * LANES) mix_block<2, 2>(weights, rows + d, count, stride, out + d);
        for (; d + LANES <= width; d += LANES) mix_block<1, 4>(weights, rows + d, count, stride, out + d);
        for (; d < width; ++d) {
            float sum = 0.0f;
            for (int n = 0; n < count; ++n) sum += weights[n] * rows[static_cast<long>(n) * stride + d];
            out[d] = sum;
        }
    }

    // out[n] = keys[n] · query
    void dots(const float* keys, const float* query, int count, int width, float* out) const {
        int n = 0;
        for (; n + WIDTH <= count; n += WIDTH) dots_block(keys + static_cast<long>(n) * width, query, width, out + n);
        for (; n < count; ++n) out[n] = dot(keys + static_cast<long>(n) * width, query, width);
    }

    // out = keep·m + strength · key ⊗ error, m and out [keys, values]
    void add_outer(const float* m, float keep, float strength, const float* key, const float* error, int keys,
                   int values, float* out) const {
        int d = 0;
        for (; d + WIDTH <= values; d += WIDTH) {
            const Vec off = strength * load(error + d);
            for (int k = 0; k < keys; ++k) {
                const long at = static_cast<long>(k) * values + d;
                store(out + at, keep * load(m + at) + key[k] * off);
            }
        }
        for (; d < values; ++d) {
            for (int k = 0; k < keys; ++k) {
                const long at = static_cast<long>(k) * values + d;
                out[at] = keep * m[at] + key[k] * (strength * error[d]);
            }
        }
    }
};

}  // namespace ODE_ISA
}  // namespace odestream
