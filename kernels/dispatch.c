/* SPDX-License-Identifier: MIT */
#include "kernels/digits.h"
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_amx(void)
{
    return has_vnni() && digits_amx_request();
}
#endif

/* Slowest first. */
static const struct {
    const struct kernels *table;
    bool (*runs)(void);
} rows[] = {
    {&kernels_scalar, always},
#if defined(__x86_64__)
    {&kernels_avx2, has_avx2}, {&kernels_avx512, has_avx512}, {&kernels_vnni, has_vnni}, {&kernels_amx, has_amx},
#endif
};

const struct kernels *kernels_at(int i)
{
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        if (rows[row].runs() && i-- == 0) {
            return rows[row].table;
        }
    }
    return NULL;
}

const struct kernels *kernels_best(void)
{
    const char *wanted = getenv("SSM_KERNELS");
    const struct kernels *best = &kernels_scalar, *table;
    for (int i = 0; (table = kernels_at(i)) != NULL; i++) {
        if (wanted && strcmp(wanted, table->name) == 0) {
            return table;
        }
        best = table;
    }
    return best;
}
