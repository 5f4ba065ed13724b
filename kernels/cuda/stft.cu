/* SPDX-License-Identifier: MIT */

/* The transforms of layers.h: stft, istft, and filter and mask, which istft can do on its way. Twins: dsp/stft.c,
 * model/layer_{stft,istft,filter,mask}.c.
 *
 * The real transform of `window` samples is made from a complex one of half the length, which runs in shared memory
 * through passes of radix 5, 3, 2 and 4 (Stockham's: no reordering): some 5 thousand operations a row against 50
 * thousand for a folded matrix product. Odd radices go first, since their strides keep clear of bank conflicts.
 *
 * A crew of `lanes` threads does a row: a warp where there are rows enough to fill the machine, otherwise a block, for
 * latency. Who does what never changes the arithmetic of a value, so neither does it change the bits.
 *
 * A sequence through istft: a crew walks a run of rows as a stream would, with its overlap in shared memory, which it
 * first brings about by walking the window / hop - 1 rows before the run. */

#include <math.h>

#include "kernels/cuda/layers.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/rows.cuh"

namespace
{

constexpr int STAGES_MAX = 12;

struct stage {
    int radix, units; /* butterflies: half / radix                                                          */
    int done;         /* product of the radices before: the length of the transforms that come in           */
    int turn;         /* step in the table of turns                                                         */
    unsigned inverse; /* j / done = high word of j inverse, for j done < 2^32; 0 for done = 1               */
};

struct plan {
    int window, hop, half, past; /* past = window / hop - 1                                                     */
    int stages;
    struct stage stage[STAGES_MAX];
    const float *analysis, *synthesis; /* (window)                                                              */
    const float2 *turn;                /* (window)  exp(-2 pi i k / window)                                     */
};

/* ---- a crew: the threads of one row ------------------------------------------------------------------------- */

struct crew {
    int lane, lanes; /* lanes is a warp, or the block                                                           */
    int number;      /* in the grid                                                                             */
    float *shared;   /* its own part                                                                            */

