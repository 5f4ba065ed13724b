/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_CUDA_SELECTIVE_SCAN_H
#define KERNELS_CUDA_SELECTIVE_SCAN_H

/* The selective scan over a batch on the GPU, forward and backward: training and bulk (Mamba paper, section 3.2).
 *
 *   delta = elapsed softplus(dt + dt_bias)         h <- exp(delta A) h + delta B u        (h starts at h0, or zero)
 *   y = <C, h> + D u                               out = y silu(z), or y without z
 *
 * Twin: `selective_scan` in kernels/, one stream on the CPU, which says what this means.
 *
 * Layouts, E channels, N states a channel, L steps, all fastest index last:
 *   u, dt, z, out and their gradients   (batch, L, E)   rows `*_row` elements apart, so halves of one tensor will do;
 *                                                       a batch starts L rows after the one before it
 *   B, C                                (batch, L, N)   rows `B_row`, `C_row` elements apart (slices of x_proj's)
 *   dB, dC                              (batch, L, N)   contiguous
 *   A, dA (E, N);  D, dt_bias and gradients (E);  elapsed (batch, L);  h0, h_end and gradients (batch, E, N)
 * The first two lines are fp32, or bf16 with `bf16` set; all else is fp32, and every state is kept in fp32.
 * Pointers to h0, h_end, dh0, dh_end, states, A and workspace are 16-byte aligned; the rest need only their element's
 * alignment.
 *
 * Mapping: two or four lanes share a channel; at d_state 16 a lane has 4 or 8 states of one or two channels in
 * registers, else d_state / 4 of one. A warp walks 8 to 32 channels through time. Where channels don't fill the GPU,
 * time is cut into chunks, and a first launch finds what each chunk hands on: back from its end to where nothing is
 * remembered of, 2^-24 of a state, 2^-16 with bf16. A sequence so short that all of it goes through the GPU at once has
 * one launch, in which blocks of a cluster tell each other. d_state other than 4, 8, 16, 32, 64 costs what the next of
 * them does.
 *
 * Floor per element (one channel's step) at d_state 16 with z, on an H100: bytes u, dt, z, out, 16 fp32 (5.4 ps at 3.0
 * TB/s) or 8 bf16 (2.7 ps); exponentials, 19, 4.6 ps. What binds is the exponentials' pipe, 76 % busy where a lane has
 * two channels, and 130 instructions an element, 155 where it has one. Chunked, an element that is remembered costs up
 * to 17 exponentials and 100 instructions more; backward is 490 to 570 (460 to 510 bf16). check_scan.py prints floors
 * and times.
 *
 * Fastest forward: d_state 16, z; u, dt, z, B, C aligned to 16 bytes and their rows whole pieces of 16 bytes, out aligned
 * to two elements. Anything else takes up to a tenth longer.
 *
 * States that remember long: where exp(delta A) is above 1 - 2^-10.5 somewhere in a warp, the forward adds the change
 * of h instead (a slower path for those 8 or 16 steps), so that no rounding is the same at each step; 2e-8 times the
 * root of a chunk's steps is left. The backward's carry through such steps is not so treated, but between chunks.
 *
 * Nothing is allocated, synchronised or accumulated into: each call writes all of every output, works under CUDA graph
 * capture, and gives the same bits each time (sums over channels, batch and time have a fixed order, no atomics). */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct selective_scan_cuda {
    int32_t batch, length, channels; /* all >= 1; batch <= 65535, length <= 2^30                                    */
    int32_t d_state;                 /* 1..64; 16 is tuned                                                         */
    int32_t bf16;                    /* 1: u, dt, z, B, C, out, dout and their gradients are bf16                  */
    int32_t chunk_steps;             /* time steps a block walks; 0: picked to fill the machine (for tests, tuning) */
    int32_t channels_per_lane;       /* 1 or 2, at d_state 9..16; 0: picked                                        */
    int32_t lanes_per_channel;       /* 2 or 4, in a forward with 2 channels a lane; 4 in a backward with 1: warps are fed;
                                        0: picked                                                                  */
    int64_t u_row, dt_row, z_row, B_row, C_row, out_row, dout_row, du_row, ddt_row, dz_row; /* >= 0, < 2 GiB       */

    const void *u, *dt, *z; /* z NULL: no gate                                                                     */
    const void *B, *C;
    const float *A, *D, *dt_bias; /* A = -exp(A_log); D and dt_bias may be NULL (zero)                             */
    const float *elapsed, *h0;    /* NULL: all ones; zero                                                          */

    /* Forward writes */
    void *out;
    float *h_end;  /* NULL: not wanted                                                                             */
    float *states; /* NULL: no backward follows. selective_scan_cuda_states_bytes() of checkpoints for backward     */

    /* Backward reads the inputs, `states` and */
    const void *dout;
    const float *dh_end; /* NULL: zero                                                                             */
    /* and writes (dz only with z; dD, ddt_bias, dh0 may be NULL: not wanted) */
    void *du, *ddt, *dz, *dB, *dC;
    float *dA, *dD, *ddt_bias, *dh0;

    void *workspace; /* selective_scan_cuda_workspace_bytes(); free again once the stream has passed the call      */
};

/* Bytes of `workspace` for a forward (backward = 0) or backward call; only sizes, bf16 and the three tuning fields are
 * read. May be 0. Depends on the current device's multiprocessor count. */
size_t selective_scan_cuda_workspace_bytes(const struct selective_scan_cuda *scan, int backward);

/* Bytes of `states`: the state before every 16th step. */
size_t selective_scan_cuda_states_bytes(const struct selective_scan_cuda *scan);

/* Launch on `stream` (a cudaStream_t). Gives 0, a cudaError_t, or -1 for sizes outside the above. Asynchronous. */
int selective_scan_cuda_forward(const struct selective_scan_cuda *scan, void *stream);
int selective_scan_cuda_backward(const struct selective_scan_cuda *scan, void *stream);

/* What a nonzero result means; a static string. */
const char *selective_scan_cuda_error(int result);

#ifdef __cplusplus
}
#endif

#endif
