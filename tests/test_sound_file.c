/* SPDX-License-Identifier: MIT */
#include "dsp/sound_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sndfile.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/folder.h"
#include "tests/test.h"

/* LeakSanitizer: libsndfile 1.2 keeps its Vorbis encoder when the header found no room. An SNDFILE we kept would still be
 * told of. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libvorbis\nleak:libogg\n";
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    fclose(file);
}

static void write_sound(const char *path, const struct sound_file_info *info, const float *x, size_t n)
{
    struct sound_file_error err;
    struct sound_file *file = sound_file_create(path, info, true, &err);
    if (!file) {
        fail_msg("%s", err.text);
    }
    assert_true(sound_file_write(file, x, n, &err));
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
}

/* Samples read of at most n; what it found in *info. */
static size_t read_sound(const char *path, struct sound_file_info *info, float *x, size_t n)
{
    struct sound_file_error err;
    struct sound_file *file = sound_file_open(path, info, &err);
    if (!file) {
        fail_msg("%s", err.text);
    }
    size_t got = sound_file_read(file, x, n, &err);
    assert_string_equal(err.text, "");
    sound_file_close(file);
    return got;
}

static int entries_in_folder(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n - 2;
}

static void every_ending_keeps_rate_channels_and_length(void **state)
{
    (void)state;
    enum { N = 9001 };
    static float x[2 * N], y[2 * N + 2];
    for (int i = 0; i < 2 * N; i++) {
        x[i] = 0.5f * sinf(0.02f * (float)(i / 2)) * (i % 2 ? 0.5f : 1);
    }
    const char *const names[] = {"a.wav", "a.FLAC", "a.ogg", "a.opus", "a.w64", "a.rf64"};
    const double tolerance[] = {0x1p-15, 0x1p-15, 0.02, 0.1, 0x1p-15, 0x1p-15};
    for (int i = 0; i < 6; i++) {
        struct sound_file_info info = {.rate = 48000, .channels = 2, .length = -1}, found;
        write_sound(in_folder(names[i]), &info, x, N);
        assert_int_equal(read_sound(in_folder(names[i]), &found, y, N + 1), N);
        assert_int_equal(found.rate, 48000);
        assert_int_equal(found.channels, 2);
        assert_int_equal(found.length, N);
        for (int j = 2000; j < 2 * N - 2000; j++) { /* a lossy codec's edges are rough */
            assert_close(x[j], y[j], tolerance[i]);
        }
    }
}

static void pcm_is_copied_to_the_bit(void **state)
{
    (void)state;
    const int subtypes[] = {SF_FORMAT_PCM_U8, SF_FORMAT_PCM_16, SF_FORMAT_PCM_24, SF_FORMAT_PCM_32, SF_FORMAT_FLOAT};
    enum { N = 70000 };
    static float x[N], y[N];
    uint64_t seed = 1;
    for (int s = 0; s < 5; s++) {
        struct sound_file_info info = {.rate = 8000, .channels = 1, .length = N, .format = subtypes[s]}, found;
        test_fill(x, N, 1, &seed);
        x[0] = -1;
        write_sound(in_folder("first.wav"), &info, x, N);
        assert_int_equal(read_sound(in_folder("first.wav"), &found, x, N), N);
        assert_int_equal(found.format, SF_FORMAT_WAV | subtypes[s]);
        write_sound(in_folder("second.w64"), &found, x, N);
        assert_int_equal(read_sound(in_folder("second.w64"), &found, y, N), N);
        assert_int_equal(found.format, SF_FORMAT_W64 | subtypes[s]);
        assert_memory_equal(x, y, sizeof x);
    }
}

