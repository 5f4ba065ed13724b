/* SPDX-License-Identifier: MIT */
#include "dsp/sound_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <sndfile.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "dsp/chunks.h"
#include "dsp/part.h"
#include "dsp/spare.h"

/* Values converted at once, and sent to the disk at once; bytes of a path in a message. */
enum { BLOCK = 4096, SENT = 1 << 22, TOLD = 300 };

struct sound_file {
    SNDFILE *handle;
    char *path, *part; /* part: where it is written until commit; NULL: in place */
    int fd;            /* writing: of that; else -1 */
    bool made;         /* in place: it wasn't there, and has not begun */
    SF_INFO wanted;    /* writing */
    int64_t position, length, sent; /* sent: so far the disk was asked to begin */
    int channels, container;
    double full_scale; /* writing PCM: of its integers; 0: floats go to libsndfile as they are */
    uint64_t bad;
};

static const struct ending {
    const char *text;
    int container, subtype; /* subtype: when the source's doesn't fit */
} endings[] = {
    {".wav", SF_FORMAT_WAV, SF_FORMAT_PCM_16}, {".flac", SF_FORMAT_FLAC, SF_FORMAT_PCM_16},
    {".ogg", SF_FORMAT_OGG, SF_FORMAT_VORBIS}, {".opus", SF_FORMAT_OGG, SF_FORMAT_OPUS},
    {".w64", SF_FORMAT_W64, SF_FORMAT_PCM_16}, {".rf64", SF_FORMAT_RF64, SF_FORMAT_PCM_16},
};

/* The subtypes that lose nothing when carried over, and the size of their integers. */
static const struct subtype {
    int subtype, bits; /* 0: not integers */
    unsigned bytes;
} subtypes[] = {
    {SF_FORMAT_PCM_S8, 8, 1},  {SF_FORMAT_PCM_U8, 8, 1},  {SF_FORMAT_PCM_16, 16, 2},
    {SF_FORMAT_PCM_24, 24, 3}, {SF_FORMAT_PCM_32, 32, 4}, {SF_FORMAT_FLOAT, 0, 4},
    {SF_FORMAT_DOUBLE, 0, 8},  {SF_FORMAT_ULAW, 0, 1},    {SF_FORMAT_ALAW, 0, 1},
};

__attribute__((format(printf, 4, 5))) static void say(struct sound_file_error *err, int code, const char *path,
                                                      const char *format, ...)
{
    err->code = code;
    int n = snprintf(err->text, sizeof err->text, "%.*s: ", TOLD, path);
    va_list args;
    va_start(args, format);
    vsnprintf(err->text + n, sizeof err->text - (size_t)n, format, args);
    va_end(args);
}

static struct sound_file *allocate(const char *path, struct sound_file_error *err)
{
    struct sound_file *file = calloc(1, sizeof *file);
    if (file) {
        file->fd = -1;
        file->path = strdup(path);
    }
    if (!file || !file->path) {
        free(file);
        say(err, EX_OSERR, path, "out of memory");
        return NULL;
    }
    return file;
}

static const struct subtype *find_subtype(int format)
{
    for (size_t i = 0; i < sizeof subtypes / sizeof *subtypes; i++) {
        if (subtypes[i].subtype == (format & SF_FORMAT_SUBMASK)) {
            return &subtypes[i];
        }
    }
    return NULL;
}

/* Samples that the file says it holds: libsndfile tells only of those that are there. each: bytes of one; 0: they have no size. */
static int64_t find_length(const struct chunks_data *data, int64_t found, uint64_t each)
{
    double share = data->there > 0 ? (double)data->told / (double)data->there : 1;
    double length = each > 0 ? (double)(data->told / each) : round((double)found * share);
    bool more = length > (double)found && length < 0x1p53;
    return more ? (int64_t)length : found + (data->there == 0);
}

