/* SPDX-License-Identifier: MIT */
#include "dsp/chunks.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

static uint64_t number(const unsigned char *bytes, unsigned size, bool big)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)bytes[i] << 8 * (big ? size - 1 - i : i);
    }
    return value;
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
    return there ? number(chunk + 16, 8, false) : 0;
}

/* Those who write into a pipe say something near these. */
static bool is_known(uint64_t size)
{
    static const uint64_t guesses[] = {0x7f000000 + NEAR, UINT64_C(1) << 31, UINT64_C(1) << 32};
    bool known = size > 0 && size < INT64_MAX / 2;
    for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++) {
        known = known && (size < guesses[i] - 2 * NEAR || size > guesses[i]);
    }
    return known;
}

/* The chunk of the samples: where they begin, and how many bytes it says they are. */
static bool find_samples(int fd, const struct kind *kind, uint64_t *from, uint64_t *size)
{
    unsigned head = kind->name + kind->size;
    unsigned char bytes[HEAD];
    uint64_t at = kind->first;
    for (int i = 0; i < CHUNKS && at < INT64_MAX / 4 && pread(fd, bytes, head, (off_t)at) == (ssize_t)head; i++) {
        *size = number(bytes + kind->name, kind->size, kind->big);
        if (memcmp(bytes, kind->data, kind->name) == 0) {
            bool is_long = *size == UINT32_MAX && memcmp(kind->begins, "RF64", 4) == 0;
            *size = is_long ? find_long_size(fd) : *size;
            *from = at + head + kind->ahead;
            *size = is_known(*size) && *size > kind->counted + kind->ahead ? *size - kind->counted - kind->ahead : 0;
            return *size > 0;
        }
        if (*size < kind->counted || *size > INT64_MAX / 4) {
            return false;
        }
        at += head + *size - kind->counted;
        at += (kind->align - at % kind->align) % kind->align;
    }
    return false;
}

bool chunks_find_data(const char *path, struct chunks_data *data)
{
    struct stat status;
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) {
        return false;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const struct kind *kind = fd >= 0 ? find_kind(fd) : NULL;
    uint64_t from, all = (uint64_t)status.st_size;
    bool found = kind != NULL && find_samples(fd, kind, &from, &data->told);
    if (found) {
        data->there = from >= all ? 0 : all - from < data->told ? all - from : data->told;
    }
    if (fd >= 0) {
        close(fd);
    }
    return found;
}
