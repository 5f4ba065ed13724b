/* SPDX-License-Identifier: MIT */

/* bench_kernels [--json]: every table of kernels.h against its floor, and OpenBLAS where it is installed.
 *
 * Products run over as many copies of their weights as a whole denoiser has (2.1 M: 483 -> 256, four Mamba layers of
 * d_model 256, 256 -> 966), one after the other, so that the caches are as warm as they are live and no warmer. Two
 * floors are measured in the same run: reading those bytes, and the processor's multiply-add rate. */

#include "kernels/kernels.h"

#include "dsp/clock.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SAMPLES_MAX = 20000, LAYERS = 4, D_MODEL = 256, D_INNER = 512, D_STATE = 16, D_CONV = 4, RANK = 16 };
static const double SAMPLE_SECONDS = 0.15; /* a case */
static const double MODEL_WEIGHTS = 2074880;

static bool json;
static int rows_printed;
static volatile float sink;

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct timing {
    double median, p99; /* seconds */
};

/* `run` gets the number of its call, to cycle over its data. */
static struct timing measure(void (*run)(void *what, int i), void *what)
{
    static double samples[SAMPLES_MAX];
    int n = 0;
    const double start = clock_seconds();
    run(what, 0);
    for (double before = clock_seconds(); n < 20 || (n < SAMPLES_MAX && before - start < SAMPLE_SECONDS); n++) {
        run(what, n);
        const double after = clock_seconds();
        samples[n] = after - before;
        before = after;
    }
    qsort(samples, (size_t)n, sizeof *samples, ascending);
    return (struct timing){samples[n / 2], samples[n * 99 / 100]};
}

/* One line: what was measured, and a rate in a unit (NULL: none). */
static void print(const char *table, const char *what, int rows, struct timing t, double rate, const char *unit,
                  double gigabytes)
{
    if (json) {
        printf("%s\n  {\"table\": \"%s\", \"what\": \"%s\", \"rows\": %d, \"median_us\": %.3f, \"p99_us\": %.3f, "
               "\"rate\": %.3f, \"unit\": \"%s\", \"gb_s\": %.2f}",
               rows_printed++ ? "," : "[", table, what, rows, t.median * 1e6, t.p99 * 1e6, rate, unit, gigabytes);
    } else {
        printf("%-9s %-22s %4d %11.2f %11.2f %9.2f %-9s", table, what, rows, t.median * 1e6, t.p99 * 1e6, rate, unit);
        printf(gigabytes > 0 ? "%8.2f GB/s\n" : "\n", gigabytes);
    }
    fflush(stdout);
}

static void *filled(size_t n, size_t size)
{
    uint8_t *memory = malloc(n * size);
    if (!memory) {
        fputs("bench_kernels: out of memory\n", stderr);
        exit(71);
    }
    if (size == sizeof(float)) {
        for (size_t i = 0; i < n; i++) {
            ((float *)(void *)memory)[i] = (float)(i * 2654435761u % 2001) / 1000.0f - 1.0f;
        }
    } else {
        for (size_t i = 0; i < n * size; i++) {
            memory[i] = (uint8_t)(i * 2654435761u >> 13);
        }
    }
    return memory;
}

/* ---- floors ----------------------------------------------------------------------------------------------------- */

struct bytes {
    const uint8_t *at;
    size_t n;
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static int read_avx512(struct bytes b)
{
    __m512i sum[4] = {0};
    for (size_t i = 0; i < b.n; i += 256) {
        for (size_t v = 0; v < 4; v++) {
            sum[v] = _mm512_xor_si512(sum[v], _mm512_loadu_si512(b.at + i + 64 * v));
        }
    }
    return _mm512_reduce_add_epi32(sum[0]) + _mm512_reduce_add_epi32(sum[1]) + _mm512_reduce_add_epi32(sum[2]) +
           _mm512_reduce_add_epi32(sum[3]);
}

#define FMA_PEAK(name, target_name, vector, set, fma, first)                                                           \
    __attribute__((target(target_name))) static float name(int n)                                                      \
    {                                                                                                                  \
        vector a[12];                                                                                                  \
        for (int v = 0; v < 12; v++) {                                                                                 \
            a[v] = set((float)v);                                                                                      \
        }                                                                                                              \
        const vector factor = set(0.999f), term = set(1e-3f);                                                          \
        for (int i = 0; i < n; i++) {                                                                                  \
            for (int v = 0; v < 12; v++) {                                                                             \
                a[v] = fma(a[v], factor, term);                                                                        \
            }                                                                                                          \
        }                                                                                                              \
        for (int v = 1; v < 12; v++) {                                                                                 \
            a[0] = fma(a[v], factor, a[0]);                                                                            \
        }                                                                                                              \
        return first(a[0]);                                                                                            \
    }
FMA_PEAK(fma_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32)
FMA_PEAK(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32)
#endif

static int read_plain(struct bytes b)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < b.n; i += 8) {
        uint64_t word;
        memcpy(&word, b.at + i, 8);
        sum += word;
    }
    return (int)sum;
}