/* The samples from byte `start` on. */
static bool reopen_raw(struct sound_file *file, const SF_INFO *found, sf_count_t start, bool big)
{
    SF_INFO raw = {.samplerate = found->samplerate, .channels = found->channels};
    raw.format = SF_FORMAT_RAW | (found->format & SF_FORMAT_SUBMASK) | (big ? SF_ENDIAN_BIG : SF_ENDIAN_LITTLE);
    SNDFILE *handle = sf_open(file->path, SFM_READ, &raw);
    sf_command(handle, SFC_SET_RAW_START_OFFSET, &start, sizeof start); /* gives nothing, and goes nowhere */
    if (!handle || sf_seek(handle, 0, SEEK_SET) != 0) {
        sf_close(handle);
        return false;
    }
    sf_close(file->handle);
    file->handle = handle;
    return true;
}

/* What stands in the header, and what is there: how long it is, and from where. */
static void compare_header(struct sound_file *file, const SF_INFO *found, char *note, size_t size)
{
    struct chunks_data data;
    const struct subtype *subtype = find_subtype(found->format);
    uint64_t each = (subtype ? subtype->bytes : 0) * (uint64_t)found->channels;
    file->length = found->frames;
    if (!chunks_find_data(file->path, &data) || data.there == data.told) {
        return;
    }
    if (data.told == 0) {
        if (found->frames == 0 && each > 0 && data.there >= each &&
            reopen_raw(file, found, (sf_count_t)data.from, data.big)) {
            file->length = (int64_t)(data.there / each);
            snprintf(note, size,
                     "its header tells of no samples, as it was never finished; those that are there are taken");
        }
    } else if (data.miscounted || data.told - data.there < each) {
        snprintf(note, size, "its header tells %llu bytes more than there are; what is there is taken",
                 (unsigned long long)(data.told - data.there));
    } else {
        file->length = find_length(&data, found->frames, each);
    }
}

static void describe(SNDFILE *handle, int format, char *words, size_t size)
{
    SF_FORMAT_INFO major = {.format = format & SF_FORMAT_TYPEMASK}, minor = {.format = format & SF_FORMAT_SUBMASK};
    sf_command(handle, SFC_GET_FORMAT_INFO, &major, sizeof major);
    sf_command(handle, SFC_GET_FORMAT_INFO, &minor, sizeof minor);
    snprintf(words, size, "%s, %s", major.name ? major.name : "unknown", minor.name ? minor.name : "unknown");
}

static bool is_pipe(const char *path)
{
    struct stat found;
    return stat(path, &found) == 0 && S_ISFIFO(found.st_mode);
}

/* Say why libsndfile would not open it, by looking at the file ourselves: its own words are few. */
static void say_why_unreadable(const char *path, struct sound_file_error *err)
{
    const char *reason = sf_strerror(NULL);
    if (strcmp(path, "-") == 0) {
        say(err, EX_DATAERR, path, "standard input is empty, or no sound that can be read as it comes; WAV can (%s)", reason);
        return;
    }
    if (is_pipe(path)) { /* whose writer may have gone: who opened it again would wait for another */
        say(err, EX_DATAERR, path, "this pipe is empty, or no sound that can be read as it comes; WAV can (%s)",
            reason);
        return;
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        say(err, spare_code(EX_NOINPUT), path, "%s", strerror(errno));
        return;
    }
    char start[17] = "";
    size_t n = fread(start, 1, sizeof start - 1, file);
    if (ferror(file)) {
        say(err, EX_NOINPUT, path, "%s", strerror(errno));
    } else if (n == 0) {
        say(err, EX_DATAERR, path, "empty, 0 bytes; a sound file has at least a header");
    } else {
        for (size_t i = 0; i < n; i++) {
            start[i] = isprint((unsigned char)start[i]) ? start[i] : '.';
        }
        say(err, EX_DATAERR, path, "not a sound file that can be read, whatever its name: it begins with \"%s\" (%s)",
            start, reason);
    }
    fclose(file);
}

