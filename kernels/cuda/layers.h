/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_LAYERS_H
#define KERNELS_CUDA_LAYERS_H

/* The layers of a model on the GPU, all but `linear` (linear.h) and `mamba` (mamba_step.h, and for bulk
 * selective_scan.h between norm, conv and the products). Twins: model/layer_<type>.c, which say what each means.
 *
 * One call is one layer over a block of rows, in one of two shapes:
 *   step      row i is the next hop of the stream in slots[i], all different (but see below)
 *   sequence  row t is the t-th hop of the one stream in slots[0]: what is before a row stands in the rows above it
 * A row comes out as the same bits in either shape, whatever the number of rows and whoever is in the others.
 *
 * A slot's state is `state_stride` bytes from states + slot * state_stride on; a layer's part begins `state_at` bytes
 * in (16-byte aligned, both). What a layer remembers is a ring: the row of hop number t, counted by the slot's phase,
 * stands at index t % length, so that a step writes one row and moves none. The phase is read by every layer of a call
 * and moved on once, by the last kernel of the chain (istft_cuda, or finish_cuda after anything else). The portable
 * state of model/ has the oldest row first: state_cuda_get and _put translate. Rows of a step that stand for nobody may
 * share a spare slot: what it holds afterwards is not defined, nothing else is touched.
 *
 * Everything is asynchronous on `stream` (a cudaStream_t), allocates nothing, works under graph capture, and gives 0, a
 * cudaError_t, or -1 for sizes outside the limits said here. Kernels are launched with programmatic stream
 * serialisation: each may be set up while the kernel before it still runs, and waits for its end before it touches
 * memory. Pointers are to device memory, 16-byte aligned; `*_row` is the distance of rows in elements, a row's length
 * when contiguous. Inputs and outputs must not overlap unless said. Structs are read before the call returns.
 *
 * Floors below are bytes a row in HBM for a step, at denoise-16k's sizes (window 320, hop 160, 161 bins, 3 taps). */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rows_cuda {
    int32_t rows;         /* >= 0                                                                        */
    int32_t sequence;     /* 0: step, 1: sequence                                                        */
    const int32_t *slots; /* (rows), or (1) in a sequence                                                */
    uint32_t *phase;      /* (slots) hops so far, modulo the `period` that finish_cuda is given          */
    void *states;         /* (slots, state_stride bytes)                                                 */
    size_t state_stride;  /* bytes                                                                       */
};

/* ---- stft, istft: dsp/stft.h's transform ------------------------------------------------------------------------ */

/* window even, at most STFT_CUDA_WINDOW_MAX, without prime factors above 5; hop dividing it at least twice. */
enum { STFT_CUDA_WINDOW_MAX = 19200 };

struct stft_cuda {
    int32_t window, hop;
    const float *tables; /* (stft_cuda_table_floats) filled by stft_cuda_fill, on the device               */
};

size_t stft_cuda_table_floats(int window);
void stft_cuda_fill(int window, int hop, float *tables); /* on the host; to be copied to the device        */

/* Samples to spectra and features. A sample that is NaN or inf counts as 0. State: (window / hop - 1) rows of hop.
 *   x         in   (rows, hop) contiguous
 *   spectrum  out  (rows, 2, bins) contiguous, bins = window / 2 + 1; NULL: not wanted
 *   features  out  (rows, 3, bins) for compress < 1 (|X|^c, re |X|^(c-1), im |X|^(c-1)), (rows, 2, bins) for compress =
 * 1 Bytes: 5.1 KB with both (reads 1.3, writes 3.9); the arithmetic, an FFT of window / 2, hides behind them. */
int stft_cuda(const struct rows_cuda *rows, const struct stft_cuda *stft, size_t state_at, float compress,
              const float *x, float *spectrum, float *features, void *stream);

