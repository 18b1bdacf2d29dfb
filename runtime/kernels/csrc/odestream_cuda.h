/* The cell's step on an NVIDIA GPU as a C library, beside odestream.h, whose configuration and weights it takes.
 *
 * A model is uploaded once and never written to afterwards: threads may share it, each with bindings of its own. A binding
 * holds `batch` streams: their state in two buffers on the device, and pinned host memory for what goes in and comes out.
 * A run is one graph: copy the inputs, one kernel for the whole step, copy the outputs. After binding and preparing
 * nothing is allocated. Every function that can fail returns a status, and says why in odestream_cuda_last_error().
 * The library needs no CUDA toolkit to run, and loads where there is no GPU or driver: it then says so by its status.
 */
#ifndef ODESTREAM_CUDA_H
#define ODESTREAM_CUDA_H

#include "odestream.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a struct or a function below does, or those that it takes from odestream.h. */
#ifndef ODESTREAM_CUDA_ABI
#define ODESTREAM_CUDA_ABI 2
#endif

enum {
    ODESTREAM_CUDA_OK = 0,
    ODESTREAM_CUDA_BAD_CALL = 1,   /* a configuration, weights or arguments that do not fit */
    ODESTREAM_CUDA_BAD_TOKEN = 2,  /* a token that is not between 0 and 255 */
    ODESTREAM_CUDA_NO_DRIVER = 3,  /* no NVIDIA driver, or one older than the library's CUDA */
    ODESTREAM_CUDA_NO_DEVICE = 4,  /* no GPU of that number */
    ODESTREAM_CUDA_NOT_BUILT = 5,  /* the library holds no code for this GPU's compute capability */
    ODESTREAM_CUDA_FAILED = 6,     /* anything else that CUDA reports */
    ODESTREAM_CUDA_NO_MEMORY = 7,  /* the device or the host has not enough memory left; nothing was changed */
    ODESTREAM_CUDA_LOST = 8        /* a failure after which this process cannot use the GPU any more */
};

/* Type of the weights in matrices; biases, state, accumulators and errors are always float. */
enum { ODESTREAM_CUDA_FP32 = 0, ODESTREAM_CUDA_FP16 = 1, ODESTREAM_CUDA_BF16 = 2 };

/* CUDA versions are 1000·major + 10·minor: of the installed driver and of the library. */
typedef struct {
    char name[256];
    int32_t major, minor, processors, driver, runtime;
} odestream_cuda_device;

/* Host memory of a binding, arrays [batch, …] in the order of the layout: inputs to be filled before a run, and outputs
 * behind each other, y, err, gates. x holds float, or int64_t for tokens; phase is null without frequencies. */
typedef struct {
    void *x;
    float *mask, *dt, *phase, *outputs;
} odestream_cuda_buffers;

typedef struct odestream_cuda_model odestream_cuda_model;
typedef struct odestream_cuda_binding odestream_cuda_binding;

/* The value of ODESTREAM_CUDA_ABI that the library was built with. */
ODESTREAM_API int32_t odestream_cuda_abi(void);

/* What the last failed call of this thread failed at. */
ODESTREAM_API const char *odestream_cuda_last_error(void);

/* What GPU number `device` is; OK only where a model can run on it. */
ODESTREAM_API int32_t odestream_cuda_describe(int32_t device, odestream_cuda_device *found);

ODESTREAM_API int32_t odestream_cuda_create(const odestream_config *config, const odestream_weight *weights, size_t count,
                                            int32_t device, int32_t precision, odestream_cuda_model **model);
/* Its bindings must be released before. */
ODESTREAM_API void odestream_cuda_destroy(odestream_cuda_model *model);

/* As odestream_layout. */
ODESTREAM_API const char *odestream_cuda_layout(const odestream_cuda_model *model);

/* Buffers for `batch` streams; the state is zero. */
ODESTREAM_API int32_t odestream_cuda_bind(const odestream_cuda_model *model, int32_t batch,
                                          odestream_cuda_binding **binding);
ODESTREAM_API void odestream_cuda_release(odestream_cuda_binding *binding);
ODESTREAM_API odestream_cuda_buffers odestream_cuda_buffers_of(const odestream_cuda_binding *binding);

/* Capture the graphs for `steps` solver steps; nothing runs. A run does it where it was not done. */
ODESTREAM_API int32_t odestream_cuda_prepare(odestream_cuda_binding *binding, int32_t steps);

/* Run `steps` solver steps from inputs and state into outputs and new state, and wait for them. */
ODESTREAM_API int32_t odestream_cuda_run(odestream_cuda_binding *binding, int32_t steps);

/* 1 where the last run's outputs and new state hold neither NaN nor infinity, else 0. */
ODESTREAM_API int32_t odestream_cuda_finite(const odestream_cuda_binding *binding);

/* Make the new state the state. */
ODESTREAM_API void odestream_cuda_swap(odestream_cuda_binding *binding);

/* Copy the state (next 0) or the new state (next 1) in or out, [batch, …] a member. */
ODESTREAM_API int32_t odestream_cuda_set_state(odestream_cuda_binding *binding, int32_t next, const float *from);
ODESTREAM_API int32_t odestream_cuda_get_state(const odestream_cuda_binding *binding, int32_t next, float *to);

/* Microseconds of the device for one run, the mean over `repeats` runs one after another into the new state. */
ODESTREAM_API int32_t odestream_cuda_time(odestream_cuda_binding *binding, int32_t steps, int32_t repeats,
                                          float *microseconds);

#ifdef __cplusplus
}
#endif

#endif
