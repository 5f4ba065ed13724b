/* SPDX-License-Identifier: MIT */
#include "kernels/kernels.h"
#include "tests/test.h"

/* The header's promise: fp32 within 2e-6, norm-wise, of the same formula in double. */
static const double KERNEL_TOLERANCE = 2e-6;
/* One value of exp, silu or softplus, relative: about three ulps. */
static const double ELEMENT_TOLERANCE = 4e-7;

#define for_every_table(k) for (int i_ = 0; (k = kernels_at(i_)) != NULL; i_++)

static float *filled(size_t n, float scale, uint64_t *seed)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    test_fill(x, n, scale, seed);
    return x;
}

static float *copied(const float *from, size_t n)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    memcpy(x, from, n * sizeof *x);
    return x;
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

static void the_first_table_is_scalar_and_the_environment_picks(void **state)
{
    (void)state;
    const struct kernels *k;
    assert_ptr_equal(kernels_at(0), &kernels_scalar);
    for_every_table(k)
    {
        setenv("SSM_KERNELS", k->name, 1);
        assert_ptr_equal(kernels_best(), k);
    }
    const char *last = kernels_best()->name;
    setenv("SSM_KERNELS", "abacus", 1);
    assert_string_equal(kernels_best()->name, last);
    unsetenv("SSM_KERNELS");
    assert_string_equal(kernels_best()->name, last);
}

/* ---- element by element ----------------------------------------------------------------------------------------- */

typedef void (*elements)(const float *x, float *y, size_t n);

static double exp_exact(double x)
{
    return exp(x);
}

static double sigmoid_exact(double x)
{
    return 1 / (1 + exp(-x));
}

static double silu_exact(double x)
{
    return x / (1 + exp(-x));
}

static double softplus_exact(double x)
{
    return x > 20 ? x : log1p(exp(x));
}

/* From -110 to 110 in uneven steps, denser around zero, and both zeros and the smallest numbers. */
static size_t sweep(float *x)
{
    size_t n = 0;
    for (float v = -110; v <= 110; v += 0.0107f + 0.0001f * fabsf(v)) {
        x[n++] = v;
    }
    for (float v = 1; v > 1e-38f; v *= 0.37f) {
        x[n++] = v;
        x[n++] = -v;
    }
    x[n++] = 0.0f;
    x[n++] = -0.0f;
    x[n++] = 20.0f;
    x[n++] = 88.72f;
    x[n++] = -87.33f;
    return n;
}

/* `floor`: an absolute error that is let pass, far below anything heard. */
static void check_sweep(elements function, double (*exact)(double), double floor)
{
    float x[32768], y[32768];
    const size_t n = sweep(x);
    function(x, y, n);
    for (size_t i = 0; i < n; i++) {
        const double want = exact(x[i]);
        if (want > 3.4028236e38) {
            assert_true(isinf(y[i]));
        } else {
            assert_close(y[i], want, fabs(want) * ELEMENT_TOLERANCE + floor);
        }
    }
}

static void exp_and_its_relatives_hold_over_the_whole_range(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        check_sweep(k->exp, exp_exact, 0x1p-148);
        check_sweep(k->softplus, softplus_exact, 0x1p-148);
        check_sweep(k->sigmoid, sigmoid_exact, 1e-36);
        check_sweep(k->silu, silu_exact, 1e-36); /* -0 where exp(-x) is beyond the largest float */
    }
}

static void power_holds_over_the_whole_range(void **state)
{
    (void)state;
    const float exponents[] = {-1, -0.35f, 0, 0.15f, 0.5f, 1};
    const struct kernels *k;
    for_every_table(k)
    {
        for (size_t p = 0; p < sizeof exponents / sizeof *exponents; p++) {
            float x[8192], y[8192];
            size_t n = 0;
            for (float v = 0x1p-126f; v < 3.3e38f; v *= 1.05f) {
                x[n++] = v;
                x[n++] = v < 0.5f ? 1 - v : 1 + 1 / v; /* dense at 1 */
            }
            k->power(x, exponents[p], y, n);
            for (size_t i = 0; i < n; i++) {
                const double want = pow((double)x[i], (double)exponents[p]);
                assert_close(y[i], want, fabs(want) * ELEMENT_TOLERANCE);
            }
        }
        const float broken[] = {NAN, 4, NAN};
        float y[3];
        k->power(broken, 0.5f, y, 3);
        assert_true(isnan(y[0]) && fabsf(y[1] - 2) < 1e-6f && isnan(y[2]));
    }
}

static void extremes_have_their_limits(void **state)
{
    (void)state;
    const struct kernels *k;
    const float x[] = {INFINITY, -INFINITY, 1e38f, -1e38f};
    for_every_table(k)
    {
        float y[4];
        k->exp(x, y, 4);
        assert_true(isinf(y[0]) && y[1] == 0 && isinf(y[2]) && y[3] == 0);
        k->softplus(x, y, 4);
        assert_true(isinf(y[0]) && y[1] == 0 && y[2] == 1e38f && y[3] == 0);
        k->sigmoid(x, y, 4);
        assert_true(y[0] == 1 && y[1] == 0 && y[2] == 1 && y[3] == 0);
        k->silu(x, y, 4);
        assert_true(isinf(y[0]) && y[2] == 1e38f && y[3] == 0);
    }
}

