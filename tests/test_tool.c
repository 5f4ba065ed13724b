/* SPDX-License-Identifier: MIT */

#include "tests/tool.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define MODEL " --model tests/data/tiny-denoise.safetensors"

static double correlate(const struct sound *a, const struct sound *b, int channel, long lag)
{
    double sum = 0;
    for (size_t i = 1000; i + 1000 < a->n; i++) {
        sum += (double)at(a, i, channel) * (double)at(b, (size_t)((long)i + lag), channel);
    }
    return sum;
}

/* The lag of b behind a, to a part of a sample: the top of the parabola through the three highest correlations. */
static double find_lag(const struct sound *a, const struct sound *b, int channel)
{
    long best = 0;
    double most = -1e30;
    for (long lag = -700; lag <= 700; lag += labs(lag) < 8 ? 1 : 3) {
        double c = correlate(a, b, channel, lag);
        if (c > most) {
            most = c;
            best = lag;
        }
    }
    double left = correlate(a, b, channel, best - 1), right = correlate(a, b, channel, best + 1);
    return (double)best + 0.5 * (left - right) / (left - 2 * most + right);
}

/* ---- denoise: what comes out ---- */

static void check_shape(int rate, int channels, const char *in_name, const char *out_name)
{
    char arguments[512];
    struct sound in = make_sound(rate, channels, (size_t)rate / 2 + 77), out;
    in.format = WAV_16;
    write_sound(in_name, &in);
    free(in.samples);
    in = read_sound(in_name);
    snprintf(arguments, sizeof arguments, "denoise %%/%s %%/%s --quiet" MODEL, in_name, out_name);
    assert_says(0, arguments, "");
    out = read_sound(out_name);
    assert_int_equal(out.rate, rate);
    assert_int_equal(out.channels, channels);
    assert_int_equal(out.n, in.n);
    for (int k = 0; k < channels; k++) {
        double lag = find_lag(&in, &out, k);
        if (!(fabs(lag) < 0.1)) {
            fail_msg("%d Hz, %d channels, %s: channel %d lags by %.2f samples", rate, channels, out_name, k, lag);
        }
    }
    free(in.samples);
    free(out.samples);
}

static void denoise_keeps_length_and_place_at_every_rate(void **state)
{
    (void)state;
    check_shape(8000, 1, "a.wav", "b.wav");
    check_shape(11025, 1, "a.wav", "b.wav");
    check_shape(16000, 2, "a.wav", "b.wav");
    check_shape(22050, 1, "a.wav", "b.wav");
    check_shape(44100, 2, "a.wav", "b.wav");
    check_shape(48000, 1, "a.wav", "b.wav");
    check_shape(96000, 2, "a.wav", "b.wav");
}

static void denoise_keeps_length_and_place_in_every_format(void **state)
{
    (void)state;
    check_shape(16000, 1, "a.flac", "b.flac");
    check_shape(44100, 2, "a.flac", "b.wav");
    check_shape(8000, 1, "a.wav", "b.ogg");
    check_shape(44100, 2, "a.ogg", "b.ogg");
    check_shape(48000, 1, "a.ogg", "b.flac");
    check_shape(16000, 3, "a.w64", "b.rf64");
}

static void denoise_keeps_the_sample_format_where_the_container_has_it(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 1000), out;
    int formats[] = {0x10002, 0x10003, 0x10004, 0x10006, 0x10007, 0x10005}; /* WAV: 16, 24, 32, float, double, U8 */
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        in.format = formats[i];
        write_sound("f.wav", &in);
        assert_runs("denoise %/f.wav %/g.wav --quiet" MODEL);
        out = read_sound("g.wav");
        assert_int_equal(out.format & 0xffff, formats[i] & 0xffff);
        free(out.samples);
    }
    free(in.samples);
}

static void step_and_scan_give_the_same_samples(void **state)
{
    (void)state;
    struct sound in = make_sound(48000, 2, 100001), scan, step;
    write_sound("a.wav", &in);
    assert_says(0, "denoise %/a.wav %/scan.wav" MODEL, "scan");
    assert_says(0, "denoise %/a.wav %/step.wav --step" MODEL, "hop by hop");
    scan = read_sound("scan.wav");
    step = read_sound("step.wav");
    assert_close(largest_difference(&scan, &step), 0, 1e-4); /* DESIGN's promise */
    free(in.samples);
    free(scan.samples);
    free(step.samples);
}

