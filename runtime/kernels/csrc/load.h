// From a configuration and named weights to a cell whose weights lie packed in one block of memory.
#pragma once

#include "model.h"
#include "odestream.h"

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

namespace odestream {

// What does not fit; caught at the C interface.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

struct Loaded {
    Cell cell;
    std::unique_ptr<float, Freed> block;
    std::string layout;
};

// Throws Refused, or std::bad_alloc.
Loaded load_cell(const odestream_config& config, const odestream_weight* weights, size_t count);

}  // namespace odestream