/* Behind standard input's header comes something, and no chunk. */
static bool goes_on(void)
{
    unsigned char name[4];
    return read(STDIN_FILENO, name, 4) == 4 && !chunks_is_name(name);
}

struct sound_file *sound_file_open(const char *path, struct sound_file_info *info, struct sound_file_error *err)
{
    *err = (struct sound_file_error){0};
    struct sound_file *file = allocate(path, err);
    if (!file) {
        return NULL;
    }
    SF_INFO found = {0};
    file->handle = sf_open(path, SFM_READ, &found);
    if (!file->handle) {
        say_why_unreadable(path, err);
        sound_file_close(file);
        return NULL;
    }
    file->channels = found.channels;
    bool pipe = strcmp(path, "-") == 0, told = found.frames >= 0 && found.frames < INT64_MAX / 2 && !pipe;
    *info = (struct sound_file_info){.rate = found.samplerate, .channels = found.channels, .format = found.format};
    file->length = -1; /* who writes to a pipe doesn't know it, whatever stands in the header */
    if (told) {
        compare_header(file, &found, info->note, sizeof info->note);
    } else if (pipe && found.frames == 0 && (found.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_WAV && goes_on()) {
        say(err, EX_DATAERR, path, "the header tells of no samples, and more follows; in a file it is taken for them");
        sound_file_close(file);
        return NULL;
    }
    info->length = file->length;
    describe(file->handle, found.format, info->words, sizeof info->words);
    return file;
}

/* Short of what the header promised, or stopped by the decoder. */
static void say_where_it_stopped(struct sound_file *file, struct sound_file_error *err)
{
    int error = sf_error(file->handle);
    if (file->length >= 0 && file->position < file->length) {
        say(err, EX_DATAERR, file->path, "cut short or damaged: stops at sample %lld of %lld%s%s",
            (long long)file->position, (long long)file->length, error ? ": " : "", error ? sf_error_number(error) : "");
    } else if (error) {
        say(err, EX_DATAERR, file->path, "damaged: stops at sample %lld: %s", (long long)file->position,
            sf_error_number(error));
    }
}

/* Nearly always there are none: a look at the exponents, which the compiler's vectors do, says so. */
static void silence_bad(struct sound_file *file, float *samples, size_t n)
{
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        bad |= !(fabsf(samples[i]) <= FLT_MAX);
    }
    for (size_t i = 0; i < n && bad; i++) {
        if (!isfinite(samples[i])) {
            samples[i] = 0;
            file->bad++;
        }
    }
}

size_t sound_file_read(struct sound_file *file, float *samples, size_t n, struct sound_file_error *err)
{
    *err = (struct sound_file_error){0};
    sf_count_t got = sf_readf_float(file->handle, samples, (sf_count_t)n);
    size_t given = got > 0 ? (size_t)got : 0;
    silence_bad(file, samples, given * (size_t)file->channels);
    file->position += (int64_t)given;
    if (given < n) {
        say_where_it_stopped(file, err);
    }
    return given;
}

bool sound_file_seek(struct sound_file *file, int64_t position)
{
    if (sf_seek(file->handle, position, SEEK_SET) != position) {
        return false;
    }
    file->position = position;
    return true;
}

uint64_t sound_file_bad(const struct sound_file *file)
{
    return file->bad;
}

static const struct ending *find_ending(const char *path)
{
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++) {
        if (strcasecmp(dot, endings[i].text) == 0) {
            return &endings[i];
        }
    }
    return NULL;
}

