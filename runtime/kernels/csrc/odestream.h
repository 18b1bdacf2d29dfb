/* The cell's step, and streams of it, as a C library.
 *
 * A model is made from a configuration and named weights, both as they stand in a bundle's manifest, and is never
 * written to afterwards: threads may share it, each with streams, or with calls and scratch, of its own. A model
 * outlives its streams. Once they are made, stepping and predicting allocate nothing. Functions that can fail return
 * null or a status other than ODESTREAM_OK, and say why in odestream_last_error().
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
#define ODESTREAM_ABI 3
#endif

#define ODESTREAM_MAX_STAGES 16
#define ODESTREAM_MAX_STORES 3
#define ODESTREAM_MAX_BUCKETS 64

enum { ODESTREAM_FORECAST = 0, ODESTREAM_CLASSIFY = 1, ODESTREAM_TOKENS = 2 };
enum { ODESTREAM_WORKING = 0, ODESTREAM_LONGTERM = 1, ODESTREAM_EPISODIC = 2 };

/* What a call came to. */
enum {
    ODESTREAM_OK = 0,
    ODESTREAM_BAD_CALL = 1,   /* an argument is out of its range */
    ODESTREAM_BAD_TOKEN = 2,  /* not between 0 and 255 */
    ODESTREAM_BAD_VALUE = 3,  /* an observed x is not finite */
    ODESTREAM_BAD_MASK = 4,   /* neither 0 nor 1 */
    ODESTREAM_BAD_TIME = 5,   /* t does not advance */
    ODESTREAM_LONG_GAP = 6,   /* t lies further ahead than the model can cross */
    ODESTREAM_NOT_FINITE = 7, /* state or outputs became NaN or infinite in every bucket that was left to try */
    ODESTREAM_BUSY = 8,       /* the stream is in a call of another thread, or twice in a batch */
    ODESTREAM_NO_MEMORY = 9,
    ODESTREAM_UNSUPPORTED = 10, /* a bundle that the library or this machine cannot run */
    ODESTREAM_BAD_PATH = 11,    /* a file of the bundle is a link or a device */
    ODESTREAM_BAD_HASH = 12,    /* the weights' size or sha256 is not the manifest's; nothing of them was used */
    ODESTREAM_BAD_BUNDLE = 13,  /* a file is missing, or its content is not what the format asks for */
    ODESTREAM_BAD_SNAPSHOT = 14 /* damaged, of another version, or of another model */
};

