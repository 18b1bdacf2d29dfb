// What the C interface's opaque models hold, and how its functions report failure.
#pragma once

#include "cpu_step.h"
#include "load.h"
#include "manifest.h"

#include <exception>
#include <new>

struct odestream_model {
    odestream::Loaded loaded;
    odestream::Chosen code;
    std::unique_ptr<const odestream::Manifest> manifest;  // null where the model was not opened from a bundle
};

namespace odestream {

// Keep `message` as what this thread's last failed call failed at; gives `status` back.
int32_t fail(int32_t status, const char* message);

// Do it, and make of what it throws a status; `unknown` where an exception has none.
template <class Action>
int32_t guarded(int32_t unknown, Action action) {
    try {
        action();
        return ODESTREAM_OK;
    } catch (const Refused& error) {
        return fail(error.status, error.what());
    } catch (const std::bad_alloc&) {
        return fail(ODESTREAM_NO_MEMORY, "there is no memory for it; free some");
    } catch (const std::exception& error) {
        return fail(unknown, error.what());
    }
}

}  // namespace odestream
