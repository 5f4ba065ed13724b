/* SPDX-License-Identifier: MIT */
#if defined(__x86_64__)

#include "kernels/digits.h"

#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma"
#define VNNI   __attribute__((target(AVX512 ",avx512vnni")))
#define AMX    __attribute__((target(AVX512 ",avx512vnni,amx-tile,amx-int8")))
#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,     /* outputs a vector */
    DIGITS = 3,     /* bytes a value, least first */
    TILE_ROWS = 16, /* rows split at a time: as many as a tile has */
    GROUP_BYTES = KERNELS_PANEL * KERNELS_GROUP,
    AHEAD = 1024,
    STRIDE = DIGITS_IN_MAX + 64, /* not a power of two, which would put all rows into the same few cache sets */
};

/* Up to TILE_ROWS rows of x, split. value = unit * (digit[0] + 256 digit[1] + 65536 digit[2] - 2^23) */
struct rows {
    _Alignas(64) uint8_t digit[DIGITS][TILE_ROWS][STRIDE];
    float unit[TILE_ROWS];
};

INLINE VNNI __mmask16 first(int n)
{
    return n >= LANES ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* The largest magnitude's bits, which order like the magnitudes and put infinity and NaN on top. */
static VNNI uint32_t largest(const float *x, int n)
{
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < n; i += LANES) {
        const __m512i bits = _mm512_maskz_loadu_epi32(first(n - i), x + i);
        most = _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return (uint32_t)_mm512_reduce_max_epi32(most);
}

INLINE VNNI __m512i scaled(const float *x, int left, __m512 scale)
{
    const __m512 value = _mm512_maskz_loadu_ps(first(left), x);
    return _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(value, scale)), _mm512_set1_epi32(1 << 23));
}

/* Digits of 64 values: sorted by digit within each 16 bytes, then four by four into place. */
INLINE VNNI void split_values(const float *x, int left, __m512 scale, struct rows *rows, int r, int at)
{
    const __m512i sort = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_shuffle_epi8(scaled(x, left, scale), sort);
    const __m512i b = _mm512_shuffle_epi8(scaled(x + 16, left - 16, scale), sort);
    const __m512i c = _mm512_shuffle_epi8(scaled(x + 32, left - 32, scale), sort);
    const __m512i d = _mm512_shuffle_epi8(scaled(x + 48, left - 48, scale), sort);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i low = _mm512_unpacklo_epi64(ab, cd), middle = _mm512_unpackhi_epi64(ab, cd);
    const __m512i high = _mm512_unpacklo_epi64(_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    _mm512_store_si512(&rows->digit[0][r][at], _mm512_permutexvar_epi32(order, low));
    _mm512_store_si512(&rows->digit[1][r][at], _mm512_permutexvar_epi32(order, middle));
    _mm512_store_si512(&rows->digit[2][r][at], _mm512_permutexvar_epi32(order, high));
}

static VNNI void split_row(const float *x, int n, struct rows *rows, int r)
{
    const float full = 0x1p23f - 2; /* one less than fits: the product below may round up */
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32((int)largest(x, n)));
    const float size = _mm512_cvtss_f32(most);
    const bool audible = size >= 0x1p-100f && size <= 0x1.fffffep127f;
    const __m512 scale = _mm512_set1_ps(audible ? full / size : 0);
    rows->unit[r] = audible ? size / full : size < 1 ? 0 : NAN;
    for (int i = 0; i < n; i += 64) {
        split_values(x + i, n - i, scale, rows, r, i);
    }
}

/* What a vector of outputs is multiplied with and starts from, whatever the row. */
struct outputs {
    __m512 scale, bias;
    __m512i offset; /* what the 2^23 above adds to the sum of the top digit */
};

INLINE VNNI struct outputs outputs_load(const struct linear *w, int o)
{
    return (struct outputs){
        .scale = _mm512_loadu_ps(w->scale + o),
        .bias = w->bias ? _mm512_loadu_ps(w->bias + o) : _mm512_setzero_ps(),
        .offset = _mm512_slli_epi32(_mm512_loadu_si512(w->sum + o), 7),
    };
}

