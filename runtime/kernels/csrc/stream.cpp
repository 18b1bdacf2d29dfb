#include "stream.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

namespace odestream {
namespace {

// Hands out aligned parts of a block; without one it only counts.
class Parts {
public:
    explicit Parts(float* block) : block_(block) {}

    float* take(long floats) {
        float* const part = block_ == nullptr ? nullptr : block_ + used_;
        used_ += padded(static_cast<int>(floats));
        return part;
    }

    long used() const { return used_; }

private:
    float* block_;
    long used_ = 0;
};

void check(bool good, const char* what) {
    if (!good) throw Refused(std::string("the solving's ") + what);
}

// A finite number above 0.
bool positive(double value) { return value > 0 && std::isfinite(value); }

void check_solving(const odestream_solving& s) {
    check(s.ticks_per_unit >= 1e-9 && std::isfinite(s.ticks_per_unit), "ticks_per_unit is not between 1e-9 and infinity");
    check(s.buckets >= 1 && s.buckets <= ODESTREAM_MAX_BUCKETS, "buckets are not one to 64");
    check(positive(s.factor), "factor is not a finite number above 0");
    check(s.order >= 0 && (s.buckets == 1 || s.order > 0), "order leaves nothing to choose among several buckets");
    check(s.max_calls >= 1, "max_calls is below 1");
    bool has_default = false;
    for (int i = 0; i < s.buckets; ++i) {
        const int before = i == 0 ? 0 : s.bucket[i - 1];
        check(s.bucket[i] > before && s.bucket[i] <= MOST_STEPS, "buckets do not increase from 1 to 256");
        check(i == 0 || s.limit[i] >= s.limit[i - 1], "limits do not increase");
        check(positive(s.ratio[i]), "ratios are not finite numbers above 0");
        has_default = has_default || s.bucket[i] == s.default_bucket;
    }
    check(has_default, "default_bucket is not among its buckets");
}

Rule rule_of(const odestream_solving& s) {
    Rule rule{};
    rule.count = s.buckets, rule.factor = s.factor, rule.order = s.order, rule.root = 1.0 / (s.order + 1);
    for (int i = 0; i < s.buckets; ++i) {
        rule.steps[i] = s.bucket[i], rule.limit[i] = s.limit[i], rule.ratio[i] = s.ratio[i];
        rule.capacity[i] = s.bucket[i] * std::pow(s.factor / s.ratio[i], rule.root);
        if (s.bucket[i] == s.default_bucket) rule.first = i;
    }
    return rule;
}

}  // namespace

Stream::Stream(const odestream_model& model, const odestream_solving& solving)
    : model_(model), cell_(model.loaded.cell), max_calls_(static_cast<uint64_t>(solving.max_calls)) {
    check_solving(solving);
    rule_ = rule_of(solving);
    const Sizes& z = cell_.size;
    const long seen = z.task == TOKENS ? 2 : z.channels;  // a token is as wide as two floats
    output_size_ = z.answers + 1 + z.gates;
    float* frequencies = nullptr;
    const auto place = [&](float* block) {
        Parts parts(block);
        for (float*& arena : arena_) arena = parts.take(cell_.member.total);
        x_ = parts.take(seen), mask_ = parts.take(z.channels), zeros_ = parts.take(seen);
        dt_ = parts.take(1), phase_ = parts.take(2L * z.frequencies), frequencies = parts.take(2L * z.frequencies);
        outputs_ = parts.take(output_size_), scratch_ = parts.take(cell_.place.row);
        return parts.used();
    };
    void* memory = nullptr;
    const size_t bytes = static_cast<size_t>(place(nullptr)) * sizeof(float);
    if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    block_.reset(static_cast<float*>(memory));
    place(block_.get());
    if (z.frequencies > 0) {
        std::memcpy(frequencies, solving.frequency, sizeof(double) * static_cast<size_t>(z.frequencies));
    }
    std::memcpy(arena_[0], solving.initial, sizeof(float) * static_cast<size_t>(cell_.member.total));
    clock_ = {solving.ticks_per_unit, solving.origin, z.frequencies, reinterpret_cast<const double*>(frequencies)};
    row_ = {x_, mask_, dt_, phase_, arena_[0], outputs_, outputs_ + z.answers, outputs_ + z.answers + 1, arena_[1]};
}

int32_t Stream::step(int64_t t, const void* x, const float* mask, odestream_output& out) {
    int32_t status = arrive(t, x, mask);
    if (status == ODESTREAM_OK) status = travel();
    if (status == ODESTREAM_OK) accept(out);
    return status;
}

int32_t Stream::predict(int64_t t, odestream_output& out) {
    int32_t status = look_ahead(t);
    if (status == ODESTREAM_OK) status = travel();
    if (status == ODESTREAM_OK) give(out);
    return status;
}

int32_t Stream::load(const float* state, const odestream_progress& progress) {
    const bool known = progress.previous_gap == 0 || (progress.previous_steps > 0 && progress.previous_err >= 0);
    if (!known) return fail(ODESTREAM_BAD_CALL, "what is known of the previous call has no steps or an err below 0");
    if (state != arena_[home_]) std::memcpy(arena_[home_], state, sizeof(float) * static_cast<size_t>(state_size()));
    progress_ = progress;
    return ODESTREAM_OK;
}

// Check an observation and copy it: places where the mask is 0 may hold anything.
int32_t Stream::arrive(int64_t t, const void* x, const float* mask) {
    if (progress_.begun != 0 && t <= progress_.tick) return refuse_time(t, false);
    const int32_t status = copy_observation(x, mask);
    if (status != ODESTREAM_OK) return status;
    crossing_ = {};
    crossing_.last = progress_.begun != 0 ? progress_.tick : t, crossing_.now = t, crossing_.observed = true;
    return ODESTREAM_OK;
}

int32_t Stream::look_ahead(int64_t t) {
    if (progress_.begun != 0 && t < progress_.tick) return refuse_time(t, true);
    crossing_ = {};
    crossing_.last = progress_.begun != 0 ? progress_.tick : t, crossing_.now = t;
    return ODESTREAM_OK;
}

int32_t Stream::begin() {
    const uint64_t gap = ticks_between(crossing_.last, crossing_.now);
    crossing_.previous = {progress_.previous_gap, progress_.previous_steps, progress_.previous_err};
    turn(home_);
    reruns_ = 0;
    wanted_ = SPLIT_FIRST;
    if (gap <= rule_.longest()) wanted_ = rule_.choose(gap, crossing_.previous, gap > 1 ? 0 : MAX_HALVINGS);
    if (wanted_ == SPLIT_FIRST) return cross();
    aim(crossing_.last, crossing_.now, crossing_.observed);
    return ODESTREAM_OK;
}

int32_t Stream::weigh() {
    const uint64_t gap = ticks_between(crossing_.last, crossing_.now);
    const int place = wanted_;
    wanted_ = SPLIT_FIRST;
    switch (judge(gap, place, reruns_, 0, wanted_)) {
        case Outcome::RERUN: ++reruns_; return ODESTREAM_OK;
        case Outcome::SPLIT: return cross();
        case Outcome::BROKEN: return refuse_result();
        default: return ODESTREAM_OK;
    }
}

int32_t Stream::travel() {
    int32_t status = begin();
    while (status == ODESTREAM_OK && wanted_ != SPLIT_FIRST) {
        run(wanted_);
        status = weigh();
    }
    return status;
}

// In several calls, of which only the last sees the observation. A gap that one call may cross is split for its error,
// tried before or not; a longer one is cut for stability. A piece that does not fit is halved.
int32_t Stream::cross() {
    struct Piece {
        int64_t end;
        int halvings;
    };
    const int64_t last = crossing_.last, now = crossing_.now;
    const uint64_t gap = ticks_between(last, now), limit = rule_.longest();
    const bool once = gap <= limit;
    if (!once && (limit == 0 || static_cast<Wide>(gap) > static_cast<Wide>(limit) * max_calls_)) return refuse_gap();
    const Cut cut{last, gap, once ? 2 : gap / limit + (gap % limit != 0)};
    int64_t start = last;
    for (uint64_t i = 0; i < cut.calls; ++i) {
        Piece pieces[MAX_HALVINGS + 2] = {{cut.end(i), once ? 1 : 0}};
        for (int left = 1; left > 0;) {
            const Piece piece = pieces[--left];
            const uint64_t part = ticks_between(start, piece.end);
            aim(start, piece.end, crossing_.observed && piece.end == now);
            const int place = rule_.choose(part, crossing_.previous, part > 1 ? piece.halvings : MAX_HALVINGS);
            const Outcome outcome = place == SPLIT_FIRST ? Outcome::SPLIT : settle(part, place, piece.halvings);
            if (outcome == Outcome::BROKEN) return refuse_result();
            if (outcome == Outcome::SPLIT) {
                pieces[left++] = {piece.end, piece.halvings + 1};
                pieces[left++] = {tick_after(start, part / 2), piece.halvings + 1};
            } else if (piece.end != now) {
                turn(to_);
                start = piece.end;
            }
        }
    }
    return ODESTREAM_OK;
}

// Run and re-run one piece.
Outcome Stream::settle(uint64_t gap, int place, int halvings) {
    for (int reruns = 0;; ++reruns) {
        run(place);
        const Outcome outcome = judge(gap, place, reruns, halvings, place);
        if (outcome != Outcome::RERUN) return outcome;
    }
}

// What is to become of the result of a run; for RERUN, `next` is the bucket. A result that is not finite has an infinite
// err: more steps may cure it.
Outcome Stream::judge(uint64_t gap, int place, int reruns, int halvings, int& next) {
    const Finite finite = model_.code.finite;
    const bool sound = finite(row_.next_state, state_size()) && finite(outputs_, output_size_);
    const double err = !sound ? Rule::INFINITE : rule_.order > 0 ? static_cast<double>(*row_.err) : 0.0;
    Decision decision = rule_.judge(err, place, reruns, halvings);
    if (decision.verdict == Verdict::SPLIT && gap < 2) decision.verdict = Verdict::FLAG;
    const bool kept = decision.verdict == Verdict::ACCEPT || decision.verdict == Verdict::FLAG;
    if (kept) {
        ++crossing_.calls, ++crossing_.accepted[place], crossing_.place = place;
        crossing_.flagged = crossing_.flagged || decision.verdict == Verdict::FLAG;
        crossing_.err = std::max(crossing_.err, err * rule_.ratio[place]);
    } else {
        ++crossing_.reruns, ++crossing_.rejected[place];
    }
    // A call over no time says nothing of the next one; what is known of a whole tells where its halves begin.
    const bool rerun = decision.verdict == Verdict::RERUN;
    if (gap > 0 && !rerun) crossing_.previous = rule_.remember(crossing_.previous, gap, place, err);
    if (rerun) next = decision.place;
    if (!kept) return rerun ? Outcome::RERUN : Outcome::SPLIT;
    return sound ? Outcome::SETTLED : Outcome::BROKEN;
}

void Stream::accept(odestream_output& out) {
    give(out);
    home_ = to_;
    odestream_progress& p = progress_;
    p.begun = 1, p.tick = crossing_.now;
    p.previous_gap = crossing_.previous.gap, p.previous_steps = crossing_.previous.steps;
    p.previous_err = crossing_.previous.err;
    p.steps += 1;
    p.flagged += crossing_.flagged;
    p.split += crossing_.calls > 1;
    p.rerun += crossing_.reruns > 0;
    for (int i = 0; i < rule_.count; ++i) p.accepted[i] += crossing_.accepted[i], p.rejected[i] += crossing_.rejected[i];
}

// Runs read arena `from` and write one that is neither it nor home.
void Stream::turn(int from) {
    from_ = from;
    to_ = from == home_ ? (home_ + 1) % 3 : 3 - home_ - from;
    row_.state = arena_[from_];
    row_.next_state = arena_[to_];
}

// Set dt, phase, x and mask of a call over a piece.
void Stream::aim(int64_t start, int64_t end, bool observed) {
    *dt_ = static_cast<float>(clock_.units(ticks_between(start, end)));
    if (!phase_known_ || phase_tick_ != start) clock_.phase(start, phase_);
    phase_known_ = true, phase_tick_ = start;
    row_.x = observed ? x_ : zeros_;
    row_.mask = observed ? mask_ : zeros_;
}

void Stream::run(int place) {
    Call call{};
    call.scratch = scratch_, call.batch = 1, call.rows = &row_;
    model_.code.step(cell_, call, rule_.steps[place]);
}

void Stream::give(odestream_output& out) const {
    if (out.y != nullptr) std::memcpy(out.y, row_.y, sizeof(float) * static_cast<size_t>(cell_.size.answers));
    if (out.gates != nullptr) std::memcpy(out.gates, row_.gates, sizeof(float) * static_cast<size_t>(cell_.size.gates));
    out.err = rule_.order > 0 ? crossing_.err : std::nan("");
    out.bucket = rule_.steps[crossing_.place];
    out.flagged = crossing_.flagged;
    out.calls = crossing_.calls;
    out.reruns = crossing_.reruns;
}

int32_t Stream::copy_observation(const void* x, const float* mask) {
    const Sizes& z = cell_.size;
    for (int i = 0; i < z.channels; ++i) {
        mask_[i] = mask == nullptr ? 1.0f : mask[i];
        if (mask_[i] != 0.0f && mask_[i] != 1.0f) {
            return fail(ODESTREAM_BAD_MASK, "mask is %g in channel %d; give 1 for observed and 0 for missing",
                        static_cast<double>(mask_[i]), i);
        }
    }
    if (z.task == TOKENS) {
        const int64_t token = mask_[0] != 0.0f ? *static_cast<const int64_t*>(x) : 0;
        if (token < 0 || token >= VOCABULARY) {
            return fail(ODESTREAM_BAD_TOKEN, "token %" PRId64 " is not between 0 and 255; encode the text as bytes", token);
        }
        std::memcpy(x_, &token, sizeof token);
        return ODESTREAM_OK;
    }
    for (int i = 0; i < z.channels; ++i) {
        x_[i] = mask_[i] != 0.0f ? static_cast<const float*>(x)[i] : 0.0f;
        if (!std::isfinite(x_[i])) {
            return fail(ODESTREAM_BAD_VALUE, "x is %g in channel %d; mark it missing with mask 0",
                        static_cast<double>(x_[i]), i);
        }
    }
    return ODESTREAM_OK;
}

int32_t Stream::fail(int32_t status, const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::vsnprintf(error_, sizeof error_, format, values);
    va_end(values);
    return odestream::fail(status, error_);
}

int32_t Stream::refuse_time(int64_t t, bool prediction) {
    if (prediction) {
        return fail(ODESTREAM_BAD_TIME,
                    "t = %" PRId64 " lies before the stream's last time %" PRId64 "; predict that time or a later one", t,
                    progress_.tick);
    }
    return fail(ODESTREAM_BAD_TIME,
                "t = %" PRId64 " does not advance past the stream's last time %" PRId64 "; send each time once and in order",
                t, progress_.tick);
}

int32_t Stream::refuse_gap() {
    return fail(ODESTREAM_LONG_GAP,
                "t = %" PRId64 " lies %" PRIu64 " ticks after the stream's last time, more than %" PRIu64
                " calls of %" PRIu64 " ticks can cross; start a new stream after such a gap",
                crossing_.now, ticks_between(crossing_.last, crossing_.now), max_calls_, rule_.longest());
}

// Names the members of the state that are not finite; the layout lists them last, as "h:64 u:64 …".
int32_t Stream::refuse_result() {
    char members[256] = "";
    size_t used = 0;
    long begin = 0;
    const char* at = std::strrchr(model_.loaded.layout.c_str(), '|') + 1;
    while (*at != '\0') {
        const char* const name = at + 1;  // behind a space
        const char* const colon = std::strchr(name, ':');
        char* after = nullptr;
        const long size = std::strtol(colon + 1, &after, 10);
        if (!model_.code.finite(row_.next_state + begin, size)) {
            used += static_cast<size_t>(std::snprintf(members + used, sizeof members - used, "%sstate %.*s",
                                                      used > 0 ? ", " : "", static_cast<int>(colon - name), name));
        }
        begin += size;
        at = after;
    }
    return fail(ODESTREAM_NOT_FINITE,
                "%s became NaN or infinite; the step was discarded, check that x is in the training data's unit",
                used > 0 ? members : "an output");
}

}  // namespace odestream