static void the_subtype_follows_the_source_where_the_container_holds_it(void **state)
{
    (void)state;
    const struct {
        const char *name;
        int source, expected;
    } cases[] = {
        {"s.wav", 0, SF_FORMAT_WAV | SF_FORMAT_PCM_16},
        {"s.wav", SF_FORMAT_FLAC | SF_FORMAT_PCM_24, SF_FORMAT_WAV | SF_FORMAT_PCM_24},
        {"s.wav", SF_FORMAT_OGG | SF_FORMAT_VORBIS, SF_FORMAT_WAV | SF_FORMAT_PCM_16},
        {"s.wav", SF_FORMAT_WAV | SF_FORMAT_IMA_ADPCM, SF_FORMAT_WAV | SF_FORMAT_PCM_16},
        {"s.flac", SF_FORMAT_WAV | SF_FORMAT_FLOAT, SF_FORMAT_FLAC | SF_FORMAT_PCM_24},
        {"s.flac", SF_FORMAT_WAV | SF_FORMAT_PCM_U8, SF_FORMAT_FLAC | SF_FORMAT_PCM_16},
        {"s.ogg", SF_FORMAT_WAV | SF_FORMAT_PCM_16, SF_FORMAT_OGG | SF_FORMAT_VORBIS},
        {"s.opus", SF_FORMAT_WAV | SF_FORMAT_PCM_16, SF_FORMAT_OGG | SF_FORMAT_OPUS},
    };
    float x[100] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sound_file_info info = {.rate = 48000, .channels = 1, .length = 100, .format = cases[i].source}, found;
        write_sound(in_folder(cases[i].name), &info, x, 100);
        read_sound(in_folder(cases[i].name), &found, x, 100);
        assert_int_equal(found.format, cases[i].expected);
    }
}

static void what_is_beyond_full_scale_or_no_number_is_counted(void **state)
{
    (void)state;
    const float loud[6] = {1.0f, -1.0f, 1.5f, -7, NAN, INFINITY}, kept[6] = {1, -1, 1, -1, 0, 1};
    struct sound_file_info info = {.rate = 8000, .channels = 1, .length = 6}, found;
    struct sound_file_error err;
    struct sound_file *file = sound_file_create(in_folder("loud.wav"), &info, true, &err);
    assert_true(sound_file_write(file, loud, 6, &err));
    assert_int_equal(sound_file_bad(file), 4);
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
    float x[6];
    read_sound(in_folder("loud.wav"), &found, x, 6);
    for (int i = 0; i < 6; i++) {
        assert_close(x[i], kept[i], 0x1p-15);
    }
}

static void nan_in_a_file_becomes_silence_and_is_counted(void **state)
{
    (void)state;
    SF_INFO raw = {.samplerate = 8000, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_FLOAT};
    const float x[4] = {0.5f, NAN, -INFINITY, 3};
    SNDFILE *handle = sf_open(in_folder("nan.wav"), SFM_WRITE, &raw);
    sf_write_float(handle, x, 4);
    sf_close(handle);
    struct sound_file_info info;
    struct sound_file_error err;
    struct sound_file *file = sound_file_open(in_folder("nan.wav"), &info, &err);
    float y[4];
    assert_int_equal(sound_file_read(file, y, 4, &err), 4);
    assert_int_equal(sound_file_bad(file), 2);
    assert_close(y[1], 0, 0);
    assert_close(y[2], 0, 0);
    assert_close(y[3], 3, 0);
    sound_file_close(file);
}

static void a_file_that_is_no_sound_is_answered_in_words(void **state)
{
    (void)state;
    struct sound_file_info info;
    struct sound_file_error err;
    write_bytes(in_folder("empty.wav"), "", 0);
    write_bytes(in_folder("text.wav"), "Dear Sir,\nplease find enclosed", 30);
    const struct {
        const char *name, *words;
        int code;
    } cases[] = {
        {"empty.wav", "empty, 0 bytes", 65},
        {"text.wav", "it begins with \"Dear Sir,.please\"", 65},
        {"nowhere.wav", "No such file", 66},
        {".", "Is a directory", 66},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_null(sound_file_open(in_folder(cases[i].name), &info, &err));
        assert_non_null(strstr(err.text, cases[i].words));
        assert_non_null(strstr(err.text, cases[i].name));
        assert_int_equal(err.code, cases[i].code);
    }
}