    __device__ __forceinline__ crew(float *block, int lanes_, int floats) : lanes(lanes_)
    {
        const int in_block = int(threadIdx.x) / lanes;
        lane = int(threadIdx.x) - in_block * lanes;
        number = int(blockIdx.x) * (int(blockDim.x) / lanes) + in_block;
        shared = block + in_block * floats;
    }
    __device__ __forceinline__ void sync() const
    {
        if (lanes == rows::WARP)
            __syncwarp();
        else
            __syncthreads();
    }
    __device__ __forceinline__ bool any(bool x) const
    {
        return lanes == rows::WARP ? __any_sync(0xffffffffu, x) : __syncthreads_or(x);
    }
};

/* ---- the complex transform ---------------------------------------------------------------------------------- */

__device__ __forceinline__ float2 add(float2 a, float2 b)
{
    return make_float2(a.x + b.x, a.y + b.y);
}
__device__ __forceinline__ float2 sub(float2 a, float2 b)
{
    return make_float2(a.x - b.x, a.y - b.y);
}
__device__ __forceinline__ float2 scale(float2 a, float s)
{
    return make_float2(a.x * s, a.y * s);
}
__device__ __forceinline__ float2 scale_add(float2 a, float s, float2 b)
{
    return make_float2(fmaf(a.x, s, b.x), fmaf(a.y, s, b.y));
}

/* a times w, or times its conjugate on the way back. */
template <bool BACK> __device__ __forceinline__ float2 times(float2 a, float2 w)
{
    if (BACK)
        w.y = -w.y;
    return make_float2(fmaf(-a.y, w.y, a.x * w.x), fmaf(a.y, w.x, a.x * w.y));
}

/* A quarter turn: times -i, or i on the way back. */
template <bool BACK> __device__ __forceinline__ float2 quarter(float2 a)
{
    return BACK ? make_float2(-a.y, a.x) : make_float2(a.y, -a.x);
}

template <bool BACK> __device__ __forceinline__ void butterfly(float2 (&v)[2])
{
    const float2 a = v[0];
    v[0] = add(a, v[1]);
    v[1] = sub(a, v[1]);
}

template <bool BACK> __device__ __forceinline__ void butterfly(float2 (&v)[3])
{
    const float2 sum = add(v[1], v[2]), turned = quarter<BACK>(sub(v[1], v[2]));
    const float2 middle = scale_add(sum, -0.5f, v[0]);
    v[0] = add(v[0], sum);
    v[1] = scale_add(turned, 0.8660254037844386f, middle);
    v[2] = scale_add(turned, -0.8660254037844386f, middle);
}

template <bool BACK> __device__ __forceinline__ void butterfly(float2 (&v)[4])
{
    const float2 a = add(v[0], v[2]), b = sub(v[0], v[2]), c = add(v[1], v[3]);
    const float2 d = quarter<BACK>(sub(v[1], v[3]));
    v[0] = add(a, c);
    v[1] = add(b, d);
    v[2] = sub(a, c);
    v[3] = sub(b, d);
}

template <bool BACK> __device__ __forceinline__ void butterfly(float2 (&v)[5])
{
    const float c1 = 0.30901699437494745f, c2 = -0.8090169943749475f; /* of 72 and 144 degrees */
    const float s1 = 0.9510565162951535f, s2 = 0.5877852522924731f;
    const float2 t1 = add(v[1], v[4]), t2 = add(v[2], v[3]), d1 = sub(v[1], v[4]), d2 = sub(v[2], v[3]);
    const float2 a = scale_add(t2, c2, scale_add(t1, c1, v[0])), b = scale_add(t2, c1, scale_add(t1, c2, v[0]));
    const float2 p = quarter<BACK>(scale_add(d2, s2, scale(d1, s1)));
    const float2 q = quarter<BACK>(scale_add(d2, -s1, scale(d1, s2)));
    v[0] = add(v[0], add(t1, t2));
    v[1] = add(a, p);
    v[2] = add(b, q);
    v[3] = sub(b, q);
    v[4] = sub(a, p);
}

template <int R, bool BACK>
__device__ __forceinline__ void run_stage(const stage &s, const float2 *turn, const float2 *in, float2 *out,
                                          const crew &c)
{
#pragma unroll 1
    for (int j = c.lane; j < s.units; j += c.lanes) {
        const int block = s.inverse ? int(__umulhi(unsigned(j), s.inverse)) : j, k = j - block * s.done;
        float2 v[R];
#pragma unroll
        for (int q = 0; q < R; q++)
            v[q] = in[j + q * s.units];
        if (s.inverse) {
#pragma unroll
            for (int q = 1; q < R; q++)
                v[q] = times<BACK>(v[q], __ldg(&turn[k * q * s.turn]));
        }
        butterfly<BACK>(v);
#pragma unroll
        for (int q = 0; q < R; q++)
            out[block * s.done * R + k + q * s.done] = v[q];
    }
}

/* z (half) at `in` -> its transform; gives where that is: in or out. The crew is in step before and after. */
template <bool BACK> __device__ __forceinline__ float2 *transform(const plan &p, float2 *in, float2 *out, const crew &c)
{
    for (int i = 0; i < p.stages; i++) {
        const stage &s = p.stage[i];
        if (s.radix == 4)
            run_stage<4, BACK>(s, p.turn, in, out, c);
        else if (s.radix == 5)
            run_stage<5, BACK>(s, p.turn, in, out, c);
        else if (s.radix == 3)
            run_stage<3, BACK>(s, p.turn, in, out, c);
        else
            run_stage<2, BACK>(s, p.turn, in, out, c);
        c.sync();
        float2 *const written = out;
        out = in;
        in = written;
    }
    return in;
}

/* ---- stft --------------------------------------------------------------------------------------------------- */

/* energy^power for 1e-12 <= energy and -1/2 <= power <= 0, to 3e-7: the exponent's share and the mantissa's, so that
 * nothing large is rounded. */
__device__ __forceinline__ float raise(float energy, float power)
{
    const int bits = __float_as_int(energy), exponent = (bits - 0x3f3504f3) >> 23;
    const float mantissa = __int_as_float(bits - (exponent << 23)); /* sqrt(1/2) .. sqrt(2) */
    const float whole = rintf(power * float(exponent));
    const float rest = fmaf(power, float(exponent), -whole);
    return ptx::exp2(fmaf(power, __log2f(mantissa), rest)) * __int_as_float((int(whole) + 127) << 23);
}

struct analysis {
    rows_cuda rows;
    struct plan plan;
    size_t state_at;
    float power; /* of |X|^2: (compress - 1) / 2 */
    const float *x;
    float *spectrum, *features;
};

/* A row's window, times the window function, to z. A step also keeps its hop, over the oldest. */
__device__ __forceinline__ void load_window(const analysis &a, int row, float *z, const crew &c)
{
    const plan &p = a.plan;
    const rows::ring<float> ring(a.rows, row, a.state_at, p.past, p.hop);
    const float *const x = a.x + size_t(row) * size_t(p.hop), *window = p.analysis;
    for (int ago = p.past; ago > 0; ago--, window += p.hop, z += p.hop) {
        const float *from = ago <= ring.above ? x - size_t(ago) * size_t(p.hop) : ring.past(ago);
#pragma unroll 5
        for (int i = c.lane; i < p.hop; i += c.lanes)
            z[i] = rows::finite_or_zero(from[i]) * __ldg(&window[i]);
    }
#pragma unroll 5
    for (int i = c.lane; i < p.hop; i += c.lanes) {
        const float sample = rows::finite_or_zero(__ldg(&x[i]));
        z[i] = sample * __ldg(&window[i]);
        if (!a.rows.sequence)
            ring.past(0)[i] = sample;
    }
}

__device__ __forceinline__ void emit(const analysis &a, int row, int f, float re, float im)
{
    const int bins = a.plan.half + 1;
    if (a.spectrum) {
        float *to = a.spectrum + size_t(row) * size_t(2 * bins) + f;
        to[0] = re;
        to[bins] = im;
    }
    if (a.power < 0.0f) {
        float *to = a.features + size_t(row) * size_t(3 * bins) + f;
        const float energy = fmaf(re, re, fmaf(im, im, 1e-12f)), gain = raise(energy, a.power);
        to[0] = __fsqrt_rn(energy) * gain;
        to[bins] = re * gain;
        to[2 * bins] = im * gain;
    } else {
        float *to = a.features + size_t(row) * size_t(2 * bins) + f;
        to[0] = re;
        to[bins] = im;
    }
}

/* The half-length transform z of (even, odd) samples -> the bins k and half - k of the real one: with E and O the even
 * and odd samples' transforms, z[k] = E[k] + i O[k] and x[k] = E[k] + turn[k] O[k]. */
__device__ __forceinline__ void split(const analysis &a, int row, const float2 *z, const crew &c)
{
    const int half = a.plan.half;
#pragma unroll 1
    for (int k = c.lane; k <= half / 2; k += c.lanes) {
        const float2 u = z[k], v = z[k ? half - k : 0];
        const float2 even = make_float2(0.5f * (u.x + v.x), 0.5f * (u.y - v.y));
        const float2 odd = times<false>(make_float2(0.5f * (u.y + v.y), 0.5f * (v.x - u.x)), __ldg(&a.plan.turn[k]));
        emit(a, row, k, even.x + odd.x, even.y + odd.y);
        emit(a, row, half - k, even.x - odd.x, odd.y - even.y);
    }
}

__global__ void __launch_bounds__(256, 6) analyse(const __grid_constant__ analysis a, int lanes)
{
    extern __shared__ __align__(16) float shared[];
    const crew c(shared, lanes, 2 * a.plan.window);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (c.number >= a.rows.rows)
        return;
    float2 *z = reinterpret_cast<float2 *>(c.shared);
    load_window(a, c.number, c.shared, c);
    c.sync();
    split(a, c.number, transform<false>(a.plan, z, z + a.plan.half, c), c);
}

/* ---- filter and mask ---------------------------------------------------------------------------------------- */

struct source {
    rows_cuda rows;
    struct spectral_cuda how;
    const float *in;
    int64_t in_row;
    const float *spectrum;
};

/* One row of it. TAPS: 0 without a filter, else the filter's, ANY_TAPS if not known. */
constexpr int ANY_TAPS = -1;

template <int TAPS> struct source_row {
    const source &s;
    const rows::ring<float> ring;
    const float *in, *spectrum;

    __device__ __forceinline__ source_row(const source &s_, int row)
        : s(s_), ring(s_.rows, row, s_.how.state_at, s_.how.taps - 1, 2 * s_.how.bins), in(s_.in + row * s_.in_row),
          spectrum(s_.spectrum + int64_t(row) * 2 * s_.how.bins)
    {
    }
    __device__ __forceinline__ const float *spectrum_ago(int ago) const
    {
        return ago <= ring.above ? spectrum - int64_t(ago) * 2 * s.how.bins : ring.past(ago);
    }
    /* sum_k W_k X_{t-k}; a step's X goes to the ring, over the oldest, which has been read by then. */
    __device__ __forceinline__ float2 filtered(int f) const
    {
        const int bins = s.how.bins, taps = TAPS == ANY_TAPS ? s.how.taps : TAPS;
        float2 y = make_float2(0.0f, 0.0f), newest = y;
#pragma unroll
        for (int k = 0; k < taps; k++) {
            const float *w = in + k * 2 * bins + f, *then = spectrum_ago(k) + f;
            const float2 gain = make_float2(__ldg(&w[0]), __ldg(&w[bins])), x = make_float2(then[0], then[bins]);
            y.x = fmaf(-gain.y, x.y, fmaf(gain.x, x.x, y.x));
            y.y = fmaf(gain.y, x.x, fmaf(gain.x, x.y, y.y));
            if (k == 0)
                newest = x;
        }
        if (ring.length && !s.rows.sequence) {
            ring.past(0)[f] = newest.x;
            ring.past(0)[bins + f] = newest.y;
        }
        return y;
    }
    __device__ __forceinline__ float2 bin(int f) const
    {
        const int bins = s.how.bins;
        if (TAPS != 0)
            return filtered(f);
        if (s.how.how == SPECTRAL_PLAIN)
            return make_float2(in[f], in[bins + f]);
        const float gain = s.how.how == SPECTRAL_MASK ? in[f] : __fdividef(1.0f, 1.0f + math::exp(-in[f]));
        return scale(make_float2(spectrum[f], spectrum[bins + f]), gain);
    }
};

/* One thread a bin. */
template <int TAPS> __global__ void __launch_bounds__(256) spectral(const __grid_constant__ source s, float *out)
{
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    const int bins = s.how.bins, row = int(i / bins), f = int(i % bins);
    ptx::wait_for_kernels();
    ptx::start_next_kernel();
    if (row >= s.rows.rows)
        return;
    const float2 y = source_row<TAPS>(s, row).bin(f);
    float *to = out + int64_t(row) * 2 * bins + f;
    to[0] = y.x;
    to[bins] = y.y;
}

/* ---- istft -------------------------------------------------------------------------------------------------- */

struct synthesis {
    struct source source;
    struct plan plan;
    size_t state_at;
    float *out;
    struct finish_cuda finish;
    int run;  /* rows a crew walks in a sequence                                                                */
    int tail; /* 1: one crew, with an empty run: it brings about the overlap after the last row and keeps it      */
};

/* The way back from bins k and half - k: 2 E[k] = x[k] + conj(x[half - k]), 2 O[k] = (x[k] - conj(x[half - k])) /
 * turn[k], z[k] = E[k] + i O[k]. The twos stay in: they make the half-length inverse as large as the whole one. */
template <int TAPS> __device__ __forceinline__ void join(const synthesis &s, int row, float2 *z, const crew &c)
{
    const int half = s.plan.half;
    const source_row<TAPS> from(s.source, row);
#pragma unroll 1
    for (int k = c.lane; k <= half / 2; k += c.lanes) {
        float2 a = from.bin(k), b = 2 * k == half ? a : from.bin(half - k);
        if (k == 0)
            a.y = b.y = 0.0f;
        const float2 odd = times<true>(make_float2(a.x - b.x, a.y + b.y), __ldg(&s.plan.turn[k]));
        z[k] = make_float2(a.x + b.x - odd.y, a.y - b.y + odd.x);
        if (k > 0)
            z[half - k] = make_float2(a.x + b.x + odd.y, b.y - a.y + odd.x);
    }
}

/* A row's samples y onto the overlap (past, hop), whose rows are a ring with the next hop at index `now`. Gives the hop
 * that is complete, to `out` if there is one; true for a NaN or inf in it. */
__device__ __forceinline__ bool overlap_add(const plan &p, float *overlap, int now, const float *y, float *out,
                                            const crew &c)
{
    bool bad = false;
#pragma unroll 1
    for (int i = c.lane; i < p.hop; i += c.lanes) {
        float *next = overlap + now * p.hop + i;
        const float sample = fmaf(y[i], __ldg(&p.synthesis[i]), *next);
        bad |= !rows::finite(sample);
        if (out)
            out[i] = sample;
#pragma unroll 1
        for (int j = 1; j < p.past; j++) {
            float *later = overlap + (now + j < p.past ? now + j : now + j - p.past) * p.hop + i;
            *later = fmaf(y[j * p.hop + i], __ldg(&p.synthesis[j * p.hop + i]), *later);
        }
        *next = y[p.past * p.hop + i] * __ldg(&p.synthesis[p.past * p.hop + i]);
    }
    return bad;
}

/* The crew's lanes keep to their own columns of the overlap, so copies of it need no barrier. */
__device__ __forceinline__ void copy_overlap(const plan &p, const float *from, float *to, const crew &c)
{
    for (int i = c.lane; i < p.hop; i += c.lanes)
        for (int j = 0; j < p.past; j++)
            to[j * p.hop + i] = from[j * p.hop + i];
}

/* Rows first..end of one stream onto its overlap; out only from row `wanted` on. */
template <int TAPS>
__device__ __forceinline__ bool walk(const synthesis &s, int first, int wanted, int end, float *overlap, const crew &c)
{
    const plan &p = s.plan;
    const rows_cuda &r = s.source.rows;
    const unsigned phase = r.phase[rows::slot_of(r, first)];
    bool bad = false;
    for (int row = first; row < end; row++) {
        float2 *z = reinterpret_cast<float2 *>(c.shared);
        join<TAPS>(s, row, z, c);
        c.sync();
        const float *y = reinterpret_cast<const float *>(transform<true>(p, z, z + p.half, c));
        float *out = row < wanted ? nullptr : s.out + size_t(row) * size_t(p.hop);
        const int now = int((phase + unsigned(r.sequence ? row : 0)) % unsigned(p.past));
        bad = overlap_add(p, overlap, now, y, out, c);
        c.sync();
    }
    return bad;
}

template <int TAPS>
__global__ void __launch_bounds__(256, 4) synthesise(const __grid_constant__ synthesis s, int lanes, int floats)
{
    extern __shared__ __align__(16) float shared[];
    const crew c(shared, lanes, floats);
    const rows_cuda &r = s.source.rows;
    const int wanted = s.tail ? r.rows : c.number * s.run, end = min(wanted + s.run, r.rows);
    ptx::wait_for_kernels();
    if (!s.finish.blown)
        ptx::start_next_kernel();
    if (s.tail ? c.number > 0 : wanted >= end)
        return;
    float *const state = rows::state_of<float>(r, rows::slot_of(r, s.tail ? 0 : wanted), s.state_at);
    float *const overlap = r.sequence ? c.shared + 2 * s.plan.window : state;
    const int first = r.sequence ? max(wanted - s.plan.past, 0) : wanted;
    if (r.sequence && wanted < s.plan.past)
        copy_overlap(s.plan, state, overlap, c);
    const bool bad = walk<TAPS>(s, first, wanted, end, overlap, c);
    if (s.tail)
        copy_overlap(s.plan, overlap, state, c);
    if (s.finish.blown) {
        const bool any = c.any(bad);
        if (c.lane == 0) {
            unsigned *phase = r.phase + r.slots[wanted];
            s.finish.blown[wanted] = any;
            *phase = (*phase + 1) % s.finish.period;
        }
    }
}

/* ---- launches ----------------------------------------------------------------------------------------------- */

int take_factor(int *n, int radix, plan *p)
{
    for (; *n % radix == 0; *n /= radix)
        p->stage[p->stages++].radix = radix;
    return *n;
}

/* False for sizes that can't be. The most stages of any half up to 14400 are 9. */
bool make_plan(const struct stft_cuda &stft, plan *p)
{
    const int window = stft.window, hop = stft.hop;
    if (window < 4 || window > STFT_CUDA_WINDOW_MAX || window % 2 || hop < 1 || window % hop || window < 2 * hop)
        return false;
    *p = {};
    p->window = window, p->hop = hop, p->half = window / 2, p->past = window / hop - 1;
    p->analysis = stft.tables;
    p->synthesis = stft.tables + window;
    p->turn = reinterpret_cast<const float2 *>(stft.tables + 2 * window);
    int twos = 0, left = p->half;
    for (; left % 2 == 0; left /= 2)
        twos++;
    take_factor(&left, 5, p);
    if (take_factor(&left, 3, p) != 1)
        return false;
    for (; twos > 0; twos -= twos % 2 ? 1 : 2)
        p->stage[p->stages++].radix = twos % 2 ? 2 : 4;
    for (int i = 0, done = 1; i < p->stages; done *= p->stage[i++].radix) {
        stage &s = p->stage[i];
        s.done = done;
        s.units = p->half / s.radix;
        s.turn = window / (done * s.radix);
        s.inverse = done == 1 ? 0 : unsigned(((uint64_t(1) << 32) + unsigned(done) - 1) / unsigned(done));
    }
    return true;
}

/* Threads of a crew and crews of a block: a warp each and four a block once there are more rows than the machine has
 * room for blocks, else (or where a window needs it) a block each. */
struct crews {
    int lanes, block;
    crews(int count, const plan &p)
    {
        const bool many = count > 528 && p.window <= 1024;
        lanes = many ? rows::WARP : p.half <= 128 ? 64 : p.half <= 512 ? 128 : 256;
        block = many ? 4 : 1;
    }
};

bool valid(const struct spectral_cuda &s)
{
    return s.bins >= 1 &&
           (s.how == SPECTRAL_FILTER ? s.taps >= 1 && s.taps <= 16 : s.how >= 0 && s.how < SPECTRAL_FILTER);
}

source make_source(const rows_cuda &rows, const struct spectral_cuda &how, const float *in, int64_t in_row,
                   const float *spectrum)
{
    source s = {rows, how, in, in_row, spectrum};
    if (how.how != SPECTRAL_FILTER)
        s.how.taps = 1;
    return s;
}

int remember_spectra(const source &s, void *stream)
{
    const int width = 2 * s.how.bins;
    return rows::remember(s.rows, {s.how.state_at, s.how.taps - 1, width, false, false}, s.spectrum, width, stream);
}

int launch_synthesis(const synthesis &s, int count, void *stream)
{
    const crews crew(count, s.plan);
    const int floats = 2 * s.plan.window + (s.source.rows.sequence ? s.plan.past * s.plan.hop : 0);
    const auto kernel = s.source.how.how != SPECTRAL_FILTER ? synthesise<0>
                        : s.source.how.taps == 3            ? synthesise<3>
                                                            : synthesise<ANY_TAPS>;
    return rows::launch(kernel, rows::ceil_div(size_t(count), size_t(crew.block)), crew.block * crew.lanes,
                        size_t(crew.block * floats) * sizeof(float), stream, s, crew.lanes, floats);
}

/* The rows, then the overlap they leave, then the filter's ring: each reads what the next writes. */
int launch_sequence(synthesis s, void *stream)
{
    const rows_cuda &r = s.source.rows;
    s.run = max(8, 4 * s.plan.past);
    int error = launch_synthesis(s, int(rows::ceil_div(size_t(r.rows), size_t(s.run))), stream);
    s.tail = 1;
    if (!error)
        error = launch_synthesis(s, 1, stream);
    if (!error)
        error = remember_spectra(s.source, stream);
    return error;
}

} /* namespace */