static void a_channel_does_not_hear_the_other(void **state)
{
    (void)state;
    struct sound both = make_sound(16000, 2, 20000), one = make_sound(16000, 1, 20000), clean_both, clean_one;
    write_sound("both.wav", &both);
    for (size_t i = 0; i < one.n; i++) {
        one.samples[i] = at(&both, i, 1);
    }
    write_sound("one.wav", &one);
    assert_runs("denoise %/both.wav %/clean_both.wav --step" MODEL);
    assert_runs("denoise %/one.wav %/clean_one.wav --step" MODEL);
    clean_both = read_sound("clean_both.wav");
    clean_one = read_sound("clean_one.wav");
    for (size_t i = 0; i < one.n; i++) {
        assert_true(at(&clean_both, i, 1) == clean_one.samples[i]); /* bit for bit */
    }
    free(both.samples);
    free(one.samples);
    free(clean_both.samples);
    free(clean_one.samples);
}

/* ---- denoise: how much ---- */

static void strength_leaves_its_share_of_the_recording_in(void **state)
{
    (void)state;
    struct sound in = make_sound(44100, 2, 60001), whole, some, none;
    const float share = 0.5011872f; /* 10^(-6/20) */
    write_sound("a.wav", &in);
    assert_runs("denoise %/a.wav %/whole.wav" MODEL);
    assert_runs("denoise %/a.wav %/some.wav --strength 6" MODEL);
    assert_runs("denoise %/a.wav %/none.wav --strength 0" MODEL);
    whole = read_sound("whole.wav");
    some = read_sound("some.wav");
    none = read_sound("none.wav");
    assert_true(largest_difference(&in, &none) == 0);
    for (size_t i = 0; i < whole.n * 2; i++) {
        whole.samples[i] = share * in.samples[i] + (1 - share) * whole.samples[i];
    }
    assert_close(largest_difference(&whole, &some), 0, 1e-6); /* rounding of the share */
    assert_says(64, "denoise %/a.wav %/b.wav --strength 6 --state-out %/s" MODEL, "without it");
    assert_says(64, "denoise %/a.wav %/b.wav --strength -1" MODEL, "from 0 to 100");
    free(in.samples);
    free(whole.samples);
    free(some.samples);
    free(none.samples);
}

static double power_db(const struct sound *sound, size_t from)
{
    double sum = 0;
    for (size_t i = from; i < sound->n; i++) {
        sum += (double)sound->samples[i] * (double)sound->samples[i];
    }
    return 10 * log10(sum / (double)(sound->n - from));
}

/* White noise, which the shipped model takes away nearly whole. */
static void strength_bounds_what_is_taken_from_noise(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 48000), out;
    uint64_t seed = 8;
    test_fill(in.samples, in.n, 0.1f, &seed);
    write_sound("noise.wav", &in);
    assert_runs("denoise %/noise.wav %/soft.wav --strength 12");
    out = read_sound("soft.wav");
    double taken = power_db(&in, 16000) - power_db(&out, 16000); /* the model needs a moment to know it */
    assert_close(taken, 12, 0.5);
    assert_true(taken < 12.2);
    free(in.samples);
    free(out.samples);
}

/* ---- denoise: a recording in parts ---- */

/* Clean `in` in parts that end at `cuts`, and give the parts joined. */
static struct sound clean_in_parts(const struct sound *in, const size_t *cuts, int n_cuts, const char *way)
{
    struct sound joined = *in;
    size_t from = 0;
    joined.n = 0;
    joined.samples = calloc((in->n + 1) * (size_t)in->channels, sizeof(float));
    for (int i = 0; i <= n_cuts; i++) {
        char arguments[512];
        struct sound part = *in, out;
        part.samples += from * (size_t)in->channels;
        part.n = (i < n_cuts ? cuts[i] : in->n) - from;
        from += part.n;
        write_sound("part.wav", &part);
        snprintf(arguments, sizeof arguments, "denoise %%/part.wav %%/out.wav %s%s%s" MODEL, way,
                 i > 0 ? " --state-in %/s" : "", i < n_cuts ? " --state-out %/s" : "");
        assert_says(0, arguments, "");
        out = read_sound("out.wav");
        memcpy(joined.samples + joined.n * (size_t)in->channels, out.samples,
               out.n * (size_t)in->channels * sizeof(float));
        joined.n += out.n;
        free(out.samples);
    }
    return joined;
}

