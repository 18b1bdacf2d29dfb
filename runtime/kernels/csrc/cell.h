// The whole step: `odestream.models.cell.Cell.step` over a tile of rows. Rows never meet: a row's result does not depend
// on the rows beside it, to the bit.
#pragma once

#include "hybrid_memory.h"
#include "normalise.h"
#include "ode_flow.h"

namespace odestream {
namespace ODE_ISA {

template <class Team>
ODE_FN void activate_silu(const Team& team, const Tile& tile, int place, int width) {
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* x = tile.at(place, r);
        own.each(width, [=](int i) { x[i] = silu(x[i]); });
    });
}

// outer·SiLU(inner·x + b) + b'; the buffer `to` has place for both layers' widths.
template <class Team>
ODE_FN void two_layers(const Team& team, const Tile& tile, const Matrix& inner, const Matrix& outer, int from, int to) {
    team.linear(inner, tile.view(from), {inner.bias, 0}, tile.span(to), tile.rows);
    activate_silu(team, tile, to, inner.rows);
    const int end = to + padded(inner.rows);
    team.linear(outer, tile.view(to), {outer.bias, 0}, tile.span(end), tile.rows);
}

// Where `two_layers` leaves its result.
ODE_FN int behind(int place, const Matrix& inner) { return place + padded(inner.rows); }

template <class Team>
ODE_FN void observe(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float* mask = tile.mask(r);
        const float most = own.max(z.channels, mask);
        const float observed = most > 0.0f ? 1.0f : 0.0f;
        float* features = tile.at(cell.place.features, r);
        own.set(tile.fact(OBSERVED, r), observed);
        if (z.task == TOKENS) {
            const float* embedded = cell.embedding + (observed > 0.0f ? tile.token(r) * z.features : 0);
            own.each(z.features, [=](int i) { features[i] = observed > 0.0f ? embedded[i] : 0.0f; });
        } else if (z.averages > 0) {
            running_features(own, tile, r, features);
        } else {
            fixed_features(own, tile, r, features);
        }
    });
}

// What h⁻, φ(t) and norm expect, into the buffer behind `expected`'s first layer.
template <class Team>
ODE_FN void expect(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const bool moved = cell.method.c[cell.method.stages - 1] == 1.0;  // by the flow, which ended there
    if (z.frequencies > 0 && !moved) rotate_rows(team, tile, 1.0f, cell.place.moved);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* parts = tile.at(cell.place.expecting, r);
        own.copy(z.hidden, tile.at(cell.place.h, r), parts);
        own.copy(2 * z.frequencies, tile.at(cell.place.moved, r), parts + z.hidden);
        if (z.averages == 0) return;
        head_features(own, tile, r, parts + z.hidden + 2 * z.frequencies);
    });
    two_layers(team, tile, cell.expect_inner, cell.expect_outer, cell.place.expecting, cell.place.expected);
}

// The last value of a row's first channel, centred, the others' norm_width apart; null where none are kept.
ODE_FN const float* last_of(const Tile& tile, int r) {
    return tile.cell->size.averages > 0 ? norm_of(tile, r) + LAST : nullptr;
}

// Residual (x − x̂)/s of every channel where it was observed; returns the mean square over these.
template <class Team>
ODE_FN float compare_channels(const Team& team, const Tile& tile, int r, const float* expected, float* residual) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels;
    const float *x = tile.x(r), *mask = tile.mask(r), *last = last_of(tile, r);
    const float *centre = cell.centre, *scale = cell.scale, *per_scale = cell.per_scale;
    const int apart = norm_width(cell.size);
    team.each_in_turn(channels, [=](int i) {
        const float centred = (last != nullptr ? last[i * apart] : 0.0f) + scale[i] * expected[i];
        const float off = (x[i] - centre[i] - centred) * per_scale[i];
        residual[i] = mask[i] > 0.0f ? off : 0.0f;
    });
    const float squares = team.sum(channels, [=](int i) { return residual[i] * residual[i]; });
    return squares / at_least(team.sum(channels, [=](int i) { return mask[i]; }), 1.0f);
}

// Residual of the one-hot token; returns its negative log-likelihood.
template <class Team>
ODE_FN float compare_token(const Team& team, const Tile& tile, int r, const float* logits, float* residual) {
    const bool observed = *tile.fact(OBSERVED, r) > 0.0f;
    const int token = observed ? static_cast<int>(tile.token(r)) : 0;
    const float top = team.max(VOCABULARY, logits);
    team.each(VOCABULARY, [=](int i) { residual[i] = exp_of(logits[i] - top); });
    const float total = team.sum(VOCABULARY, [=](int i) { return residual[i]; });
    const float amount = -log_of(team.read(residual + token) / total + 1e-9f);
    team.each(VOCABULARY, [=](int i) {
        const float off = (i == token ? 1.0f : 0.0f) - residual[i] / total;
        residual[i] = observed ? off : 0.0f;
    });
    return amount;
}

// ζ against the old mean and deviation, and the statistics after it; the first observation only counts as seen.
ODE_FN float score(float amount, bool observed, const float* st, float* next) {
    constexpr float RATE = 1.0f / 32;
    const float mean = st[0], variance = st[1], seen = st[2];
    const bool counted = observed && seen > 0.0f;
    const float distance = at_most(amount, 100.0f) - mean;
    next[0] = counted ? mean + RATE * distance : mean;
    next[1] = counted ? variance + RATE * (distance * distance - variance) : variance;
    next[2] = observed && !counted ? 1.0f : seen;
    return counted ? clamp(distance / ::sqrtf(variance + 1e-3f), -4.0f, 4.0f) : 0.0f;
}