/* Join the digits' sums of one row and write its outputs from o on. */
INLINE VNNI void join(const struct linear *w, int o, struct outputs to, __m512i low, __m512i middle, __m512i high,
                      float unit, float *y)
{
    const __m512 top = _mm512_cvtepi32_ps(_mm512_sub_epi32(high, to.offset));
    const __m512 rest = _mm512_fmadd_ps(_mm512_cvtepi32_ps(middle), _mm512_set1_ps(0x1p8f), _mm512_cvtepi32_ps(low));
    const __m512 sum = _mm512_fmadd_ps(top, _mm512_set1_ps(0x1p16f), rest);
    const __m512 scale = _mm512_mul_ps(to.scale, _mm512_set1_ps(unit));
    _mm512_mask_storeu_ps(y + o, first(w->out - o), _mm512_fmadd_ps(sum, scale, to.bias));
}

static const int8_t *panel_of(const struct linear *w, int o)
{
    return w->i8 + (size_t)(o / KERNELS_PANEL) * w->i8_stride;
}

/* A panel's outputs; named one by one, since the compiler leaves an array of them in memory. */
struct strip {
    __m512i v0, v1, v2, v3;
};

struct sums {
    struct strip low, middle, high;
};

/* Here and below, `vectors` (a constant) says how many of a panel's four hold outputs; the others stay what they are.
 */
INLINE VNNI struct strip strip_load(const int8_t *weights, int vectors)
{
    struct strip strip = {.v0 = _mm512_loadu_si512(weights)};
    strip.v1 = vectors > 1 ? _mm512_loadu_si512(weights + 64) : strip.v0;
    strip.v2 = vectors > 2 ? _mm512_loadu_si512(weights + 128) : strip.v0;
    strip.v3 = vectors > 3 ? _mm512_loadu_si512(weights + 192) : strip.v0;
    return strip;
}

/* sum + the products of four bytes, lane by lane. In assembler, because gcc 12 copies the sum before and after its own
 * intrinsic and then runs out of registers. */
INLINE VNNI __m512i multiply_bytes(__m512i sum, __m512i digits, __m512i weights)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(weights));
    return sum;
}

INLINE VNNI struct strip strip_push(struct strip sum, const uint8_t *digits, struct strip weights, int vectors)
{
    int four;
    memcpy(&four, digits, sizeof four);
    const __m512i x = _mm512_set1_epi32(four);
    sum.v0 = multiply_bytes(sum.v0, x, weights.v0);
    sum.v1 = vectors > 1 ? multiply_bytes(sum.v1, x, weights.v1) : sum.v1;
    sum.v2 = vectors > 2 ? multiply_bytes(sum.v2, x, weights.v2) : sum.v2;
    sum.v3 = vectors > 3 ? multiply_bytes(sum.v3, x, weights.v3) : sum.v3;
    return sum;
}

INLINE VNNI struct sums sums_push(struct sums sums, const struct rows *rows, int r, int k, struct strip weights,
                                  int vectors)
{
    return (struct sums){strip_push(sums.low, &rows->digit[0][r][k], weights, vectors),
                         strip_push(sums.middle, &rows->digit[1][r][k], weights, vectors),
                         strip_push(sums.high, &rows->digit[2][r][k], weights, vectors)};
}

INLINE VNNI void sums_join(const struct linear *w, int o, struct sums s, float unit, float *y, int vectors)
{
    join(w, o, outputs_load(w, o), s.low.v0, s.middle.v0, s.high.v0, unit, y);
    if (vectors > 1) {
        join(w, o + 16, outputs_load(w, o + 16), s.low.v1, s.middle.v1, s.high.v1, unit, y);
    }
    if (vectors > 2) {
        join(w, o + 32, outputs_load(w, o + 32), s.low.v2, s.middle.v2, s.high.v2, unit, y);
    }
    if (vectors > 3) {
        join(w, o + 48, outputs_load(w, o + 48), s.low.v3, s.middle.v3, s.high.v3, unit, y);
    }
}

/* A single row is bound by reading the weights, of which a whole model is more than the second cache holds: asked for
 * 16 lines ahead, across the ends of pages, they come 7 % sooner. */
