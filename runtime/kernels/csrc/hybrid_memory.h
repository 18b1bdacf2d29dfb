// Gates, reads and writes of the working, long-term and episodic memory: time passes, then a read, then a write.
#pragma once

#include "maths.h"
#include "tile.h"

namespace odestream {
namespace ODE_ISA {

// One kind of slot memory of one row: keys [n, dk], values [n, dv], strengths and ages [n], before dt has passed.
struct Slots {
    const float *keys, *values, *strengths, *ages;
    int count;
};

ODE_FN Slots slots_of(const Tile& tile, Store store, int r) {
    const Sizes& z = tile.cell->size;
    const Members& m = tile.cell->member;
    if (store == WORKING) {
        return {tile.member(m.wk, z.window * z.keys, r), tile.member(m.wv, z.window * z.values, r),
                tile.member(m.ws, z.window, r), tile.member(m.wa, z.window, r), z.window};
    }
    return {tile.member(m.ek, z.slots * z.keys, r), tile.member(m.ev, z.slots * z.values, r),
            tile.member(m.es, z.slots, r), tile.member(m.ea, z.slots, r), z.slots};
}

template <class Team>
ODE_FN void unit(const Team& team, float* vector, int n) {
    const float squares = team.sum(n, [=](int i) { return vector[i] * vector[i]; });
    const float per_length = 1.0f / ::sqrtf(squares + 1e-12f);
    team.each(n, [=](int i) { vector[i] *= per_length; });
}

// What depends on the features alone, for all rows: logits of the gates, keys, values, and the content's share of
// queries; then what h adds to queries and read gates.
template <class Team>
ODE_FN void project(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Places& p = cell.place;
    const int features = cell.size.features, queries = p.said + cell.part.slot_query;
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* f = tile.at(p.features, r);
        own.each(features, [=](int i) { f[features + i] = f[i] * f[i]; });
    });
    team.linear(cell.features, tile.view(p.features), {cell.features.bias, 0}, tile.span(p.said), tile.rows);
    team.linear(cell.gate_inner, tile.view(p.features), {cell.gate_inner.bias, 0}, tile.span(p.inner), tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* x = tile.at(p.inner, r);
        own.each(cell.size.gate, [=](int i) { x[i] = silu(x[i]); });
    });
    team.linear(cell.gate_outer, tile.view(p.inner), {cell.gate_outer.bias, 0}, tile.span(p.logits), tile.rows);
    team.linear(cell.state, tile.view(p.h), tile.view(queries), tile.span(queries), tile.rows);
}

// gates: write proportions, read gates, forget factor, surprise. The favoured store gets the whole strength, the
// others their share of it; an episodic event may also have to be a surprise.
ODE_FN void gate_row(const Cell& cell, const float* logits, const float* said, float zeta, float* gates) {
    const int stores = cell.size.stores;
    const float strength = hard_sigmoid(logits[0]);
    float top = logits[1];
    for (int i = 1; i < stores; ++i) top = larger(logits[1 + i], top);
    for (int i = 0; i < stores; ++i) {
        float write = strength * exp_of(logits[1 + i] - top);
        if (cell.size.surprise_gate && cell.size.store[i] == EPISODIC) {
            write *= sigmoid(cell.surprise[0] * (zeta - cell.surprise[1]));
        }
        gates[i] = write;
        gates[stores + i] = sigmoid(said[cell.part.read + i]);
    }
    gates[2 * stores] = hard_sigmoid(said[cell.part.keep]);
    gates[2 * stores + 1] = zeta;
}

