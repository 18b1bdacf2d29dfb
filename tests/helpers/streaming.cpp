// Streams a bundle through steps, re-runs, splits, predictions, refusals and batches, and counts what is allocated
// meanwhile. Prints "earlier E allocations A steps S split P rerun R refused F", E being those of loading.
#include "odestream.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

static long allocations = 0;

extern "C" void* __libc_malloc(size_t);
extern "C" void* malloc(size_t size) {
    ++allocations;
    return __libc_malloc(size);
}

int main(int count, char** arguments) {
    constexpr int STREAMS = 11, ROUNDS = 150;
    odestream_model* model = nullptr;
    if (count != 2 || odestream_open(arguments[1], &model) != ODESTREAM_OK) {
        std::fprintf(stderr, "%s\n", odestream_last_error());
        return 2;
    }
    const odestream_sizes size = odestream_model_sizes(model);
    odestream_stream* streams[STREAMS];
    for (odestream_stream*& stream : streams) stream = odestream_stream_create(model, nullptr);
    odestream_batch* batch = odestream_batch_create(model);
    const size_t width = static_cast<size_t>(size.channels), answers = static_cast<size_t>(size.answers);
    std::vector<float> x(width * STREAMS), mask(width * STREAMS, 1.0f), y(answers * STREAMS);
    std::vector<int64_t> tokens(STREAMS), t(STREAMS, 1000000000);
    std::vector<int32_t> statuses(STREAMS);
    std::vector<odestream_output> outs(STREAMS);
    for (size_t r = 0; r < STREAMS; ++r) outs[r].y = &y[r * answers];
    const void* given = size.task == ODESTREAM_TOKENS ? static_cast<const void*>(tokens.data()) : x.data();
    uint32_t random = 1;
    const auto next = [&random] { return (random = random * 1664525u + 1013904223u) >> 8; };

    const long before = allocations;
    long refused = 0;
    for (int i = 0; i < ROUNDS; ++i) {
        for (float& value : x) value = static_cast<float>(next() % 1000) * (i % 7 == 0 ? 1.0f : 0.01f);
        for (float& value : mask) value = next() % 4 == 0 ? 0.0f : 1.0f;
        for (size_t r = 0; r < STREAMS; ++r) tokens[r] = next() % 256;
        for (int64_t& time : t) time += static_cast<int64_t>(std::exp(14.0 + (next() % 1000) * 0.009));
        if (i % 10 == 9) t[3] = -5, mask[0] = 0.5f;
        odestream_batch_step(batch, streams, STREAMS, t.data(), given, mask.data(), outs.data(), statuses.data());
        for (size_t r = 0; r < STREAMS; ++r) {
            refused += statuses[r] != ODESTREAM_OK;
            const odestream_progress* progress = odestream_stream_progress(streams[r]);
            if (progress->begun != 0) t[r] = progress->tick;
            t[r] += 1000000;
            refused += odestream_stream_predict(streams[r], t[r], &outs[r]) != ODESTREAM_OK;
            refused += odestream_stream_step(streams[r], t[r], given, mask.data(), &outs[r]) != ODESTREAM_OK;
        }
    }
    const long during = allocations - before;

    odestream_progress total{};
    for (odestream_stream* stream : streams) {
        const odestream_progress* progress = odestream_stream_progress(stream);
        total.steps += progress->steps, total.split += progress->split, total.rerun += progress->rerun;
        odestream_stream_destroy(stream);
    }
    odestream_batch_destroy(batch);
    odestream_destroy(model);
    std::printf("earlier %ld allocations %ld steps %lu split %lu rerun %lu refused %ld\n", before, during,
                static_cast<unsigned long>(total.steps), static_cast<unsigned long>(total.split),
                static_cast<unsigned long>(total.rerun), refused);
    return 0;
}
