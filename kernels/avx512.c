/* SPDX-License-Identifier: MIT */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>

typedef __m512 vec;
typedef __m512i raw;

enum { WIDTH = 16, LINEAR_ROWS = 4, LINEAR_VECTORS = 4 };
#define BYTE_SCALE 0x1p24f

static inline __mmask16 first(ptrdiff_t n)
{
    return n >= WIDTH ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

static inline vec vec_load_n(const float *p, ptrdiff_t n)
{
    return n >= WIDTH ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first(n), p);
}

static inline void vec_store_n(float *p, vec v, ptrdiff_t n)
{
    if (n >= WIDTH) {
        _mm512_storeu_ps(p, v);
    } else {
        _mm512_mask_storeu_ps(p, first(n), v);
    }
}

static inline vec vec_set(float value)
{
    return _mm512_set1_ps(value);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec vec_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

static inline vec vec_abs(vec v)
{
    return _mm512_abs_ps(v);
}

static inline float vec_sum(vec v)
{
    return _mm512_reduce_add_ps(v);
}

static inline vec vec_exponent(vec biased)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(biased), 23));
}

static inline vec vec_scale(vec v, vec k)
{
    return _mm512_scalef_ps(v, k);
}

static inline vec vec_shrink(vec v, vec k)
{
    return _mm512_scalef_ps(v, k);
}

struct parts {
    vec m, e;
};

static inline struct parts vec_parts(vec x)
{
    const raw bits = _mm512_castps_si512(x), least = _mm512_castps_si512(_mm512_set1_ps(0x1.6a09e6p-1f));
    const raw e = _mm512_srai_epi32(_mm512_sub_epi32(bits, least), 23);
    return (struct parts){_mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23))), _mm512_cvtepi32_ps(e)};
}

static inline raw raw_load(const int8_t *p)
{
    return _mm512_loadu_si512(p);
}

/* The byte moves to the top of its lane, where its sign is the lane's. */
static inline vec raw_byte(raw w, int j)
{
    const raw from = _mm512_set1_epi32((int)((unsigned)j << 24 | 0x808080));
    const raw lanes = _mm512_set4_epi32(0x0c000000, 0x08000000, 0x04000000, 0);
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(w, _mm512_add_epi32(from, lanes)));
}

#include "kernels/digits.h"
#include "kernels/simd.h"

static bool in_digits(const struct linear *w)
{
    return w->i8 && w->in <= DIGITS_IN_MAX;
}

static void linear_vnni(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                        int rows)
{
    (in_digits(w) ? digits_linear_vnni : linear)(w, x, x_stride, y, y_stride, rows);
}

static void linear_amx(const struct linear *w, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride,
                       int rows)
{
    (in_digits(w) ? digits_linear_amx : linear)(w, x, x_stride, y, y_stride, rows);
}

const struct kernels kernels_avx512 = KERNELS_TABLE("avx512", linear);
const struct kernels kernels_vnni = KERNELS_TABLE("vnni", linear_vnni);
const struct kernels kernels_amx = KERNELS_TABLE("amx", linear_amx);

#endif