static int choose_subtype(const struct ending *ending, const struct sound_file_info *info)
{
    const struct subtype *source = find_subtype(info->format);
    SF_INFO wanted = {.samplerate = info->rate, .channels = info->channels};
    if (source && find_subtype(ending->subtype)) {
        wanted.format = ending->container | source->subtype;
        if (sf_format_check(&wanted)) {
            return source->subtype;
        }
        if (ending->container == SF_FORMAT_FLAC && source->bits != 8) { /* 32 bits or float: FLAC ends at 24 */
            return SF_FORMAT_PCM_24;
        }
    }
    return ending->subtype;
}

/* A plain WAV's sizes have 32 bits; ours go to RF64 early and come back. Plain where it surely fits: RF64 comes back
 * with the extensible header, which some readers (Python's wave before 3.12) don't know. */
static int choose_container(const struct ending *ending, const struct sound_file_info *info)
{
    bool small = info->length >= 0 && info->length < (INT64_C(1) << 31) / 8 / info->channels;
    return ending->container == SF_FORMAT_WAV && !small ? SF_FORMAT_RF64 : ending->container;
}

/* Neither free nor a regular file: a rename must not replace a device or a link. */
static bool is_special(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 && !S_ISREG(status.st_mode);
}

/* tried: an encoder was opened and didn't begin. */
static void say_why_not_made(const char *path, const SF_INFO *wanted, bool tried, struct sound_file_error *err)
{
    int error = errno;
    if ((wanted->format & SF_FORMAT_SUBMASK) == SF_FORMAT_OPUS && 48000 % wanted->samplerate) {
        say(err, EX_CANTCREAT, path, "Opus takes 8000, 12000, 16000, 24000 or 48000 Hz, not %d; choose .ogg or .flac",
            wanted->samplerate);
    } else if (tried || !sf_format_check(wanted)) {
        say(err, EX_CANTCREAT, path, "this format doesn't take %d channels at %d Hz; choose .wav", wanted->channels,
            wanted->samplerate);
    } else if (is_pipe(path)) {
        say(err, EX_CANTCREAT, path, "this format goes back to its header, and a pipe can't; choose .flac, .ogg or .opus");
    } else {
        say(err, EX_CANTCREAT, path, "can't be written: %s", error ? strerror(error) : sf_strerror(NULL));
    }
}

/* What to ask libsndfile for; NULL with *err set. */
static const struct ending *choose_format(const char *path, const struct sound_file_info *info, SF_INFO *wanted,
                                          struct sound_file_error *err)
{
    const struct ending *ending = find_ending(path);
    if (!ending) {
        say(err, EX_CANTCREAT, path, "the ending says the format: use .wav, .flac, .ogg, .opus, .w64 or .rf64");
        return NULL;
    }
    *wanted = (SF_INFO){.samplerate = info->rate, .channels = info->channels};
    wanted->format = choose_container(ending, info) | choose_subtype(ending, info);
    return ending;
}

/* Only an encoder that has begun is known to take its rate and channels: one does, in memory. */
static bool try_format(const char *path, const SF_INFO *wanted, struct sound_file_error *err)
{
    SF_INFO trial = *wanted;
    int fd = memfd_create("trial", MFD_CLOEXEC);
    if (fd < 0) {
        say(err, EX_OSERR, path, "can't try the format: %s", strerror(errno));
        return false;
    }
    errno = 0;
    SNDFILE *handle = sf_open_fd(fd, SFM_WRITE, &trial, SF_FALSE);
    float *silence = handle ? calloc((size_t)wanted->channels, sizeof *silence) : NULL;
    if (silence) {
        sf_write_float(handle, silence, wanted->channels);
    }
    bool takes =
        handle && sf_error(handle) != SF_ERR_UNRECOGNISED_FORMAT; /* what else fails here isn't the format's fault */
    if (!takes) {
        say_why_not_made(path, wanted, handle != NULL, err);
    }
    if (handle) {
        sf_close(handle);
    }
    free(silence);
    close(fd);
    return takes;
}