static void a_nan_stays_one_and_harms_no_neighbour(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        const elements all[] = {k->exp, k->sigmoid, k->silu, k->softplus};
        for (size_t f = 0; f < 4; f++) {
            float x[37], y[37];
            for (int i = 0; i < 37; i++) {
                x[i] = i == 20 ? NAN : 0.1f * (float)i;
            }
            all[f](x, y, 37);
            for (int i = 0; i < 37; i++) {
                assert_int_equal(isnan(y[i]) != 0, i == 20);
            }
        }
    }
}

static void elements_work_in_place_at_every_length_and_touch_no_more(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (size_t n = 0; n < 50; n++) {
            uint64_t seed = n;
            float x[64], there[64], place[64];
            test_fill(x, 64, 5, &seed);
            memcpy(there, x, sizeof x);
            memcpy(place, x, sizeof x);
            k->silu(x, there, n);
            k->silu(place, place, n);
            assert_memory_equal(there, place, sizeof place);
            assert_memory_equal(place + n, x + n, (64 - n) * sizeof *x);
            k->add(x, place, n);
            for (size_t i = 0; i < 64; i++) {
                assert_true(place[i] == (i < n ? there[i] + x[i] : x[i]));
            }
        }
    }
}

/* ---- linear ----------------------------------------------------------------------------------------------------- */

struct product {
    struct linear linear;
    int in, out, rows;
    float *x;
    double *exact;
};

/* A random product and its rows in double; int8 weights when `i8`. */
static struct product product_create(int in, int out, int rows, bool i8, bool with_bias, uint64_t *seed)
{
    struct product p = {.in = in, .out = out, .rows = rows};
    const size_t columns = (size_t)in, outputs = (size_t)out;
    float *w = filled(columns * outputs, 1, seed), *bias = filled(outputs, 1, seed),
          *scale = filled(outputs, 1e-2f, seed);
    int8_t *quantised = malloc(columns * outputs);
    for (size_t i = 0; i < columns * outputs; i++) {
        quantised[i] = (int8_t)(test_bits(seed) >> 56);
    }
    const float *given = with_bias ? bias : NULL;
    assert_int_equal(i8 ? linear_init_i8(&p.linear, in, out, quantised, scale, given)
                        : linear_init_f32(&p.linear, in, out, w, given),
                     0);
    p.x = filled(columns * (size_t)rows, 3, seed);
    p.exact = malloc(outputs * (size_t)rows * sizeof *p.exact);
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t o = 0; o < outputs; o++) {
            double sum = 0;
            for (size_t c = 0; c < columns; c++) {
                sum += (double)p.x[r * columns + c] *
                       (i8 ? (double)quantised[o * columns + c] : (double)w[o * columns + c]);
            }
            p.exact[r * outputs + o] = (i8 ? (double)scale[o] * sum : sum) + (with_bias ? (double)bias[o] : 0);
        }
    }
    free(w), free(bias), free(scale), free(quantised);
    return p;
}

static void product_destroy(struct product *p)
{
    linear_finish(&p->linear);
    free(p->x), free(p->exact);
}

static const int product_sizes[][3] = {{1, 1, 1},     {3, 5, 2},      {16, 512, 1},  {7, 63, 4},   {64, 64, 5},
                                       {65, 65, 3},   {483, 256, 9},  {256, 966, 1}, {512, 48, 8}, {31, 130, 21},
                                       {1023, 97, 6}, {4097, 70, 18}, {5, 1000, 33}};
#define for_every_product(s) for (const int *s = product_sizes[0]; s < product_sizes[0] + 3 * 13; s += 3)

static void check_product(const struct kernels *k, const int *size, bool i8)
{
    uint64_t seed = (uint64_t)(size[0] * 7 + size[1]);
    struct product p = product_create(size[0], size[1], size[2], i8, size[1] % 2, &seed);
    float *y = filled((size_t)(p.out * p.rows), 1, &seed);
    k->linear(&p.linear, p.x, p.in, y, p.out, p.rows);
    assert_near(y, p.exact, (size_t)(p.out * p.rows), KERNEL_TOLERANCE);
    product_destroy(&p);
    free(y);
}

static void linear_is_the_product_in_double_at_every_size(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for_every_product(size)
        {
            check_product(k, size, false);
            check_product(k, size, true);
        }
    }
}

static void a_batched_row_is_bit_identical_to_the_row_alone(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for_every_product(size)
        {
            for (int i8 = 0; i8 < 2; i8++) {
                uint64_t seed = 5;
                struct product p = product_create(size[0], size[1], 37, i8, true, &seed);
                float *whole = filled((size_t)(p.out * 37), 1, &seed), *alone = filled((size_t)p.out, 1, &seed);
                for (int rows = 1; rows <= 37; rows += 4) {
                    k->linear(&p.linear, p.x, p.in, whole, p.out, rows);
                    for (int r = 0; r < rows; r++) {
                        k->linear(&p.linear, p.x + r * p.in, p.in, alone, p.out, 1);
                        assert_memory_equal(alone, whole + r * p.out, (size_t)p.out * sizeof *alone);
                    }
                }
                product_destroy(&p);
                free(whole), free(alone);
            }
        }
    }
}