INLINE VNNI void prefetch(const int8_t *weights, int vectors)
{
    for (int line = 0; line < 64 * vectors; line += 64) {
        _mm_prefetch((const char *)weights + line, _MM_HINT_T0);
    }
}

/* One panel of outputs for row r, and for the next one if `pair` (a constant). */
INLINE VNNI void panel_vnni(const struct linear *w, int o, const struct rows *rows, int r, bool pair, int vectors,
                            float *y, ptrdiff_t y_stride)
{
    const __m512i zero = _mm512_setzero_si512();
    const struct strip zeros = {zero, zero, zero, zero};
    struct sums one = {zeros, zeros, zeros}, two = one;
    const int8_t *weights = panel_of(w, o);
    for (int k = 0; k < w->in; k += KERNELS_GROUP, weights += GROUP_BYTES) {
        const struct strip group = strip_load(weights, vectors);
        if (!pair) {
            prefetch(weights + AHEAD, vectors);
        }
        one = sums_push(one, rows, r, k, group, vectors);
        if (pair) {
            two = sums_push(two, rows, r + 1, k, group, vectors);
        }
    }
    sums_join(w, o, one, rows->unit[r], y + r * y_stride, vectors);
    if (pair) {
        sums_join(w, o, two, rows->unit[r + 1], y + (r + 1) * y_stride, vectors);
    }
}

/* Two panels of outputs for row r, side by side: each is a stream of its own to the prefetchers, which keep only so
 * many lines of one stream on their way. What is ahead of a panel's end is the next one's start, two strides on. */
INLINE VNNI void panels_vnni(const struct linear *w, int o, const struct rows *rows, int r, int right_vectors, float *y)
{
    const __m512i zero = _mm512_setzero_si512();
    const struct strip zeros = {zero, zero, zero, zero};
    struct sums one = {zeros, zeros, zeros}, two = one;
    const int8_t *left = panel_of(w, o), *right = panel_of(w, o + KERNELS_PANEL);
    const int groups = (w->in + KERNELS_GROUP - 1) / KERNELS_GROUP, turn = groups - AHEAD / GROUP_BYTES;
    const ptrdiff_t next = 2 * (ptrdiff_t)w->i8_stride - (ptrdiff_t)turn * GROUP_BYTES;
    for (int i = 0; i < groups; i++, left += GROUP_BYTES, right += GROUP_BYTES) {
        const ptrdiff_t ahead = i < turn ? AHEAD : next;
        prefetch(left + ahead, 4);
        one = sums_push(one, rows, r, KERNELS_GROUP * i, strip_load(left, 4), 4);
        prefetch(right + ahead, right_vectors);
        two = sums_push(two, rows, r, KERNELS_GROUP * i, strip_load(right, right_vectors), right_vectors);
    }
    sums_join(w, o, one, rows->unit[r], y, 4);
    sums_join(w, o + KERNELS_PANEL, two, rows->unit[r], y, right_vectors);
}

static VNNI void row_vnni(const struct linear *w, const struct rows *rows, int r, float *y, ptrdiff_t y_stride)
{
    int o = 0;
    for (; w->out - o > KERNELS_PANEL + LANES; o += 2 * KERNELS_PANEL) {
        panels_vnni(w, o, rows, r, 4, y + r * y_stride);
    }
    if (w->out - o > KERNELS_PANEL) {
        panels_vnni(w, o, rows, r, 1, y + r * y_stride);
    } else if (w->out - o > 3 * LANES) {
        panel_vnni(w, o, rows, r, false, 4, y, y_stride);
    } else if (w->out > o) {
        panel_vnni(w, o, rows, r, false, 3, y, y_stride);
    }
}

static VNNI void rows_vnni(const struct linear *w, const struct rows *rows, float *y, ptrdiff_t y_stride, int count)
{
    for (int o = 0; o < w->out; o += KERNELS_PANEL) {
        for (int r = 0; r + 2 <= count; r += 2) {
            panel_vnni(w, o, rows, r, true, 4, y, y_stride);
        }
    }
    if (count % 2) {
        row_vnni(w, rows, count - 1, y, y_stride);
    }
}