/* How a spectrum is made from a layer's input and what stft analysed. bins as the stft's; taps 1..16. */
enum spectral_how {
    SPECTRAL_PLAIN,   /* in (rows, 2, bins) is the spectrum                                                */
    SPECTRAL_MASK,    /* in (rows, bins) times what stft analysed                                          */
    SPECTRAL_SIGMOID, /* 1 / (1 + exp(-in)) times that                                                     */
    SPECTRAL_FILTER   /* in (rows, taps, 2, bins): complex filter over the last taps spectra of each bin   */
};

struct spectral_cuda {
    int32_t how, bins, taps; /* taps: of the filter                                                        */
    size_t state_at;         /* of the filter: (taps - 1) rows of (2, bins)                                */
};

/* The layers filter and mask, where no istft follows. spectrum (rows, 2, bins) as stft_cuda wrote it; out (rows, 2,
 * bins). Bytes, filter: 10.3 KB (in 3.9, spectrum 1.3, ring 2.6 + 1.3, out 1.3). */
int spectral_cuda(const struct rows_cuda *rows, const struct spectral_cuda *spectral, const float *in, int64_t in_row,
                  const float *spectrum, float *out, void *stream);

/* What the last kernel of a step does besides: blown[i] = 1 if row i of its output holds a NaN or an inf, else 0; and
 * every slot's phase moves on. period: a common multiple of the lengths of all the model's rings (the stft's and
 * istft's window / hop - 1, taps - 1 of filters and convolutions, d_conv - 1), at most 2^31. */
struct finish_cuda {
    uint8_t *blown; /* (rows) */
    uint32_t period;
};

/* Spectra to samples, with the filter or mask before it in the same kernel. State: (window / hop - 1) rows of hop.
 *   in        as spectral->how says; spectrum as stft_cuda wrote it, not read for SPECTRAL_PLAIN
 *   out       (rows, hop) contiguous
 *   finish    NULL: a later kernel does it. A sequence pays one launch more for it.
 * Bytes: 11 KB with the filter (in 3.9, spectrum 1.3, its ring 2.6 + 1.3, overlap 0.6 + 0.6, out 0.6). */
int istft_cuda(const struct rows_cuda *rows, const struct stft_cuda *stft, size_t state_at,
               const struct spectral_cuda *spectral, const float *in, int64_t in_row, const float *spectrum, float *out,
               const struct finish_cuda *finish, void *stream);

/* ---- rows of activations ---------------------------------------------------------------------------------------- */

/* RMSNorm of rows, eps 1e-5. The sum of squares runs in math.cuh's order: as the products' own norm. y may be x.
 * Bytes: 8 a value. */
int norm_cuda(const float *weight, const float *x, int64_t x_row, float *y, int64_t y_row, int rows, int width,
              void *stream);

/* Causal depthwise convolution over time: the layer `conv`, and the one inside a mamba layer in bulk (x is then the
 * left half of the rows (x | z) that in_proj gave, x_row = 2 E). State: (taps - 1) rows of width, fp32 or bf16.
 *   weight (taps, width), bias (width) or NULL; taps 1..64
 *   x in (rows, width), y out (rows, width)
 * Bytes: 8 a value in a sequence; a step reads and writes the ring besides: 4 taps more. */
struct conv_cuda {
    int32_t width, taps, silu;
    int32_t state_bf16;
    const float *weight, *bias;
    size_t state_at;
};

int conv_cuda(const struct rows_cuda *rows, const struct conv_cuda *conv, const float *x, int64_t x_row, float *y,
              int64_t y_row, void *stream);

/* The layers sigmoid, softmax (a warp a row), scale and embedding: rows (rows, width), contiguous; y may be x but for
 * embedding, whose x is (rows) tokens and weight (vocabulary, width). Bytes: 8 a value. elements.cu. */
int sigmoid_cuda(const float *x, float *y, int rows, int width, void *stream);
int softmax_cuda(const float *x, float *y, int rows, int width, void *stream);
int scale_cuda(const float *mean, const float *factor, const float *x, float *y, int rows, int width, void *stream);
int embedding_cuda(const float *weight, int vocabulary, const float *x, float *y, int rows, int width, void *stream);