static void linear_keeps_to_its_rows_and_strides(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 9;
        struct product p = product_create(21, 67, 6, true, true, &seed);
        float x[6 * 30], y[6 * 80];
        for (int r = 0; r < 6; r++) {
            memcpy(x + r * 30, p.x + r * 21, 21 * sizeof *x);
            x[r * 30 + 21] = NAN; /* one past the row: read, it would show */
        }
        memset(y, 0x55, sizeof y);
        k->linear(&p.linear, x, 30, y, 80, 6);
        for (int r = 0; r < 6; r++) {
            assert_near(y + r * 80, p.exact + r * 67, 67, KERNEL_TOLERANCE);
            for (int o = 67; o < 80; o++) {
                uint32_t bits;
                memcpy(&bits, &y[r * 80 + o], sizeof bits);
                assert_int_equal(bits, 0x55555555);
            }
        }
        product_destroy(&p);
    }
}

static void one_huge_input_leaves_the_others_their_digits(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 11;
        struct product p = product_create(1024, 64, 1, true, false, &seed);
        float y[64];
        for (int i = 0; i < 1024; i++) {
            p.x[i] = i == 700 ? 1e4f : 1e-20f * p.x[i];
        }
        k->linear(&p.linear, p.x, 1024, y, 64, 1);
        for (int o = 0; o < 64; o++) {
            const double want = (double)p.linear.scale[o] * 1e4 *
                                (double)p.linear.i8[(700 / KERNELS_GROUP * KERNELS_PANEL + o) * KERNELS_GROUP];
            assert_close(y[o], want, fabs(want) * KERNEL_TOLERANCE + 1e-4);
        }
        product_destroy(&p);
    }
}

static void a_row_with_a_nan_or_infinity_is_told_by_its_outputs_only(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int i8 = 0; i8 < 2; i8++) {
            uint64_t seed = 13;
            struct product p = product_create(70, 65, 9, i8, true, &seed);
            float *y = filled(65 * 9, 1, &seed);
            p.x[4 * 70 + 69] = i8 ? INFINITY : NAN;
            p.x[6 * 70] = NAN;
            k->linear(&p.linear, p.x, 70, y, 65, 9);
            for (int i = 0; i < 9 * 65; i++) {
                assert_int_equal(!isfinite(y[i]), i / 65 == 4 || i / 65 == 6);
            }
            product_destroy(&p);
            free(y);
        }
    }
}

static void zeros_and_faint_inputs_give_the_bias_and_faint_outputs(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (float level = 0; level < 1e-20f; level = level * 1e5f + 1e-38f) {
            uint64_t seed = 17;
            struct product p = product_create(96, 80, 1, true, false, &seed);
            float y[80];
            for (int i = 0; i < 96; i++) {
                p.x[i] *= level;
            }
            k->linear(&p.linear, p.x, 96, y, 80, 1);
            for (int o = 0; o < 80; o++) {
                assert_close(y[o], p.exact[o] * (double)level, 1e-4 * (double)level + 1e-27);
            }
            product_destroy(&p);
        }
    }
}

/* ---- norm and convolution --------------------------------------------------------------------------------------- */

static void rms_norm_is_its_formula_in_place_too(void **state)
{
    (void)state;
    const struct kernels *k;
    const int widths[] = {1, 3, 16, 33, 256, 385};
    for_every_table(k)
    {
        for (size_t w = 0; w < 6; w++) {
            const int width = widths[w], rows = 3, n = width * rows;
            uint64_t seed = 1;
            float *x = filled((size_t)n, 2, &seed), *weight = filled((size_t)width, 1, &seed),
                  *y = copied(x, (size_t)n);
            double *exact = malloc((size_t)n * sizeof *exact);
            for (int i = 0; i < n; i++) {
                double sum = 0;
                for (int c = 0; c < width; c++) {
                    sum += (double)x[i / width * width + c] * (double)x[i / width * width + c];
                }
                exact[i] = (double)x[i] / sqrt(sum / width + (double)1e-5f) * (double)weight[i % width];
            }
            k->rms_norm(y, weight, 1e-5f, y, rows, width);
            assert_near(y, exact, (size_t)n, KERNEL_TOLERANCE);
            free(x), free(weight), free(y), free(exact);
        }
    }
}

/* One input value at time t of (history, x), oldest history at t = -(K - 1). */
static double past(const float *history, const float *x, int K, int E, int t, int e)
{
    return (double)(t < 0 ? history[(K - 1 + t) * E + e] : x[t * E + e]);
}

