/* SPDX-License-Identifier: MIT */
#ifndef DSP_RING_H
#define DSP_RING_H

/* A one-writer one-reader ring of samples: the only thing an audio callback touches.
 *
 * Wait-free: C11 atomics, no lock, no system call, nothing allocated after ring_create. The writer and the reader may
 * be different threads; each side is one thread at a time. Positions count samples from the start and never wrap
 * (2^64). */

#include <stddef.h>
#include <stdint.h>

struct ring;

/* Room for at least `capacity` samples (rounded up to a power of two). NULL when memory runs out. */
struct ring *ring_create(size_t capacity);
void ring_destroy(struct ring *ring); /* NULL is fine */

/* The same in memory that somebody else holds, such as two processes share: ring_bytes long (a whole number of cache lines, 0
 * when no memory could hold it) and aligned to one. */
size_t ring_bytes(size_t capacity);
struct ring *ring_place(void *memory, size_t capacity);

/* Writer: copy in up to n samples; gives how many fitted. What did not fit is counted in ring_lost, and the reader
 * learns where it is missing: see ring_position. */
size_t ring_write(struct ring *ring, const float *samples, size_t n);
/* Writer: the same for one channel of interleaved samples: takes samples[i * step]. */
size_t ring_write_strided(struct ring *ring, const float *samples, size_t step, size_t n);
/* Writer: room left, in samples; for a writer that would rather wait than lose. */
size_t ring_room(const struct ring *ring);

/* Writer: samples offered so far: the number, in the source's own count, of the next one. */
uint64_t ring_end(const struct ring *ring);

/* Reader: samples waiting. */
size_t ring_size(const struct ring *ring); /* all of it */
size_t ring_fill(const struct ring *ring);
/* Reader: copy out exactly n samples if that many wait, else none. Gives n or 0. */
size_t ring_read(struct ring *ring, float *samples, size_t n);
/* Reader: drop up to n waiting samples; gives how many. */
size_t ring_skip(struct ring *ring, size_t n);

/* Reader: the number, in the source's own count, of the sample after the last one read or skipped: samples taken plus
 * samples lost before or among them. So what a hop of n samples lacks is the growth of this over its ring_read, less n.
 * With more than 32 separate holes waiting in the ring the later ones are told late, never forgotten. */
uint64_t ring_position(struct ring *ring);

/* Either side: samples refused so far because the ring was full. */
uint64_t ring_lost(const struct ring *ring);

#endif
