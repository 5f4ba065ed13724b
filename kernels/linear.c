/* SPDX-License-Identifier: MIT */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Zeroed memory on a cache line, or NULL. */
static void *lines(size_t count, size_t size)
{
    if (count > SIZE_MAX / 2 / size) {
        return NULL;
    }
    const size_t bytes = round_up(count * size, 64);
    void *memory = aligned_alloc(64, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

static float *padded_copy(const float *values, int out)
{
    float *copy = lines(round_up((size_t)out, KERNELS_PANEL), sizeof *copy);
    if (copy) {
        memcpy(copy, values, (size_t)out * sizeof *copy);
    }
    return copy;
}

/* A step of one stream reads every weight once, in the same order each time. A model somewhat larger than the second
 * cache is the worst case of that: what comes next was always thrown out just before, and all of it comes from the
 * third cache at a quarter of the speed. So the panels of a large matrix all lie at the start of a WAY, the stretch of
 * addresses that fills each set of the second cache once (2048 sets of 64 bytes, or a divisor), and push out each other
 * only: an eighth of the cache streams, and the rest keeps the rest of the model. This takes huge pages, since the
 * cache looks at physical addresses; without them nothing is lost but address space. */
enum { WAY = 128 << 10, WAY_PANEL = WAY / 8, HUGE_PAGE = 2 << 20, LARGE = 256 << 10 };

static bool streams(size_t panel, size_t panels)
{
    return panel <= WAY_PANEL && panel * panels >= LARGE;
}

/* Room for the panels, each panel zeroed; or NULL. */
static int8_t *panels_create(size_t panel, size_t panels, size_t stride)
{
    if (stride == panel) {
        return lines(panels, panel);
    }
    const size_t bytes = round_up(panels * stride, HUGE_PAGE);
    int8_t *memory = aligned_alloc(HUGE_PAGE, bytes);
    if (memory) {
        madvise(memory, bytes, MADV_HUGEPAGE);
        for (size_t i = 0; i < panels; i++) {
            memset(memory + i * stride, 0, panel);
        }
    }
    return memory;
}

int linear_init_f32(struct linear *linear, int in, int out, const float *weight, const float *bias)
{
    const size_t columns = (size_t)in, padded = round_up((size_t)out, KERNELS_PANEL);
    *linear = (struct linear){.in = in, .out = out};
    linear->f32 = lines(padded * columns, sizeof *linear->f32);
    linear->bias = bias ? padded_copy(bias, out) : NULL;
    if (!linear->f32 || (bias && !linear->bias)) {
        linear_finish(linear);
        return -1;
    }
    for (size_t o = 0; o < (size_t)out; o++) {
        float *panel = linear->f32 + o / KERNELS_PANEL * columns * KERNELS_PANEL + o % KERNELS_PANEL;
        for (size_t k = 0; k < columns; k++) {
            panel[k * KERNELS_PANEL] = weight[o * columns + k];
        }
    }
    return 0;
}

int linear_init_i8(struct linear *linear, int in, int out, const int8_t *weight, const float *scale, const float *bias)
{
    const size_t columns = (size_t)in, panel = (size_t)linear_panel_groups(in) * KERNELS_GROUP * KERNELS_PANEL;
    const size_t padded = round_up((size_t)out, KERNELS_PANEL), panels = padded / KERNELS_PANEL;
    *linear = (struct linear){.in = in, .out = out, .i8_stride = streams(panel, panels) ? WAY : panel};
    linear->i8 = panels_create(panel, panels, linear->i8_stride);
    linear->sum = lines(padded, sizeof *linear->sum);
    linear->scale = padded_copy(scale, out);
    linear->bias = bias ? padded_copy(bias, out) : NULL;
    if (!linear->i8 || !linear->sum || !linear->scale || (bias && !linear->bias)) {
        linear_finish(linear);
        return -1;
    }
    for (size_t o = 0; o < (size_t)out; o++) {
        int8_t *lane = linear->i8 + o / KERNELS_PANEL * linear->i8_stride + o % KERNELS_PANEL * KERNELS_GROUP;
        for (size_t k = 0; k < columns; k++) {
            lane[k / KERNELS_GROUP * KERNELS_GROUP * KERNELS_PANEL + k % KERNELS_GROUP] = weight[o * columns + k];
            linear->sum[o] += weight[o * columns + k];
        }
    }
    return 0;
}

void linear_finish(struct linear *linear)
{
    free(linear->f32);
    free(linear->i8);
    free(linear->scale);
    free(linear->bias);
    free(linear->sum);
    *linear = (struct linear){0};
}