static void a_truncated_flac_says_at_which_sample_it_stops(void **state)
{
    (void)state;
    enum { N = 40000 };
    static float x[N];
    static char bytes[4 * N];
    uint64_t seed = 1;
    test_fill(x, N, 0.5f, &seed);
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = N};
    write_sound(in_folder("whole.flac"), &info, x, N);
    FILE *whole = fopen(in_folder("whole.flac"), "rb");
    size_t size = fread(bytes, 1, sizeof bytes, whole);
    fclose(whole);
    write_bytes(in_folder("cut.flac"), bytes, size / 2);

    struct sound_file_error err;
    struct sound_file *file = sound_file_open(in_folder("cut.flac"), &info, &err);
    assert_int_equal(info.length, N);
    size_t got = 0, n;
    while ((n = sound_file_read(file, x, 1000, &err)) == 1000) {
        got += n;
    }
    got += n;
    char words[64];
    snprintf(words, sizeof words, "stops at sample %zu of 40000", got);
    assert_true(got > N / 4 && got < N * 3 / 4);
    assert_non_null(strstr(err.text, words));
    assert_int_equal(err.code, 65);
    sound_file_close(file);
}

static size_t read_bytes(const char *path, unsigned char *bytes, size_t most)
{
    FILE *file = fopen(path, "rb");
    size_t size = fread(bytes, 1, most, file);
    fclose(file);
    return size;
}

/* A header says how many samples follow. */
static void a_cut_wav_says_at_which_sample_it_stops(void **state)
{
    (void)state;
    enum { N = 5000 };
    static float x[2 * N];
    static unsigned char bytes[16 * N];
    static const char *const names[] = {"whole.wav", "whole.rf64", "whole.w64"};
    static const int subtypes[] = {SF_FORMAT_PCM_16, SF_FORMAT_PCM_24, SF_FORMAT_FLOAT};
    uint64_t seed = 1;
    test_fill(x, 2 * N, 0.5f, &seed);
    for (int i = 0; i < 9; i++) {
        struct sound_file_info info = {.rate = 16000, .channels = 2, .length = N, .format = SF_FORMAT_WAV | subtypes[i / 3]};
        struct sound_file_error err;
        write_sound(in_folder(names[i % 3]), &info, x, N);
        size_t size = read_bytes(in_folder(names[i % 3]), bytes, sizeof bytes), each = (size_t)(4 + 2 * (i / 3)), header = size - N * each;
        for (size_t left = 0; left < size - header; left += 3999) {
            write_bytes(in_folder("cut"), bytes, header + left);
            struct sound_file *file = sound_file_open(in_folder("cut"), &info, &err);
            assert_int_equal(info.length, N);
            assert_int_equal(sound_file_read(file, x, N, &err), left / each);
            char words[64];
            snprintf(words, sizeof words, "stops at sample %zu of 5000", left / each);
            assert_non_null(strstr(err.text, words));
            assert_int_equal(err.code, 65);
            sound_file_close(file);
        }
    }
}

/* As ffmpeg, sox and arecord leave them in pipes: they don't know what will come. */
static void a_wav_whose_length_was_not_known_is_whole(void **state)
{
    (void)state;
    static const uint32_t unknown[] = {0xffffffff, 0x7ffff000, 0x7fffefff, 0x7fffeff6, 0x7f000008, 0x80000000, 0xfffff000};
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = 1000}, found;
    unsigned char bytes[4096];
    float x[1001] = {0};
    write_sound(in_folder("known.wav"), &info, x, 1000);
    size_t size = read_bytes(in_folder("known.wav"), bytes, sizeof bytes);
    assert_memory_equal(bytes + 36, "data", 4);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        memcpy(bytes + 40, &unknown[i], 4);
        write_bytes(in_folder("piped.wav"), bytes, size);
        assert_int_equal(read_sound(in_folder("piped.wav"), &found, x, 1001), 1000);
        assert_int_equal(found.length, 1000);
    }
}

/* The header tells `told` bytes of samples in a file of `riff` bytes, and there are n. */
static void write_told(const char *path, const void *whole, uint32_t riff, uint32_t told, size_t n)
{
    unsigned char bytes[4096];
    memcpy(bytes, whole, 44 + n);
    riff -= 8;
    memcpy(bytes + 4, &riff, 4);
    memcpy(bytes + 40, &told, 4);
    write_bytes(path, bytes, 44 + n);
}