// out = opened · softmax(κ·cos(q, k) + log(s/s_max + ε) + bias)·values; zero when all slots are empty. The bias of the
// working memory is −slope·log(1 + age). The softmax of the episodic one may have a sink: one more entry, of logit
// κ·sink and value zero.
template <class Team>
ODE_FN void attend(const Team& team, const Tile& tile, const Slots& slots, const float* query, Store store, float opened,
                   int r, float* out) {
    const Cell& cell = *tile.cell;
    const int n = slots.count, values = cell.size.values;
    const float sharpness = cell.sharpness[store == WORKING ? 1 : 0], slope = cell.age_slope;
    const float dt = tile.dt(r), limit = cell.age_limit;
    const float *strengths = slots.strengths, *ages = slots.ages;
    float* scores = tile.at(cell.place.scores, r);
    const float strongest = team.max(n, strengths);
    const float floor = at_least(strongest, 1e-20f);
    team.dots(slots.keys, query, n, cell.size.keys, scores);
    team.each(n, [=](int i) {
        scores[i] = sharpness * scores[i] + log_of(strengths[i] / floor + 1e-6f);
    });
    if (store == WORKING) {
        team.each(n, [=](int i) { scores[i] -= slope * log_of(1.0f + at_most(ages[i] + dt, limit)); });
    }
    const bool sinks = store == EPISODIC && cell.size.episodic_sink;
    const float silence = sharpness * cell.sink;
    float top = team.max(n, scores);
    if (sinks) top = larger(silence, top);
    team.each(n, [=](int i) { scores[i] = exp_of(scores[i] - top); });
    float total = team.sum(n, [=](int i) { return scores[i]; });
    if (sinks) total += exp_of(silence - top);
    team.mix(scores, slots.values, n, values, values, out);
    const float share = opened / total;
    team.each(values, [=](int i) { out[i] = strongest > 0.0f ? share * out[i] : 0.0f; });
}

// out = opened · qᵀm in each head, m being `before` times `share`, what the decay left of it.
template <class Team>
ODE_FN void read_matrix(const Team& team, const Sizes& z, const float* query, const float* before, float share,
                        float opened, float* out) {
    for (int head = 0; head < z.heads; ++head) {
        float* read = out + head * z.values;
        team.mix(query + head * z.keys, before + head * z.keys * z.values, z.keys, z.values, z.values, read);
        team.each(z.values, [=](int i) { read[i] = share * read[i] * opened; });
    }
}

// Append key and value to the window and drop the oldest, in a row that was observed; else only ages grow.
template <class Team>
ODE_FN void write_window(const Team& team, const Tile& tile, const float* said, float strength, int r) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const Members& m = cell.member;
    const Slots old = slots_of(tile, WORKING, r);
    const bool observed = *tile.fact(OBSERVED, r) > 0.0f;
    const int drop = observed ? 1 : 0, kept = z.window - drop;
    float *keys = tile.next(m.wk, z.window * z.keys, r), *values = tile.next(m.wv, z.window * z.values, r);
    float *strengths = tile.next(m.ws, z.window, r), *ages = tile.next(m.wa, z.window, r);
    const float dt = tile.dt(r), limit = cell.age_limit;
    team.copy(kept * z.keys, old.keys + drop * z.keys, keys);
    team.copy(kept * z.values, old.values + drop * z.values, values);
    team.copy(kept, old.strengths + drop, strengths);
    const float* before = old.ages + drop;
    team.each(kept, [=](int i) { ages[i] = at_most(before[i] + dt, limit); });
    if (observed) {
        team.copy(z.keys, said + cell.part.slot_key, keys + kept * z.keys);
        team.copy(z.values, said + cell.part.slot_value, values + kept * z.values);
        team.set(strengths + kept, strength);
        team.set(ages + kept, 0.0f);
    }
}

// The gated delta rule, m ← keep·m, then m ← m + β·k ⊗ (v − kᵀm) (Yang et al. 2024, gated delta networks), on what the
// decay left of m; in a row that was not observed, the decay alone.
template <class Team>
ODE_FN void write_matrix(const Team& team, const Tile& tile, const float* said, float share, float strength, float keep,
                         int r) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const int size = z.keys * z.values;
    const float* before = tile.member(cell.member.m, z.heads * size, r);
    float *next = tile.next(cell.member.m, z.heads * size, r), *error = tile.at(cell.place.scores, r);
    if (!(*tile.fact(OBSERVED, r) > 0.0f)) {
        team.each(z.heads * size, [=](int i) { next[i] = share * before[i]; });
        return;
    }
    const float kept = keep * share;
    for (int head = 0; head < z.heads; ++head) {
        const float *key = said + cell.part.matrix_key + head * z.keys, *m = before + head * size;
        const float* value = said + cell.part.matrix_value + head * z.values;
        team.mix(key, m, z.keys, z.values, z.values, error);
        team.each(z.values, [=](int i) { error[i] = value[i] - kept * error[i]; });
        team.add_outer(m, kept, strength, key, error, z.keys, z.values, next + head * size);
    }
}

