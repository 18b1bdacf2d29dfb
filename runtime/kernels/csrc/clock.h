// From integer ticks to what the step sees of time: `odestream.runtime.clock` and the cutting of `gaps`. Differences are
// taken between integers; only they become floating point.
#pragma once

#include "rule.h"

namespace odestream {

// now − last, for now ≥ last: it may not fit the ticks' own type.
inline uint64_t ticks_between(int64_t last, int64_t now) {
    return static_cast<uint64_t>(now) - static_cast<uint64_t>(last);
}

inline int64_t tick_after(int64_t last, uint64_t gap) {
    return static_cast<int64_t>(static_cast<uint64_t>(last) + gap);
}

struct Clock {
    double ticks_per_unit;
    int64_t origin;
    int count;
    const double* frequencies;  // [count], rad per model time unit

    double units(uint64_t gap) const { return static_cast<double>(gap) / ticks_per_unit; }

    // Sines, then cosines, of ω·(tick − origin).
    void phase(int64_t tick, float* row) const {
        const double time = tick < origin ? -units(ticks_between(tick, origin)) : units(ticks_between(origin, tick));
        for (int i = 0; i < count; ++i) {
            row[i] = static_cast<float>(std::sin(frequencies[i] * time));
            row[count + i] = static_cast<float>(std::cos(frequencies[i] * time));
        }
    }
};

// A gap cut into `calls` pieces that differ by a tick at most.
struct Cut {
    int64_t last;
    uint64_t gap, calls;

    int64_t end(uint64_t piece) const {
        return tick_after(last, static_cast<uint64_t>(static_cast<Wide>(gap) * (piece + 1) / calls));
    }
};

}  // namespace odestream
