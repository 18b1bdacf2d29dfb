// Running statistics of each channel: `norm` [X, J+3] holds the last value, the time since it was observed, whether it
// ever was, and J moving averages for irregular gaps, all centred.
#pragma once

#include "maths.h"
#include "tile.h"

namespace odestream {
namespace ODE_ISA {

enum Running { LAST, SINCE, SEEN, AVERAGES };

ODE_FN int norm_width(const Sizes& z) { return z.averages + 3; }

ODE_FN const float* norm_of(const Tile& tile, int r, int channel) {
    const int width = norm_width(tile.cell->size);
    return tile.member(tile.cell->member.norm, tile.cell->size.channels * width, r) + channel * width;
}

// (x − last)/s for every channel, (x − avg)/s, mask; zero where missing or without anything to compare with.
ODE_FN void running_features(const Tile& tile, int r, int channel, float* features) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, averages = cell.size.averages;
    const float *norm = norm_of(tile, r, channel), mask = tile.mask(r)[channel], scale = cell.scale[channel];
    const float value = tile.x(r)[channel] - cell.centre[channel];
    const bool usable = mask * norm[SEEN] > 0.0f;
    features[channel] = usable ? (value - norm[LAST]) / scale : 0.0f;
    for (int j = 0; j < averages; ++j) {
        features[channels + channel * averages + j] = usable ? (value - norm[AVERAGES + j]) / scale : 0.0f;
    }
    features[channels * (1 + averages) + channel] = mask;
}

// (x − centre)/s and the mask; zero where missing.
ODE_FN void fixed_features(const Tile& tile, int r, int channel, float* features) {
    const Cell& cell = *tile.cell;
    const float mask = tile.mask(r)[channel], value = tile.x(r)[channel] - cell.centre[channel];
    features[channel] = mask > 0.0f ? value / cell.scale[channel] : 0.0f;
    features[cell.size.channels + channel] = mask;
}

// What the forecast head sees of a row: (last − avg)/s, log(1 + elapsed), seen.
template <class Team>
ODE_FN void head_features(const Team& team, const Tile& tile, int r, float* parts) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, averages = cell.size.averages;
    float *logs = parts + channels * averages, *seen = logs + channels;
    team.each_in_turn(channels, [&](int i) {
        const float* norm = norm_of(tile, r, i);
        for (int j = 0; j < averages; ++j) {
            parts[i * averages + j] = (norm[LAST] - norm[AVERAGES + j]) / cell.scale[i];
        }
        logs[i] = at_most(norm[SINCE] + tile.dt(r), cell.age_limit);
        seen[i] = norm[SEEN];
    });
    team.each(channels, [=](int i) { logs[i] = log_of(1.0f + logs[i]); });
}

// norm after the observation of a channel; shares: of its averages.
ODE_FN void observe_channel(const Tile& tile, int r, int channel, const float* shares) {
    const Cell& cell = *tile.cell;
    const int width = norm_width(cell.size);
    const float* norm = norm_of(tile, r, channel);
    float* next = tile.next(cell.member.norm, cell.size.channels * width, r) + channel * width;
    const float value = tile.x(r)[channel] - cell.centre[channel];
    const float since = at_most(norm[SINCE] + tile.dt(r), cell.age_limit);
    const bool observed = tile.mask(r)[channel] > 0.0f, first = norm[SEEN] == 0.0f;
    next[LAST] = observed ? value : norm[LAST];
    next[SINCE] = observed ? 0.0f : since;
    next[SEEN] = observed ? 1.0f : norm[SEEN];
    for (int j = 0; j < cell.size.averages; ++j) {
        const float average = norm[AVERAGES + j];
        const float moved = average + shares[j] * (value - average);
        next[AVERAGES + j] = observed ? (first ? value : moved) : average;
    }
}

// norm after the observation of a row. The features are done with; their buffer takes what has decayed of each average,
// all in a line, so that the exponentials are vector code.
template <class Team>
ODE_FN void observe_row(const Team& team, const Tile& tile, int r) {
    const Cell& cell = *tile.cell;
    const int channels = cell.size.channels, averages = cell.size.averages;
    float* shares = tile.at(cell.place.features, r);
    team.each_in_turn(channels, [&](int i) {
        const float since = at_most(norm_of(tile, r, i)[SINCE] + tile.dt(r), cell.age_limit);
        for (int j = 0; j < averages; ++j) shares[i * averages + j] = since * cell.rates[j];
    });
    team.each(channels * averages, [=](int i) { shares[i] = decayed(shares[i]); });
    team.each_in_turn(channels, [&](int i) { observe_channel(tile, r, i, shares + i * averages); });
}

}  // namespace ODE_ISA
}  // namespace odestream