static void parts_joined_are_the_whole(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 2, 40000), whole, joined;
    const size_t cuts[] = {3, 3, 161, 12345, 32000};
    const char *ways[] = {"--step", ""};
    write_sound("whole.wav", &in);
    for (int i = 0; i < 2; i++) {
        char arguments[256];
        snprintf(arguments, sizeof arguments, "denoise %%/whole.wav %%/clean.wav %s" MODEL, ways[i]);
        assert_says(0, arguments, "");
        whole = read_sound("clean.wav");
        joined = clean_in_parts(&in, cuts, 5, ways[i]);
        assert_int_equal(joined.n, whole.n);
        assert_close(largest_difference(&joined, &whole), 0, i == 0 ? 0 : 1e-6); /* the scan splits time elsewhere */
        free(whole.samples);
        free(joined.samples);
    }
    free(in.samples);
}

static void a_state_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct sound mono = make_sound(16000, 1, 5000), stereo = make_sound(16000, 2, 5000), other = make_sound(8000, 1, 5000);
    write_sound("mono.wav", &mono);
    write_sound("stereo.wav", &stereo);
    write_sound("other.wav", &other);
    assert_runs("denoise %/mono.wav %/x.wav --state-out %/s" MODEL);
    assert_says(65, "denoise %/stereo.wav %/y.wav --state-in %/s" MODEL, "1 channels");
    assert_says(65, "denoise %/other.wav %/y.wav --state-in %/s" MODEL, "16000 Hz, this one has 8000 Hz");
    assert_says(65, "denoise %/other.wav %/y.wav --state-out %/t" MODEL, "16000 Hz, this one has 8000 Hz");
    assert_says(65, "denoise %/mono.wav %/y.wav --state-in %/mono.wav" MODEL, "not a state");
    assert_says(66, "denoise %/mono.wav %/y.wav --state-in %/nowhere" MODEL, "nowhere");
    assert_says(73, "denoise %/mono.wav %/y.wav --state-out %/no/folder" MODEL, "No such file");
    assert_says(74, "denoise %/mono.wav %/y.wav --state-out /dev/full" MODEL, "/dev/full: can't write the state: No space left on device\n");
    assert_int_equal(truncate(in_folder("s"), 100), 0);
    assert_says(65, "denoise %/mono.wav %/y.wav --state-in %/s" MODEL, "cut short");
    assert_int_equal(access(in_folder("t"), F_OK), -1);
    free(mono.samples);
    free(stereo.samples);
    free(other.samples);
}

/* ---- denoise: input of every kind ---- */

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(in_folder(name), "wb");
    fputs(text, file);
    fclose(file);
}

static void denoise_answers_what_is_no_sound(void **state)
{
    (void)state;
    write_text("text.wav", "This is no sound, whatever its name says.\n");
    write_text("nothing.wav", "");
    assert_says(66, "denoise %/missing.wav %/o.wav" MODEL, "missing.wav: No such file or directory");
    assert_says(65, "denoise %/text.wav %/o.wav" MODEL, "begins with \"This is no sound\"");
    assert_says(65, "denoise %/nothing.wav %/o.wav" MODEL, "empty, 0 bytes");
    assert_says(66, "denoise % %/o.wav" MODEL, "directory");
    assert_int_equal(access(in_folder("o.wav"), F_OK), -1);
}

static void denoise_takes_an_empty_file_and_one_sample(void **state)
{
    (void)state;
    struct sound in = make_sound(44100, 1, 1), out;
    write_sound("one.wav", &in);
    assert_runs("denoise %/one.wav %/o.wav" MODEL);
    out = read_sound("o.wav");
    assert_int_equal(out.n, 1);
    free(out.samples);
    in.n = 0;
    write_sound("none.wav", &in);
    assert_says(0, "denoise %/none.wav %/o.wav" MODEL, "empty, because");
    out = read_sound("o.wav");
    assert_int_equal(out.n, 0);
    assert_int_equal(out.rate, 44100);
    free(out.samples);
    free(in.samples);
}