/* A cell as its configuration describes it; the arrays are read while the model is made and not kept. */
typedef struct {
    int32_t task, channels, outputs;
    int32_t hidden, field, content, head, gate, window, slots, heads, keys, values;
    int32_t stores, store[ODESTREAM_MAX_STORES]; /* how many, and which, in the configuration's order */
    int32_t surprise_gate, episodic_sink;
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

/* How streams count time and choose their solver steps; see the manifest's `time` and `solver`, and
 * odestream.runtime.contract.rule. Read while a stream is made and not kept. */
typedef struct {
    double ticks_per_unit;   /* ticks in a model time unit */
    int64_t origin;          /* tick at which every phase is zero */
    const double *frequency; /* [frequencies] rad per model time unit, as exact as the manifest has them */
    const float *initial;    /* a new stream's state, its members one after another */
    int32_t buckets;         /* how many, at most ODESTREAM_MAX_BUCKETS */
    const int32_t *bucket;   /* [buckets] solver steps, increasing */
    const uint64_t *limit;   /* [buckets] most ticks that each may cross in one call, increasing */
    const double *ratio;     /* [buckets] what an estimate is multiplied by to tell the error */
    double factor;           /* largest error that is accepted */
    int32_t order;           /* of the method's estimate, 0 without one */
    int32_t max_calls;       /* most calls that a gap is cut into for stability */
    int32_t default_bucket;  /* the steps taken where nothing is known */
} odestream_solving;

/* What a call gave. y and gates are the caller's, of as many floats as odestream_sizes says, or null where they are not
 * wanted; the rest is written. A call that fails writes nothing. */
typedef struct {
    float *y, *gates;
    double err;             /* largest error of the pieces, in units of the tolerance; NaN without an estimate */
    int32_t bucket;         /* solver steps of the last accepted run */
    int32_t flagged;        /* whether err is above the factor although everything was tried */
    int32_t calls, reruns;  /* runs that were accepted, and that were rejected on the way */
} odestream_output;

/* Where a stream stands, and what it has done; see odestream.runtime.records. With its state, all that it is. */
typedef struct {
    int64_t tick;                    /* of the last accepted step */
    int32_t begun;                   /* whether there was one */
    uint64_t previous_gap;           /* what is known of its calls over gaps: ticks (0: nothing), */
    uint64_t previous_steps;         /* solver steps, */
    double previous_err;             /* and estimate */
    uint64_t steps, flagged, split, rerun;
    uint64_t accepted[ODESTREAM_MAX_BUCKETS], rejected[ODESTREAM_MAX_BUCKETS]; /* runs by bucket */
} odestream_progress;

/* What a caller must have room for: floats of x and mask, y, gates and the state. */
typedef struct {
    int32_t task, channels, answers, gates, state;
} odestream_sizes;

typedef struct odestream_model odestream_model;
typedef struct odestream_stream odestream_stream;
typedef struct odestream_batch odestream_batch;

/* The value of ODESTREAM_ABI that the library was built with. */
ODESTREAM_API int32_t odestream_abi(void);

/* The instruction set that models will run on here, null where the library holds none for this machine. */
ODESTREAM_API const char *odestream_instruction_set(void);

/* What the last failed call of this thread failed at. */
ODESTREAM_API const char *odestream_last_error(void);

ODESTREAM_API odestream_model *odestream_create(const odestream_config *config, const odestream_weight *weights,
                                                size_t count);
ODESTREAM_API void odestream_destroy(odestream_model *model);

/* Open the bundle in the directory `path`: of its files, manifest.json and weights.safetensors are read. */
ODESTREAM_API int32_t odestream_open(const char *path, odestream_model **model);

/* How streams of an opened model count time and choose their steps, to be copied and changed; null for a created one. */
ODESTREAM_API const odestream_solving *odestream_model_solving(const odestream_model *model);

ODESTREAM_API odestream_sizes odestream_model_sizes(const odestream_model *model);

/* Inputs, outputs and state of one stream in order, as "x:3 mask:3 dt:1 phase:4 | y:6 err:1 gates:8 | h:64 …". */
ODESTREAM_API const char *odestream_layout(const odestream_model *model);

ODESTREAM_API size_t odestream_scratch_bytes(const odestream_model *model);

/* Run `steps` solver steps; the state passed in is not changed. */
ODESTREAM_API int32_t odestream_step(const odestream_model *model, const odestream_call *call, int32_t steps);

/* A stream at `initial`: one conversation, for one call at a time. solving: null for that of an opened model. */
ODESTREAM_API odestream_stream *odestream_stream_create(const odestream_model *model, const odestream_solving *solving);
ODESTREAM_API void odestream_stream_destroy(odestream_stream *stream);

/* Take an observation at tick t, after the last one. x: [channels], a token as int64_t; mask: [channels] of 0 and 1,
 * null where all were observed; x may hold anything where it is 0. After a failure the stream is as it was. */
ODESTREAM_API int32_t odestream_stream_step(odestream_stream *stream, int64_t t, const void *x, const float *mask,
                                            odestream_output *out);

/* What a step at tick t, from the last one on, would give if nothing were observed. The stream is not changed. */
ODESTREAM_API int32_t odestream_stream_predict(odestream_stream *stream, int64_t t, odestream_output *out);

/* The state, its members one after another in the order of odestream_layout; valid until the next step or load. */
ODESTREAM_API const float *odestream_stream_state(const odestream_stream *stream);

/* Where the stream stands; the address holds as long as the stream. */
ODESTREAM_API const odestream_progress *odestream_stream_progress(const odestream_stream *stream);

/* Go on from a state and progress that another stream of the same model and buckets had. */
ODESTREAM_API int32_t odestream_stream_load(odestream_stream *stream, const float *state,
                                            const odestream_progress *progress);

/* A stream of an opened model as bytes that odestream_restore, or Python on any backend, resumes bit for bit. Writes to
 * `data` where `room` has place for it, and always its size to `size`; ODESTREAM_BAD_CALL where there was too little. */
ODESTREAM_API int32_t odestream_snapshot(const odestream_stream *stream, void *data, size_t room, size_t *size);

/* A new stream from a snapshot of one stream, taken here or in Python. */
ODESTREAM_API int32_t odestream_restore(const odestream_model *model, const void *data, size_t size,
                                        odestream_stream **stream);

/* What the stream's last failed call failed at. */
ODESTREAM_API const char *odestream_stream_error(const odestream_stream *stream);

/* Steps streams of one model together; for one call at a time, another meanwhile is refused as ODESTREAM_BUSY. */
ODESTREAM_API odestream_batch *odestream_batch_create(const odestream_model *model);
ODESTREAM_API void odestream_batch_destroy(odestream_batch *batch);

/* One observation for each of `count` streams: t [count], x and mask [count, channels], mask null where all was
 * observed. Every row does what odestream_stream_step would do, to the bit, and fails by itself: its status is in
 * `statuses`, its reason in odestream_stream_error. Returns the first status that is not ODESTREAM_OK. */
ODESTREAM_API int32_t odestream_batch_step(odestream_batch *batch, odestream_stream *const *streams, size_t count,
                                           const int64_t *t, const void *x, const float *mask, odestream_output *outs,
                                           int32_t *statuses);

#ifdef __cplusplus
}
#endif

#endif
