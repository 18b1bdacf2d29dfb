// What the C interface's opaque models hold, and how its functions report failure.
#pragma once

#include "cpu_step.h"
#include "load.h"

struct odestream_model {
    odestream::Loaded loaded;
    odestream::Chosen code;
};

namespace odestream {

// Keep `message` as what this thread's last failed call failed at; gives `status` back.
int32_t fail(int32_t status, const char* message);

}  // namespace odestream