static void read_all(void *what, int i)
{
    (void)i;
    const struct bytes b = *(struct bytes *)what;
#if defined(__x86_64__)
    sink = (float)(__builtin_cpu_supports("avx512f") ? read_avx512(b) : read_plain(b));
#else
    sink = (float)read_plain(b);
#endif
}

static void bench_read(double megabytes, const char *what)
{
    struct bytes b = {.n = (size_t)(megabytes * 1e6) / 256 * 256};
    uint8_t *memory = filled(b.n, 1);
    b.at = memory;
    const struct timing t = measure(read_all, &b);
    print("floor", what, 1, t, 0, "", (double)b.n / t.median * 1e-9);
    free(memory);
}

#if defined(__x86_64__)
static void run_fma_avx512(void *what, int i)
{
    (void)what, (void)i;
    sink = fma_avx512(20000);
}

static void run_fma_avx2(void *what, int i)
{
    (void)what, (void)i;
    sink = fma_avx2(20000);
}
#endif

static void bench_floors(void)
{
    bench_read(MODEL_WEIGHTS * 1e-6, "read int8 weights");
    bench_read(MODEL_WEIGHTS * 4e-6, "read fp32 weights");
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        const struct timing t = measure(run_fma_avx2, NULL);
        print("floor", "multiply-add 256-bit", 1, t, 20000 * 12 * 8 / t.median * 1e-9, "GMAC/s", 0);
    }
    if (__builtin_cpu_supports("avx512f")) {
        const struct timing t = measure(run_fma_avx512, NULL);
        print("floor", "multiply-add 512-bit", 1, t, 20000 * 12 * 16 / t.median * 1e-9, "GMAC/s", 0);
    }
#endif
}

/* ---- products --------------------------------------------------------------------------------------------------- */

enum { COPIES_MAX = 64, ROWS_MAX = 64, WIDTH_MAX = 1024 };

struct products {
    const struct kernels *kernels;
    struct linear linear[COPIES_MAX];
    int copies, rows;
    float *x, *y;
    const float *plain; /* unpacked fp32 weights, for the peer */
};

/* Weights that leave a value about as large as it was: denormals or infinities would be timed otherwise. */
static void linear_make(struct linear *linear, int in, int out, bool i8)
{
    const size_t n = (size_t)in * (size_t)out;
    float *scale = filled((size_t)out, sizeof *scale), *w = filled(i8 ? 1 : n, sizeof *w);
    int8_t *q = filled(i8 ? n : 1, 1);
    for (int o = 0; o < out; o++) {
        scale[o] = 1 / (70 * sqrtf((float)in));
    }
    for (size_t i = 0; i < n && !i8; i++) {
        w[i] *= 1.7f / sqrtf((float)in);
    }
    if (i8 ? linear_init_i8(linear, in, out, q, scale, scale) : linear_init_f32(linear, in, out, w, scale)) {
        exit(71);
    }
    free(scale), free(w), free(q);
}

static void run_product(void *what, int i)
{
    const struct products *p = what;
    const struct linear *w = &p->linear[i % p->copies];
    p->kernels->linear(w, p->x, w->in, p->y, w->out, p->rows);
}

typedef void (*sgemm_function)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                               const float *b, int ldb, float beta, float *c, int ldc);
typedef void (*sgemv_function)(int order, int ta, int m, int n, float alpha, const float *a, int lda, const float *x,
                               int incx, float beta, float *y, int incy);
static sgemm_function peer_sgemm;
static sgemv_function peer_sgemv;

/* OpenBLAS through its C interface, one thread; silently without when it isn't there. */
static void peer_open(void)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    if (library) {
        void (*threads)(int);
        *(void **)&threads = dlsym(library, "openblas_set_num_threads");
        *(void **)&peer_sgemm = dlsym(library, "cblas_sgemm");
        *(void **)&peer_sgemv = dlsym(library, "cblas_sgemv");
        threads(1);
    }
}

static void run_peer(void *what, int i)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };
    const struct products *p = what;
    const int in = p->linear[0].in, out = p->linear[0].out;
    const float *w = p->plain + (size_t)(i % p->copies) * (size_t)in * (size_t)out;
    if (p->rows == 1) {
        peer_sgemv(ROW_MAJOR, AS_IS, out, in, 1, w, in, p->x, 1, 0, p->y, 1);
    } else {
        peer_sgemm(ROW_MAJOR, AS_IS, TRANSPOSED, p->rows, out, in, 1, p->x, in, w, in, 0, p->y, out);
    }
}

