// A loaded cell as plain data: sizes, coefficients and weights in the layout that the kernels read. Nothing here owns
// memory, so that it can be copied to a device as it is.
#pragma once

#include "platform.h"

namespace odestream {

constexpr int MAX_STAGES = 16;
constexpr int MAX_STORES = 3;
constexpr int VOCABULARY = 256;
constexpr int ABSENT = -1;

enum Task { FORECAST = 0, CLASSIFY = 1, TOKENS = 2 };
enum Store { WORKING = 0, LONGTERM = 1, EPISODIC = 2 };

// y = W·x + bias, W [rows, columns]. The rows are packed in panels of LANES: data[panel][column][lane], so that the
// product walks through memory once, in order, and needs no sum across lanes. Missing lanes are zero, in bias too;
// bias may be null. Weights are floats on the CPU, on a device of the type that its kernels are told; biases are floats.
struct Matrix {
    const void* data;
    const float* bias;
    int rows, columns, panels;
};

// An explicit Runge-Kutta method; see odestream.runtime.contract.tableau for the convention.
struct Tableau {
    int stages;
    bool fsal, estimates;
    float a[MAX_STAGES][MAX_STAGES];
    float b[MAX_STAGES], error[MAX_STAGES];
    double c[MAX_STAGES];
};

// Widths, named as in the cell's configuration. X channels, D hidden, F field, f features, J averages, K frequencies,
// L window, S slots, H heads, dk keys, dv values, R reads, Y answers.
struct Sizes {
    int task, channels, hidden, field, content, head, gate, window, slots, heads, keys, values, answers;
    int averages, frequencies, features, norm_features, reads, gates;
    int stores, store[MAX_STORES];  // in the order of the configuration
    bool surprise_gate, episodic_sink;
};

// Where each member begins in the state of one stream; ABSENT without it. With B streams, member m of stream r begins
// at B·m + r·(its size).
struct Members {
    int h, u, ua, st, norm, wk, wv, ws, wa, m, ek, ev, es, ea, total;
};

// One product gives everything that depends on the features alone; these are its parts. The last three are also what
// h adds to, in one product of its own.
struct Said {
    int content, slot_key, slot_value, matrix_key, matrix_value, keep, slot_query, matrix_query, read, total;
};

// Where each buffer of a row begins in the row's scratch, all multiples of LANES; `row` is the whole length.
struct Places {
    int facts, features, said, inner, logits, residual, expecting, expected, moved, encoding, e, updating, update;
    int answering, answer, scores, h, stage, after, drive, fixed, field, slopes, row;
};

struct Cell {
    Sizes size;
    Members member;
    Said part;
    Places place;
    Tableau method;
    float rtol, atol, age_limit;
    float age_slope;  // softplus already taken
    float decay_rate, sharpness[2], surprise[2], sink;
    const float *scale, *per_scale, *centre, *log_scale2;  // of each channel; per_scale: 1 / scale
    const float *rates, *frequencies, *decay, *embedding;  // rates: 1 / averages
    Matrix hidden, drive, time, output;                    // of the field
    Matrix features, state, gate_inner, gate_outer;        // of gates and memories; see Said
    Matrix expect_inner, expect_outer, residual, encode, update, answer_inner, answer_outer, recall;
};

// One stream's inputs, state and results where they lie by themselves: each as in a call of one stream.
struct Row {
    const void* x;
    const float *mask, *dt, *phase, *state;
    float *y, *err, *gates, *next_state;
};

// One call over `batch` streams. Every array is [batch, …] as the bundle's spec says; x points to float, to int64_t for
// tokens; phase may be null without frequencies. scratch: TILE rows of Places::row floats, aligned to 64 bytes. With
// `rows`, [batch], every stream's values are read and written in their own places, and the other arrays are not used.
struct Call {
    const void* x;
    const float *mask, *dt, *phase, *state;
    float *y, *err, *gates, *next_state, *scratch;
    int batch;
    const Row* rows = nullptr;
};

constexpr int TILE = 8;  // rows that one pass over the weights serves

}  // namespace odestream
