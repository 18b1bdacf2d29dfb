// The C interface: checks what comes in, and lets no exception out.
#include "odestream.h"

#include "handle.h"

#include <cstring>

namespace {

thread_local char last_error[1024] = "";

bool tokens_fit(const odestream::Sizes& size, const odestream_call& call) {
    const int64_t* tokens = static_cast<const int64_t*>(call.x);
    for (int r = 0; size.task == odestream::TOKENS && r < call.batch; ++r) {
        if (call.mask[r] > 0.0f && (tokens[r] < 0 || tokens[r] >= odestream::VOCABULARY)) return false;
    }
    return true;
}

}  // namespace

int32_t odestream::fail(int32_t status, const char* message) {
    std::strncpy(last_error, message, sizeof last_error - 1);
    return status;
}

int32_t odestream_abi(void) { return ODESTREAM_ABI; }

const char* odestream_instruction_set(void) {
    const odestream::Chosen chosen = odestream::choose_step();
    return chosen.step == nullptr ? nullptr : chosen.name;
}

const char* odestream_last_error(void) { return last_error; }

odestream_model* odestream_create(const odestream_config* config, const odestream_weight* weights, size_t count) {
    odestream_model* model = nullptr;
    odestream::guarded(ODESTREAM_BAD_CALL, [&] {
        const odestream::Chosen chosen = odestream::choose_step();
        if (chosen.step == nullptr) throw odestream::Refused("this machine has no AVX2 and FMA");
        model = new odestream_model{odestream::load_cell(*config, weights, count), chosen, nullptr};
    });
    return model;
}

void odestream_destroy(odestream_model* model) { delete model; }

const odestream_solving* odestream_model_solving(const odestream_model* model) {
    return model->manifest == nullptr ? nullptr : &model->manifest->solving;
}

odestream_sizes odestream_model_sizes(const odestream_model* model) {
    const odestream::Cell& cell = model->loaded.cell;
    return {cell.size.task, cell.size.channels, cell.size.answers, cell.size.gates, cell.member.total};
}

const char* odestream_layout(const odestream_model* model) { return model->loaded.layout.c_str(); }

size_t odestream_scratch_bytes(const odestream_model* model) {
    return static_cast<size_t>(model->loaded.cell.place.row) * odestream::TILE * sizeof(float);
}

int32_t odestream_step(const odestream_model* model, const odestream_call* call, int32_t steps) {
    if (steps < 1 || call->batch < 1) return odestream::fail(ODESTREAM_BAD_CALL, "steps and batch must be at least 1");
    const odestream::Cell& cell = model->loaded.cell;
    if (!tokens_fit(cell.size, *call)) return odestream::fail(ODESTREAM_BAD_TOKEN, "a token is not between 0 and 255");
    const odestream::Call inner{call->x,   call->mask, call->dt,    call->phase,      call->state,
                                call->y,   call->err,  call->gates, call->next_state, static_cast<float*>(call->scratch),
                                call->batch};
    model->code.step(cell, inner, steps);
    return ODESTREAM_OK;
}