/* A half sample more, the file's length for the samples', or nothing at all since the recorder was switched off. */
static void what_a_header_miscounts_is_told_and_all_is_read(void **state)
{
    (void)state;
    static const struct {
        uint32_t riff, told;
        size_t n;
        bool miscounted;
        int64_t length;
    } cases[] = {
        {2044, 2000, 2000, false, 1000},
        {2044, 2000, 1999, true, 999},
        {2044, 2001, 2000, true, 1000},
        {2080, 2036, 2000, true, 1000},
        {2088, 2044, 2000, true, 1000},
        {2044, 2100, 2000, true, 1000},
        {2144, 2100, 2000, false, 1050},
        {2044, 2000, 1998, false, 1000},
        {44, 0, 2000, true, 1000},
        {8, 0, 1999, true, 999},
        {44, 0, 1, false, 0},
    };
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = 1000}, found;
    struct sound_file_error err;
    unsigned char bytes[4096];
    float x[1000], y[1050];
    uint64_t seed = 5;
    test_fill(x, 1000, 0.5f, &seed);
    write_sound(in_folder("told.wav"), &info, x, 1000);
    assert_int_equal(read_bytes(in_folder("told.wav"), bytes, sizeof bytes), 2044);
    read_sound(in_folder("told.wav"), &found, x, 1000);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_told(in_folder("told.wav"), bytes, cases[i].riff, cases[i].told, cases[i].n);
        struct sound_file *file = sound_file_open(in_folder("told.wav"), &found, &err);
        assert_non_null(file);
        assert_int_equal(found.length, cases[i].length);
        assert_int_equal(found.note[0] != '\0', cases[i].miscounted);
        for (int again = 0; again < 2; again++) {
            size_t n = sound_file_read(file, y, 1050, &err);
            assert_int_equal(n, cases[i].n / 2);
            assert_memory_equal(x, y, n * sizeof *x);
            assert_int_equal(err.code, (int64_t)n == found.length ? 0 : 65);
            assert_true(sound_file_seek(file, 0));
        }
        sound_file_close(file);
    }
}

/* No samples, and a list behind them: nothing is missing. */
static void a_wav_of_no_samples_may_go_on(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1}, found;
    unsigned char bytes[100];
    float x[1];
    write_sound(in_folder("listed.wav"), &info, x, 0);
    assert_int_equal(read_bytes(in_folder("listed.wav"), bytes, sizeof bytes), 44);
    memcpy(bytes + 44, "LIST\x0a\0\0\0INFOIART\0\0", 18);
    bytes[4] = 54;
    write_bytes(in_folder("listed.wav"), bytes, 62);
    assert_int_equal(read_sound(in_folder("listed.wav"), &found, x, 1), 0);
    assert_string_equal(found.note, "");
}

static void a_file_of_no_samples_is_a_file(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1}, found;
    float x[1];
    const char *const names[] = {"none.wav", "none.flac"};
    for (int i = 0; i < 2; i++) {
        write_sound(in_folder(names[i]), &info, x, 0);
        assert_int_equal(read_sound(in_folder(names[i]), &found, x, 1), 0);
        assert_true(found.length <= 0); /* FLAC's 0 means "not known" */
    }
}

static atomic_bool asking;

static void *ask(void *path)
{
    while (atomic_load(&asking)) {
        sound_file_taken(path);
    }
    return NULL;
}

static void who_asks_for_a_file_keeps_nobody_from_it(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1};
    struct sound_file_error err;
    char path[600];
    float x[1] = {0};
    pthread_t thread;
    snprintf(path, sizeof path, "%s", in_folder("asked.wav"));
    write_sound(path, &info, x, 1);
    atomic_store(&asking, true);
    assert_int_equal(pthread_create(&thread, NULL, ask, path), 0);
    int reserved = 0, n = 1000;
    for (int i = 0; i < n; i++) {
        struct sound_file *file = sound_file_reserve(path, &info, &err);
        reserved += file != NULL;
        sound_file_close(file);
    }
    atomic_store(&asking, false);
    pthread_join(thread, NULL);
    assert_int_equal(reserved, n);
}

