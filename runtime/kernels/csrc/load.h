// From a configuration and named weights to a cell whose weights lie packed in one block of memory.
#pragma once

#include "model.h"
#include "odestream.h"

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

namespace odestream {

// What does not fit; caught at the C interface, where it becomes a status.
struct Refused : std::runtime_error {
    explicit Refused(const std::string& message, int32_t kind = ODESTREAM_BAD_CALL)
        : std::runtime_error(message), status(kind) {}
    int32_t status;
};

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

struct Loaded {
    Cell cell;
    std::unique_ptr<float, Freed> block;
    size_t floats;  // of the block, which holds all that the cell points to
    std::string layout;
};

// Throws Refused, or std::bad_alloc.
Loaded load_cell(const odestream_config& config, const odestream_weight* weights, size_t count);

}  // namespace odestream