static void check_conv(const struct kernels *k, int K, int T, int E, bool silu)
{
    uint64_t seed = (uint64_t)(K * 100 + T * 10 + E);
    const size_t n = (size_t)(T * E), kept = (size_t)((K - 1) * E);
    float *weight = filled((size_t)(K * E), 1, &seed), *bias = filled((size_t)E, 1, &seed);
    float *history = filled(kept, 1, &seed), *moved = copied(history, kept), *x = filled(n, 1, &seed);
    float *whole = filled(n, 1, &seed), *parts = filled(n, 1, &seed);
    double *exact = malloc(n * sizeof *exact);
    for (int i = 0; i < (int)n; i++) {
        double sum = silu ? (double)bias[i % E] : 0;
        for (int tap = 0; tap < K; tap++) {
            sum += (double)weight[tap * E + i % E] * past(history, x, K, E, i / E - K + 1 + tap, i % E);
        }
        exact[i] = silu ? silu_exact(sum) : sum;
    }
    k->conv1d(weight, silu ? bias : NULL, K, moved, x, E, whole, E, T, E, silu);
    assert_near(whole, exact, n, KERNEL_TOLERANCE);
    for (int i = 0; i < (int)kept; i++) {
        assert_true((double)moved[i] == past(history, x, K, E, T - K + 1 + i / E, i % E));
    }
    for (int t = 0; t < T; t += 2) {
        k->conv1d(weight, silu ? bias : NULL, K, history, x + t * E, E, parts + t * E, E, T - t < 2 ? 1 : 2, E, silu);
    }
    assert_memory_equal(parts, whole, n * sizeof *whole);
    assert_memory_equal(history, moved, kept * sizeof *history);
    free(weight), free(bias), free(history), free(moved), free(x), free(whole), free(parts), free(exact);
}

static void conv1d_is_its_formula_and_chunks_equal_the_whole(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int K = 1; K <= 6; K++) {
            for (int T = 1; T <= 9; T += 2) {
                check_conv(k, K, T, 1, true);
                check_conv(k, K, T, 31, false);
                check_conv(k, K, T, 80, true);
            }
        }
    }
}

/* ---- selective scan --------------------------------------------------------------------------------------------- */

struct scan {
    struct selective_scan s;
    float *A, *D, *bias, *u, *dt, *z, *B, *C, *elapsed, *h, *out;
};

/* A scan over random inputs; A as mamba starts it, -(1 .. N), spread a little. */
static struct scan scan_create(int T, int E, int N, enum discretisation how, uint64_t *seed)
{
    const size_t te = (size_t)(T * E), tn = (size_t)(T * N), ne = (size_t)(N * E);
    struct scan c = {.A = filled(ne, 0.2f, seed),
                     .D = filled((size_t)E, 1, seed),
                     .bias = filled((size_t)E, 1, seed),
                     .u = filled(te, 1, seed),
                     .dt = filled(te, 1, seed),
                     .z = filled(te, 3, seed),
                     .B = filled(tn, 1, seed),
                     .C = filled(tn, 1, seed),
                     .elapsed = filled((size_t)T, 1, seed),
                     .h = filled(ne, 1, seed),
                     .out = filled(te, 1, seed)};
    for (int i = 0; i < N * E; i++) {
        c.A[i] = -(float)(i / E + 1) * (1 + c.A[i]);
    }
    for (int e = 0; e < E; e++) {
        c.bias[e] -= 3;
    }
    for (int t = 0; t < T; t++) {
        c.elapsed[t] = t % 3 == 2 ? 4.5f : 1;
    }
    c.s = (struct selective_scan){.T = T,
                                  .E = E,
                                  .N = N,
                                  .discretisation = how,
                                  .A = c.A,
                                  .D = c.D,
                                  .dt_bias = c.bias,
                                  .u = c.u,
                                  .dt = c.dt,
                                  .z = c.z,
                                  .B = c.B,
                                  .C = c.C,
                                  .elapsed = c.elapsed,
                                  .u_stride = E,
                                  .dt_stride = E,
                                  .state_stride = E,
                                  .z_stride = E,
                                  .B_stride = N,
                                  .C_stride = N,
                                  .out_stride = E,
                                  .h = c.h,
                                  .out = c.out};
    return c;
}

static void scan_destroy(struct scan *c)
{
    free(c->A), free(c->D), free(c->bias), free(c->u), free(c->dt), free(c->z), free(c->B), free(c->C);
    free(c->elapsed), free(c->h), free(c->out);
}

/* The part of `s` from `from` on, T steps. */
static struct selective_scan part(struct selective_scan s, int from, int T)
{
    s.T = T;
    s.u += from * s.u_stride, s.dt += from * s.dt_stride, s.out += from * s.out_stride;
    s.B += from * s.B_stride, s.C += from * s.C_stride;
    s.z = s.z ? s.z + from * s.z_stride : NULL;
    s.elapsed = s.elapsed ? s.elapsed + from : NULL;
    return s;
}

static double delta_exact(const struct selective_scan *s, int t, int e)
{
    const double elapsed = s->elapsed ? (double)s->elapsed[t] : 1;
    return elapsed * softplus_exact((double)s->dt[t * s->dt_stride + e] + (double)s->dt_bias[e]);
}

/* All that channel e takes in of time. */
static double time_exact(const struct selective_scan *s, int e)
{
    double sum = 0;
    for (int t = 0; t < s->T; t++) {
        sum += delta_exact(s, t, e);
    }
    return sum;
}