static void denoise_counts_what_is_not_finite(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 3000), out;
    in.samples[7] = NAN;
    in.samples[8] = INFINITY;
    in.samples[2000] = NAN;
    /* sound_file_write would not write a NaN: a bare WAV header before the floats does. */
    unsigned char header[44] = "RIFF....WAVEfmt \20\0\0\0\3\0\1\0\200>\0\0\0\372\0\0\4\0 \0data";
    uint32_t bytes = 12000, all = bytes + 36;
    memcpy(header + 4, &all, 4);
    memcpy(header + 40, &bytes, 4);
    FILE *file = fopen(in_folder("nan.wav"), "wb");
    fwrite(header, 44, 1, file);
    fwrite(in.samples, 4, 3000, file);
    fclose(file);
    assert_says(0, "denoise %/nan.wav %/o.wav" MODEL, "3 values were NaN or infinite");
    out = read_sound("o.wav");
    assert_int_equal(out.n, 3000);
    for (size_t i = 0; i < out.n; i++) {
        assert_true(isfinite(out.samples[i]));
    }
    free(in.samples);
    free(out.samples);
}

static void denoise_cleans_a_cut_file_up_to_the_cut_and_says_so(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 100000), out;
    struct stat status;
    write_sound("cut.flac", &in);
    stat(in_folder("cut.flac"), &status);
    assert_int_equal(truncate(in_folder("cut.flac"), status.st_size / 2), 0);
    assert_says(65, "denoise %/cut.flac %/o.wav --state-out %/cut_state" MODEL, "stops at sample");
    assert_non_null(strstr(said, "no state was saved"));
    out = read_sound("o.wav");
    assert_true(out.n > 30000 && out.n < 70000);
    char holds[64];
    snprintf(holds, sizeof holds, "holds the %zu samples before that", out.n);
    assert_non_null(strstr(said, holds));
    assert_int_equal(access(in_folder("cut_state"), F_OK), -1);
    free(out.samples);
    write_sound("cut.wav", &in);
    assert_int_equal(truncate(in_folder("cut.wav"), 44 + 4 * 30001), 0);
    assert_says(65, "denoise %/cut.wav %/o.wav" MODEL, "stops at sample ");
    out = read_sound("o.wav");
    assert_in_range(out.n, 29990, 30001); /* a WAV of floats has a longer header */
    assert_says(65, "tag %/cut.wav --model tests/data/tiny-tag.safetensors", "what is before that was tagged");
    free(in.samples);
    free(out.samples);
}

/* As sox and ffmpeg do. */
static void what_a_header_miscounts_is_a_note(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 20000), out;
    struct stat status;
    in.format = WAV_16;
    write_sound("whole.wav", &in);
    stat(in_folder("whole.wav"), &status);
    for (int i = 0; i < 2; i++) {
        uint32_t told = i == 0 ? 0 : (uint32_t)status.st_size;
        int fd = open(in_folder("whole.wav"), O_WRONLY);
        assert_int_equal(pwrite(fd, &told, 4, 40), 4);
        close(fd);
        assert_says(0, "denoise %/whole.wav %/o.wav --quiet" MODEL,
                    i == 0 ? "its header tells of no samples" : "44 bytes more than there are");
        out = read_sound("o.wav");
        assert_int_equal(out.n, 20000);
        free(out.samples);
        assert_says(0, "tag %/whole.wav --model tests/data/tiny-tag.safetensors", "its header t");
        assert_says(i == 0 ? 65 : 0, "denoise - %/o.wav <%/whole.wav" MODEL, i == 0 ? "in a file it is taken" : "");
    }
    free(in.samples);
}

static void denoise_answers_an_output_it_can_not_write(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 1000);
    write_sound("a.wav", &in);
    assert_says(73, "denoise %/a.wav %/no/such/folder.wav" MODEL, "No such file or directory");
    assert_says(73, "denoise %/a.wav %/o.xyz" MODEL, ".wav, .flac, .ogg");
    assert_int_equal(symlink(in_folder("a.wav"), in_folder("link.wav")), 0);
    assert_says(73, "denoise %/a.wav %/link.wav" MODEL, "name the file itself");
    free(in.samples);
}