static void bench_rows(struct products *p, const char *name, void (*run)(void *, int), bool i8)
{
    static const int row_counts[] = {1, 8, 64};
    const double macs = (double)p->linear[0].in * (double)p->linear[0].out;
    char what[40];
    snprintf(what, sizeof what, "%s %d->%d", i8 ? "int8" : "fp32", p->linear[0].in, p->linear[0].out);
    for (size_t i = 0; i < 3; i++) {
        p->rows = row_counts[i];
        const struct timing t = measure(run, p);
        print(name, what, p->rows, t, macs * p->rows / t.median * 1e-9, "GMAC/s",
              macs * (i8 ? 1 : 4) / t.median * 1e-9);
    }
}

static void bench_products(int in, int out, bool i8)
{
    struct products p = {.copies = (int)(MODEL_WEIGHTS / in / out + 0.5)};
    p.x = filled(ROWS_MAX * WIDTH_MAX, sizeof *p.x);
    p.y = filled(ROWS_MAX * WIDTH_MAX, sizeof *p.y);
    for (int i = 0; i < p.copies; i++) {
        linear_make(&p.linear[i], in, out, i8);
    }
    for (int i = 1; (p.kernels = kernels_at(i)) != NULL; i++) {
        bench_rows(&p, p.kernels->name, run_product, i8);
    }
    if (peer_sgemm && peer_sgemv && !i8) {
        float *plain = filled((size_t)p.copies * (size_t)in * (size_t)out, sizeof *plain);
        p.plain = plain;
        bench_rows(&p, "openblas", run_peer, false);
        free(plain);
    }
    for (int i = 0; i < p.copies; i++) {
        linear_finish(&p.linear[i]);
    }
    free(p.x), free(p.y);
}

/* ---- scan, exp and a whole hop ---------------------------------------------------------------------------------- */

struct layer {
    struct linear in_proj, x_proj, dt_proj, out_proj;
    float *A, *D, *dt_bias, *norm, *conv, *history, *h;
};

/* The denoiser's hop: what the engine runs for `rows` streams, with no windowing or transform. */
struct hop {
    const struct kernels *kernels;
    int rows;
    enum discretisation discretisation;
    struct linear first, last;
    struct layer layers[LAYERS];
    float *x, *stream, *normed, *xz, *u, *dbc, *dt, *y;
};

static void layer_make(struct layer *l, bool i8)
{
    linear_make(&l->in_proj, D_MODEL, 2 * D_INNER, i8);
    linear_make(&l->x_proj, D_INNER, RANK + 2 * D_STATE, i8);
    linear_make(&l->dt_proj, RANK, D_INNER, i8);
    linear_make(&l->out_proj, D_INNER, D_MODEL, i8);
    l->A = filled(D_STATE * D_INNER, sizeof(float));
    for (int i = 0; i < D_STATE * D_INNER; i++) {
        l->A[i] = -(float)(i / D_INNER + 1);
    }
    l->D = filled(D_INNER, sizeof(float));
    l->dt_bias = filled(D_INNER, sizeof(float));
    l->norm = filled(D_MODEL, sizeof(float));
    l->conv = filled(D_CONV * D_INNER, sizeof(float));
    l->history = filled((size_t)ROWS_MAX * (D_CONV - 1) * D_INNER, sizeof(float));
    l->h = filled((size_t)ROWS_MAX * D_STATE * D_INNER, sizeof(float));
}

static struct selective_scan layer_scan(const struct hop *hop, const struct layer *l, int row)
{
    return (struct selective_scan){.T = 1,
                                   .E = D_INNER,
                                   .N = D_STATE,
                                   .discretisation = hop->discretisation,
                                   .A = l->A,
                                   .D = l->D,
                                   .dt_bias = l->dt_bias,
                                   .u = hop->u + (size_t)row * D_INNER,
                                   .dt = hop->dt + (size_t)row * D_INNER,
                                   .z = hop->xz + (size_t)row * 2 * D_INNER + D_INNER,
                                   .B = hop->dbc + row * (RANK + 2 * D_STATE) + RANK,
                                   .C = hop->dbc + row * (RANK + 2 * D_STATE) + RANK + D_STATE,
                                   .state_stride = D_INNER,
                                   .h = l->h + (size_t)row * D_STATE * D_INNER,
                                   .out = hop->u + (size_t)row * D_INNER};
}