/* The formula in double. */
static void scan_exact(const struct selective_scan *s, double *h, double *out)
{
    for (int i = 0; i < s->N * s->E; i++) {
        h[i] = (double)s->h[i];
    }
    for (int i = 0; i < s->T * s->E; i++) {
        const int t = i / s->E, e = i % s->E;
        const double delta = delta_exact(s, t, e), u = (double)s->u[t * s->u_stride + e];
        double y = (double)s->D[e] * u;
        for (int n = 0; n < s->N; n++) {
            const double A = (double)s->A[n * s->E + e];
            const double gain = s->discretisation == DISCRETISE_ZOH && A != 0 ? expm1(delta * A) / A : delta;
            double *at = &h[n * s->E + e];
            *at = exp(delta * A) * *at + gain * (double)s->B[t * s->B_stride + n] * u;
            y += (double)s->C[t * s->C_stride + n] * *at;
        }
        out[i] = s->z ? y * silu_exact((double)s->z[t * s->z_stride + e]) : y;
    }
}

static void check_scan(const struct kernels *k, int T, int E, int N, enum discretisation how)
{
    uint64_t seed = (uint64_t)(T + E * 3 + N * 5);
    struct scan c = scan_create(T, E, N, how, &seed);
    double *h = malloc((size_t)(N * E) * sizeof *h), *out = malloc((size_t)(T * E) * sizeof *out);
    if (T % 2) {
        c.s.z = NULL;
        c.s.elapsed = NULL;
    }
    scan_exact(&c.s, h, out);
    k->selective_scan(&c.s);
    assert_near(c.h, h, (size_t)(N * E), KERNEL_TOLERANCE);
    assert_near(c.out, out, (size_t)(T * E), KERNEL_TOLERANCE);
    scan_destroy(&c);
    free(h), free(out);
}

static void selective_scan_is_its_formula_in_double_at_every_size(void **state)
{
    (void)state;
    const struct kernels *k;
    const int sizes[][3] = {{1, 1, 1},    {1, 512, 16}, {2, 17, 3},   {37, 40, 16},
                            {200, 9, 64}, {11, 130, 5}, {4000, 16, 8}};
    for_every_table(k)
    {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            check_scan(k, sizes[i][0], sizes[i][1], sizes[i][2], DISCRETISE_EULER);
            check_scan(k, sizes[i][0], sizes[i][1], sizes[i][2], DISCRETISE_ZOH);
        }
    }
}

static void steps_and_chunks_are_bit_identical_to_the_whole_scan(void **state)
{
    (void)state;
    const struct kernels *k;
    const int widths[] = {5, 16, 48, 77};
    for_every_table(k)
    {
        for (int i = 0; i < 8; i++) {
            uint64_t seed = (uint64_t)i;
            struct scan c = scan_create(23, widths[i / 2], 16, i % 2 ? DISCRETISE_ZOH : DISCRETISE_EULER, &seed);
            const size_t states = (size_t)(c.s.N * c.s.E), outputs = (size_t)(23 * c.s.E);
            float *start = copied(c.h, states);
            k->selective_scan(&c.s);
            float *h = copied(c.h, states), *out = copied(c.out, outputs);
            for (int chunk = 1; chunk < 23; chunk += 5) {
                memcpy(c.h, start, states * sizeof *start);
                for (int t = 0; t < 23; t += chunk) {
                    const struct selective_scan some = part(c.s, t, 23 - t < chunk ? 23 - t : chunk);
                    k->selective_scan(&some);
                }
                assert_memory_equal(c.h, h, states * sizeof *h);
                assert_memory_equal(c.out, out, outputs * sizeof *out);
            }
            scan_destroy(&c);
            free(start), free(h), free(out);
        }
    }
}

static void the_scan_may_write_over_its_input(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 3;
        struct scan c = scan_create(6, 35, 4, DISCRETISE_EULER, &seed);
        float *start = copied(c.h, 4 * 35);
        k->selective_scan(&c.s);
        memcpy(c.h, start, 4 * 35 * sizeof *start);
        c.s.out = c.u;
        k->selective_scan(&c.s);
        assert_memory_equal(c.u, c.out, 6 * 35 * sizeof *c.u);
        scan_destroy(&c);
        free(start);
    }
}

/* h' = A h + B u with a constant u: h(t) = exp(A t) h0 + (exp(A t) - 1) / A B u, whatever the steps. */
static void zero_order_hold_is_exact_for_a_held_input(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 21;
        struct scan c = scan_create(50, 19, 8, DISCRETISE_ZOH, &seed);
        double exact[8 * 19];
        for (int t = 0; t < 50; t++) {
            memcpy(c.u + t * 19, c.u, 19 * sizeof *c.u);
            memcpy(c.B + t * 8, c.B, 8 * sizeof *c.B);
        }
        float *start = copied(c.h, 8 * 19);
        k->selective_scan(&c.s);
        for (int i = 0; i < 8 * 19; i++) {
            const double at = (double)c.A[i] * time_exact(&c.s, i % 19);
            exact[i] =
                exp(at) * (double)start[i] + expm1(at) / (double)c.A[i] * (double)c.B[i / 19] * (double)c.u[i % 19];
        }
        assert_near(c.h, exact, 8 * 19, KERNEL_TOLERANCE);
        scan_destroy(&c);
        free(start);
    }
}

