/* SPDX-License-Identifier: MIT */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef __m256 vec;
typedef __m256i raw;

enum { WIDTH = 8, LINEAR_ROWS = 4, LINEAR_VECTORS = 2 };
#define BYTE_SCALE 0x1p24f

static inline __m256i first(ptrdiff_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

static inline vec vec_load_n(const float *p, ptrdiff_t n)
{
    return n >= WIDTH ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n));
}

static inline void vec_store_n(float *p, vec v, ptrdiff_t n)
{
    if (n >= WIDTH) {
        _mm256_storeu_ps(p, v);
    } else {
        _mm256_maskstore_ps(p, first(n), v);
    }
}

static inline vec vec_set(float value)
{
    return _mm256_set1_ps(value);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec vec_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

static inline vec vec_abs(vec v)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}

static inline float vec_sum(vec v)
{
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

static inline vec vec_exponent(vec biased)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23));
}

/* In two halves, since 2^-150 and 2^129 are no floats themselves. */
static inline vec vec_scale(vec v, vec k)
{
    const vec magic = _mm256_set1_ps(0x1.8p23f + 127), half = _mm256_floor_ps(k * _mm256_set1_ps(0.5f));
    return v * vec_exponent(half + magic) * vec_exponent(k - half + magic);
}

static inline vec vec_shrink(vec v, vec k)
{
    return v * vec_exponent(_mm256_max_ps(k, _mm256_set1_ps(-127)) + _mm256_set1_ps(0x1.8p23f + 127));
}

struct parts {
    vec m, e;
};

static inline struct parts vec_parts(vec x)
{
    const raw bits = _mm256_castps_si256(x), least = _mm256_castps_si256(_mm256_set1_ps(0x1.6a09e6p-1f));
    const raw e = _mm256_srai_epi32(_mm256_sub_epi32(bits, least), 23);
    return (struct parts){_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23))), _mm256_cvtepi32_ps(e)};
}

static inline raw raw_load(const int8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* The byte moves to the top of its lane, where its sign is the lane's. */
static inline vec raw_byte(raw w, int j)
{
    const raw from = _mm256_set1_epi32((int)((unsigned)j << 24 | 0x808080));
    const raw lanes = _mm256_setr_epi32(0, 0x04000000, 0x08000000, 0x0c000000, 0, 0x04000000, 0x08000000, 0x0c000000);
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(w, _mm256_add_epi32(from, lanes)));
}

#include "kernels/simd.h"

const struct kernels kernels_avx2 = KERNELS_TABLE("avx2", linear);

#endif