static void denoise_may_write_over_its_input(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 30000), a, b;
    write_sound("same.wav", &in);
    assert_runs("denoise %/same.wav %/apart.wav" MODEL);
    assert_runs("denoise %/same.wav %/same.wav" MODEL);
    a = read_sound("apart.wav");
    b = read_sound("same.wav");
    assert_close(largest_difference(&a, &b), 0, 0);
    free(in.samples);
    free(a.samples);
    free(b.samples);
}

static void what_replaces_a_file_is_as_private_as_it_was(void **state)
{
    (void)state;
    static const mode_t modes[] = {0600, 0640, 0444};
    struct sound in = make_sound(16000, 1, 3000);
    struct stat status;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        write_sound("mine.flac", &in);
        assert_int_equal(chmod(in_folder("mine.flac"), modes[i]), 0);
        assert_runs("denoise %/mine.flac %/mine.flac" MODEL);
        assert_int_equal(stat(in_folder("mine.flac"), &status), 0);
        assert_int_equal(status.st_mode & 07777, modes[i]);
        unlink(in_folder("mine.flac"));
    }
    free(in.samples);
}

static void denoise_needs_the_same_memory_for_a_long_file(void **state)
{
    (void)state;
    long peak[2];
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* what the sanitizers keep grows with the run */
#endif
    for (int i = 0; i < 2; i++) {
        struct sound in = make_sound(16000, 1, i == 0 ? 16000 * 200 : 16000 * 440);
        write_sound("long.wav", &in);
        free(in.samples);
        pid_t child = fork();
        if (child == 0) {
            const char *program = getenv("SSM") ? getenv("SSM") : "build/release/ssm";
            execl(program, program, "denoise", in_folder("long.wav"), in_folder("o.wav"), "--quiet", "--model",
                  "tests/data/tiny-denoise.safetensors", NULL);
            _exit(127);
        }
        struct rusage usage;
        int status;
        assert_int_equal(wait4(child, &status, 0, &usage), child);
        assert_int_equal(status, 0);
        peak[i] = usage.ru_maxrss;
    }
    assert_true(peak[1] - peak[0] < 4096); /* KiB; 240 s more are 15,000 KiB of samples */
}

static void an_interrupted_denoise_leaves_nothing_behind(void **state)
{
    (void)state;
    struct sound in = make_sound(44100, 1, 44100 * 180);
    char command[1024];
    write_sound("minutes.wav", &in);
    free(in.samples);
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof command, /* HUP: the terminal is closed; its .part was left */
                 "timeout --preserve-status -s %s 0.4 %s denoise %s %s/stopped.wav --step >%s/stdout 2>&1", i == 0 ? "INT" : "HUP",
                 getenv("SSM") ? getenv("SSM") : "build/release/ssm", in_folder("minutes.wav"), folder, folder);
        assert_int_equal(WEXITSTATUS(system(command)), 130);
    }
    snprintf(command, sizeof command, "ls %s | grep -q stopped", folder);
    assert_int_not_equal(system(command), 0);
}

static void denoise_refuses_a_wrong_model_or_device(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 1000);
    write_sound("a.wav", &in);
    assert_says(66, "denoise %/a.wav %/o.wav --model no-such-model", "no-such-model");
    assert_says(65, "denoise %/a.wav %/o.wav --model %/a.wav", "a.wav");
    assert_says(65, "denoise %/a.wav %/o.wav --model tests/data/golden_mamba.safetensors", "not for denoise");
    assert_says(64, "denoise %/a.wav %/o.wav --device toaster" MODEL, "toaster");
    assert_says(64, "denoise %/a.wav %/o.wav --precision fp8" MODEL, "fp8");
    free(in.samples);
}

static void an_odd_line_of_a_log_is_flagged(void **state)
{
    (void)state;
    assert_says(0, "lines tests/data/odd-line.log", "41 lines, 1 odd");
    assert_says(0, "lines tests/data/odd-line.log", "jndi:ldap");
    assert_says(64, "lines README.md" MODEL, "not a model of bytes");
    FILE *file = fopen(in_folder("hostile.log"), "w"); /* ESC, and the same as U+009B and as a byte */
    fputs("\x1b[2J \xc2\x9b" "2J \x9b" "2J \xe2\x9b\x9b\n", file);
    fclose(file);
    assert_says(0, "lines --all %/hostile.log", "\\x1b[2J \\xc2\\x9b2J \\x9b2J \xe2\x9b\x9b");
}