static void zero_order_hold_keeps_its_digits_where_the_step_is_small(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (float A = -1e-30f; A > -1; A *= 30) {
            float one = 1, zero = 0, dt = -4, h = 0, out;
            const double delta = softplus_exact(-4);
            const struct selective_scan s = {.T = 1,
                                             .E = 1,
                                             .N = 1,
                                             .discretisation = DISCRETISE_ZOH,
                                             .A = &A,
                                             .D = &zero,
                                             .dt_bias = &zero,
                                             .u = &one,
                                             .dt = &dt,
                                             .B = &one,
                                             .C = &one,
                                             .state_stride = 1,
                                             .h = &h,
                                             .out = &out};
            k->selective_scan(&s);
            const double want = expm1(delta * (double)A) / (double)A;
            assert_close(h, want, want * KERNEL_TOLERANCE);
        }
    }
}

/* With no input, n steps multiply the state by exp(A sum delta) under either discretisation. */
static void a_state_without_input_decays_as_the_exponential(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int how = 0; how < 2; how++) {
            uint64_t seed = 23;
            struct scan c = scan_create(300, 33, 4, how ? DISCRETISE_ZOH : DISCRETISE_EULER, &seed);
            double exact[4 * 33];
            memset(c.u, 0, 300 * 33 * sizeof *c.u);
            for (int i = 0; i < 4 * 33; i++) {
                c.A[i] *= 1e-3f; /* slow states: rounding of exp(delta A) near 1 would show */
            }
            float *start = copied(c.h, 4 * 33);
            k->selective_scan(&c.s);
            for (int i = 0; i < 4 * 33; i++) {
                exact[i] = exp((double)c.A[i] * time_exact(&c.s, i % 33)) * (double)start[i];
            }
            assert_near(c.h, exact, 4 * 33, KERNEL_TOLERANCE);
            scan_destroy(&c);
            free(start);
        }
    }
}

static void one_step_over_a_gap_equals_as_many_silent_steps(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int gap = 2; gap < 40; gap += 7) {
            uint64_t seed = 25;
            struct scan c = scan_create(gap, 21, 16, DISCRETISE_EULER, &seed);
            double steps[16 * 21];
            memset(c.u, 0, (size_t)gap * 21 * sizeof *c.u);
            for (int t = 0; t < gap; t++) {
                memcpy(c.dt + t * 21, c.dt, 21 * sizeof *c.dt);
            }
            float *start = copied(c.h, 16 * 21), elapsed = (float)gap;
            c.s.elapsed = NULL;
            k->selective_scan(&c.s);
            for (int i = 0; i < 16 * 21; i++) {
                steps[i] = (double)c.h[i];
            }
            memcpy(c.h, start, 16 * 21 * sizeof *start);
            struct selective_scan jump = part(c.s, 0, 1);
            jump.elapsed = &elapsed;
            k->selective_scan(&jump);
            assert_near(c.h, steps, 16 * 21, KERNEL_TOLERANCE);
            scan_destroy(&c);
            free(start);
        }
    }
}

/* The longest gap there is, on states that forget at once and on ones that hardly do. */
static void a_gap_of_hours_leaves_the_input_alone_and_every_state_finite(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 33;
        struct scan c = scan_create(1, 37, 16, DISCRETISE_EULER, &seed);
        const float elapsed = 1e6f;
        double h[16 * 37], out[37];
        for (int i = 0; i < 16 * 37; i++) {
            c.A[i] = i % 2 ? -3e5f : -1e-7f;
            c.h[i] = i % 2 ? 1e6f : 1;
        }
        c.s.elapsed = &elapsed;
        scan_exact(&c.s, h, out);
        k->selective_scan(&c.s);
        for (int i = 0; i < 16 * 37; i++) {
            assert_close(c.h[i], h[i], fabs(h[i]) * KERNEL_TOLERANCE + 1);
        }
        assert_near(c.h, h, 16 * 37, KERNEL_TOLERANCE);
        scan_destroy(&c);
    }
}

/* The later part is started from zero, then the earlier part's end is brought over it. */
static void segments_combine_to_the_whole_wherever_it_is_cut(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int cut = 1; cut < 60; cut += 9) {
            uint64_t seed = 27;
            struct scan c = scan_create(60, 37, 16, cut % 2 ? DISCRETISE_ZOH : DISCRETISE_EULER, &seed);
            float *start = copied(c.h, 16 * 37), *local = calloc(16 * 37, sizeof *local);
            double whole[16 * 37];
            k->selective_scan(&c.s);
            for (int i = 0; i < 16 * 37; i++) {
                whole[i] = (double)c.h[i];
            }
            struct selective_scan first = part(c.s, 0, cut), second = part(c.s, cut, 60 - cut);
            memcpy(c.h, start, 16 * 37 * sizeof *start);
            k->selective_scan(&first);
            second.h = local;
            k->selective_scan(&second);
            for (int i = 0; i < 16 * 37; i++) {
                c.h[i] = (float)(exp((double)c.A[i] * time_exact(&second, i % 37)) * (double)c.h[i] + (double)local[i]);
            }
            assert_near(c.h, whole, 16 * 37, 1e-6);
            scan_destroy(&c);
            free(start), free(local);
        }
    }
}

