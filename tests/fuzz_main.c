/* SPDX-License-Identifier: MIT */
/* Runs a fuzzer without libFuzzer, for a moment and with any compiler: each file of a folder, then files with changes at random,
 * the same ones each time.
 *
 *   fuzz_NAME FOLDER COUNT
 *
 * A crash ends it, as does an input that takes more than a second of the processor, or HANG_S; all tell its number. */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { FILES = 200, SIZE = 16384, HANG_S = 30, CHANGES = 4 };

static struct {
    uint8_t bytes[SIZE];
    size_t size;
} files[FILES];
static int n_files;
static volatile sig_atomic_t at;

static uint64_t random_bits(void)
{
    static uint64_t state = 88172645463325252u; /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t below(size_t n)
{
    return n > 0 ? (size_t)(random_bits() % n) : 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void load(const char *folder)
{
    struct dirent **names;
    int n = scandir(folder, &names, NULL, by_name);
    for (int i = 0; i < n; free(names[i++])) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        FILE *file = n_files < FILES && names[i]->d_name[0] != '.' ? fopen(path, "rb") : NULL;
        if (file) {
            files[n_files].size = fread(files[n_files].bytes, 1, SIZE, file);
            n_files++;
            fclose(file);
        }
    }
    if (n > 0) {
        free(names);
    }
}

/* A byte is another, goes, comes, or a piece of another file stands there. Gives the size. */
static size_t change(uint8_t *bytes, size_t size)
{
    static const uint8_t telling[] = {0, 1, 127, 128, 255, '"', '{', '\n', '-', '9'};
    size_t where = below(size), other = below((size_t)n_files), n = 1 + below(16);
    switch (below(5)) {
    case 0:
        bytes[where] = (uint8_t)(bytes[where] ^ 1u << below(8));
        return size > 0 ? size : 1;
    case 1:
        bytes[where] = telling[below(sizeof telling)];
        return size > 0 ? size : 1;
    case 2:
        n = n < size - where ? n : size - where;
        memmove(bytes + where, bytes + where + n, size - where - n);
        return size - n;
    case 3:
        n = n < SIZE - size ? n : SIZE - size;
        memmove(bytes + where + n, bytes + where, size - where);
        return size + n;
    default:
        n = n < files[other].size && n < size - where ? n : 0;
        memcpy(bytes + where, files[other].bytes + below(files[other].size - n), n);
        return size;
    }
}

static void run(int file, int changes)
{
    size_t size = files[file].size;
    static uint8_t bytes[SIZE];
    memcpy(bytes, files[file].bytes, size);
    for (int i = 0; i < changes; i++) {
        size = change(bytes, size);
    }
    uint8_t *exact = malloc(size > 0 ? size : 1); /* so that a sanitizer sees a byte too far */
    memcpy(exact, bytes, size);
    alarm(HANG_S);
    setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 1}, NULL);
    LLVMFuzzerTestOneInput(exact, size);
    setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
    alarm(0);
    free(exact);
    at++;
}

static void tell(int number)
{
    char line[64];
    int n = snprintf(line, sizeof line, "input %d: signal %d\n", (int)at, number);
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written;
    signal(number, SIG_DFL);
    raise(number);
}

static const int signals[] = {SIGALRM, SIGPROF, SIGABRT}; /* the others are sanitizers' */

int main(int argc, char **argv)
{
    if (argc != 3) {
        return 64;
    }
    load(argv[1]);
    for (int i = 0; i < (int)(sizeof signals / sizeof *signals); i++) {
        signal(signals[i], tell);
    }
    for (int i = 0; i < n_files; i++) {
        run(i, 0);
    }
    for (int i = 0; n_files > 0 && i < atoi(argv[2]); i++) {
        run((int)below((size_t)n_files), 1 + (int)below(CHANGES));
    }
    printf("%d inputs of %d files\n", (int)at, n_files);
    return n_files > 0 ? 0 : 66;
}