static void a_gpu_that_is_not_there_is_69_and_says_why(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 1000);
    write_sound("a.wav", &in);
    setenv("SSM_CUDA_LIBRARY", "/nowhere.so", 1);
    assert_says(69, "denoise %/a.wav %/o.wav --device cuda" MODEL, "no GPU");
    assert_says(69, "denoise %/a.wav %/o.wav --device cuda:0,cuda:1" MODEL, "no GPU");
    assert_says(69, "bench --device cuda" MODEL, "no GPU");
    assert_says(0, "denoise %/a.wav %/o.wav --device auto" MODEL, "cpu");
    assert_says(0, "devices", "no GPU");
    assert_says(0, "devices --json", "\"gpu_none\": \"no GPU");
    unsetenv("SSM_CUDA_LIBRARY");
    free(in.samples);
}

/* ---- the command line ---- */

static void help_names_every_option(void **state)
{
    (void)state;
    static const char *const contract[][2] = {
        {"denoise", "--model --device --precision --step --threads --state-in --state-out --quiet --json"},
        {"models", "--json"}, {"model inspect", "--json"}, {"check", "--json"}, {"schema", "--json"}, {"devices", "--json"},
        {"watch", "--connect --count --json"}, {"top", "--connect --once --json"},
        {"bench", "--device --precision --streams --model --seconds --threads --json"},
    };
    for (size_t i = 0; i < sizeof contract / sizeof *contract; i++) {
        char arguments[64], options[256], *rest = options, *option;
        snprintf(arguments, sizeof arguments, "%s --help", contract[i][0]);
        assert_says(0, arguments, "Examples:");
        snprintf(options, sizeof options, "%s", contract[i][1]);
        while ((option = strsep(&rest, " ")) != NULL) {
            assert_non_null(strstr(said, option));
        }
        char with_flag[sizeof said];
        memcpy(with_flag, said, sizeof said);
        snprintf(arguments, sizeof arguments, "help %s", contract[i][0]);
        assert_runs(arguments);
        assert_string_equal(said, with_flag);
        assert_runs("--help");
        assert_non_null(strstr(said, contract[i][0]));
    }
}

static void a_misspelt_word_is_answered_with_the_nearest(void **state)
{
    (void)state;
    assert_says(64, "denoize a b", "did you mean \"ssm denoise\"?");
    assert_says(64, "help wacth", "did you mean \"ssm watch\"?");
    assert_says(64, "help nope", "\"ssm --help\" lists them"); /* not "top" */
    assert_says(64, "model", "did you mean \"ssm model inspect\"?");
    assert_says(64, "frobnicate", "lists them");
    assert_says(64, "denoise a b --thread=4 --modle x", "did you mean --model?");
    assert_says(64, "bench --zzz", "\"ssm bench --help\" lists them");
}

static void wrong_use_is_told(void **state)
{
    (void)state;
    assert_says(64, "", "Usage: ssm COMMAND");
    assert_says(64, "denoise only.wav", "ssm denoise IN OUT");
    assert_says(64, "denoise a b c", "\"c\" is one argument too many");
    assert_says(64, "denoise a b --model", "--model needs a value");
    assert_says(64, "denoise a b --threads many", "a whole number from 1");
    assert_says(64, "denoise a b --threads 0", "a whole number from 1");
    assert_says(64, "denoise a b --step=yes", "--step takes no value");
    assert_says(64, "\"\"", "\"ssm --help\" lists them");
    assert_says(64, "bench --streams few", "--streams takes \"auto\"");
    assert_says(64, "watch --connect nonsense", "tcp://127.0.0.1:5571");
    assert_says(66, "model inspect no-such-model", "no-such-model");
    assert_says(78, "check %/missing.yaml", "missing.yaml"); /* as ssmd does */
    assert_runs("--version");
}