/* The scan of channels from..to of `s`, in place. */
static struct selective_scan channels(struct selective_scan s, int from, int to)
{
    s.E = to - from;
    s.A += from, s.D += from, s.dt_bias += from, s.h += from;
    s.u += from, s.dt += from, s.out += from;
    s.z = s.z ? s.z + from : NULL;
    return s;
}

static void some_of_the_channels_are_bit_identical_to_all_of_them(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int T = 1; T < 20; T += 9) {
            uint64_t seed = 35;
            struct scan c = scan_create(T, 150, 16, T == 10 ? DISCRETISE_ZOH : DISCRETISE_EULER, &seed);
            float *start = copied(c.h, 16 * 150), *h = copied(c.h, 16 * 150), *out = copied(c.out, (size_t)T * 150);
            k->selective_scan(&c.s);
            memcpy(h, c.h, 16 * 150 * sizeof *h);
            memcpy(out, c.out, (size_t)T * 150 * sizeof *out);
            memcpy(c.h, start, 16 * 150 * sizeof *h);
            for (int from = 0; from < 150; from += 48) {
                const struct selective_scan some = channels(c.s, from, from < 100 ? from + 48 : 150);
                k->selective_scan(&some);
            }
            assert_memory_equal(c.h, h, 16 * 150 * sizeof *h);
            assert_memory_equal(c.out, out, (size_t)T * 150 * sizeof *out);
            scan_destroy(&c);
            free(start), free(h), free(out);
        }
    }
}

static void a_long_silence_leaves_finite_small_states(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        uint64_t seed = 29;
        struct scan c = scan_create(20000, 16, 2, DISCRETISE_EULER, &seed);
        memset(c.u, 0, 20000 * 16 * sizeof *c.u);
        k->selective_scan(&c.s);
        for (int i = 0; i < 2 * 16; i++) {
            assert_close(c.h[i], 0, 1e-30);
        }
        scan_destroy(&c);
    }
}

static void a_nan_in_one_channel_stays_in_it(void **state)
{
    (void)state;
    const struct kernels *k;
    for_every_table(k)
    {
        for (int where = 0; where < 2; where++) {
            uint64_t seed = 31;
            struct scan c = scan_create(4, 20, 3, where ? DISCRETISE_ZOH : DISCRETISE_EULER, &seed);
            (where ? c.u : c.dt)[20 + 7] = NAN;
            k->selective_scan(&c.s);
            for (int i = 0; i < 4 * 20; i++) {
                assert_int_equal(isnan(c.out[i]) != 0, i % 20 == 7 && i >= 20);
            }
            for (int i = 0; i < 3 * 20; i++) {
                assert_int_equal(isnan(c.h[i]) != 0, i % 20 == 7);
            }
            scan_destroy(&c);
        }
    }
}

/* ---- diagonal scan ---------------------------------------------------------------------------------------------- */

struct diagonal {
    struct diagonal_scan s;
    float *a, *b, *c, *h, *start, *u, *out, *D;
    double *exact_h, *exact; /* as the formula in double has them */
};

/* Random, with states that forget within 2 to 2000 steps. */
static struct diagonal diagonal_create(int T, int E, int N, uint64_t *seed)
{
    const size_t states = (size_t)(2 * N * E), rows = (size_t)(T * E);
    struct diagonal d = {.a = filled(states, 1, seed), .b = filled(states, 0.3f, seed), .c = filled(states, 1, seed),
                         .h = filled(states, 1, seed), .u = filled(rows, 1, seed), .out = filled(rows, 1, seed),
                         .D = filled((size_t)E, 1, seed)};
    for (int i = 0; i < N * E; i++) {
        const double decay = exp(-0.5 * pow(1000, -fabs((double)d.a[i]))), angle = 3 * (double)d.a[N * E + i];
        d.a[i] = (float)(decay * cos(angle) - 1);
        d.a[N * E + i] = (float)(decay * sin(angle));
    }
    d.start = copied(d.h, states);
    d.exact_h = calloc(states, sizeof *d.exact_h);
    d.exact = calloc(rows, sizeof *d.exact);
    d.s = (struct diagonal_scan){.T = T, .E = E, .N = N, .a = d.a, .b = d.b, .c = d.c, .D = d.D, .u = d.u, .u_stride = E,
                                 .out = d.out, .out_stride = E, .h = d.h, .state_stride = E};
    return d;
}

static void diagonal_destroy(struct diagonal *d)
{
    free(d->a), free(d->b), free(d->c), free(d->h), free(d->start), free(d->u), free(d->out), free(d->D);
    free(d->exact_h), free(d->exact);
}

