// Where a cell's parts and buffers begin, from its widths alone.
#pragma once

#include "model.h"

#include <initializer_list>

namespace odestream {

inline bool has(const Sizes& z, Store store) {
    for (int i = 0; i < z.stores; ++i) {
        if (z.store[i] == store) return true;
    }
    return false;
}

// Offsets one after another.
struct Line {
    int end = 0;
    int next(int length) {
        const int begin = end;
        end += length;
        return begin;
    }
    int next_padded(int length) { return next(padded(length)); }
};

inline Said said_of(const Sizes& z) {
    const int slots = has(z, WORKING) || has(z, EPISODIC), heads = has(z, LONGTERM) ? z.heads : 0;
    Line line;
    Said part{};
    part.content = line.next_padded(z.content);
    part.slot_key = line.next_padded(slots * z.keys);
    part.slot_value = line.next_padded(slots * z.values);
    part.matrix_key = line.next_padded(heads * z.keys);
    part.matrix_value = line.next_padded(heads * z.values);
    part.keep = line.next_padded(1);
    part.slot_query = line.next_padded(slots * z.keys);
    part.matrix_query = line.next_padded(heads * z.keys);
    part.read = line.next_padded(z.stores);
    part.total = line.end;
    return part;
}

inline int most(std::initializer_list<int> values) {
    int largest = 0;
    for (int value : values) largest = value > largest ? value : largest;
    return largest;
}

inline Places places_of(const Sizes& z, const Said& part, int stages) {
    const int seen = z.task == TOKENS ? VOCABULARY : z.channels;
    const int expected = z.task == TOKENS ? VOCABULARY : 2 * z.channels;
    Line line;
    Places p{};
    p.facts = line.next_padded(LANES);
    p.features = line.next_padded(2 * z.features);
    p.said = line.next_padded(part.total);
    p.inner = line.next_padded(z.gate);
    p.logits = line.next_padded(1 + z.stores);
    p.residual = line.next_padded(seen);
    p.expecting = line.next_padded(z.hidden + 2 * z.frequencies + z.norm_features);
    p.expected = line.next(padded(z.head) + padded(expected));
    p.moved = line.next_padded(2 * z.frequencies);
    p.encoding = line.next_padded(z.content + 1);
    p.e = line.next_padded(z.hidden);
    p.updating = line.next_padded(2 * z.hidden + z.reads);
    p.update = line.next_padded(2 * z.hidden);
    p.answering = line.next_padded(z.hidden + z.reads);
    p.answer = line.next(padded(z.head) + padded(z.answers));
    p.scores = line.next_padded(most({z.window, z.slots, z.values}));
    p.h = line.next_padded(z.hidden);
    p.stage = line.next_padded(z.hidden);
    p.after = line.next_padded(z.hidden);
    p.drive = line.next_padded(z.field);
    p.fixed = line.next_padded(z.field);
    p.field = line.next_padded(z.field);
    p.slopes = line.next(stages * padded(z.hidden));
    p.row = line.end / LANES % 2 == 0 ? line.end + LANES : line.end;  // rows must not share their places in a cache
    return p;
}

}  // namespace odestream
