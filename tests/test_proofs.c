/* SPDX-License-Identifier: MIT */
#include "kernels/kernels.h"
#include "tests/test.h"

/* Does the scan converge to the differential equation it stands for, h' = A h + B u, y = <C, h>, and as fast as the
 * theory says? One channel of four states over one second, in 2^k steps of any length. */
enum { STATES = 4, PIECES = 8, MOST = 4096 };
static const float A[STATES] = {-1, -2, -4, -8}, C[STATES] = {1, -2, 3, -1};
static const double FREQUENCY = 5;
/* What fp32 leaves of an exact method: the rounding of exp(delta A), the same at each of 4096 equal steps. */
static const double ROUNDING = 4e-6;

enum input { HELD, SMOOTH };

/* The input at time t: constant over eighths of a second, or a cosine. */
static double input_at(enum input kind, double t)
{
    static const double values[PIECES] = {.7, -.4, 1, .3, -.9, -.2, .5, .8};
    return kind == SMOOTH ? cos(FREQUENCY * t) : values[(int)(t * PIECES)];
}

static double exact_state(enum input kind, double a)
{
    if (kind == SMOOTH) {
        const double w = FREQUENCY;
        return (w * sin(w) - a * cos(w) + a * exp(a)) / (a * a + w * w);
    }
    double h = 0;
    for (int i = 0; i < PIECES; i++) {
        h = exp(a / PIECES) * h + expm1(a / PIECES) / a * input_at(HELD, (i + .5) / PIECES);
    }
    return h;
}

/* |y - exact y| after one second in n steps; the input is read at share `where` of each step. */
static double error_of(const struct kernels *k, enum discretisation discretisation, enum input kind, double where,
                       int n)
{
    static float u[MOST], dt[MOST], B[MOST * STATES], read[MOST * STATES], elapsed[MOST], out[MOST];
    float h[STATES] = {0};
    const float zero = 0;
    for (int t = 0; t < n; t++) {
        u[t] = (float)input_at(kind, (t + where) / n);
        dt[t] = 32, elapsed[t] = 1.0f / 32 / (float)n; /* softplus is the identity there: delta is 1 / n to the bit */
        for (int s = 0; s < STATES; s++) {
            B[t * STATES + s] = 1, read[t * STATES + s] = C[s];
        }
    }
    k->selective_scan(&(struct selective_scan){.T = n,
                                               .E = 1,
                                               .N = STATES,
                                               .discretisation = discretisation,
                                               .A = A,
                                               .D = &zero,
                                               .dt_bias = &zero,
                                               .u = u,
                                               .dt = dt,
                                               .B = B,
                                               .C = read,
                                               .elapsed = elapsed,
                                               .u_stride = 1,
                                               .dt_stride = 1,
                                               .B_stride = STATES,
                                               .C_stride = STATES,
                                               .out_stride = 1,
                                               .state_stride = 1,
                                               .h = h,
                                               .out = out});
    double exact = 0;
    for (int s = 0; s < STATES; s++) {
        exact += (double)C[s] * exact_state(kind, (double)A[s]);
    }
    return fabs((double)out[n - 1] - exact);
}

/* log2 of the error's fall when steps are halved, from n steps on; prints the row. */
static double order_of(const struct kernels *k, const char *what, enum discretisation discretisation, enum input kind,
                       double where, int n)
{
    const double error[3] = {error_of(k, discretisation, kind, where, n),
                             error_of(k, discretisation, kind, where, 2 * n),
                             error_of(k, discretisation, kind, where, 4 * n)};
    print_message("%-8s %-34s error %.2e at %d steps, %.2e at %d: order %.3f\n", k->name, what, error[0], n, error[2],
                  4 * n, log2(error[0] / error[2]) / 2);
    assert_true(error[0] > error[1] && error[1] > error[2]);
    return log2(error[0] / error[2]) / 2;
}

static void euler_is_of_first_order(void **state)
{
    (void)state;
    const struct kernels *k;
    for (int i = 0; (k = kernels_at(i)); i++) {
        assert_close(order_of(k, "Euler, held input", DISCRETISE_EULER, HELD, .5, 256), 1, .02);
        assert_close(order_of(k, "Euler, smooth, read mid-step", DISCRETISE_EULER, SMOOTH, .5, 256), 1, .02);
    }
}

static void zero_order_hold_is_exact_for_a_held_input_at_any_step(void **state)
{
    (void)state;
    const struct kernels *k;
    for (int i = 0; (k = kernels_at(i)); i++) {
        for (int n = PIECES; n <= MOST; n *= 2) {
            const double error = error_of(k, DISCRETISE_ZOH, HELD, .5, n);
            print_message("%-8s zero-order hold, held input: error %.2e at %d steps\n", k->name, error, n);
            assert_close(error, 0, ROUNDING);
        }
    }
}

static void zero_order_hold_of_a_smooth_input_is_of_the_order_of_where_it_is_read(void **state)
{
    (void)state;
    const struct kernels *k;
    for (int i = 0; (k = kernels_at(i)); i++) {
        assert_close(order_of(k, "zero-order hold, read at the end", DISCRETISE_ZOH, SMOOTH, 1, 256), 1, .02);
        assert_close(order_of(k, "zero-order hold, read mid-step", DISCRETISE_ZOH, SMOOTH, .5, 16), 2, .05);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(euler_is_of_first_order),
        cmocka_unit_test(zero_order_hold_is_exact_for_a_held_input_at_any_step),
        cmocka_unit_test(zero_order_hold_of_a_smooth_input_is_of_the_order_of_where_it_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
