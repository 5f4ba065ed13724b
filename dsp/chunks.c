/* SPDX-License-Identifier: MIT */
#include "dsp/chunks.h"

#include <ctype.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dsp/bytes.h"

enum { CHUNKS = 10000, HEAD = 24 }; /* looked at; the longest head of a chunk */
enum { NEAR = 32768 }; /* bytes by which a size that its writer didn't know may be off: whole blocks of many channels */

/* W64's names are 16 bytes: four letters, and of "riff" others than of the rest. */
#define W64_RIFF "riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"
#define W64_DATA "data\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a"

static const struct kind {
    const char *begins, *data;
    unsigned name, size;   /* bytes of a chunk's name and of its size                   */
    bool big;              /* endian                                                    */
    unsigned first;        /* where the first chunk is                                  */
    unsigned counted;      /* bytes of a chunk's head that its size counts              */
    unsigned align, ahead; /* of chunks; bytes before the samples in theirs             */
} kinds[] = {
    {"RIFF", "data", 4, 4, false, 12, 0, 2, 0}, {"RIFX", "data", 4, 4, true, 12, 0, 2, 0},
    {"RF64", "data", 4, 4, false, 12, 0, 2, 0}, {"FORM", "SSND", 4, 4, true, 12, 0, 2, 8},
    {W64_RIFF, W64_DATA, 16, 8, false, 40, 24, 8, 0},
};

bool chunks_is_name(const unsigned char *bytes)
{
    return isprint(bytes[0]) && isprint(bytes[1]) && isprint(bytes[2]) && isprint(bytes[3]);
}

/* A chunk's head: its name and its size. */
static bool read_head(int fd, const struct kind *kind, uint64_t at, unsigned char *head)
{
    size_t n = kind->name + kind->size;
    return pread(fd, head, n, (off_t)at) == (ssize_t)n;
}

/* The size in a chunk's head. */
static uint64_t read_size(const struct kind *kind, const unsigned char *head)
{
    return (kind->big ? bytes_get_big : bytes_get)(head + kind->name, (int)kind->size);
}

static const struct kind *find_kind(int fd)
{
    unsigned char begins[16];
    ssize_t n = pread(fd, begins, sizeof begins, 0);
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (n >= (ssize_t)kinds[i].name && memcmp(begins, kinds[i].begins, kinds[i].name) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

/* RF64 has it in front, in 64 bits; 0 where not. */
static uint64_t find_long_size(int fd)
{
    unsigned char chunk[24]; /* "ds64", its size, that of RIFF, that of data */
    bool there = pread(fd, chunk, sizeof chunk, 12) == sizeof chunk && memcmp(chunk, "ds64", 4) == 0;
    return there ? bytes_get(chunk + 16, 8) : 0;
}

/* Those who write into a pipe say something near these. */
static bool is_known(uint64_t size)
{
    static const uint64_t guesses[] = {0x7f000000 + NEAR, UINT64_C(1) << 31, UINT64_C(1) << 32};
    bool known = size < INT64_MAX / 2;
    for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++) {
        known = known && (size < guesses[i] - 2 * NEAR || size > guesses[i]);
    }
    return known;
}

/* Where the chunk behind the one at `at` begins; 0: nowhere. */
static uint64_t find_next(const struct kind *kind, uint64_t at, uint64_t size)
{
    if (size < kind->counted || size > INT64_MAX / 4 || at > INT64_MAX / 4) {
        return 0;
    }
    at += kind->name + kind->size + size - kind->counted;
    return at + (kind->align - at % kind->align) % kind->align;
}

/* The chunk of the samples: where they begin, and how many bytes it says they are. */
static bool find_samples(int fd, const struct kind *kind, uint64_t *from, uint64_t *size)
{
    unsigned more = kind->counted + kind->ahead;
    unsigned char bytes[HEAD];
    uint64_t at = kind->first;
    for (int i = 0; i < CHUNKS && at > 0 && read_head(fd, kind, at, bytes); i++) {
        *size = read_size(kind, bytes);
        if (memcmp(bytes, kind->data, kind->name) == 0) {
            bool is_long = *size == UINT32_MAX && memcmp(kind->begins, "RF64", 4) == 0;
            *size = is_long ? find_long_size(fd) : *size;
            *from = at + kind->name + kind->size + kind->ahead;
            bool known = is_known(*size);
            *size = *size > more ? *size - more : 0;
            return known;
        }
        at = find_next(kind, at, *size);
    }
    return false;
}

/* Are these chunks to the end of the file, and no samples? */
static bool are_chunks(int fd, const struct kind *kind, uint64_t at, uint64_t all)
{
    unsigned char bytes[HEAD];
    for (int i = 0; i < CHUNKS && at > 0 && at < all && read_head(fd, kind, at, bytes); i++) {
        at = chunks_is_name(bytes) ? find_next(kind, at, read_size(kind, bytes)) : 0;
    }
    return at >= all;
}

/* Does the file say its own length, and rightly? */
static bool is_whole(int fd, const struct kind *kind, uint64_t all)
{
    unsigned char bytes[HEAD];
    return read_head(fd, kind, 0, bytes) && read_size(kind, bytes) + kind->name + kind->size - kind->counted == all;
}

/* What is there of what was told. */
static void find_there(int fd, const struct kind *kind, uint64_t all, struct chunks_data *data)
{
    uint64_t rest = data->from >= all ? 0 : all - data->from;
    bool unsaid = data->told == 0 && !are_chunks(fd, kind, data->from, all);
    data->there = rest < data->told || unsaid ? rest : data->told;
    data->miscounted =
        data->there < data->told && (data->told == all || data->told + 8 == all || is_whole(fd, kind, all));
}

bool chunks_find_data(const char *path, struct chunks_data *data)
{
    struct stat status;
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) {
        return false;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const struct kind *kind = fd >= 0 ? find_kind(fd) : NULL;
    bool found = kind != NULL && find_samples(fd, kind, &data->from, &data->told);
    if (found) {
        data->big = kind->big;
        find_there(fd, kind, (uint64_t)status.st_size, data);
    }
    if (fd >= 0) {
        close(fd);
    }
    return found;
}