static void an_uncommitted_file_leaves_the_old_one_and_nothing_else(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1}, found;
    struct sound_file_error err;
    float x[100] = {0};
    write_sound(in_folder("kept.wav"), &info, x, 10);
    int before = entries_in_folder();
    struct sound_file *file = sound_file_create(in_folder("kept.wav"), &info, true, &err);
    assert_true(sound_file_write(file, x, 100, &err));
    read_sound(in_folder("kept.wav"), &found, x, 100);
    assert_int_equal(found.length, 10);
    sound_file_close(file);
    read_sound(in_folder("kept.wav"), &found, x, 100);
    assert_int_equal(found.length, 10);
    assert_int_equal(entries_in_folder(), before);
}

static void a_reserved_file_stays_as_it_was_until_it_begins(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1}, found;
    struct sound_file_error err;
    float x[100] = {0};
    write_sound(in_folder("old.wav"), &info, x, 10);
    int before = entries_in_folder();
    struct sound_file *file = sound_file_reserve(in_folder("old.wav"), &info, &err);
    struct sound_file *fresh = sound_file_reserve(in_folder("fresh.wav"), &info, &err);
    assert_non_null(file);
    assert_non_null(fresh);
    assert_true(sound_file_taken(in_folder("old.wav")));
    assert_null(sound_file_reserve(in_folder("old.wav"), &info, &err));
    assert_non_null(strstr(err.text, "old.wav: is being written by another ssmd"));
    assert_int_equal(err.code, 73);
    sound_file_close(file);
    sound_file_close(fresh);
    assert_int_equal(entries_in_folder(), before);
    assert_false(sound_file_taken(in_folder("old.wav")));
    read_sound(in_folder("old.wav"), &found, x, 100);
    assert_int_equal(found.length, 10);
    file = sound_file_reserve(in_folder("old.wav"), &info, &err);
    assert_true(sound_file_begin(file, &err));
    assert_true(sound_file_write(file, x, 20, &err));
    assert_true(sound_file_commit(file, &err));
    assert_true(sound_file_taken(in_folder("old.wav")));
    sound_file_close(file);
    read_sound(in_folder("old.wav"), &found, x, 100);
    assert_int_equal(found.length, 20);
    assert_int_equal(entries_in_folder(), before);
}

static void a_growing_wav_can_be_read_after_each_flush(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1}, found;
    struct sound_file_error err;
    static float x[1000], y[3000];
    struct sound_file *file = sound_file_create(in_folder("live.wav"), &info, false, &err);
    for (size_t k = 1; k <= 3; k++) {
        assert_true(sound_file_write(file, x, 1000, &err));
        sound_file_flush(file);
        assert_int_equal(read_sound(in_folder("live.wav"), &found, y, 3000), 1000 * k);
        assert_int_equal(found.format & SF_FORMAT_SUBMASK, SF_FORMAT_PCM_16);
    }
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
    read_sound(in_folder("live.wav"), &found, y, 3000);
    assert_int_equal(found.length, 3000);
    assert_int_equal(found.format & SF_FORMAT_TYPEMASK, SF_FORMAT_WAVEX); /* a WAV again, with the long header */
}

/* 4.3 GiB, most of it a hole on the disk: seek far, then write. */
static void a_wav_beyond_four_gib_is_rf64_and_keeps_its_length(void **state)
{
    (void)state;
    struct sound_file_info info = {.rate = 48000, .channels = 8, .length = -1, .format = SF_FORMAT_FLOAT}, found;
    struct sound_file_error err;
    struct sound_file *file = sound_file_create(in_folder("long.wav"), &info, false, &err);
    const int64_t length = INT64_C(140000000); /* of 32 bytes */
    float x[8] = {0.25f}, y[8];
    assert_true(sound_file_write(file, x, 1, &err)); /* the header */
    assert_true(sound_file_seek(file, length - 1));
    assert_true(sound_file_write(file, x, 1, &err));
    assert_true(sound_file_commit(file, &err));
    sound_file_close(file);
    file = sound_file_open(in_folder("long.wav"), &found, &err);
    assert_int_equal(found.length, length);
    assert_true(sound_file_seek(file, length - 1));
    assert_int_equal(sound_file_read(file, y, 1, &err), 1);
    assert_memory_equal(x, y, sizeof x);
    sound_file_close(file);
    unlink(in_folder("long.wav"));
}

