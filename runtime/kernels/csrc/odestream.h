/* The cell's step as a C library.
 *
 * A model is made from a configuration and named weights, both as they stand in a bundle's manifest, and is never
 * written to afterwards: threads may share it, each with calls and scratch of its own. After loading nothing is
 * allocated. Functions that can fail return null or a status other than 0, and say why in odestream_last_error().
 */
#ifndef ODESTREAM_H
#define ODESTREAM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ODESTREAM_API __declspec(dllexport)
#else
#define ODESTREAM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a struct or a function below does. */
#ifndef ODESTREAM_ABI
#define ODESTREAM_ABI 1
#endif

#define ODESTREAM_MAX_STAGES 16
#define ODESTREAM_MAX_STORES 3

enum { ODESTREAM_FORECAST = 0, ODESTREAM_CLASSIFY = 1, ODESTREAM_TOKENS = 2 };
enum { ODESTREAM_WORKING = 0, ODESTREAM_LONGTERM = 1, ODESTREAM_EPISODIC = 2 };
enum { ODESTREAM_OK = 0, ODESTREAM_BAD_CALL = 1, ODESTREAM_BAD_TOKEN = 2 };

/* A cell as its configuration describes it; the arrays are read while the model is made and not kept. */
typedef struct {
    int32_t task, channels, outputs;
    int32_t hidden, field, content, head, gate, window, slots, heads, keys, values;
    int32_t stores, store[ODESTREAM_MAX_STORES]; /* how many, and which, in the configuration's order */
    int32_t surprise_gate;
    int32_t averages, frequencies; /* how many */
    const float *scale, *centre;   /* [channels] */
    const float *average;          /* [averages] */
    const float *frequency;        /* [frequencies] */
    float age_limit, rtol, atol;
    int32_t stages, fsal, estimates; /* the method: a [stages, stages], b, c, error [stages] */
    const double *a, *b, *c, *error;
} odestream_config;

/* A weight by its name in the manifest; a vector has one column. */
typedef struct {
    const char *name;
    const float *data;
    int64_t rows, columns;
} odestream_weight;

/* One call over `batch` streams. Arrays are [batch, …], the state's members one after another as [batch, …], all in the
 * order of odestream_layout. x points to float, for tokens to int64_t; phase may be null without frequencies. scratch:
 * odestream_scratch_bytes, aligned to 64 bytes. state and next_state must not overlap. */
typedef struct {
    const void *x;
    const float *mask, *dt, *phase, *state;
    float *y, *err, *gates, *next_state;
    void *scratch;
    int32_t batch;
} odestream_call;

typedef struct odestream_model odestream_model;

/* The value of ODESTREAM_ABI that the library was built with. */
ODESTREAM_API int32_t odestream_abi(void);

/* The instruction set that models will run on here, null where the library holds none for this machine. */
ODESTREAM_API const char *odestream_instruction_set(void);

/* What the last failed call of this thread failed at. */
ODESTREAM_API const char *odestream_last_error(void);

ODESTREAM_API odestream_model *odestream_create(const odestream_config *config, const odestream_weight *weights,
                                                size_t count);
ODESTREAM_API void odestream_destroy(odestream_model *model);

/* Inputs, outputs and state of one stream in order, as "x:3 mask:3 dt:1 phase:4 | y:6 err:1 gates:8 | h:64 …". */
ODESTREAM_API const char *odestream_layout(const odestream_model *model);

ODESTREAM_API size_t odestream_scratch_bytes(const odestream_model *model);

/* Run `steps` solver steps; the state passed in is not changed. */
ODESTREAM_API int32_t odestream_step(const odestream_model *model, const odestream_call *call, int32_t steps);

#ifdef __cplusplus
}
#endif

#endif