static VNNI void split(const float *x, ptrdiff_t x_stride, int in, struct rows *rows, int count)
{
    for (int r = 0; r < count; r++) {
        split_row(x + r * x_stride, in, rows, r);
    }
}

void digits_linear_vnni(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                        int rows)
{
    struct rows block;
    for (int r = 0; r < rows; r += TILE_ROWS) {
        const int count = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        split(x + r * x_stride, x_stride, w->in, &block, count);
        rows_vnni(w, &block, y + r * y_stride, y_stride, count);
    }
}

/* ---- AMX -------------------------------------------------------------------------------------------------------- */

/* Tiles 0..2: 16 rows x 16 outputs of sums, one a digit; 3..5: 16 rows x 64 inputs, one a digit; 6: 64 inputs x 16
 * outputs of weights, which lie in memory as the tile wants them. */
AMX static void tiles_configure(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int tile = 0; tile < 7; tile++) {
        configuration.row_bytes[tile] = 64;
        configuration.rows[tile] = 16;
    }
    _tile_loadconfig(&configuration);
}

typedef int32_t tile_sums[DIGITS][TILE_ROWS][LANES];

/* Meanwhile the next panel comes: each of a panel's four tiles of outputs asks for a quarter of it, in the order in
 * which it will be read. */
AMX static void tiles_multiply(const struct linear *w, int o, const struct rows *rows, tile_sums sum)
{
    enum { STEP = 64 / KERNELS_GROUP * GROUP_BYTES, QUARTER = STEP * LANES / KERNELS_PANEL };
    const int8_t *weights = panel_of(w, o) + o % KERNELS_PANEL * KERNELS_GROUP;
    const int8_t *next = panel_of(w, o) + w->i8_stride + o % KERNELS_PANEL / LANES * QUARTER;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int k = 0; k < w->in; k += 64, weights += STEP, next += STEP) {
        for (int at = 0; at < QUARTER; at += GROUP_BYTES) {
            prefetch(next + at, 4);
        }
        _tile_loadd(6, weights, GROUP_BYTES);
        _tile_loadd(3, &rows->digit[0][0][k], STRIDE);
        _tile_dpbusd(0, 3, 6);
        _tile_loadd(4, &rows->digit[1][0][k], STRIDE);
        _tile_dpbusd(1, 4, 6);
        _tile_loadd(5, &rows->digit[2][0][k], STRIDE);
        _tile_dpbusd(2, 5, 6);
    }
    _tile_stored(0, sum[0], sizeof sum[0][0]);
    _tile_stored(1, sum[1], sizeof sum[1][0]);
    _tile_stored(2, sum[2], sizeof sum[2][0]);
}

AMX static void tiles_join(const struct linear *w, int o, const struct rows *rows, tile_sums sum, float *y,
                           ptrdiff_t y_stride, int count)
{
    const struct outputs to = outputs_load(w, o);
    for (int r = 0; r < count; r++) {
        join(w, o, to, _mm512_loadu_si512(sum[0][r]), _mm512_loadu_si512(sum[1][r]), _mm512_loadu_si512(sum[2][r]),
             rows->unit[r], y + r * y_stride);
    }
}

AMX static void rows_amx(const struct linear *w, const struct rows *rows, float *y, ptrdiff_t y_stride, int count)
{
    _Alignas(64) tile_sums sums;
    for (int o = 0; o < w->out; o += LANES) {
        tiles_multiply(w, o, rows, sums);
        tiles_join(w, o, rows, sums, y, y_stride, count);
    }
}

AMX void digits_linear_amx(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                           int rows)
{
    if (rows < 5) { /* a tile multiplies 16 rows in the time VNNI takes for four */
        digits_linear_vnni(w, x, x_stride, y, y_stride, rows);
        return;
    }
    struct rows block;
    tiles_configure();
    for (int r = 0; r < rows; r += TILE_ROWS) {
        const int count = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        split(x + r * x_stride, x_stride, w->in, &block, count);
        rows_amx(w, &block, y + r * y_stride, y_stride, count);
    }
    _tile_release();
}

bool digits_amx_request(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_TILE_AND_INT8 = 3 << 24 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_TILE_AND_INT8) == AMX_TILE_AND_INT8 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#endif
