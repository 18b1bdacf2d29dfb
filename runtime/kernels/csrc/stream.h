// One stream: clock, guards, bucket rule and counters around the step, number for number what
// `odestream.runtime.core.EngineCore` does over a binding.
//
// Three arenas hold the state: the one that the stream stands on, and two that a crossing alternates between. So a step
// that fails or a prediction leaves the first as it was, and an accepted one only changes which that is.
#pragma once

#include "clock.h"
#include "handle.h"
#include "rule.h"

#include <atomic>

namespace odestream {

// What has become of a gap so far. place: bucket of the last accepted call; accepted, rejected: calls by bucket.
struct Crossing {
    int64_t last, now;
    bool observed, flagged;
    Accepted previous;
    double err;
    int32_t calls, reruns, place;
    uint32_t accepted[ODESTREAM_MAX_BUCKETS], rejected[ODESTREAM_MAX_BUCKETS];
};

// BROKEN: a result is not finite, and nothing is left to try.
enum class Outcome { SETTLED, RERUN, SPLIT, BROKEN };

class Stream {
public:
    // Throws Refused where the solving does not fit the model, std::bad_alloc.
    Stream(const odestream_model& model, const odestream_solving& solving);

    // Functions that can fail return a status, and leave the stream as it was unless it is ODESTREAM_OK.
    int32_t step(int64_t t, const void* x, const float* mask, odestream_output& out);
    int32_t predict(int64_t t, odestream_output& out);
    int32_t load(const float* state, const odestream_progress& progress);

    const odestream_model& model() const { return model_; }
    const float* state() const { return arena_[home_]; }
    long state_size() const { return cell_.member.total; }
    const odestream_progress& progress() const { return progress_; }
    int buckets() const { return rule_.count; }
    int bucket(int place) const { return rule_.steps[place]; }
    const char* error() const { return error_; }
    int32_t fail(int32_t status, const char* format, ...) __attribute__((format(printf, 3, 4)));

    // A stream is for one call at a time.
    bool enter() const { return !busy_.test_and_set(std::memory_order_acquire); }
    void leave() const { busy_.clear(std::memory_order_release); }

    // The parts of a step, for those who run rows of many streams together: `begin` a crossing, and while `solver_steps`
    // are wanted run `row` and `weigh`; then `accept`.
    int32_t arrive(int64_t t, const void* x, const float* mask);
    int32_t begin();  // leaves a gap that one call may not cross crossed already
    int wanted_steps() const { return wanted_ < 0 ? 0 : rule_.steps[wanted_]; }
    const Row& row() const { return row_; }
    int32_t weigh();
    void accept(odestream_output& out);

private:
    int32_t look_ahead(int64_t t);
    int32_t travel();
    int32_t cross();
    void aim(int64_t start, int64_t end, bool observed);
    void run(int place);
    Outcome settle(uint64_t gap, int place, int halvings);
    Outcome judge(uint64_t gap, int place, int reruns, int halvings, int& next);
    void turn(int from);
    void give(odestream_output& out) const;
    int32_t copy_observation(const void* x, const float* mask);
    int32_t refuse_time(int64_t t, bool prediction);
    int32_t refuse_gap();
    int32_t refuse_result();

    const odestream_model& model_;
    const Cell& cell_;
    Rule rule_;
    Clock clock_;
    uint64_t max_calls_;
    std::unique_ptr<float, Freed> block_;
    float *arena_[3], *x_, *mask_, *zeros_, *dt_, *phase_, *outputs_, *scratch_;
    long output_size_;
    int home_ = 0, from_ = 0, to_ = 1;
    int64_t phase_tick_ = 0;
    bool phase_known_ = false;
    Row row_;
    odestream_progress progress_{};
    Crossing crossing_;
    int wanted_ = -1, reruns_ = 0;
    mutable std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    char error_[384] = "";
};

// Snapshots; both throw Refused. A stream that is refused one is as it was.
std::string write_snapshot(const Stream& stream);
void read_snapshot(Stream& stream, const void* data, size_t size);

}  // namespace odestream