/* Opening one waits for its reader, and so may each write, with all that is written beside it. */
static bool refuse_pipe(const char *path, struct sound_file_error *err)
{
    bool pipe = is_pipe(path);
    if (pipe) {
        say(err, EX_CANTCREAT, path, "is a pipe, whose reader could keep other recordings waiting; take a file");
    }
    return pipe;
}

bool sound_file_fits(const char *path, const struct sound_file_info *info, struct sound_file_error *err)
{
    SF_INFO wanted;
    *err = (struct sound_file_error){0};
    return choose_format(path, info, &wanted, err) && try_format(path, &wanted, err) && !refuse_pipe(path, err);
}

static bool is_regular(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* Who locked a file that another has just removed has locked nothing. */
static bool is_gone(int fd, const char *path)
{
    struct stat open, there;
    return fstat(fd, &open) == 0 && (stat(path, &there) != 0 || there.st_ino != open.st_ino || there.st_dev != open.st_dev);
}

/* Of the open file, as flock's, but who only asks need not take it. */
static const struct flock whole_file = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

/* By somebody else; if not, it is ours now. */
static bool is_locked(int fd)
{
    struct flock lock = whole_file;
    return fcntl(fd, F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES);
}

/* False with errno set, EWOULDBLOCK where somebody else has it. What can't be locked on its file system isn't. */
static bool open_in_place(struct sound_file *file)
{
    enum { TRIES = 10 };
    for (int i = 0; i < TRIES; i++) {
        file->fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        file->made = file->fd >= 0;
        if (file->fd < 0 && errno == EEXIST) { /* created where it is a link to what isn't there */
            file->fd = open(file->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        }
        if (file->fd < 0 || !is_regular(file->fd)) {
            return file->fd >= 0;
        }
        if (is_locked(file->fd)) {
            file->made = false;
            errno = EWOULDBLOCK;
            return false;
        }
        if (!is_gone(file->fd, file->path)) {
            return true;
        }
        close(file->fd);
        file->fd = -1;
    }
    errno = EWOULDBLOCK;
    return false;
}

/* A file system may know no modes, but none that lets in more. */
static bool set_mode(int fd, mode_t mode)
{
    struct stat now;
    return fchmod(fd, mode) == 0 || (fstat(fd, &now) == 0 && (now.st_mode & 0777 & ~mode) == 0);
}

/* A file that is there leaves its owner and mode to what replaces it, from the first byte on. */
static bool open_part(struct sound_file *file)
{
    struct stat there;
    bool replaces = stat(file->path, &there) == 0;
    file->fd = part_create(file->path, replaces ? 0600 : 0644, &file->part);
    if (file->fd < 0 || !replaces) {
        return file->fd >= 0;
    }
    bool given = fchown(file->fd, there.st_uid, there.st_gid) == 0 || fchown(file->fd, (uid_t)-1, there.st_gid) == 0;
    mode_t others = there.st_mode & 7; /* another group gets no more than they do */
    return set_mode(file->fd, there.st_mode & (given ? 0777 : 0707 | others << 3));
}

/* Ready to begin; NULL with *err set. */
static struct sound_file *open_for_writing(const char *path, const struct sound_file_info *info, bool atomic,
                                           struct sound_file_error *err)
{
    SF_INFO wanted;
    *err = (struct sound_file_error){0};
    const struct ending *ending = choose_format(path, info, &wanted, err);
    struct sound_file *file = ending && (atomic || !refuse_pipe(path, err)) ? allocate(path, err) : NULL;
    if (!file) {
        return NULL;
    }
    file->wanted = wanted;
    file->channels = info->channels;
    file->container = ending->container;
    bool beside = atomic && !is_special(path);
    if (try_format(path, &wanted, err) && !(beside ? open_part : open_in_place)(file)) {
        say(err, spare_code(EX_CANTCREAT), path, "%s%s",
            errno == EWOULDBLOCK ? "is being written by another ssmd" : "can't be written: ",
            errno == EWOULDBLOCK ? "" : strerror(errno));
    }
    if (err->code != 0) {
        sound_file_close(file);
        return NULL;
    }
    return file;
}

struct sound_file *sound_file_reserve(const char *path, const struct sound_file_info *info, struct sound_file_error *err)
{
    return open_for_writing(path, info, false, err);
}

bool sound_file_begin(struct sound_file *file, struct sound_file_error *err)
{
    *err = (struct sound_file_error){0};
    bool emptied = file->made || !is_regular(file->fd) || ftruncate(file->fd, 0) == 0;
    file->made = false;
    if (!emptied) {
        say(err, EX_CANTCREAT, file->path, "can't be written: %s", strerror(errno));
        return false;
    }
    errno = 0;
    file->handle = sf_open_fd(file->fd, SFM_WRITE, &file->wanted, SF_FALSE);
    if (!file->handle) {
        say_why_not_made(file->path, &file->wanted, false, err);
        return false;
    }
    if (file->container == SF_FORMAT_WAV) {
        sf_command(file->handle, SFC_RF64_AUTO_DOWNGRADE, NULL, SF_TRUE);
    }
    const struct subtype *subtype = find_subtype(file->wanted.format);
    file->full_scale = subtype && subtype->bits ? ldexp(1, subtype->bits - 1) : 0;
    return true;
}

struct sound_file *sound_file_create(const char *path, const struct sound_file_info *info, bool atomic,
                                     struct sound_file_error *err)
{
    struct sound_file *file = open_for_writing(path, info, atomic, err);
    if (file && !sound_file_begin(file, err)) {
        sound_file_close(file);
        return NULL;
    }
    return file;
}

bool sound_file_taken(const char *path)
{
    struct stat found;
    bool regular = stat(path, &found) == 0 && S_ISREG(found.st_mode); /* a pipe would wait for its reader */
    int fd = regular ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    struct flock lock = whole_file;
    bool taken = fd >= 0 && fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    if (fd >= 0) {
        close(fd);
    }
    return taken;
}

/* To integers at the top of 32 bits, as sf_write_int takes them. Not left to libsndfile: it reads with a full scale of
 * 32768 and writes with 32767, so a copy would not be a copy, and it doesn't count what it clips. Written for the
 * compiler's vectors: no call of rint (1.5 * 2^52 leaves a double no bits for a fraction) and no branch. n <= BLOCK. */
static void quantise(struct sound_file *file, const float *samples, int *integers, size_t n)
{
    double full = file->full_scale, highest = full - 1, top = 0x1p31 / full;
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        double value = ((double)samples[i] * full + 0x1.8p52) - 0x1.8p52;
        bad += !(fabs(value) <= full);
        value = value == value ? value : 0;
        value = value > -full ? value : -full;
        value = value < highest ? value : highest;
        integers[i] = (int)(value * top);
    }
    file->bad += (uint64_t)bad;
}

/* The same to 16 bits, the most usual, where a float has room for all of it. */
static void quantise_short(struct sound_file *file, const float *samples, short *integers, size_t n)
{
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        float scaled = samples[i] * 0x1p15f, value = scaled == scaled ? scaled : 0;
        value = value > -0x1p16f ? value : -0x1p16f; /* 1.5 * 2^23 rounds no more than that */
        value = value < 0x1p16f ? value : 0x1p16f;
        value = (value + 0x1.8p23f) - 0x1.8p23f;
        bad += !(scaled == scaled && fabsf(value) <= 0x1p15f);
        value = value > -0x1p15f ? value : -0x1p15f;
        integers[i] = (short)(value < 0x1p15f - 1 ? value : 0x1p15f - 1);
    }
    file->bad += (uint64_t)bad;
}

