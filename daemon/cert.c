/* SPDX-License-Identifier: MIT */
#include "daemon/cert.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "dsp/spare.h"
#include "model/refuse.h"

enum { LINE = 512, PATH_BYTES = 1100 };

int cert_make(struct cert *cert, struct ssm_error *err)
{
    if (zmq_curve_keypair(cert->public_key, cert->secret_key) != 0) {
        return refuse(err, 69, "this libzmq was built without CURVE");
    }
    return 0;
}

/* ---- Writing. ---- */

static bool write_file(const char *path, const struct cert *cert, bool secret)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, secret ? 0600 : 0644);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (!file) {
        return false;
    }
    fprintf(file, "#   ZeroMQ CURVE %s certificate, written by ssm keys\n", secret ? "**secret**" : "public");
    fprintf(file, "#   %s\n\nmetadata\ncurve\n    public-key = \"%s\"\n",
            secret ? "Keep it where it is: who has it is you." : "For whoever you want to be known to.", cert->public_key);
    if (secret) {
        fprintf(file, "    secret-key = \"%s\"\n", cert->secret_key);
    }
    bool ok = fflush(file) == 0 && fsync(fd) == 0;
    return fclose(file) == 0 && ok;
}

int cert_write(const struct cert *cert, const char *path, struct ssm_error *err)
{
    char secret[PATH_BYTES];
    snprintf(secret, sizeof secret, "%s_secret", path);
    if (!write_file(secret, cert, true)) {
        return refuse(err, 73, "%s can't be written: %s%s", secret, strerror(errno),
                      errno == EEXIST ? "; keys are never replaced: move it away first" : "");
    }
    if (!write_file(path, cert, false)) {
        int error = errno;
        unlink(secret);
        return refuse(err, 73, "%s can't be written: %s%s", path, strerror(error),
                      error == EEXIST ? "; keys are never replaced: move it away first" : "");
    }
    return 0;
}

/* ---- Reading. ---- */

static bool is_key(const char *text)
{
    uint8_t bytes[32];
    return strlen(text) == CERT_KEY - 1 && zmq_z85_decode(bytes, text);
}

/* The key in a line such as `    public-key = "..."`. */
static bool find_key(const char *line, const char *name, char key[CERT_KEY])
{
    size_t n = strlen(name);
    line += strspn(line, " \t");
    if (strncmp(line, name, n) != 0) {
        return false;
    }
    line += n + strspn(line + n, " \t=");
    if (*line++ != '"' || strcspn(line, "\"") != CERT_KEY - 1) {
        return false;
    }
    snprintf(key, CERT_KEY, "%s", line);
    return is_key(key);
}

bool cert_each(const char *path, void (*found)(void *context, const char *key), void *context)
{
    char line[LINE], key[CERT_KEY];
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (find_key(line, "public-key", key)) {
            found(context, key);
        }
    }
    bool ok = file && !ferror(file);
    if (file) {
        fclose(file);
    }
    return ok;
}

/* Both keys, "" where there is none. */
static void read_pair(struct cert *cert, FILE *file)
{
    char line[LINE];
    *cert = (struct cert){0};
    while (fgets(line, sizeof line, file)) {
        if (!find_key(line, "public-key", cert->public_key)) {
            find_key(line, "secret-key", cert->secret_key);
        }
    }
}

/* The two belong together. */
static bool is_pair(const struct cert *cert)
{
    char key[CERT_KEY];
    return cert->secret_key[0] && zmq_curve_public(key, cert->secret_key) == 0 && strcmp(key, cert->public_key) == 0;
}

int cert_read(struct cert *cert, const char *path, struct ssm_error *err)
{
    struct stat about;
    FILE *file = fopen(path, "re");
    if (!file || fstat(fileno(file), &about) != 0) {
        refuse(err, spare_code(66), "%s can't be read: %s; ssm keys makes keys", path, strerror(errno));
        if (file) {
            fclose(file);
        }
        return -1;
    }
    read_pair(cert, file);
    fclose(file);
    if (about.st_mode & 007) {
        return refuse(err, 77, "%s is a secret that everybody here may read: chmod 600 %s", path, path);
    }
    if (!is_pair(cert)) {
        return refuse(err, 78, "%s holds no pair of keys; name the file that ends in _secret", path);
    }
    return 0;
}

static void keep_first(void *context, const char *key)
{
    char *first = context;
    if (first[0] == '\0') {
        snprintf(first, CERT_KEY, "%s", key);
    }
}

int cert_public(const char *text, char key[CERT_KEY], struct ssm_error *err)
{
    if (is_key(text) && access(text, F_OK) != 0) { /* a path may have 40 letters too */
        snprintf(key, CERT_KEY, "%s", text);
        return 0;
    }
    key[0] = '\0';
    if (!cert_each(text, keep_first, key)) {
        return refuse(err, 66, "%s is no public key, and no file that can be read: %s", text, strerror(errno));
    }
    return key[0] ? 0 : refuse(err, 78, "%s holds no public key", text);
}