static void what_cannot_be_written_is_said_before_anything_is_lost(void **state)
{
    (void)state;
    const struct {
        const char *name, *words;
        int rate, channels;
    } cases[] = {
        {"x.mp4", "use .wav, .flac", 16000, 1},           {"x", "use .wav, .flac", 16000, 1},
        {"x.opus", "Opus takes 8000", 44100, 1},          {"x.flac", "doesn't take 9 channels", 44100, 9},
        {"x.ogg", "at 250000 Hz", 250000, 1},             {"x.ogg", "doesn't take 256 channels", 48000, 256},
        {"no/such/folder.wav", "No such file", 16000, 1},
    };
    int before = entries_in_folder();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sound_file_info info = {.rate = cases[i].rate, .channels = cases[i].channels};
        struct sound_file_error err;
        for (int how = 0; how < 3; how++) {
            assert_null(how < 2 ? sound_file_create(in_folder(cases[i].name), &info, how == 1, &err)
                                : sound_file_reserve(in_folder(cases[i].name), &info, &err));
            assert_non_null(strstr(err.text, cases[i].words));
            assert_int_equal(err.code, 73);
        }
    }
    assert_int_equal(entries_in_folder(), before);
}

/* The disk is full at whichever byte: either all of the file is there or commit says it isn't. */
static void a_disk_full_at_the_last_block_is_told(void **state)
{
    (void)state;
    enum { N = 3000 };
    static const char *const names[] = {"last.wav", "last.flac", "last.ogg", "last.opus"};
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = N};
    struct sound_file_error err;
    struct rlimit before, small;
    struct stat whole;
    float x[N];
    uint64_t seed = 9;
    test_fill(x, N, 0.3f, &seed);
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        write_sound(in_folder(names[i]), &info, x, N);
        assert_int_equal(stat(in_folder(names[i]), &whole), 0);
        for (off_t size = 128; size < whole.st_size; size += whole.st_size / 8) {
            small = (struct rlimit){.rlim_cur = (rlim_t)size, .rlim_max = before.rlim_max};
            setrlimit(RLIMIT_FSIZE, &small);
            struct sound_file *file = sound_file_create(in_folder(names[i]), &info, true, &err);
            bool kept = file && sound_file_write(file, x, N, &err) && sound_file_commit(file, &err);
            sound_file_close(file);
            setrlimit(RLIMIT_FSIZE, &before);
            if (kept) {
                fail_msg("%s of %ld bytes was called whole at %ld", names[i], (long)whole.st_size, (long)size);
            }
        }
    }
    small = (struct rlimit){.rlim_cur = 20, .rlim_max = before.rlim_max}; /* not even the header */
    setrlimit(RLIMIT_FSIZE, &small);
    assert_null(sound_file_create(in_folder("header.wav"), &info, true, &err));
    setrlimit(RLIMIT_FSIZE, &before);
    assert_non_null(strstr(err.text, "header.wav: can't be written: File too large"));
    signal(SIGXFSZ, SIG_DFL);
}