/* y (rows, width) = first * sigmoid(second) + residual, of rows of the halves (first | second); residual NULL: none. */
int glu_cuda(const float *halves, const float *residual, float *y, int rows, int width, void *stream);

/* The layer pool over rows (rows, width), contiguous. State: the means (width), behind them the totals unless `ema`.
 * elapsed (rows). Bytes: 8 a value in a sequence, 24 in a step. channels.cu, as diagonal_cuda. */
struct pool_cuda {
    int32_t width, ema;
    float hops; /* infinity for a mean over all of the stream */
    size_t state_at;
};

int pool_cuda(const struct rows_cuda *rows, const struct pool_cuda *pool, const float *elapsed, const float *x, float *y,
              void *stream);

/* The scan of the layer s4d, its activation, and + residual (rows, width) unless NULL. A thread walks a channel through all
 * rows: some 10 ns a pair and row of a sequence, whatever the width up to 4,000; a step is bound by its bytes, 40 a pair and
 * channel, of which the tables' 24 come from L2. Complex tables are planes, (2 pairs, width), as struct s4d of
 * model/layers.h has them. State: the same shape. A row whose elapsed is not 1 discretises in double, at some 100 times the
 * cost. y may be x. */
enum { DIAGONAL_CUDA_PAIRS_MAX = 128 };
enum diagonal_activation { DIAGONAL_PLAIN, DIAGONAL_SILU, DIAGONAL_GELU };

struct diagonal_cuda {
    int32_t width, pairs;
    int32_t bilinear, activation;
    const float *a, *b, *c; /* A-bar - 1, B-bar, 2 C     */
    const float *A, *dt;    /* (2 pairs, width), (width) */
    const float *skip;      /* (width)                   */
    size_t state_at;
};

int diagonal_cuda(const struct rows_cuda *rows, const struct diagonal_cuda *diagonal, const float *elapsed, const float *x,
                  const float *residual, float *y, void *stream);

/* n floats at x: NaN and inf become 0. For models without an stft. */
int clean_cuda(float *x, size_t n, void *stream);

/* As struct finish_cuda says, over rows (rows, width) at x, contiguous; a sequence moves its slot on by `rows`. */
int finish_cuda(const struct rows_cuda *rows, const float *x, int width, const struct finish_cuda *finish,
                void *stream);

/* ---- states ----------------------------------------------------------------------------------------------------- */

/* The scan's state of the stream slots[0], (N, E) state-major in the slot, against selective_scan_cuda's h (E, N). */
int state_cuda_to_scan(const struct rows_cuda *rows, size_t state_at, int bf16, int N, int E, float *h, void *stream);
int state_cuda_from_scan(const struct rows_cuda *rows, size_t state_at, int bf16, int N, int E, const float *h,
                         void *stream);

/* One piece of a slot's state: a ring, or with length 1 anything else. */
struct state_part_cuda {
    size_t at;       /* bytes in the slot                                                                   */
    size_t portable; /* floats in the portable state                                                        */
    int32_t length;  /* rows of the ring                                                                    */
    int32_t width;   /* of a row                                                                            */
    int32_t bf16;    /* 1: held as bf16 on the device                                                       */
};

/* A slot's state out to, or in from, the portable layout (model->state floats: device memory, or pinned host memory).
 * put sets the slot's phase to 0; portable NULL: zeros. Parts on the host, read before the call returns. */
int state_cuda_get(const struct rows_cuda *rows, const struct state_part_cuda *parts, int n, int slot, float *portable,
                   void *stream);
/* Those of `count` slots (device memory, or pinned host memory), `floats` apart. Bytes: read and written once. */
int state_cuda_get_all(const struct rows_cuda *rows, const struct state_part_cuda *parts, int n, const int32_t *slots,
                       int count, size_t floats, float *portable, void *stream);
int state_cuda_put(const struct rows_cuda *rows, const struct state_part_cuda *parts, int n, int slot,
                   const float *portable, void *stream);

#ifdef __cplusplus
}
#endif

#endif