size_t stft_cuda_table_floats(int window)
{
    return 4 * size_t(window);
}

void stft_cuda_fill(int window, int hop, float *tables)
{
    const double pi = 3.14159265358979323846, scale = 2.0 * hop / window / window; /* as dsp/stft.c says */
    for (int i = 0; i < window; i++) {
        const double root = sin(pi * i / window), angle = -2 * pi * i / window;
        tables[i] = float(root);
        tables[window + i] = float(root * scale);
        tables[2 * window + 2 * i] = float(cos(angle));
        tables[2 * window + 2 * i + 1] = float(sin(angle));
    }
}

int stft_cuda(const struct rows_cuda *rows, const struct stft_cuda *stft, size_t state_at, float compress,
              const float *x, float *spectrum, float *features, void *stream)
{
    analysis a = {*rows, {}, state_at, 0.5f * (compress - 1.0f), x, spectrum, features};
    if (!make_plan(*stft, &a.plan) || !(compress > 0.0f && compress <= 1.0f) || rows->rows < 0)
        return -1;
    if (rows->rows == 0)
        return 0;
    const crews crew(rows->rows, a.plan);
    const int error =
        rows::launch(analyse, rows::ceil_div(size_t(rows->rows), size_t(crew.block)), crew.block * crew.lanes,
                     size_t(crew.block) * 2 * size_t(stft->window) * sizeof(float), stream, a, crew.lanes);
    return error ? error : rows::remember(*rows, {state_at, a.plan.past, stft->hop, false, true}, x, stft->hop, stream);
}