/* Formats that never go back in a file, with somebody at the other end; what ssm denoise writes, not the daemon. */
static void a_pipe_takes_what_needs_no_going_back(void **state)
{
    (void)state;
    static const char *const names[] = {"p.flac", "p.ogg", "p.wav", "p.w64"};
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct sound_file_error err = {0};
        float x[1000] = {0};
        char start[4];
        const char *path = in_folder(names[i]);
        assert_int_equal(mkfifo(path, 0600), 0);
        int fd = open(path, O_RDWR);
        struct sound_file *file = sound_file_create(path, &info, true, &err);
        if (i < 2) {
            assert_non_null(file);
            assert_true(sound_file_write(file, x, 1000, &err) && sound_file_commit(file, &err));
            assert_int_equal(read(fd, start, 4), 4);
            assert_true(memcmp(start, "fLaC", 4) == 0 || memcmp(start, "OggS", 4) == 0);
        } else {
            assert_null(file);
            assert_int_equal(err.code, 73);
            assert_non_null(strstr(err.text, "a pipe can't; choose .flac, .ogg or .opus"));
        }
        sound_file_close(file);
        assert_null(sound_file_reserve(path, &info, &err));
        assert_false(sound_file_fits(path, &info, &err));
        assert_non_null(strstr(err.text, "is a pipe, whose reader"));
        close(fd);
    }
}

/* Its writer has gone by then: who opens it again to see what it holds waits for ever. */
static void a_pipe_that_holds_no_sound_is_told(void **state)
{
    (void)state;
    struct sound_file_info info;
    struct sound_file_error err;
    const char *path = in_folder("junk.wav");
    assert_int_equal(mkfifo(path, 0600), 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = open(path, O_WRONLY);
        _exit(write(fd, "junk", 4) != 4);
    }
    alarm(20);
    assert_null(sound_file_open(path, &info, &err));
    alarm(0);
    assert_int_equal(err.code, 65);
    assert_non_null(strstr(err.text, "junk.wav: this pipe is empty, or no sound that can be read as it comes"));
    waitpid(child, NULL, 0);
}

static void a_full_disk_is_told(void **state)
{
    (void)state;
    assert_int_equal(symlink("/dev/full", in_folder("full.wav")), 0);
    struct sound_file_info info = {.rate = 16000, .channels = 1, .length = -1};
    struct sound_file_error err = {0};
    static float x[100000];
    struct sound_file *file = sound_file_create(in_folder("full.wav"), &info, true, &err);
    if (file) {
        bool fine = sound_file_write(file, x, 100000, &err) && sound_file_commit(file, &err);
        assert_false(fine);
        sound_file_close(file);
    }
    assert_true(err.code == 73 || err.code == 74);
    struct stat status;
    assert_int_equal(lstat(in_folder("full.wav"), &status), 0);
    assert_true(S_ISLNK(status.st_mode)); /* not replaced by a file */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_ending_keeps_rate_channels_and_length),
        cmocka_unit_test(pcm_is_copied_to_the_bit),
        cmocka_unit_test(the_subtype_follows_the_source_where_the_container_holds_it),
        cmocka_unit_test(what_is_beyond_full_scale_or_no_number_is_counted),
        cmocka_unit_test(nan_in_a_file_becomes_silence_and_is_counted),
        cmocka_unit_test(a_file_that_is_no_sound_is_answered_in_words),
        cmocka_unit_test(a_truncated_flac_says_at_which_sample_it_stops),
        cmocka_unit_test(a_cut_wav_says_at_which_sample_it_stops),
        cmocka_unit_test(what_a_header_miscounts_is_told_and_all_is_read),
        cmocka_unit_test(a_wav_of_no_samples_may_go_on),
        cmocka_unit_test(a_wav_whose_length_was_not_known_is_whole),
        cmocka_unit_test(a_file_of_no_samples_is_a_file),
        cmocka_unit_test(an_uncommitted_file_leaves_the_old_one_and_nothing_else),
        cmocka_unit_test(a_reserved_file_stays_as_it_was_until_it_begins),
        cmocka_unit_test(who_asks_for_a_file_keeps_nobody_from_it),
        cmocka_unit_test(a_growing_wav_can_be_read_after_each_flush),
        cmocka_unit_test(a_wav_beyond_four_gib_is_rf64_and_keeps_its_length),
        cmocka_unit_test(what_cannot_be_written_is_said_before_anything_is_lost),
        cmocka_unit_test(a_pipe_takes_what_needs_no_going_back),
        cmocka_unit_test(a_pipe_that_holds_no_sound_is_told),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(a_disk_full_at_the_last_block_is_told),
    };
    return cmocka_run_group_tests_name("sound_file", tests, NULL, NULL);
}