static void diagonal_exact(struct diagonal *d)
{
    const int E = d->s.E, plane = d->s.N * E;
    for (int i = 0; i < 2 * plane; i++) {
        d->exact_h[i] = (double)d->start[i];
    }
    for (int i = 0; i < d->s.T * E; i++) {
        d->exact[i] = (double)d->D[i % E] * (double)d->u[i];
        for (int j = i % E; j < plane; j += E) {
            const double re = d->exact_h[j], im = d->exact_h[plane + j], ar = (double)d->a[j], ai = (double)d->a[plane + j];
            d->exact_h[j] = re + ar * re - ai * im + (double)d->b[j] * (double)d->u[i];
            d->exact_h[plane + j] = im + ar * im + ai * re + (double)d->b[plane + j] * (double)d->u[i];
            d->exact[i] += (double)d->c[j] * d->exact_h[j] - (double)d->c[plane + j] * d->exact_h[plane + j];
        }
    }
}

static void diagonal_scan_is_its_formula_in_double_at_every_size(void **state)
{
    (void)state;
    const struct kernels *k;
    const int sizes[][3] = {{1, 1, 1}, {1, 256, 32}, {2, 17, 3}, {33, 40, 16}, {100, 9, 33}, {3000, 16, 5}};
    for_every_table(k)
    {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            uint64_t seed = i;
            struct diagonal d = diagonal_create(sizes[i][0], sizes[i][1], sizes[i][2], &seed);
            diagonal_exact(&d);
            k->diagonal_scan(&d.s);
            assert_near(d.h, d.exact_h, (size_t)(2 * d.s.N * d.s.E), KERNEL_TOLERANCE);
            assert_near(d.out, d.exact, (size_t)(d.s.T * d.s.E), KERNEL_TOLERANCE);
            diagonal_destroy(&d);
        }
    }
}

/* In pieces of time and of channels, written over its input. */
static void pieces_of_a_diagonal_scan_are_bit_identical_to_the_whole(void **state)
{
    (void)state;
    const struct kernels *k;
    enum { T = 70, E = 53, N = 7 };
    for_every_table(k)
    {
        uint64_t seed = 31;
        struct diagonal d = diagonal_create(T, E, N, &seed);
        k->diagonal_scan(&d.s);
        float *h = copied(d.h, 2 * N * E);
        for (int chunk = 1; chunk < T; chunk += 17) {
            float *u = copied(d.u, T * E);
            memcpy(d.h, d.start, 2 * N * E * sizeof *h);
            for (int t = 0; t < T; t += chunk) {
                for (int from = 0; from < E; from += 48) {
                    struct diagonal_scan some = d.s;
                    some.T = T - t < chunk ? T - t : chunk;
                    some.E = from ? E - 48 : 48;
                    some.a += from, some.b += from, some.c += from, some.D += from, some.h += from;
                    some.u = some.out = u + t * E + from;
                    k->diagonal_scan(&some);
                }
            }
            assert_memory_equal(d.h, h, 2 * N * E * sizeof *h);
            assert_memory_equal(u, d.out, T * E * sizeof *u);
            free(u);
        }
        diagonal_destroy(&d);
        free(h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_table_is_scalar_and_the_environment_picks),
        cmocka_unit_test(exp_and_its_relatives_hold_over_the_whole_range),
        cmocka_unit_test(power_holds_over_the_whole_range),
        cmocka_unit_test(extremes_have_their_limits),
        cmocka_unit_test(a_nan_stays_one_and_harms_no_neighbour),
        cmocka_unit_test(elements_work_in_place_at_every_length_and_touch_no_more),
        cmocka_unit_test(linear_is_the_product_in_double_at_every_size),
        cmocka_unit_test(a_batched_row_is_bit_identical_to_the_row_alone),
        cmocka_unit_test(linear_keeps_to_its_rows_and_strides),
        cmocka_unit_test(one_huge_input_leaves_the_others_their_digits),
        cmocka_unit_test(a_row_with_a_nan_or_infinity_is_told_by_its_outputs_only),
        cmocka_unit_test(zeros_and_faint_inputs_give_the_bias_and_faint_outputs),
        cmocka_unit_test(rms_norm_is_its_formula_in_place_too),
        cmocka_unit_test(conv1d_is_its_formula_and_chunks_equal_the_whole),
        cmocka_unit_test(selective_scan_is_its_formula_in_double_at_every_size),
        cmocka_unit_test(steps_and_chunks_are_bit_identical_to_the_whole_scan),
        cmocka_unit_test(the_scan_may_write_over_its_input),
        cmocka_unit_test(zero_order_hold_is_exact_for_a_held_input),
        cmocka_unit_test(zero_order_hold_keeps_its_digits_where_the_step_is_small),
        cmocka_unit_test(a_state_without_input_decays_as_the_exponential),
        cmocka_unit_test(one_step_over_a_gap_equals_as_many_silent_steps),
        cmocka_unit_test(a_gap_of_hours_leaves_the_input_alone_and_every_state_finite),
        cmocka_unit_test(segments_combine_to_the_whole_wherever_it_is_cut),
        cmocka_unit_test(some_of_the_channels_are_bit_identical_to_all_of_them),
        cmocka_unit_test(a_long_silence_leaves_finite_small_states),
        cmocka_unit_test(a_nan_in_one_channel_stays_in_it),
        cmocka_unit_test(diagonal_scan_is_its_formula_in_double_at_every_size),
        cmocka_unit_test(pieces_of_a_diagonal_scan_are_bit_identical_to_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