int spectral_cuda(const struct rows_cuda *rows, const struct spectral_cuda *how, const float *in, int64_t in_row,
                  const float *spectrum, float *out, void *stream)
{
    if (!valid(*how) || rows->rows < 0)
        return -1;
    if (rows->rows == 0)
        return 0;
    const source s = make_source(*rows, *how, in, in_row, spectrum);
    const size_t threads = size_t(rows->rows) * size_t(how->bins);
    const auto kernel = how->how != SPECTRAL_FILTER ? spectral<0> : how->taps == 3 ? spectral<3> : spectral<ANY_TAPS>;
    const int error = rows::launch(kernel, rows::ceil_div(threads, 256), 256, 0, stream, s, out);
    return error ? error : remember_spectra(s, stream);
}

int istft_cuda(const struct rows_cuda *rows, const struct stft_cuda *stft, size_t state_at,
               const struct spectral_cuda *how, const float *in, int64_t in_row, const float *spectrum, float *out,
               const struct finish_cuda *finish, void *stream)
{
    synthesis s = {make_source(*rows, *how, in, in_row, spectrum), {}, state_at, out, {}, 1, 0};
    if (!make_plan(*stft, &s.plan) || !valid(*how) || how->bins != stft->window / 2 + 1 || rows->rows < 0)
        return -1;
    if (rows->rows == 0)
        return 0;
    if (!rows->sequence) {
        s.finish = finish ? *finish : (struct finish_cuda){};
        return launch_synthesis(s, rows->rows, stream);
    }
    const int error = launch_sequence(s, stream);
    return error || !finish ? error : finish_cuda(rows, out, stft->hop, finish, stream);
}
