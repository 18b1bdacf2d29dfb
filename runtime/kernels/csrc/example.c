/* Streams a table through a bundle:   example BUNDLE < rows.csv > answers.csv
 *
 * A row is "t,x0,x1,…": the time in ticks and a value for each channel, of which an empty one is missing. A token model
 * takes one byte as a number. For each row comes "t,y0,y1,…,err,bucket,flagged".
 */
#include <odestream.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, odestream_last_error());
    return 2;
}

/* The cells of a row after its time; returns 0 where there are not as many as channels. */
static int read_cells(char *at, float *x, float *mask, int32_t channels) {
    for (int32_t i = 0; i < channels; ++i) {
        char *end;
        if (*at != ',') return 0;
        x[i] = strtof(at + 1, &end);
        mask[i] = end > at + 1 ? 1.0f : 0.0f;
        at = end > at + 1 ? end : at + 1;
    }
    return *at == '\n' || *at == '\r' || *at == '\0';
}

int main(int count, char **arguments) {
    static char line[1 << 16];
    odestream_model *model = NULL;
    if (count != 2) {
        fprintf(stderr, "usage: example BUNDLE < rows.csv\n");
        return 2;
    }
    if (odestream_open(arguments[1], &model) != ODESTREAM_OK) return fail("open");
    odestream_stream *stream = odestream_stream_create(model, NULL);
    if (stream == NULL) return fail("stream");

    const odestream_sizes size = odestream_model_sizes(model);
    float *x = calloc((size_t)(2 * size.channels + size.answers), sizeof(float));
    if (x == NULL) return 2;
    float *mask = x + size.channels;
    odestream_output out = {mask + size.channels, NULL, 0, 0, 0, 0, 0};

    while (fgets(line, sizeof line, stdin) != NULL) {
        char *end;
        const int64_t t = strtoll(line, &end, 10);
        if (end == line || !read_cells(end, x, mask, size.channels)) {
            fprintf(stderr, "not a row of %d values: %s", size.channels, line);
            return 2;
        }
        const int64_t token = size.task == ODESTREAM_TOKENS ? (int64_t)x[0] : 0;
        const void *given = size.task == ODESTREAM_TOKENS ? (const void *)&token : x;
        if (odestream_stream_step(stream, t, given, mask, &out) != ODESTREAM_OK) return fail("step");
        printf("%lld", (long long)t);
        for (int32_t i = 0; i < size.answers; ++i) printf(",%.9g", (double)out.y[i]);
        printf(",%.17g,%d,%d\n", out.err, out.bucket, out.flagged);
    }

    free(x);
    odestream_stream_destroy(stream);
    odestream_destroy(model);
    return 0;
}