static size_t write_block(struct sound_file *file, const float *samples, size_t n)
{
    if (file->full_scale == 0x1p15) {
        short integers[BLOCK];
        quantise_short(file, samples, integers, n);
        return (size_t)sf_write_short(file->handle, integers, (sf_count_t)n);
    }
    if (file->full_scale > 0) {
        int integers[BLOCK];
        quantise(file, samples, integers, n);
        return (size_t)sf_write_int(file->handle, integers, (sf_count_t)n);
    }
    float floats[BLOCK];
    for (size_t i = 0; i < n; i++) {
        floats[i] = isnan(samples[i]) ? 0.0f : samples[i];
        file->bad += !(fabsf(samples[i]) <= 1) ? 1 : 0;
    }
    return (size_t)sf_write_float(file->handle, floats, (sf_count_t)n);
}

/* The disk takes what there is while the rest is computed, so that who commits waits for little. What goes wrong fsync tells.
 * Not for what is written in place, as it comes: there is time. */
static void send_early(struct sound_file *file)
{
    if (file->part && (file->position - file->sent) * file->channels >= SENT) {
        sync_file_range(file->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        file->sent = file->position;
    }
}

bool sound_file_write(struct sound_file *file, const float *samples, size_t n, struct sound_file_error *err)
{
    *err = (struct sound_file_error){0};
    size_t values = n * (size_t)file->channels, most = BLOCK - BLOCK % (size_t)file->channels;
    for (size_t at = 0; at < values;) {
        size_t size = values - at < most ? values - at : most;
        errno = 0;
        if (write_block(file, samples + at, size) != size) {
            say(err, EX_IOERR, file->path, "writing failed: %s", errno ? strerror(errno) : sf_strerror(file->handle));
            return false;
        }
        at += size;
    }
    file->position += (int64_t)n;
    send_early(file);
    return true;
}

void sound_file_flush(struct sound_file *file)
{
    if (file->container != SF_FORMAT_FLAC && file->container != SF_FORMAT_OGG) { /* those would get a second header */
        sf_command(file->handle, SFC_UPDATE_HEADER_NOW, NULL, 0);
    }
    sf_write_sync(file->handle);
}

/* libsndfile doesn't say when an encoder's last block, written as it closes, found no room; errno still does. */
static bool is_write_error(int number)
{
    return number == ENOSPC || number == EFBIG || number == EDQUOT || number == EIO;
}

bool sound_file_deleted(const struct sound_file *file)
{ /* there are file systems that count no links */
    struct stat ours, found;
    bool none = fstat(file->fd, &ours) == 0 && S_ISREG(ours.st_mode) && ours.st_nlink == 0;
    bool there = none && stat(file->path, &found) == 0 && found.st_dev == ours.st_dev && found.st_ino == ours.st_ino;
    return none && !there;
}

bool sound_file_commit(struct sound_file *file, struct sound_file_error *err)
{
    *err = (struct sound_file_error){0};
    errno = 0;
    if (file->container == SF_FORMAT_FLAC && file->position == 0) {
        sf_command(file->handle, SFC_UPDATE_HEADER_NOW, NULL, 0); /* no samples: nothing had it write a header yet */
    }
    int error = sf_close(file->handle);
    file->handle = NULL;
    bool kept = !is_write_error(errno) && (fsync(file->fd) == 0 || !is_write_error(errno)); /* a pipe has nothing to keep */
    if (error || !kept) {
        say(err, EX_IOERR, file->path, "can't be finished: %s", errno ? strerror(errno) : sf_error_number(error));
        return false;
    }
    if (file->part && rename(file->part, file->path) != 0) {
        say(err, EX_IOERR, file->path, "can't be put in place: %s", strerror(errno));
        return false;
    }
    free(file->part);
    file->part = NULL;
    return true;
}

void sound_file_close(struct sound_file *file)
{
    if (!file) {
        return;
    }
    if (file->handle) {
        sf_close(file->handle);
    }
    if (file->part || file->made) {
        unlink(file->part ? file->part : file->path);
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->part);
    free(file->path);
    free(file);
}
