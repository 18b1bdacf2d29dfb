// The C interface to streams, one at a time or many of one model together.
#include "stream.h"

#include <algorithm>
#include <cstring>

struct odestream_stream : odestream::Stream {
    using Stream::Stream;
};

struct odestream_batch {
    const odestream_model& model;
    std::unique_ptr<float, odestream::Freed> scratch;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

namespace odestream {
namespace {

constexpr int32_t WAITING = -1;  // in place of a status, while a row has none

int32_t busy() { return fail(ODESTREAM_BUSY, "the stream is in another call; give each thread a stream of its own"); }

// Takes a stream for the length of one call.
template <class Action>
int32_t alone(const odestream_stream& stream, Action action) {
    if (!stream.enter()) return busy();
    const int32_t status = action();
    stream.leave();
    return status;
}

// The rows of a batch. Each has its fate for itself; only the runs of rows in the same bucket are shared.
struct Rows {
    const odestream_batch& batch;
    odestream_stream* const* streams;
    size_t count;
    odestream_output* outs;
    int32_t* statuses;

    void arrive(const int64_t* t, const void* x, const float* mask) const {
        const Sizes& z = batch.model.loaded.cell.size;
        const size_t width = z.task == TOKENS ? sizeof(int64_t) : sizeof(float) * static_cast<size_t>(z.channels);
        for (size_t i = 0; i < count; ++i) {
            odestream_stream& stream = *streams[i];
            if (!stream.enter()) {
                statuses[i] = busy();
                continue;
            }
            const float* const seen = mask == nullptr ? nullptr : mask + i * static_cast<size_t>(z.channels);
            int32_t status = &stream.model() == &batch.model
                                 ? stream.arrive(t[i], static_cast<const char*>(x) + i * width, seen)
                                 : stream.fail(ODESTREAM_BAD_CALL, "the stream is of another model; batch it with its own");
            if (status == ODESTREAM_OK) status = stream.begin();
            go_on(i, status);
        }
    }

    void run_all() const {
        size_t first = 0;
        while (true) {
            while (first < count && statuses[first] != WAITING) ++first;
            if (first == count) return;
            run_some(first);
        }
    }

private:
    // As many waiting rows as a pass takes, of those that want what row `first` wants.
    void run_some(size_t first) const {
        size_t places[TILE];
        Row rows[TILE];
        int taken = 0;
        const int steps = streams[first]->wanted_steps();
        for (size_t i = first; i < count && taken < TILE; ++i) {
            if (statuses[i] != WAITING || streams[i]->wanted_steps() != steps) continue;
            places[taken] = i, rows[taken] = streams[i]->row();
            ++taken;
        }
        Call call{};
        call.scratch = batch.scratch.get(), call.batch = taken, call.rows = rows;
        batch.model.code.step(batch.model.loaded.cell, call, steps);
        for (int r = 0; r < taken; ++r) go_on(places[r], streams[places[r]]->weigh());
    }

    // What a row's last part came to: a failure, another run, or an accepted result.
    void go_on(size_t i, int32_t status) const {
        odestream_stream& stream = *streams[i];
        statuses[i] = status;
        if (status == ODESTREAM_OK && stream.wanted_steps() > 0) {
            statuses[i] = WAITING;
            return;
        }
        if (status == ODESTREAM_OK) stream.accept(outs[i]);
        stream.leave();
    }
};

}  // namespace
}  // namespace odestream

odestream_stream* odestream_stream_create(const odestream_model* model, const odestream_solving* solving) {
    odestream_stream* stream = nullptr;
    odestream::guarded(ODESTREAM_BAD_CALL, [&] {
        const odestream_solving* own = solving != nullptr ? solving : odestream_model_solving(model);
        if (own == nullptr) throw odestream::Refused("the model was not opened from a bundle; say how it solves");
        stream = new odestream_stream(*model, *own);
    });
    return stream;
}

void odestream_stream_destroy(odestream_stream* stream) { delete stream; }

int32_t odestream_stream_step(odestream_stream* stream, int64_t t, const void* x, const float* mask,
                              odestream_output* out) {
    return odestream::alone(*stream, [&] { return stream->step(t, x, mask, *out); });
}

int32_t odestream_stream_predict(odestream_stream* stream, int64_t t, odestream_output* out) {
    return odestream::alone(*stream, [&] { return stream->predict(t, *out); });
}

const float* odestream_stream_state(const odestream_stream* stream) { return stream->state(); }

const odestream_progress* odestream_stream_progress(const odestream_stream* stream) { return &stream->progress(); }

int32_t odestream_stream_load(odestream_stream* stream, const float* state, const odestream_progress* progress) {
    return odestream::alone(*stream, [&] { return stream->load(state, *progress); });
}

int32_t odestream_snapshot(const odestream_stream* stream, void* data, size_t room, size_t* size) {
    const auto write = [&] {
        const std::string bytes = odestream::write_snapshot(*stream);
        *size = bytes.size();
        if (room < bytes.size()) throw odestream::Refused("there is too little room for the snapshot; give it its size");
        std::memcpy(data, bytes.data(), bytes.size());
    };
    return odestream::alone(*stream, [&] { return odestream::guarded(ODESTREAM_BAD_CALL, write); });
}

int32_t odestream_restore(const odestream_model* model, const void* data, size_t size, odestream_stream** stream) {
    return odestream::guarded(ODESTREAM_BAD_SNAPSHOT, [&] {
        if (model->manifest == nullptr) throw odestream::Refused("the model was not opened from a bundle; use odestream_open");
        auto made = std::make_unique<odestream_stream>(*model, model->manifest->solving);
        odestream::read_snapshot(*made, data, size);
        *stream = made.release();
    });
}

const char* odestream_stream_error(const odestream_stream* stream) { return stream->error(); }

odestream_batch* odestream_batch_create(const odestream_model* model) {
    odestream_batch* batch = nullptr;
    odestream::guarded(ODESTREAM_BAD_CALL, [&] {
        void* scratch = nullptr;
        if (posix_memalign(&scratch, 64, odestream_scratch_bytes(model)) != 0) throw std::bad_alloc();
        std::unique_ptr<float, odestream::Freed> owned(static_cast<float*>(scratch));
        batch = new odestream_batch{*model, std::move(owned)};
    });
    return batch;
}

void odestream_batch_destroy(odestream_batch* batch) { delete batch; }

int32_t odestream_batch_step(odestream_batch* batch, odestream_stream* const* streams, size_t count, const int64_t* t,
                             const void* x, const float* mask, odestream_output* outs, int32_t* statuses) {
    if (batch->busy.test_and_set(std::memory_order_acquire)) {
        std::fill_n(statuses, count, int32_t{ODESTREAM_BUSY});
        return odestream::fail(ODESTREAM_BUSY, "the batch is in another call; give each thread a batch of its own");
    }
    const odestream::Rows rows{*batch, streams, count, outs, statuses};
    rows.arrive(t, x, mask);
    rows.run_all();
    batch->busy.clear(std::memory_order_release);
    for (size_t i = 0; i < count; ++i) {
        if (statuses[i] != ODESTREAM_OK) return statuses[i];
    }
    return ODESTREAM_OK;
}