static void run_layer(const struct hop *hop, const struct layer *l)
{
    const struct kernels *k = hop->kernels;
    const int rows = hop->rows;
    k->rms_norm(hop->stream, l->norm, 1e-5f, hop->normed, rows, D_MODEL);
    k->linear(&l->in_proj, hop->normed, D_MODEL, hop->xz, 2 * D_INNER, rows);
    for (int r = 0; r < rows; r++) {
        k->conv1d(l->conv, NULL, D_CONV, l->history + (size_t)r * (D_CONV - 1) * D_INNER,
                  hop->xz + (size_t)r * 2 * D_INNER, 2 * D_INNER, hop->u + (size_t)r * D_INNER, D_INNER, 1, D_INNER,
                  true);
    }
    k->linear(&l->x_proj, hop->u, D_INNER, hop->dbc, RANK + 2 * D_STATE, rows);
    k->linear(&l->dt_proj, hop->dbc, RANK + 2 * D_STATE, hop->dt, D_INNER, rows);
    for (int r = 0; r < rows; r++) {
        const struct selective_scan scan = layer_scan(hop, l, r);
        k->selective_scan(&scan);
    }
    k->linear(&l->out_proj, hop->u, D_INNER, hop->normed, D_MODEL, rows);
    k->add(hop->normed, hop->stream, (size_t)rows * D_MODEL);
}

static void run_hop(void *what, int i)
{
    (void)i;
    const struct hop *hop = what;
    hop->kernels->linear(&hop->first, hop->x, 483, hop->stream, D_MODEL, hop->rows);
    for (int l = 0; l < LAYERS; l++) {
        run_layer(hop, &hop->layers[l]);
    }
    hop->kernels->linear(&hop->last, hop->stream, D_MODEL, hop->y, 966, hop->rows);
}

static void run_scan(void *what, int i)
{
    const struct hop *hop = what;
    const struct selective_scan scan = layer_scan(hop, &hop->layers[i % LAYERS], i / LAYERS % ROWS_MAX % hop->rows);
    hop->kernels->selective_scan(&scan);
}

static void run_exp(void *what, int i)
{
    (void)i;
    const struct hop *hop = what;
    hop->kernels->exp(hop->x, hop->y, 4096);
}

static void bench_hop(struct hop *hop, const char *what)
{
    static const int row_counts[] = {1, 8, 64};
    for (size_t i = 0; i < 3; i++) {
        hop->rows = row_counts[i];
        const struct timing t = measure(run_hop, hop);
        print(hop->kernels->name, what, hop->rows, t, t.median * 1e6 / hop->rows, "us/stream", 0);
    }
}

static void bench_scan(struct hop *hop)
{
    static const char *const names[] = {"scan E 512 N 16 euler", "scan E 512 N 16 zoh"};
    hop->rows = 1;
    for (int how = 0; how < 2; how++) {
        hop->discretisation = how ? DISCRETISE_ZOH : DISCRETISE_EULER;
        const struct timing t = measure(run_scan, hop);
        print(hop->kernels->name, names[how], 1, t, t.median * 1e9, "ns/step", 0);
    }
    hop->discretisation = DISCRETISE_EULER;
    const struct timing t = measure(run_exp, hop);
    print(hop->kernels->name, "exp, 4096 values", 1, t, 4096 / t.median * 1e-9, "G/s", 0);
}

static void hop_make(struct hop *hop, bool i8)
{
    linear_make(&hop->first, 483, D_MODEL, i8);
    linear_make(&hop->last, D_MODEL, 966, i8);
    for (int l = 0; l < LAYERS; l++) {
        layer_make(&hop->layers[l], i8);
    }
    float **buffers[] = {&hop->x, &hop->stream, &hop->normed, &hop->xz, &hop->u, &hop->dbc, &hop->dt, &hop->y};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        *buffers[i] = filled(ROWS_MAX * WIDTH_MAX, sizeof(float));
    }
}

int main(int argc, char **argv)
{
    static const int sizes[][2] = {{256, 1024}, {512, 256}, {483, 256}, {256, 966}};
    json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (!json) {
        printf("%-9s %-22s %4s %11s %11s %9s\n", "table", "what", "rows", "median us", "p99 us", "rate");
    }
    peer_open();
    bench_floors();
    static struct hop hops[2];
    hop_make(&hops[0], true);
    hop_make(&hops[1], false);
    for (int i = 1; (hops[0].kernels = hops[1].kernels = kernels_at(i)) != NULL; i++) {
        bench_hop(&hops[0], "hop, int8");
        bench_hop(&hops[1], "hop, fp32");
        bench_scan(&hops[0]);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        bench_products(sizes[i][0], sizes[i][1], true);
        bench_products(sizes[i][0], sizes[i][1], false);
    }
    if (json) {
        puts("\n]");
    }
    return 0;
}