// The weakest slot gives way, and only to a stronger event.
template <class Team>
ODE_FN void write_slots(const Team& team, const Tile& tile, const float* said, float strength, int r) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const Members& m = cell.member;
    const Slots old = slots_of(tile, EPISODIC, r);
    float *keys = tile.next(m.ek, z.slots * z.keys, r), *values = tile.next(m.ev, z.slots * z.values, r);
    float *strengths = tile.next(m.es, z.slots, r), *ages = tile.next(m.ea, z.slots, r);
    const float dt = tile.dt(r), limit = cell.age_limit;
    const float* before = old.ages;
    team.copy(z.slots * z.keys, old.keys, keys);
    team.copy(z.slots * z.values, old.values, values);
    team.copy(z.slots, old.strengths, strengths);
    team.each(z.slots, [=](int i) { ages[i] = at_most(before[i] + dt, limit); });
    const float* strengths_before = old.strengths;
    const int weakest = team.least(z.slots, [=](int i) { return strengths_before[i]; });
    if (*tile.fact(OBSERVED, r) > 0.0f && strength > strengths_before[weakest]) {
        team.copy(z.keys, said + cell.part.slot_key, keys + weakest * z.keys);
        team.copy(z.values, said + cell.part.slot_value, values + weakest * z.values);
        team.set(strengths + weakest, strength);
        team.set(ages + weakest, 0.0f);
    }
}

// Keys and queries of length one, in each head.
template <class Team>
ODE_FN void normalise_addresses(const Team& team, const Cell& cell, float* said) {
    const Sizes& z = cell.size;
    if (cell.member.wk != ABSENT || cell.member.ek != ABSENT) {
        unit(team, said + cell.part.slot_key, z.keys);
        unit(team, said + cell.part.slot_query, z.keys);
    }
    for (int head = 0; cell.member.m != ABSENT && head < z.heads; ++head) {
        unit(team, said + cell.part.matrix_key + head * z.keys, z.keys);
        unit(team, said + cell.part.matrix_query + head * z.keys, z.keys);
    }
}

// Read every store of one row, then write to it. reads: behind e in the buffer `updating`.
template <class Team>
ODE_FN void read_and_write(const Team& team, const Tile& tile, int r, float* reads) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    float *said = tile.at(cell.place.said, r), *gates = tile.gates(r);
    normalise_addresses(team, cell, said);
    for (int i = 0; i < z.stores; ++i) {
        const float opened = gates[z.stores + i];
        const Store store = static_cast<Store>(z.store[i]);
        if (store == LONGTERM) {
            const float share = exp_of(-cell.decay_rate * tile.dt(r));
            const float* before = tile.member(cell.member.m, z.heads * z.keys * z.values, r);
            read_matrix(team, z, said + cell.part.matrix_query, before, share, opened, reads);
            write_matrix(team, tile, said, share, gates[i], gates[2 * z.stores], r);
            reads += z.heads * z.values;
            continue;
        }
        attend(team, tile, slots_of(tile, store, r), said + cell.part.slot_query, store, opened, r, reads);
        if (store == WORKING) write_window(team, tile, said, gates[i], r);
        else write_slots(team, tile, said, gates[i], r);
        reads += z.values;
    }
}

template <class Team>
ODE_FN void hybrid_memory(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    project(team, tile);
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float *logits = tile.at(cell.place.logits, r), *said = tile.at(cell.place.said, r);
        const float zeta = *tile.fact(ZETA, r);
        float* gates = tile.gates(r);
        own.once([&] { gate_row(cell, logits, said, zeta, gates); });
        read_and_write(own, tile, r, tile.at(cell.place.updating, r) + cell.size.hidden);
    });
}

}  // namespace ODE_ISA
}  // namespace odestream
