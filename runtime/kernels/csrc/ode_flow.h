// The flow between observations, dh/dt = −λ ⊙ h + tanh(B·SiLU(A·[h, u, φ])), by any explicit tableau.
#pragma once

#include "maths.h"
#include "tile.h"

namespace odestream {
namespace ODE_ISA {

// Move sines and cosines (all sines first) on by dt·at·ω: only differences of time meet float32.
template <class Team>
ODE_FN void rotate_rows(const Team& team, const Tile& tile, float at, int to) {
    const Cell& cell = *tile.cell;
    const int count = cell.size.frequencies;
    if (at == 0.0f) {
        team.rows(tile.rows, [&](const auto& own, int r) { own.copy(2 * count, tile.phase(r), tile.at(to, r)); });
        return;
    }
    const float* frequencies = cell.frequencies;
    const auto angle = [&](int r, int k) { return tile.dt(r) * (at * frequencies[k]); };
    team.sines_cosines(tile.rows, count, angle, [&](int r, int k, float s, float c) {
        const float *phase = tile.phase(r), sine = phase[k], cosine = phase[count + k];
        float* moved = tile.at(to, r);
        moved[k] = sine * c + cosine * s;
        moved[count + k] = cosine * c - sine * s;
    });
}

// The part of A·[h, u, φ] that does not depend on h, at the share `at` of the gap.
template <class Team>
ODE_FN const float* fixed_part(const Team& team, const Tile& tile, float at) {
    const Cell& cell = *tile.cell;
    if (cell.size.frequencies == 0) return tile.at(cell.place.drive, 0);
    rotate_rows(team, tile, at, cell.place.moved);
    const int drive = cell.place.drive, moved = cell.place.moved, fixed = cell.place.fixed;
    team.linear(cell.time, tile.view(moved), tile.view(drive), tile.span(fixed), tile.rows);
    return tile.at(fixed, 0);
}

// f at the state in `from`, into slope `stage`.
template <class Team>
ODE_FN void derivative(const Team& team, const Tile& tile, const float* fixed, int from, int stage) {
    const Cell& cell = *tile.cell;
    const int width = cell.size.hidden, inner = cell.place.field, slopes = cell.place.slopes + stage * padded(width);
    team.linear(cell.hidden, tile.view(from), {fixed, tile.stride()}, tile.span(inner), tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* x = tile.at(inner, r);
        own.each(cell.size.field, [=](int i) { x[i] = silu(x[i]); });
    });
    team.linear(cell.output, tile.view(inner), {nullptr, 0}, tile.span(slopes), tile.rows);
    team.rows(tile.rows, [&](const auto& own, int r) {
        float* slope = tile.at(slopes, r);
        const float *h = tile.at(from, r), *decay = cell.decay;
        own.each(width, [=](int i) { slope[i] = tanh_of(slope[i]) - decay[i] * h[i]; });
    });
}

// to = h + size·Σ weights·slopes
template <class Team>
ODE_FN void advance(const Team& team, const Tile& tile, const float* weights, int count, float share, int h, int to) {
    const Cell& cell = *tile.cell;
    const int width = cell.size.hidden;
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float size = tile.dt(r) * share;
        const float* from = tile.at(h, r);
        float* out = tile.at(to, r);
        own.mix(weights, tile.at(cell.place.slopes, r), count, padded(width), width, out);
        own.each(width, [=](int i) { out[i] = from[i] + size * out[i]; });
    });
}

// err = max(err, RMS of the embedded estimate in units of the tolerance), for a step from `h` to `after`.
template <class Team>
ODE_FN void estimate(const Team& team, const Tile& tile, float share, int h, int after) {
    const Cell& cell = *tile.cell;
    const int width = cell.size.hidden;
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float size = tile.dt(r) * share, rtol = cell.rtol, atol = cell.atol;
        const float *from = tile.at(h, r), *to = tile.at(after, r);
        float* error = tile.at(cell.place.stage, r);
        own.mix(cell.method.error, tile.at(cell.place.slopes, r), cell.method.stages, padded(width), width, error);
        const float squares = own.sum(width, [=](int i) {
            const float allowed = atol + rtol * larger(magnitude(from[i]), magnitude(to[i]));
            const float ratio = size * error[i] / allowed;
            return ratio * ratio;
        });
        float* err = tile.fact(ERR, r);
        own.once([=] { *err = larger(::sqrtf(squares / width), *err); });
    });
}

// h⁻ into the scratch's `h`, err into its facts. Rows with dt = 0 keep every bit of h.
template <class Team>
ODE_FN void ode_flow(const Team& team, const Tile& tile, int steps) {
    const Cell& cell = *tile.cell;
    const Tableau& method = cell.method;
    const int width = cell.size.hidden, last_slope = (method.stages - 1) * padded(width);
    const float share = static_cast<float>(1.0 / steps);
    team.rows(tile.rows, [&](const auto& own, int r) {
        own.copy(width, tile.member(cell.member.h, width, r), tile.at(cell.place.h, r));
        own.copy(width, tile.member(cell.member.u, width, r), tile.at(cell.place.stage, r));
        own.set(tile.fact(ERR, r), 0.0f);
    });
    team.linear(cell.drive, tile.view(cell.place.stage), {cell.drive.bias, 0}, tile.span(cell.place.drive), tile.rows);
    int h = cell.place.h, after = cell.place.after;
    double known = -1.0;  // the time for which `fixed` was made
    const float* fixed = nullptr;
    for (int n = 0; n < steps; ++n) {
        for (int i = 0; i < method.stages; ++i) {
            if (i == 0 && n > 0 && method.fsal) {
                team.rows(tile.rows, [&](const auto& own, int r) {
                    float* slopes = tile.at(cell.place.slopes, r);
                    own.copy(width, slopes + last_slope, slopes);
                });
                continue;
            }
            const double time = (n + method.c[i]) / steps;
            if (time != known) fixed = fixed_part(team, tile, static_cast<float>(time));
            known = time;
            if (i > 0) advance(team, tile, method.a[i], i, share, h, cell.place.stage);
            derivative(team, tile, fixed, i > 0 ? cell.place.stage : h, i);
        }
        advance(team, tile, method.b, method.stages, share, h, after);
        if (method.estimates) estimate(team, tile, share, h, after);
        const int swapped = h;
        h = after;
        after = swapped;
    }
    team.rows(tile.rows, [&](const auto& own, int r) {
        const float* moved = tile.dt(r) > 0.0f ? tile.at(h, r) : tile.member(cell.member.h, width, r);
        if (moved != tile.at(cell.place.h, r)) own.copy(width, moved, tile.at(cell.place.h, r));
    });
}

}  // namespace ODE_ISA
}  // namespace odestream
