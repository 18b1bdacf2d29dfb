// Which bucket to try, and what to do with what came of it: `odestream.runtime.contract.rule.BucketRule`, number for
// number, with buckets by their place. Gaps are ticks.
#pragma once

#include "odestream.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace odestream {

constexpr int MAX_RERUNS = 2, MAX_HALVINGS = 3, MOST_STEPS = 256, SPLIT_FIRST = -1;

// What is known of a stream's calls so far, as if of the last; nothing where gap is 0.
struct Accepted {
    uint64_t gap, steps;
    double err;
};

enum class Verdict { ACCEPT, RERUN, SPLIT, FLAG };

// place: for RERUN, of the bucket to run in.
struct Decision {
    Verdict verdict;
    int place;
};

__extension__ typedef unsigned __int128 Wide;

// a / b correctly rounded, as Python divides integers: above 2^53 they are not doubles themselves.
inline double quotient(uint64_t a, uint64_t b) {
    constexpr uint64_t EXACT = uint64_t{1} << 53;
    if (a <= EXACT && b <= EXACT) return static_cast<double>(a) / static_cast<double>(b);
    const int shift = 64 + __builtin_clzll(a | 1);  // the integer part of the shifted quotient has 63 bits or more
    const Wide whole = static_cast<Wide>(a) << shift;
    const Wide exact = whole / b | (whole % b != 0);  // the last bit stands for all that are cut off
    return std::ldexp(static_cast<double>(exact), -shift);
}

struct Rule {
    int count, first;  // first: place of the default bucket
    int steps[ODESTREAM_MAX_BUCKETS];
    uint64_t limit[ODESTREAM_MAX_BUCKETS];
    double ratio[ODESTREAM_MAX_BUCKETS], capacity[ODESTREAM_MAX_BUCKETS];
    double factor, root;  // root: 1 / (order + 1)
    int order;

    uint64_t longest() const { return limit[count - 1]; }

    // `gap` does not exceed the longest limit; halvings: how often it was halved before.
    int choose(uint64_t gap, const Accepted& previous, int halvings) const {
        if (gap == 0 || count == 1) return 0;
        const int stable = static_cast<int>(std::lower_bound(limit, limit + count, gap) - limit);
        if (previous.gap > 0 && previous.err > 0) {
            const double pace = static_cast<double>(previous.steps) * quotient(gap, previous.gap);
            const int place = fits(pace * std::pow(previous.err, root) * ROUNDING, stable);
            if (place < count) return place;
            return halvings < MAX_HALVINGS ? SPLIT_FIRST : count - 1;
        }
        return std::min(std::max(stable, first), count - 1);
    }

    // reruns: of this piece so far. An err of NaN is never accepted.
    Decision judge(double err, int place, int reruns, int halvings) const {
        if (err * ratio[place] <= factor) return {Verdict::ACCEPT, 0};
        if (count == 1) return {Verdict::FLAG, 0};
        if (reruns < MAX_RERUNS && place < count - 1) return {Verdict::RERUN, above(err, place)};
        return {halvings < MAX_HALVINGS ? Verdict::SPLIT : Verdict::FLAG, 0};
    }

    Accepted remember(const Accepted& previous, uint64_t gap, int place, double err) const {
        constexpr double FADING = 0.9;
        if (previous.gap > 0 && err > 0 && previous.err > 0 && previous.err < INFINITE) {
            const double pace = FADING * static_cast<double>(gap) / static_cast<double>(previous.gap) *
                                static_cast<double>(previous.steps) / steps[place];
            err = std::max(err, previous.err * std::pow(pace, order + 1));
        }
        return {gap, static_cast<uint64_t>(steps[place]), err};
    }

    static constexpr double INFINITE = std::numeric_limits<double>::infinity();

private:
    static constexpr double ROUNDING = 1 - 1e-9;

    int fits(double wanted, int place) const {
        while (place < count && capacity[place] < wanted) ++place;
        return place;
    }

    int above(double err, int place) const {
        if (!std::isfinite(err)) return count - 1;
        return std::min(fits(steps[place] * std::pow(err, root) * ROUNDING, place) + 1, count - 1);
    }
};

}  // namespace odestream