static void a_state_never_replaces_a_recording(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 1600);
    write_sound("keep.wav", &in);
    free(in.samples);
    assert_says(64, "denoise %/keep.wav %/o.wav --state-out %/./keep.wav" MODEL, "would replace the recording");
    assert_says(64, "denoise %/keep.wav %/new.wav --state-out %/new.wav" MODEL, "would replace the recording");
    assert_runs("denoise %/keep.wav %/o.wav --state-out %/o.state" MODEL);
}

static void a_file_at_its_size_limit_is_told(void **state)
{
    (void)state;
    char command[1024];
    struct sound in = make_sound(16000, 1, 16000 * 20);
    write_sound("in.wav", &in);
    free(in.samples);
    snprintf(command, sizeof command, "ulimit -f 100; %s denoise %s %s/limited.wav" MODEL " 2>%s",
             getenv("SSM") ? getenv("SSM") : "build/release/ssm", in_folder("in.wav"), folder, in_folder("words"));
    assert_int_equal(WEXITSTATUS(system(command)), 74); /* a signal ended it, beside half a file */
    snprintf(command, sizeof command, "grep -q 'File too large' %s && ! ls %s | grep -q limited", in_folder("words"), folder);
    assert_int_equal(system(command), 0);
}

static void assert_told(const char *arguments)
{
    char command[1024], words[256] = "";
    snprintf(command, sizeof command, "%s %s >/dev/full 2>%s", getenv("SSM") ? getenv("SSM") : "build/release/ssm", arguments,
             in_folder("words"));
    assert_int_equal(WEXITSTATUS(system(command)), 74);
    FILE *file = fopen(in_folder("words"), "r");
    words[fread(words, 1, sizeof words - 1, file)] = '\0';
    fclose(file);
    if (strstr(words, "No space left on device") == NULL || strchr(words, '\n') != words + strlen(words) - 1) {
        fail_msg("ssm %s says \"%s\"", arguments, words); /* tag --scores said nothing */
    }
}

static void a_full_disk_is_told(void **state)
{
    (void)state;
    char command[512];
    struct sound in = make_sound(16000, 1, 64000);
    write_sound("long.wav", &in);
    free(in.samples);
    assert_told("schema");
    snprintf(command, sizeof command, "tag %s --scores --model tests/data/tiny-tag.safetensors", in_folder("long.wav"));
    assert_told(command);
}

static json_t *parse_said(const char *arguments)
{
    json_error_t error;
    assert_says(0, arguments, "");
    json_t *json = json_loads(said, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        fail_msg("ssm %s: %s in:\n%s", arguments, error.text, said);
    }
    return json;
}

static void json_is_json(void **state)
{
    (void)state;
    struct sound in = make_sound(16000, 1, 16000);
    write_sound("a \"b\".wav", &in);
    free(in.samples);
    json_t *json = parse_said("denoise '%/a \"b\".wav' %/o.wav --json" MODEL);
    assert_int_equal(json_integer_value(json_object_get(json, "samples")), 16000);
    assert_string_equal(json_string_value(json_object_get(json, "in")), in_folder("a \"b\".wav"));
    json_decref(json);
    json = parse_said("model inspect tests/data/tiny-denoise.safetensors --json");
    assert_int_equal(json_integer_value(json_object_get(json, "rate")), 16000);
    assert_true(json_array_size(json_object_get(json, "layers")) > 3);
    json_decref(json);
    json = parse_said("model inspect tests/data/golden_tag.safetensors --json");
    assert_int_equal(json_array_size(json_object_get(json, "channels")), 6);
    const json_t *label = json_array_get(json_object_get(json, "labels"), 1);
    assert_string_equal(json_string_value(json_object_get(label, "name")), "walk");
    assert_true(fabs(json_number_value(json_object_get(label, "hold_s")) - 0.2) < 1e-6);
    json_decref(json);
    json = parse_said("models --json");
    assert_true(json_array_size(json) > 0);
    json_decref(json);
    json = parse_said("devices --json");
    assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(json, "compute"), 0), "name")), "cpu");
    json_decref(json);
    json_decref(parse_said("schema"));
}

