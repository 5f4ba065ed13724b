/* SPDX-License-Identifier: MIT */
#include "daemon/allow.h"

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/cert.h"
#include "daemon/log.h"
#include "model/refuse.h"

enum { PATH_BYTES = 1400 };

struct entry {
    char key[CERT_KEY];
    enum allow_role role;
};

struct allow {
    const char *clients, *admins;
    bool any;
    struct entry *entries; /* by key; of a key that stands twice the higher role first */
    size_t n, room;
    uint64_t print;        /* of the files as they were read */
    /* While they are read. */
    enum allow_role role;
    int error; /* the first that was met; 0 */
};

static bool fail(struct allow *allow)
{
    allow->error = allow->error ? allow->error : errno;
    return false;
}

/* What may well be otherwise a second later says nothing about who is allowed. */
static bool passes(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == EIO || error == EINTR;
}

static bool is_key_file(const char *name)
{
    size_t n = strlen(name), tail = strlen("_secret");
    return name[0] != '.' && !(n > tail && strcmp(name + n - tail, "_secret") == 0);
}

/* Each file that `path` is or holds. False: it can't be read. */
static bool walk(struct allow *allow, const char *path, bool (*visit)(struct allow *allow, const char *path))
{
    DIR *folder = opendir(path);
    if (!folder) {
        return errno == ENOTDIR ? visit(allow, path) : fail(allow);
    }
    bool ok = true;
    errno = 0; /* says whether the folder ends or can't be read on */
    for (struct dirent *at; (at = readdir(folder)); errno = 0) {
        char file[PATH_BYTES];
        if (is_key_file(at->d_name) && snprintf(file, sizeof file, "%s/%s", path, at->d_name) < PATH_BYTES) {
            ok = visit(allow, file) && ok;
        }
    }
    ok = errno == 0 ? ok : fail(allow);
    closedir(folder);
    return ok;
}

static bool walk_all(struct allow *allow, bool (*visit)(struct allow *allow, const char *path))
{
    allow->role = ALLOW_CLIENT;
    bool ok = allow->any || walk(allow, allow->clients, visit);
    allow->role = ALLOW_ADMIN;
    return (allow->admins[0] == '\0' || walk(allow, allow->admins, visit)) && ok;
}

/* FNV-1a over what changes when a file does; files sum up, so that their order doesn't matter. */
static bool take_print(struct allow *allow, const char *path)
{
    struct stat about;
    if (stat(path, &about) != 0) {
        return errno == ENOENT || fail(allow); /* gone since the folder was read */
    }
    const uint64_t facts[] = {(uint64_t)about.st_ino, (uint64_t)about.st_size, (uint64_t)about.st_mtim.tv_sec,
                              (uint64_t)about.st_mtim.tv_nsec, allow->role};
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof facts; i++) {
        hash = (hash ^ ((const uint8_t *)facts)[i]) * 1099511628211u;
    }
    allow->print += hash;
    return true;
}

static void add(void *context, const char *key)
{
    struct allow *allow = context;
    if (allow->n == allow->room) {
        size_t room = 2 * allow->room + 16;
        struct entry *entries = realloc(allow->entries, room * sizeof *entries);
        if (!entries) {
            fail(allow);
            return;
        }
        allow->entries = entries;
        allow->room = room;
    }
    snprintf(allow->entries[allow->n].key, CERT_KEY, "%s", key);
    allow->entries[allow->n++].role = allow->role;
}

static bool read_file(struct allow *allow, const char *path)
{
    struct stat about;
    bool there = stat(path, &about) == 0;
    bool ok = there ? S_ISDIR(about.st_mode) || cert_each(path, add, allow) : errno == ENOENT;
    return ok || fail(allow);
}

static int compare(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (int)y->role - (int)x->role;
}

/* What was there stays where it can't be read for now. */
static bool read_all(struct allow *allow)
{
    struct allow fresh = *allow;
    fresh.entries = NULL;
    fresh.n = fresh.room = 0;
    fresh.error = 0;
    bool ok = walk_all(&fresh, read_file) && fresh.error == 0;
    if (!ok && passes(fresh.error)) {
        free(fresh.entries);
        allow->error = fresh.error;
        return false;
    }
    free(allow->entries);
    *allow = fresh;
    allow->n = ok ? allow->n : 0;
    if (allow->n > 0) {
        qsort(allow->entries, allow->n, sizeof *allow->entries, compare);
    }
    return ok;
}

struct allow *allow_open(const char *clients, const char *admins, struct ssm_error *err)
{
    struct allow *allow = calloc(1, sizeof *allow);
    if (!allow) {
        refuse_memory(err);
        return NULL;
    }
    allow->clients = clients;
    allow->admins = admins;
    allow->any = strcmp(clients, "any") == 0;
    walk_all(allow, take_print);
    if (!read_all(allow)) {
        refuse(err, 66, "the keys in %s%s%s can't be read: %s", clients, admins[0] ? " and " : "", admins, strerror(allow->error));
        allow_close(allow);
        return NULL;
    }
    return allow;
}

void allow_close(struct allow *allow)
{
    if (allow) {
        free(allow->entries);
        free(allow);
    }
}

bool allow_refresh(struct allow *allow)
{
    uint64_t before = allow->print;
    size_t had = allow->n;
    allow->print = 0;
    allow->error = 0;
    walk_all(allow, take_print);
    if (allow->print == before && allow->error == 0) {
        return false;
    }
    if (read_all(allow)) {
        log_line(LOG_INFO, "curve: %zu keys are allowed in%s", allow->n, allow->any ? ", and any other" : "");
        return true;
    }
    allow->print = 0; /* look again */
    if (passes(allow->error)) {
        log_line(LOG_WARNING, "curve: the keys in %s can't be read now: %s", allow->clients, strerror(allow->error));
        return false;
    }
    bool told = had == 0 && before == 0;
    if (!told) {
        log_line(LOG_ERROR, "curve: the keys in %s can't be read any more: nobody may come in", allow->clients);
    }
    return !told;
}

enum allow_role allow_find(const struct allow *allow, const char *key)
{
    size_t low = 0, high = allow->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(allow->entries[middle].key, key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < allow->n && strcmp(allow->entries[low].key, key) == 0;
    return found ? allow->entries[low].role : allow->any ? ALLOW_CLIENT : ALLOW_NOBODY;
}
