/* SPDX-License-Identifier: MIT */
/* The weights we ship, on the demo's recording at each model's rate: do the denoisers denoise, do the models of tags hear
 * speech? Limits are well under what the model cards state, so that only a broken engine or model fails. */
#include "tests/test.h"

#include "dsp/resample.h"
#include "dsp/sound_file.h"
#include "model/ssm.h"

struct sound {
    float *samples; /* (hops * hop), zeros after the recording's end */
    size_t n, hops; /* the recording's own samples; hops that hold them and the delay */
};

static struct ssm_engine *engine;
static size_t rate, hop, delay; /* the engine's; in samples, but for the rate */
static struct sound noisy, clean;

/* A sound file of one channel, converted to the engine's rate. */
static struct sound read_sound(const char *path)
{
    struct sound_file_error err;
    struct sound_file_info info;
    struct sound_file *file = sound_file_open(path, &info, &err);
    assert_non_null(file);
    size_t length = (size_t)info.length, used, n = length * rate / (size_t)info.rate;
    struct sound sound = {.n = n, .hops = (n + delay + hop - 1) / hop};
    float *read = calloc(length, sizeof(float));
    assert_int_equal(sound_file_read(file, read, length, &err), length);
    sound_file_close(file);
    sound.samples = calloc(sound.hops * hop, sizeof(float));
    struct resampler *resampler = resampler_create(info.rate, (int)rate, RESAMPLER_BEST);
    assert_int_equal(resampler_push(resampler, read, length, &used, sound.samples, n, 1), n);
    resampler_destroy(resampler);
    free(read);
    return sound;
}

/* Run a recording from the zero state; gives the output, aligned: out[i] belongs to in[i]. */
static float *run(const struct sound *in, bool by_step)
{
    ssm_stream stream;
    float *out = calloc(in->hops * hop, sizeof(float));
    assert_int_equal(ssm_stream_open(engine, &stream), SSM_OK);
    if (by_step) {
        for (size_t i = 0; i < in->hops; i++) {
            struct ssm_hop step = {.stream = stream, .in = in->samples + i * hop, .out = out + i * hop, .count = 1};
            assert_int_equal(ssm_step(engine, &step, 1), 1);
        }
    } else {
        assert_int_equal(ssm_scan(engine, stream, in->samples, out, NULL, in->hops, NULL), SSM_OK);
    }
    assert_int_equal(ssm_stream_close(engine, stream), SSM_OK);
    memmove(out, out + delay, (in->hops * hop - delay) * sizeof(float));
    return out;
}

/* Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv 1811.02508). */
static double si_sdr(const float *estimate, const float *target, size_t n)
{
    double cross = 0, power = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        cross += (double)estimate[i] * (double)target[i];
        power += (double)target[i] * (double)target[i];
    }
    for (size_t i = 0; i < n; i++) {
        double d = (double)estimate[i] - cross / power * (double)target[i];
        error += d * d;
    }
    return 10 * log10(cross * cross / power / error);
}

static void noise_goes(void **state)
{
    (void)state;
    float *out = run(&noisy, false);
    double before = si_sdr(noisy.samples, clean.samples, clean.n), after = si_sdr(out, clean.samples, clean.n);
    free(out);
    print_message("SI-SDR %.1f dB before, %.1f dB after\n", before, after);
    assert_true(after >= before + 8);
}

static void clean_speech_stays_clean(void **state)
{
    (void)state;
    float *out = run(&clean, false);
    double kept = si_sdr(out, clean.samples, clean.n);
    free(out);
    print_message("clean speech against itself: %.1f dB\n", kept);
    assert_true(kept >= 18);
}

static struct sound make_silence(void)
{
    return (struct sound){.n = 100 * hop, .hops = 101, .samples = calloc(101 * hop, sizeof(float))};
}

static void silence_stays_silence(void **state)
{
    (void)state;
    struct sound silence = make_silence();
    float *out = run(&silence, true);
    for (size_t i = 0; i < silence.n; i++) {
        assert_true(out[i] == 0);
    }
    free(out);
    free(silence.samples);
}

/* 1e-4 of full scale: the library's promise; two threads join segments in another order of sums. */
static void live_equals_bulk(void **state)
{
    (void)state;
    float *live = run(&noisy, true), *bulk = run(&noisy, false);
    for (size_t i = 0; i < noisy.n; i++) {
        assert_close(live[i], bulk[i], 1e-4);
    }
    free(live);
    free(bulk);
}

/* The share of hops in which the model's first label, speech, reaches its own threshold. */
static double speech_share(const char *model, const struct sound *in)
{
    struct ssm_error err;
    struct ssm_label label;
    ssm_stream stream;
    struct ssm_engine *tagger = ssm_open(model, &(struct ssm_options){.threads = 1}, &err);
    assert_non_null(tagger);
    assert_true(ssm_describe_label(tagger, 0, &label));
    assert_string_equal(label.name, "speech");
    size_t outputs = (size_t)ssm_describe(tagger)->outputs, above = 0;
    float *scores = calloc(in->hops * outputs, sizeof(float));
    assert_int_equal(ssm_stream_open(tagger, &stream), SSM_OK);
    assert_int_equal(ssm_scan(tagger, stream, in->samples, scores, NULL, in->hops, NULL), SSM_OK);
    for (size_t i = 0; i < in->hops; i++) {
        above += scores[i * outputs] >= label.on;
    }
    free(scores);
    ssm_close(tagger);
    print_message("%s: speech in %.0f %% of %zu hops\n", model, 100 * (double)above / (double)in->hops, in->hops);
    return (double)above / (double)in->hops;
}

