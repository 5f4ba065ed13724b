/* SPDX-License-Identifier: MIT */
#include "daemon/admission.h"

#include <pthread.h>

#include "dsp/clock.h"
#include "model/engine.h"
#include "tests/scripted.h"

#define MODEL "tests/data/tiny-denoise.safetensors"
enum { CAPACITY = 50, STREAMS = 100 };

static struct ssm_engine *open_model(int streams)
{
    struct ssm_error err;
    struct fleet_device device = {&scripted_ops, "cuda:0"};
    struct ssm_engine *engine =
        engine_open_on(MODEL, &(struct ssm_options){.streams = streams, .max_hops = 1}, &device, 1, &err);
    assert_non_null(engine);
    return engine;
}

static void as_many_come_in_as_are_told_and_others_when_they_left(void **state)
{
    (void)state;
    struct admission admission;
    admission_init(&admission, 3);
    struct ssm_engine *engine = open_model(1);
    struct admission_cost cost = admission_measure(&admission, engine);
    assert_int_equal(admission_capacity(&admission), 3);
    struct admission_pass passes[5];
    for (int i = 0; i < 5; i++) {
        passes[i] = (struct admission_pass){.admission = &admission, .cost = cost.each};
        assert_int_equal(admission_enter(&passes[i]), i < 3);
    }
    assert_true(admission_enter(&passes[0])); /* is in already */
    assert_false(admission_could_enter(&passes[3]));
    assert_int_equal(admission.rejected, 3);
    admission_leave(&passes[1]);
    admission_leave(&passes[1]);
    assert_true(admission_enter(&passes[4]));
    assert_false(admission_enter(&passes[3]));
    ssm_close(engine);
}

static void without_a_limit_everybody_comes_in(void **state)
{
    (void)state;
    struct admission admission;
    admission_init(&admission, 0);
    struct ssm_engine *engine = open_model(1);
    struct admission_cost cost = admission_measure(&admission, engine);
    for (int i = 0; i < 1000; i++) {
        struct admission_pass pass = {.admission = &admission, .cost = cost.each};
        assert_true(admission_enter(&pass));
    }
    assert_int_equal(admission_capacity(&admission), 0);
    assert_int_equal(admission.rejected, 0);
    ssm_close(engine);
}

/* ---- By a clock that only goes on in steps. ---- */

static int64_t time_now = 1;

static int64_t tell_time(void)
{
    return time_now;
}

static void pass_time(int64_t ns)
{
    time_now += ns;
}

/* 0.1 ms a stream of 10 ms: 35 % of that is for 35 streams. */
static void the_capacity_is_measured(void **state)
{
    (void)state;
    static const struct clock_world world = {.now = tell_time, .asleep = tell_time, .utc = tell_time, .pace = 1};
    clock_replace(&world);
    scripted_spend = pass_time;
    scripts[0].slow_ns = 100000;
    struct admission admission;
    admission_init(&admission, -1);
    struct ssm_engine *engine = open_model(STREAMS);
    struct admission_cost cost = admission_measure(&admission, engine);
    clock_replace(NULL);
    assert_int_equal(admission_capacity(&admission), 35);
    assert_int_equal(cost.besides, 0);
    ssm_stream streams[STREAMS];
    for (int i = 0; i < STREAMS; i++) { /* its own are closed again */
        assert_int_equal(ssm_stream_open(engine, &streams[i]), SSM_OK);
    }
    ssm_close(engine);
}

/* ---- At once. ---- */

static struct admission crowd;
static _Atomic int inside, most_inside;

static void *come_and_go(void *arg)
{
    (void)arg;
    struct admission_pass pass = {.admission = &crowd, .cost = ADMISSION_ALL / CAPACITY};
    for (int i = 0; i < 20000; i++) {
        if (admission_enter(&pass)) {
            int now = ++inside, most = most_inside;
            while (now > most && !atomic_compare_exchange_weak(&most_inside, &most, now)) {
            }
            inside--;
            admission_leave(&pass);
        }
    }
    return NULL;
}

static void never_more_are_in_than_may_be(void **state)
{
    (void)state;
    pthread_t threads[8];
    struct admission_pass others = {.admission = &crowd, .cost = ADMISSION_ALL / CAPACITY * (CAPACITY - 2)};
    admission_init(&crowd, 50);
    assert_true(admission_enter(&others));
    for (int i = 0; i < 8; i++) {
        pthread_create(&threads[i], NULL, come_and_go, NULL);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_in_range(most_inside, 1, 2);
    admission_leave(&others);
    assert_int_equal(crowd.taken, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(as_many_come_in_as_are_told_and_others_when_they_left, scripted_clear),
        cmocka_unit_test_setup(without_a_limit_everybody_comes_in, scripted_clear),
        cmocka_unit_test_setup(the_capacity_is_measured, scripted_clear),
        cmocka_unit_test(never_more_are_in_than_may_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
