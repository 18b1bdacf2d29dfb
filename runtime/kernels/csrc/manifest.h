// What a bundle's manifest says, as far as the library needs it: `odestream.runtime.contract.manifest`, checked.
#pragma once

#include "odestream.h"

#include <memory>
#include <string>
#include <vector>

namespace odestream {

// The manifest's `time`: how host times are counted.
struct Ticks {
    std::string kind = "number", unit = "s";
    int64_t per_column_unit = 1000000000;
    bool has_length = true;  // seconds is null where a tick has no length
    double seconds = 1e-9;
    double per_model_unit = 1e9;
    int64_t origin = 0;
    std::vector<double> frequencies;
};

bool operator==(const Ticks& a, const Ticks& b);

// A float32 weight's place in the weights file.
struct WeightPlace {
    std::string name;
    int64_t rows, columns;
    uint64_t offset, length;  // bytes
};

// A state member: its size, and its initial values, which repeat along it.
struct Member {
    std::string name;
    std::vector<int64_t> shape;
    int64_t size;
    std::vector<float> initial;
};

// config and solving point into the vectors below them; a Manifest stays where it was made.
struct Manifest {
    std::string name, identity;
    std::string layout;  // of the spec, in the words of odestream_layout
    Ticks time;
    odestream_config config{};
    std::vector<float> scale, centre, averages, frequencies;
    odestream_solving solving{};
    std::vector<int32_t> buckets;
    std::vector<uint64_t> limits;
    std::vector<double> ratios;
    std::vector<float> initial;
    std::vector<std::string> labels;  // of all graphs, in the manifest's order
    std::vector<Member> members;
    std::vector<WeightPlace> weights;
    std::string weights_sha256;
    uint64_t weights_size = 0;

    Manifest() = default;
    Manifest(const Manifest&) = delete;
    Manifest& operator=(const Manifest&) = delete;
};

constexpr uint64_t MAX_MANIFEST_BYTES = 4 << 20;

// Throws Refused with ODESTREAM_BAD_BUNDLE or ODESTREAM_UNSUPPORTED; `where` begins the sentence.
std::unique_ptr<Manifest> read_manifest(const std::string& text, const std::string& where);

// A new stream's state, once the sizes are known to be those of a cell.
void fill_initial(Manifest& manifest);

}  // namespace odestream