static void speech_is_heard_in_noise_and_not_in_silence(void **state)
{
    (void)state;
    static const char *const models[] = {"vad", "tag-audio"};
    struct sound silence = make_silence();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        assert_true(speech_share(models[i], &clean) >= 0.6);
        assert_true(speech_share(models[i], &noisy) >= 0.6);
        assert_true(speech_share(models[i], &silence) <= 0.1);
    }
    free(silence.samples);
}

/* How much of the clean sound is in the estimate, in dB: its projection's level. */
static double kept_db(const float *estimate, const float *target, size_t n)
{
    double cross = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        cross += (double)estimate[i] * (double)target[i];
        power += (double)target[i] * (double)target[i];
    }
    return 20 * log10(fmax(cross / power, 1e-9));
}

/* The recording after 30 s of white noise of this amplitude; 0 for digital silence. */
static struct sound after_pause(float amplitude)
{
    size_t lead = 30 * rate;
    struct sound sound = {.n = lead + noisy.n, .hops = lead / hop + noisy.hops};
    uint32_t seed = 1;
    sound.samples = calloc(sound.hops * hop, sizeof(float));
    for (size_t i = 0; i < lead; i++) {
        seed = seed * 1664525 + 1013904223;
        sound.samples[i] = amplitude * (float)((int32_t)seed * 0x1p-31);
    }
    memcpy(sound.samples + lead, noisy.samples, noisy.n * sizeof(float));
    return sound;
}

/* Version 2 muted the second after a long pause, by 19 to 35 dB of it after a quiet room. */
static void speech_is_kept_after_a_pause(void **state)
{
    (void)state;
    const float pauses[] = {0, 5e-5f, 2e-3f}; /* digital silence, a quiet room, a room */
    float *usual = run(&noisy, false);
    size_t at = 0;
    while (fabsf(clean.samples[at]) < .02f) {
        at++;
    }
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        struct sound sound = after_pause(pauses[i]);
        float *out = run(&sound, false);
        double change = kept_db(out + 30 * rate + at, clean.samples + at, rate) -
                        kept_db(usual + at, clean.samples + at, rate);
        free(out);
        free(sound.samples);
        print_message("after 30 s at %g: %+.2f dB of the first second\n", (double)pauses[i], change);
        assert_true(fabs(change) <= 1.5);
    }
    free(usual);
}

/* Four words of the demo come out of pauses, at these seconds (onsets() of tests/eval/onsets.py). */
static void beginnings_of_words_are_kept(void **state)
{
    (void)state;
    const double begins[] = {.48, 3.23, 7.69, 12.45};
    float *from_noisy = run(&noisy, false), *from_clean = run(&clean, false);
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++) {
        size_t at = (size_t)(begins[i] * (double)rate), n = rate / 20;
        double in_noise = kept_db(from_noisy + at, clean.samples + at, n);
        double alone = kept_db(from_clean + at, clean.samples + at, n);
        print_message("the word at %.2f s: first 50 ms %+.1f dB, without noise %+.1f\n", begins[i], in_noise, alone);
        assert_true(in_noise >= -6 && alone >= -1);
    }
    free(from_noisy);
    free(from_clean);
}

static int open_all(const char *model)
{
    struct ssm_error err;
    engine = ssm_open(model, &(struct ssm_options){.threads = 2}, &err);
    if (!engine) {
        print_error("%s\n", err.text);
        return -1;
    }
    rate = (size_t)ssm_describe(engine)->rate;
    hop = (size_t)ssm_describe(engine)->hop;
    delay = (size_t)ssm_describe(engine)->delay;
    noisy = read_sound("tests/data/demo-noisy.flac");
    clean = read_sound("tests/data/demo-clean.flac");
    return 0;
}

static int open_16k(void **state)
{
    (void)state;
    return open_all("denoise-16k");
}

static int open_16k_low(void **state)
{
    (void)state;
    return open_all("denoise-16k-low");
}

static int open_16k_large(void **state)
{
    (void)state;
    return open_all("denoise-16k-large");
}

static int open_48k(void **state)
{
    (void)state;
    return open_all("denoise-48k");
}

static int close_all(void **state)
{
    (void)state;
    ssm_close(engine);
    free(noisy.samples);
    free(clean.samples);
    return 0;
}

int main(void)
{
    const struct CMUnitTest denoisers[] = {
        cmocka_unit_test(noise_goes),
        cmocka_unit_test(clean_speech_stays_clean),
        cmocka_unit_test(silence_stays_silence),
        cmocka_unit_test(live_equals_bulk),
        cmocka_unit_test(speech_is_kept_after_a_pause),
        cmocka_unit_test(beginnings_of_words_are_kept),
    };
    const struct CMUnitTest taggers[] = {
        cmocka_unit_test(speech_is_heard_in_noise_and_not_in_silence),
    };
    int failed = cmocka_run_group_tests_name("denoise-16k", denoisers, open_16k, close_all);
    failed += cmocka_run_group_tests_name("denoise-16k-low", denoisers, open_16k_low, close_all);
    failed += cmocka_run_group_tests_name("denoise-16k-large", denoisers, open_16k_large, close_all);
    failed += cmocka_run_group_tests_name("denoise-48k", denoisers, open_48k, close_all);
    return failed + cmocka_run_group_tests_name("models of tags", taggers, open_16k, close_all);
}