template <class Team>
ODE_FN void compare(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const int expected = behind(cell.place.expected, cell.expect_inner);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* residual = tile.at(cell.place.residual, r);
        const float amount = cell.size.task == TOKENS
                                 ? compare_token(own, tile, r, tile.at(expected, r), residual)
                                 : compare_channels(own, tile, r, tile.at(expected, r), residual);
        const bool observed = *tile.fact(OBSERVED, r) > 0.0f;
        const float* st = tile.member(cell.member.st, 3, r);
        float *next = tile.next(cell.member.st, 3, r), *zeta = tile.fact(ZETA, r);
        own.once([=] { *zeta = score(amount, observed, st, next); });
    });
}

// e = tanh(Enc[SiLU(content + residual), log(1 + elapsed)]), for the jump.
template <class Team>
ODE_FN void encode(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Places& p = cell.place;
    const int content = cell.size.content, seen = cell.size.task == TOKENS ? VOCABULARY : cell.size.channels;
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* residual = tile.at(p.residual, r);
        own.each(seen, [=](int i) { residual[i] = 4.0f * tanh_of(residual[i] * 0.25f); });
    });
    team.linear(cell.residual, tile.view(p.residual), tile.view(p.said + cell.part.content), tile.span(p.encoding),
                tile.rows);
    activate_silu(team, tile, p.encoding, content);
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float elapsed = at_most(*tile.member(cell.member.ua, 1, r) + tile.dt(r), cell.age_limit);
        own.set(tile.fact(ELAPSED, r), elapsed);
        own.set(tile.at(p.encoding, r) + content, log_of(1.0f + elapsed));
    });
    team.linear(cell.encode, tile.view(p.encoding), {cell.encode.bias, 0}, tile.span(p.e), tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float *e = tile.at(p.e, r), *updating = tile.at(p.updating, r);
        own.each(cell.size.hidden, [=](int i) { updating[i] = tanh_of(e[i]); });
    });
}

// h⁺ = h⁻ + z ⊙ (h̃ − h⁻) in rows that were observed, and what becomes of u, ua and norm.
template <class Team>
ODE_FN void jump(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const int width = z.hidden;
    team.rows(tile.rows, [&](const auto& own, int r) {
        own.copy(width, tile.at(cell.place.h, r), tile.at(cell.place.updating, r) + width + z.reads);
    });
    team.linear(cell.update, tile.view(cell.place.updating), {cell.update.bias, 0}, tile.span(cell.place.update),
                tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) {
        const bool observed = *tile.fact(OBSERVED, r) > 0.0f;
        const float *both = tile.at(cell.place.update, r), *h = tile.at(cell.place.h, r);
        const float *e = tile.at(cell.place.updating, r), *u = tile.member(cell.member.u, width, r);
        float *next_h = tile.next(cell.member.h, width, r), *next_u = tile.next(cell.member.u, width, r);
        own.each(width, [=](int i) {
            const float jumped = h[i] + sigmoid(both[i]) * (tanh_of(both[width + i]) - h[i]);
            next_h[i] = observed ? jumped : h[i];
            next_u[i] = observed ? e[i] : u[i];
        });
        own.set(tile.next(cell.member.ua, 1, r), observed ? 0.0f : *tile.fact(ELAPSED, r));
        if (z.averages > 0) observe_row(own, tile, r);
    });
}

// A forecast is what was expected: means and log-variances in raw units.
template <class Team>
ODE_FN void answer_forecast(const Team& team, const Tile& tile, int r) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels;
    const float *expected = tile.at(behind(cell.place.expected, cell.expect_inner), r), *last = last_of(tile, r);
    const float *centre = cell.centre, *scale = cell.scale, *log_scale2 = cell.log_scale2;
    const int apart = norm_width(cell.size);
    float* y = tile.y(r);
    team.each_in_turn(channels, [=](int i) {
        y[i] = (last != nullptr ? last[i * apart] : 0.0f) + scale[i] * expected[i] + centre[i];
        y[channels + i] = clamp(expected[channels + i], -12.0f, 12.0f) + log_scale2[i];
    });
}

// Labels and tokens: from h⁺ and what the memories returned, with a straight way from the latter.
template <class Team>
ODE_FN void answer_logits(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    const Sizes& z = cell.size;
    const int answering = cell.place.answering, answer = cell.place.answer;
    team.rows(tile.rows, [&](const auto& own, int r) {
        own.copy(z.hidden, tile.next(cell.member.h, z.hidden, r), tile.at(answering, r));
        own.copy(z.reads, tile.at(cell.place.updating, r) + z.hidden, tile.at(answering, r) + z.hidden);
    });
    two_layers(team, tile, cell.answer_inner, cell.answer_outer, answering, answer);
    const int result = behind(answer, cell.answer_inner);
    team.linear(cell.recall, {tile.at(cell.place.updating, 0) + z.hidden, tile.stride()}, tile.view(result),
                tile.span(result), tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) { own.copy(z.answers, tile.at(result, r), tile.y(r)); });
}

// What follows the flow.
template <class Team>
ODE_FN void step_after_flow(const Team& team, const Tile& tile) {
    const Cell& cell = *tile.cell;
    observe(team, tile);
    expect(team, tile);
    compare(team, tile);
    hybrid_memory(team, tile);
    encode(team, tile);
    jump(team, tile);
    if (cell.size.task != FORECAST) answer_logits(team, tile);
    team.rows(tile.rows, [&](const auto& own, int r) {
        if (cell.size.task == FORECAST) answer_forecast(own, tile, r);
        own.set(tile.err(r), *tile.fact(ERR, r));
    });
}

template <class Team>
ODE_FN void step_tile(const Team& team, const Tile& tile, int steps) {
    ode_flow(team, tile, steps);
    step_after_flow(team, tile);
}

}  // namespace ODE_ISA
}  // namespace odestream
