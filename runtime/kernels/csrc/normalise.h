// Running statistics of each channel: `norm` [X, J+3] holds the last value, the time since it was observed, whether it
// ever was, and J moving averages for irregular gaps, all centred.
#pragma once

#include "maths.h"
#include "tile.h"

namespace odestream {
namespace ODE_ISA {

enum Running { LAST, SINCE, SEEN, AVERAGES };

ODE_FN int norm_width(const Sizes& z) { return z.averages + AVERAGES; }

// The statistics of a row's first channel; the others' follow, norm_width apart.
ODE_FN const float* norm_of(const Tile& tile, int r) {
    return tile.member(tile.cell->member.norm, tile.cell->size.channels * norm_width(tile.cell->size), r);
}

// (value − avg)/s for the n averages of a channel, zero where it is not usable.
template <class Count>
ODE_INLINE void distances(const float* __restrict__ averages, Count n, float value, float per_scale, bool usable,
                          float* __restrict__ to) {
    for (int j = 0; j < n; ++j) to[j] = usable ? (value - averages[j]) * per_scale : 0.0f;
}

// (x − last)/s for every channel, (x − avg)/s, mask; zero where missing or without anything to compare with.
template <class Team>
ODE_FN void running_features(const Team& team, const Tile& tile, int r, float* features) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, width = norm_width(cell.size);
    const float *x = tile.x(r), *mask = tile.mask(r), *norms = norm_of(tile, r);
    const float *centre = cell.centre, *per_scale = cell.per_scale;
    float *from_averages = features + channels, *seen = from_averages + channels * cell.size.averages;
    team.each_of(cell.size.averages, channels, [=](int i, auto averages) {
        const float *norm = norms + i * width, value = x[i] - centre[i];
        const bool usable = mask[i] * norm[SEEN] > 0.0f;
        features[i] = usable ? (value - norm[LAST]) * per_scale[i] : 0.0f;
        distances(norm + AVERAGES, averages, value, per_scale[i], usable, from_averages + i * averages);
        seen[i] = mask[i];
    });
}

// (x − centre)/s and the mask; zero where missing.
template <class Team>
ODE_FN void fixed_features(const Team& team, const Tile& tile, int r, float* features) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels;
    const float *x = tile.x(r), *mask = tile.mask(r), *centre = cell.centre, *per_scale = cell.per_scale;
    team.each(channels, [=](int i) {
        features[i] = mask[i] > 0.0f ? (x[i] - centre[i]) * per_scale[i] : 0.0f;
        features[channels + i] = mask[i];
    });
}

// What the forecast head sees of a row: (last − avg)/s, log(1 + elapsed), seen.
template <class Team>
ODE_FN void head_features(const Team& team, const Tile& tile, int r, float* parts) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, width = norm_width(cell.size);
    const float *norms = norm_of(tile, r), *per_scale = cell.per_scale, dt = tile.dt(r), limit = cell.age_limit;
    float *logs = parts + channels * cell.size.averages, *seen = logs + channels;
    team.each_of(cell.size.averages, channels, [=](int i, auto averages) {
        const float* norm = norms + i * width;
        distances(norm + AVERAGES, averages, norm[LAST], per_scale[i], true, parts + i * averages);
        logs[i] = at_most(norm[SINCE] + dt, limit);
        seen[i] = norm[SEEN];
    });
    team.each(channels, [=](int i) { logs[i] = log_of(1.0f + logs[i]); });
}

// The n averages of a channel after a value was observed, of which each takes its share.
template <class Count>
ODE_INLINE void follow(const float* __restrict__ averages, Count n, float value, const float* __restrict__ shares,
                       float* __restrict__ next) {
    for (int j = 0; j < n; ++j) next[j] = averages[j] + shares[j] * (value - averages[j]);
}

// norm after the observation of a row. The features are done with; their buffer takes what has decayed of each average,
// all in a line, so that the exponentials are vector code.
template <class Team>
ODE_FN void observe_row(const Team& team, const Tile& tile, int r) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, width = norm_width(cell.size);
    const float *x = tile.x(r), *mask = tile.mask(r), *norms = norm_of(tile, r);
    const float *centre = cell.centre, *rates = cell.rates, dt = tile.dt(r), limit = cell.age_limit;
    float *shares = tile.at(cell.place.features, r), *nexts = tile.next(cell.member.norm, channels * width, r);
    team.each_of(cell.size.averages, channels, [=](int i, auto averages) {
        const float since = at_most(norms[i * width + SINCE] + dt, limit);
        for (int j = 0; j < averages; ++j) shares[i * averages + j] = since * rates[j];
    });
    team.each(channels * cell.size.averages, [=](int i) { shares[i] = decayed(shares[i]); });
    team.each_of(cell.size.averages, channels, [=](int i, auto averages) {
        const float *norm = norms + i * width, value = x[i] - centre[i];
        float* next = nexts + i * width;
        const bool observed = mask[i] > 0.0f, first = norm[SEEN] == 0.0f;
        next[LAST] = observed ? value : norm[LAST];
        next[SINCE] = observed ? 0.0f : at_most(norm[SINCE] + dt, limit);
        next[SEEN] = observed ? 1.0f : norm[SEEN];
        if (observed && !first) return follow(norm + AVERAGES, averages, value, shares + i * averages, next + AVERAGES);
        for (int j = 0; j < averages; ++j) next[AVERAGES + j] = observed ? value : norm[AVERAGES + j];
    });
}

}  // namespace ODE_ISA
}  // namespace odestream