static void bench_measures(void **state)
{
    (void)state;
    json_t *json = parse_said("bench --streams 3 --seconds 1 --json" MODEL);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "many"), "streams")), 3);
    assert_true(json_number_value(json_object_get(json_object_get(json, "one"), "p99_us")) > 0);
    assert_true(json_number_value(json_object_get(json, "scan_one_thread")) > 1);
    json_decref(json);
}

/* ---- check ---- */

static void check_answers_as_the_start_would(void **state)
{
    (void)state;
    write_text("good.yaml", "version: 1\nnode: here\npublish: tcp://127.0.0.1:5571\npipelines:\n  a:\n"
                            "    source: {type: file, path: x.wav}\n    model: tests/data/tiny-denoise.safetensors\n"
                            "    sinks:\n      - {type: publish}\n");
    assert_says(0, "check %/good.yaml", "is fine: pipelines 1");
    json_decref(parse_said("check %/good.yaml --json"));
    write_text("key.yaml", "version: 1\nnode: here\npipelines:\n  a:\n    source: {typ: file, path: x.wav}\n    model: m\n");
    assert_says(78, "check %/key.yaml", "key.yaml:5:");
    assert_non_null(strstr(said, "type"));
    write_text("model.yaml", "version: 1\nnode: here\npublish: tcp://127.0.0.1:5571\npipelines:\n  a:\n    source: {type: file, path: x.wav}\n"
                             "    model: nowhere\n    sinks:\n      - {type: publish}\n");
    assert_says(66, "check %/model.yaml", "model.yaml:7:12: pipelines.a.model: ");
    write_text("fit.yaml", "version: 1\nnode: here\npublish: tcp://127.0.0.1:5571\npipelines:\n  a:\n    source: {type: file, path: x.wav}\n"
                           "    model: tests/data/tiny-denoise.safetensors\n    sinks: [{type: publish}]\n"
                           "  b:\n    source: {type: file, path: x.wav}\n"
                           "    model: tests/data/tiny-denoise.safetensors\n    sinks: [{type: jsonl, path: e}]\n");
    assert_says(78, "check %/fit.yaml", "fit.yaml:11:12: pipelines.b.model: pipeline b: a sink of type jsonl takes tags, and the model");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(denoise_keeps_length_and_place_at_every_rate),
        cmocka_unit_test(denoise_keeps_length_and_place_in_every_format),
        cmocka_unit_test(denoise_keeps_the_sample_format_where_the_container_has_it),
        cmocka_unit_test(step_and_scan_give_the_same_samples),
        cmocka_unit_test(a_channel_does_not_hear_the_other),
        cmocka_unit_test(strength_leaves_its_share_of_the_recording_in),
        cmocka_unit_test(strength_bounds_what_is_taken_from_noise),
        cmocka_unit_test(parts_joined_are_the_whole),
        cmocka_unit_test(a_state_that_does_not_fit_is_refused),
        cmocka_unit_test(denoise_answers_what_is_no_sound),
        cmocka_unit_test(denoise_takes_an_empty_file_and_one_sample),
        cmocka_unit_test(denoise_counts_what_is_not_finite),
        cmocka_unit_test(denoise_cleans_a_cut_file_up_to_the_cut_and_says_so),
        cmocka_unit_test(what_a_header_miscounts_is_a_note),
        cmocka_unit_test(denoise_answers_an_output_it_can_not_write),
        cmocka_unit_test(denoise_may_write_over_its_input),
        cmocka_unit_test(what_replaces_a_file_is_as_private_as_it_was),
        cmocka_unit_test(denoise_needs_the_same_memory_for_a_long_file),
        cmocka_unit_test(an_interrupted_denoise_leaves_nothing_behind),
        cmocka_unit_test(denoise_refuses_a_wrong_model_or_device),
        cmocka_unit_test(an_odd_line_of_a_log_is_flagged),
        cmocka_unit_test(a_gpu_that_is_not_there_is_69_and_says_why),
        cmocka_unit_test(help_names_every_option),
        cmocka_unit_test(a_misspelt_word_is_answered_with_the_nearest),
        cmocka_unit_test(wrong_use_is_told),
        cmocka_unit_test(a_state_never_replaces_a_recording),
        cmocka_unit_test(a_file_at_its_size_limit_is_told),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(json_is_json),
        cmocka_unit_test(bench_measures),
        cmocka_unit_test(check_answers_as_the_start_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
