// The rows that one pass works on, and where their inputs, state and buffers lie.
#pragma once

#include "model.h"

namespace odestream {
namespace ODE_ISA {

// Numbers of a row that its steps hand on.
enum Fact { ERR, OBSERVED, ZETA, ELAPSED };

// Rows `stride` apart, read; stride 0: the same row for all. A null `data` stands for zeros.
struct View {
    const float* data;
    int stride;
};

struct Span {
    float* data;
    int stride;
};

// The state of `batch` streams, as a tile sees it that begins at stream `first`.
template <class Float>
struct Arena {
    Float* data;
    int batch, first;

    ODE_FN Float* at(int member, int size, int r) const {
        return data + static_cast<long>(member) * batch + static_cast<long>(first + r) * size;
    }
};

struct Tile {
    const Cell* cell;
    const Call* call;
    int first, rows;
    float* scratch;  // rows of Places::row floats
    Arena<const float> old;
    Arena<float> fresh;

    ODE_FN int stride() const { return cell->place.row; }
    ODE_FN float* at(int place, int r) const { return scratch + place + static_cast<long>(r) * stride(); }
    ODE_FN float* fact(int which, int r) const { return at(cell->place.facts, r) + which; }
    ODE_FN View view(int place) const { return {at(place, 0), stride()}; }
    ODE_FN Span span(int place) const { return {at(place, 0), stride()}; }

    // Values of row r: its own, or its part of the call's arrays.
    ODE_FN bool apart() const { return call->rows != nullptr; }
    ODE_FN const Row& own(int r) const { return call->rows[first + r]; }
    template <class Float>
    ODE_FN Float* part(Float* all, int size, int r) const {
        return all + static_cast<long>(first + r) * size;
    }

    ODE_FN float dt(int r) const { return apart() ? *own(r).dt : call->dt[first + r]; }
    ODE_FN const float* phase(int r) const {
        return apart() ? own(r).phase : part(call->phase, 2 * cell->size.frequencies, r);
    }
    ODE_FN const float* mask(int r) const { return apart() ? own(r).mask : part(call->mask, cell->size.channels, r); }
    ODE_FN const float* x(int r) const {
        if (apart()) return static_cast<const float*>(own(r).x);
        return part(static_cast<const float*>(call->x), cell->size.channels, r);
    }
    ODE_FN int64_t token(int r) const {
        return *(apart() ? static_cast<const int64_t*>(own(r).x) : static_cast<const int64_t*>(call->x) + first + r);
    }

    ODE_FN const float* member(int offset, int size, int r) const {
        return apart() ? own(r).state + offset : old.at(offset, size, r);
    }
    ODE_FN float* next(int offset, int size, int r) const {
        return apart() ? own(r).next_state + offset : fresh.at(offset, size, r);
    }
    ODE_FN float* y(int r) const { return apart() ? own(r).y : part(call->y, cell->size.answers, r); }
    ODE_FN float* err(int r) const { return apart() ? own(r).err : call->err + first + r; }
    ODE_FN float* gates(int r) const { return apart() ? own(r).gates : part(call->gates, cell->size.gates, r); }
};

// f(offset, floats of one stream) for every member that the cell has, in the order in which they lie in the state.
template <class F>
ODE_FN void each_memory(const Cell& cell, F f) {
    const Sizes& z = cell.size;
    const Members& m = cell.member;
    for (int i = 0; i < z.stores; ++i) {
        if (z.store[i] == LONGTERM) {
            f(m.m, z.heads * z.keys * z.values);
            continue;
        }
        const bool window = z.store[i] == WORKING;
        const int n = window ? z.window : z.slots;
        f(window ? m.wk : m.ek, n * z.keys);
        f(window ? m.wv : m.ev, n * z.values);
        f(window ? m.ws : m.es, n);
        f(window ? m.wa : m.ea, n);
    }
}

template <class F>
ODE_FN void each_member(const Cell& cell, F f) {
    const Sizes& z = cell.size;
    const Members& m = cell.member;
    f(m.h, z.hidden);
    f(m.u, z.hidden);
    f(m.ua, 1);
    f(m.st, 3);
    if (z.averages > 0) f(m.norm, z.channels * (z.averages + 3));
    each_memory(cell, f);
}

// A tile that reads and writes the call's own states, its rows' scratch at `scratch`.
ODE_FN Tile tile_of(const Cell& cell, const Call& call, int first, int rows, float* scratch) {
    return {&cell, &call, first, rows, scratch, {call.state, call.batch, first}, {call.next_state, call.batch, first}};
}

}  // namespace ODE_ISA
}  // namespace odestream
