// Replays calls from a file through the C interface and writes what they gave: for machines without Python, and to see
// that a step allocates nothing. A file is a row of parts, each an int64 length and as many bytes:
//
//     odestream_config (its pointers empty), its eight arrays, then for each weight name, rows and columns, data;
//     an empty part; batch; the first state; then for each call steps, x, mask, dt, phase.
//
// Sizes of y, err and gates follow from odestream_layout. The output holds y, err, gates and the state of every call.
#include "odestream.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <malloc.h>
#include <string>
#include <vector>

namespace {

using Part = std::vector<char>;

bool read_part(FILE* file, Part& part) {
    int64_t length = 0;
    if (std::fread(&length, sizeof length, 1, file) != 1) return false;
    part.resize(static_cast<size_t>(length));
    return length == 0 || std::fread(part.data(), part.size(), 1, file) == 1;
}

template <class T>
const T* as(const Part& part) {
    return reinterpret_cast<const T*>(part.data());
}

// Floats of one stream in group `which` of the layout: inputs, outputs, state.
std::vector<size_t> sizes(const char* layout, int which) {
    std::vector<size_t> found;
    for (const char* at = layout; *at != '\0'; ++at) {
        if (*at == '|') --which;
        if (*at == ':' && which == 0) found.push_back(std::strtoul(at + 1, nullptr, 10));
    }
    return found;
}

int fail(const char* what) {
    std::fprintf(stderr, "%s: %s\n", what, odestream_last_error());
    return 1;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return fail("usage: replay INPUT OUTPUT");
    FILE* input = std::fopen(arguments[1], "rb");
    FILE* output = std::fopen(arguments[2], "wb");
    if (input == nullptr || output == nullptr) return fail("a file cannot be opened");
    Part part, arrays[8];
    if (!read_part(input, part) || part.size() != sizeof(odestream_config)) return fail("not a configuration");
    odestream_config config = *as<odestream_config>(part);
    for (Part& array : arrays) read_part(input, array);
    config.scale = as<float>(arrays[0]), config.centre = as<float>(arrays[1]);
    config.average = as<float>(arrays[2]), config.frequency = as<float>(arrays[3]);
    config.a = as<double>(arrays[4]), config.b = as<double>(arrays[5]);
    config.c = as<double>(arrays[6]), config.error = as<double>(arrays[7]);
    std::vector<std::string> names;
    std::vector<Part> shapes, data;
    for (Part shape, values; read_part(input, part) && !part.empty();) {
        names.emplace_back(part.begin(), part.end());
        read_part(input, shape);
        read_part(input, values);
        shapes.push_back(shape);
        data.push_back(values);
    }
    std::vector<odestream_weight> weights;
    for (size_t i = 0; i < names.size(); ++i) {
        const int64_t* shape = as<int64_t>(shapes[i]);
        weights.push_back({names[i].c_str(), as<float>(data[i]), shape[0], shape[1]});
    }
    odestream_model* model = odestream_create(&config, weights.data(), weights.size());
    if (model == nullptr) return fail("the model cannot be made");

    Part batch, state, steps, x, mask, dt, phase;
    read_part(input, batch);
    read_part(input, state);
    const size_t rows = static_cast<size_t>(*as<int64_t>(batch));
    const std::vector<size_t> outputs = sizes(odestream_layout(model), 1);
    std::vector<float> y(rows * outputs[0]), err(rows * outputs[1]), gates(rows * outputs[2]);
    Part next(state.size());
    void* scratch = nullptr;
    if (posix_memalign(&scratch, 64, odestream_scratch_bytes(model)) != 0) return fail("no memory");
    while (read_part(input, steps) && read_part(input, x) && read_part(input, mask) && read_part(input, dt) &&
           read_part(input, phase)) {
        const odestream_call call{x.data(),    as<float>(mask), as<float>(dt), as<float>(phase),
                                  as<float>(state), y.data(),   err.data(),    gates.data(),
                                  reinterpret_cast<float*>(next.data()), scratch, static_cast<int32_t>(rows)};
        const size_t before = mallinfo2().uordblks;
        if (odestream_step(model, &call, static_cast<int32_t>(*as<int64_t>(steps))) != 0) return fail("a step failed");
        if (mallinfo2().uordblks != before) return fail("a step allocated memory");
        state.swap(next);
        std::fwrite(y.data(), sizeof(float), y.size(), output);
        std::fwrite(err.data(), sizeof(float), err.size(), output);
        std::fwrite(gates.data(), sizeof(float), gates.size(), output);
        std::fwrite(state.data(), 1, state.size(), output);
    }
    std::free(scratch);
    odestream_destroy(model);
    std::fclose(input);
    if (std::fclose(output) != 0) return fail("the output cannot be written");
    std::puts("replayed");
    return 0;
}
