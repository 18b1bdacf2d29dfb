// A loaded cell on a device.
#pragma once

#include "cuda_launch.h"
#include "cuda_resources.h"
#include "load.h"

namespace odestream {

struct CudaModel {
    int number;  // of the device
    Device device;
    Precision precision;
    std::string layout;
    DeviceMemory block;
    Cell cell;  // its pointers point into the block
};

// Upload; the matrices' weights are rounded to `precision`. Throws CudaFailed.
CudaModel upload(Loaded loaded, int number, Precision precision);

}  // namespace odestream
