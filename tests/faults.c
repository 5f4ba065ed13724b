/* SPDX-License-Identifier: MIT */
/* Linked into a program, makes one of its calls fail: whatever of the rows below our own objects call (the linker's --wrap; the
 * Makefile makes its list of the rows). Libraries' own calls stay as they are: libzmq and others end the process where they
 * find no memory, which is nothing we could do otherwise.
 *
 * A site is the function and up to FRAMES return addresses in this program. In the environment:
 *   FAULTS_LIST=FILE  each site is added to FILE as it is first reached: "SITE FUNCTION +OFFSET +OFFSET ..."
 *   FAULTS_FAIL=SITE  that site fails, once, the first time or
 *   FAULTS_NTH=N      the Nth, and then creates the file
 *   FAULTS_FIRED=FILE */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <kiss_fft.h>
#include <libudev.h>
#include <microhttpd.h>
#include <mosquitto.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sndfile.h>
#include <spawn.h>
#include <speex/speex_echo.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <uv.h>
#include <yaml.h>
#include <zmq.h>

#include <jansson.h>

enum { FRAMES = 4, DEPTH = 24, SITES = 1 << 14 };

extern char __executable_start, etext;
int __real_open(const char *path, int flags, ...);

static _Atomic uint64_t sites[SITES]; /* listed already */
static uint64_t chosen;               /* 0: none        */
static _Atomic long until;            /* that site is reached so many times more before it fails */
static atomic_bool fired;
static int list = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_LIST"), *site = getenv("FAULTS_FAIL"), *nth = getenv("FAULTS_NTH");
    void *warm[1];
    backtrace(warm, 1); /* loads what it needs */
    chosen = site ? strtoull(site, NULL, 16) : 0;
    until = nth ? atol(nth) : 1;
    list = path ? __real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

/* Gives the offsets of the callers in this program, nearest first. */
static __attribute__((noinline)) int find_callers(uintptr_t callers[FRAMES])
{
    void *stack[DEPTH];
    int depth = backtrace(stack, DEPTH), n = 0;
    for (int i = 3; i < depth && n < FRAMES; i++) { /* this, fails and __wrap_ */
        uintptr_t at = (uintptr_t)stack[i];
        if (at >= (uintptr_t)&__executable_start && at < (uintptr_t)&etext) {
            callers[n++] = at - (uintptr_t)&__executable_start;
        }
    }
    return n;
}

static uint64_t hash(const char *function, const uintptr_t *callers, int n)
{
    uint64_t h = 14695981039346656037u;
    for (; *function; function++) {
        h = (h ^ (unsigned char)*function) * 1099511628211u;
    }
    for (int i = 0; i < n; i++) {
        h = (h ^ callers[i]) * 1099511628211u;
        h ^= h >> 29;
    }
    return h | 1;
}

static bool is_new(uint64_t site)
{
    for (uint64_t at = site % SITES;; at = (at + 1) % SITES) {
        uint64_t there = 0;
        if (atomic_compare_exchange_strong(&sites[at], &there, site)) {
            return true;
        }
        if (there == site) {
            return false;
        }
    }
}

static void tell(int fd, const char *function, uint64_t site, const uintptr_t *callers, int n)
{
    char line[256];
    int size = snprintf(line, sizeof line, "%016llx %s", (unsigned long long)site, function);
    for (int i = 0; i < n; i++) {
        size += snprintf(line + size, sizeof line - (size_t)size, " +%lx", (unsigned long)callers[i]);
    }
    line[size++] = '\n';
    ssize_t written = syscall(1 /* write: not the wrapped one */, fd, line, size);
    (void)written;
}

static __attribute__((noinline)) bool fails(const char *function, int error)
{
    if (list < 0 && (!chosen || atomic_load_explicit(&fired, memory_order_relaxed))) {
        return false;
    }
    uintptr_t callers[FRAMES];
    int before = errno, n = find_callers(callers);
    uint64_t site = hash(function, callers, n);
    bool now = site == chosen && atomic_fetch_sub(&until, 1) == 1;
    if (now) {
        atomic_store_explicit(&fired, true, memory_order_relaxed);
    }
    if (list >= 0 && is_new(site)) {
        tell(list, function, site, callers, n);
    }
    if (now) {
        const char *path = getenv("FAULTS_FIRED");
        int fd = path ? __real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
        if (fd >= 0) {
            tell(fd, function, site, callers, n);
            syscall(3 /* close */, fd);
        }
    }
    errno = now ? error : before;
    return now;
}

/* A row: gives `failure` with errno, instead of being called. */
#define FAULT(type, function, parameters, arguments, failure, error) \
    type __real_##function parameters;                               \
    __attribute__((noinline)) type __wrap_##function parameters;     \
    type __wrap_##function parameters                                \
    {                                                                \
        if (fails(#function, error)) {                               \
            return failure;                                          \
        }                                                            \
        return __real_##function arguments;                          \
    }
/* Of a stream, which remembers it. */
#define FAULT_STREAM(type, function, parameters, arguments, failure, error) \
    type __real_##function parameters;                                      \
    __attribute__((noinline)) type __wrap_##function parameters;            \
    type __wrap_##function parameters                                       \
    {                                                                       \
        if (fails(#function, error)) {                                      \
            file->_flags |= 0x20; /* glibc's _IO_ERR_SEEN */                \
            return failure;                                                 \
        }                                                                   \
        return __real_##function arguments;                                 \
    }
/* It is done, and still fails, as a close does whose last write found no room. */
#define FAULT_AFTER(type, function, parameters, arguments, failure, error) \
    type __real_##function parameters;                                     \
    __attribute__((noinline)) type __wrap_##function parameters;           \
    type __wrap_##function parameters                                      \
    {                                                                      \
        type result = __real_##function arguments;                         \
        return fails(#function, error) ? failure : result;                 \
    }

/* Of a function with more arguments: `call`, which finds them in `more`. */
#define FAULT_MORE(type, function, parameters, call, last, failure, error) \
    type __real_##function parameters;                                     \
    __attribute__((noinline)) type __wrap_##function parameters;           \
    type __wrap_##function parameters                                      \
    {                                                                      \
        if (fails(#function, error)) {                                     \
            return failure;                                                \
        }                                                                  \
        va_list more;                                                      \
        va_start(more, last);                                              \
        type result = call;                                                \
        va_end(more);                                                      \
        return result;                                                     \
    }

/* ---- Memory. ---- */

FAULT(void *, malloc, (size_t size), (size), NULL, ENOMEM)
FAULT(void *, calloc, (size_t n, size_t size), (n, size), NULL, ENOMEM)
FAULT(void *, realloc, (void *old, size_t size), (old, size), NULL, ENOMEM)
FAULT(void *, aligned_alloc, (size_t align, size_t size), (align, size), NULL, ENOMEM)
FAULT(char *, strdup, (const char *text), (text), NULL, ENOMEM)
FAULT(char *, strndup, (const char *text, size_t n), (text, n), NULL, ENOMEM)
FAULT(FILE *, open_memstream, (char **at, size_t *size), (at, size), NULL, ENOMEM)
FAULT(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset), (at, size, protection, flags, fd, offset),
      MAP_FAILED, ENOMEM)
FAULT(void *, mremap, (void *at, size_t size, size_t wanted, int flags, void *to), (at, size, wanted, flags, to), MAP_FAILED, ENOMEM)
FAULT(void *, tsearch, (const void *key, void **root, int (*compare)(const void *, const void *)), (key, root, compare), NULL, ENOMEM)
FAULT(char *, realpath, (const char *path, char *found), (path, found), NULL, ENOMEM)

FAULT_MORE(int, asprintf, (char **text, const char *format, ...), vasprintf(text, format, more), format, -1, ENOMEM)

/* ---- Files and folders. ---- */

FAULT_MORE(int, open, (const char *path, int flags, ...), __real_open(path, flags, va_arg(more, int)), flags, -1, EMFILE)
FAULT_MORE(int, fcntl, (int fd, int command, ...), __real_fcntl(fd, command, va_arg(more, void *)), command, -1, EMFILE)
FAULT_MORE(int, ioctl, (int fd, unsigned long request, ...), __real_ioctl(fd, request, va_arg(more, void *)), request, -1, EIO)
FAULT(ssize_t, read, (int fd, void *bytes, size_t n), (fd, bytes, n), -1, EIO)
FAULT(ssize_t, pread, (int fd, void *bytes, size_t n, off_t at), (fd, bytes, n, at), -1, EIO)
FAULT(ssize_t, write, (int fd, const void *bytes, size_t n), (fd, bytes, n), -1, ENOSPC)
FAULT_AFTER(int, close, (int fd), (fd), -1, EIO)
FAULT(int, dup, (int fd), (fd), -1, EMFILE)
FAULT(int, fsync, (int fd), (fd), -1, EIO)
FAULT(int, ftruncate, (int fd, off_t size), (fd, size), -1, ENOSPC)
FAULT(int, flock, (int fd, int operation), (fd, operation), -1, ENOLCK)
FAULT(int, fstat, (int fd, struct stat *found), (fd, found), -1, EIO)
FAULT(int, stat, (const char *path, struct stat *found), (path, found), -1, EACCES)
FAULT(int, lstat, (const char *path, struct stat *found), (path, found), -1, EACCES)
FAULT(int, access, (const char *path, int mode), (path, mode), -1, EACCES)
FAULT(int, fchmod, (int fd, mode_t mode), (fd, mode), -1, EPERM)
FAULT(int, fchown, (int fd, uid_t user, gid_t group), (fd, user, group), -1, EPERM)
FAULT(int, mkdir, (const char *path, mode_t mode), (path, mode), -1, EACCES)
FAULT(int, link, (const char *from, const char *to), (from, to), -1, EPERM)
FAULT(int, unlink, (const char *path), (path), -1, EACCES)
FAULT(int, rename, (const char *from, const char *to), (from, to), -1, EIO)
FAULT(int, renameat2, (int at, const char *from, int to_at, const char *to, unsigned flags), (at, from, to_at, to, flags), -1, EINVAL)
FAULT(ssize_t, readlink, (const char *path, char *to, size_t size), (path, to, size), -1, EIO)
FAULT(DIR *, opendir, (const char *path), (path), NULL, EMFILE)
FAULT(struct dirent *, readdir, (DIR *folder), (folder), NULL, EIO)
FAULT(int, scandir, (const char *path, struct dirent ***names, int (*chosen_by)(const struct dirent *),
                     int (*order)(const struct dirent **, const struct dirent **)), (path, names, chosen_by, order), -1, ENOMEM)
FAULT(FILE *, fopen, (const char *path, const char *mode), (path, mode), NULL, EMFILE)
FAULT(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL, ENOMEM)
FAULT_STREAM(size_t, fread, (void *bytes, size_t size, size_t n, FILE *file), (bytes, size, n, file), 0, EIO)
FAULT_STREAM(char *, fgets, (char *line, int size, FILE *file), (line, size, file), NULL, EIO)
FAULT(int, fseek, (FILE *file, long to, int from), (file, to, from), -1, EIO)
FAULT(long, ftell, (FILE *file), (file), -1, EIO)
FAULT_STREAM(int, fflush, (FILE *file), (file), EOF, ENOSPC)
FAULT_AFTER(int, fclose, (FILE *file), (file), EOF, ENOSPC)

/* ---- Sockets, descriptors, threads, processes. ---- */

FAULT(int, socket, (int family, int type, int protocol), (family, type, protocol), -1, EMFILE)
FAULT(int, socketpair, (int family, int type, int protocol, int fds[2]), (family, type, protocol, fds), -1, EMFILE)
FAULT(int, bind, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size), -1, EADDRINUSE)
FAULT(int, listen, (int fd, int waiting), (fd, waiting), -1, EADDRINUSE)
FAULT(int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size), -1, ECONNREFUSED)
FAULT(int, accept4, (int fd, struct sockaddr *from, socklen_t *size, int flags), (fd, from, size, flags), -1, EMFILE)
FAULT(ssize_t, send, (int fd, const void *bytes, size_t n, int flags), (fd, bytes, n, flags), -1, ENOBUFS)
FAULT(ssize_t, sendto, (int fd, const void *bytes, size_t n, int flags, const struct sockaddr *to, socklen_t size),
      (fd, bytes, n, flags, to, size), -1, ENOBUFS)
FAULT(ssize_t, recv, (int fd, void *bytes, size_t n, int flags), (fd, bytes, n, flags), -1, ECONNRESET)
FAULT(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), -1, ENOMEM)
FAULT(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size), (fd, level, name, value, size), -1, ENOPROTOOPT)
FAULT(int, shutdown, (int fd, int how), (fd, how), -1, ENOTCONN)
FAULT(int, getaddrinfo, (const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found),
      (host, port, hints, found), EAI_MEMORY, ENOMEM)
FAULT(int, poll, (struct pollfd *fds, nfds_t n, int timeout), (fds, n, timeout), -1, ENOMEM)
FAULT(int, ppoll, (struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask), (fds, n, timeout, mask), -1, ENOMEM)
FAULT(int, pipe2, (int fds[2], int flags), (fds, flags), -1, EMFILE)
FAULT(int, eventfd, (unsigned value, int flags), (value, flags), -1, EMFILE)
FAULT(int, memfd_create, (const char *name, unsigned flags), (name, flags), -1, EMFILE)
FAULT(int, timerfd_create, (int clock, int flags), (clock, flags), -1, EMFILE)
FAULT(int, timerfd_settime, (int fd, int flags, const struct itimerspec *to, struct itimerspec *old), (fd, flags, to, old), -1, EINVAL)
FAULT(ssize_t, getrandom, (void *bytes, size_t n, unsigned flags), (bytes, n, flags), -1, ENOSYS)
FAULT(int, pthread_create, (pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *arg), (thread, how, run, arg), EAGAIN,
      EAGAIN)
FAULT(int, posix_spawn, (pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *how,
                         char *const arguments[], char *const environment[]), (pid, path, actions, how, arguments, environment), EAGAIN, EAGAIN)

/* ---- Libraries' calls that need memory, files or sockets of their own. ---- */

FAULT(SNDFILE *, sf_open_fd, (int fd, int mode, SF_INFO *info, int closes), (fd, mode, info, closes), NULL, ENOMEM)
FAULT(SNDFILE *, sf_open, (const char *path, int mode, SF_INFO *info), (path, mode, info), NULL, EMFILE)
FAULT_AFTER(int, sf_close, (SNDFILE *file), (file), SF_ERR_SYSTEM, EIO)
FAULT(sf_count_t, sf_readf_float, (SNDFILE *file, float *samples, sf_count_t n), (file, samples, n), 0, EIO)
FAULT(sf_count_t, sf_seek, (SNDFILE *file, sf_count_t to, int from), (file, to, from), -1, EIO)
FAULT(sf_count_t, sf_write_short, (SNDFILE *file, const short *samples, sf_count_t n), (file, samples, n), 0, ENOSPC)
FAULT(sf_count_t, sf_write_int, (SNDFILE *file, const int *samples, sf_count_t n), (file, samples, n), 0, ENOSPC)
FAULT(sf_count_t, sf_write_float, (SNDFILE *file, const float *samples, sf_count_t n), (file, samples, n), 0, ENOSPC)
FAULT(kiss_fft_cfg, kiss_fft_alloc, (int n, int inverse, void *memory, size_t *size), (n, inverse, memory, size), NULL, ENOMEM)
FAULT(SpeexEchoState *, speex_echo_state_init, (int hop, int tail), (hop, tail), NULL, ENOMEM)
FAULT(int, yaml_parser_initialize, (yaml_parser_t *parser), (parser), 0, ENOMEM)
FAULT(int, yaml_parser_parse, (yaml_parser_t *parser, yaml_event_t *event), (parser, event), 0, ENOMEM)
FAULT(json_t *, json_loadb, (const char *text, size_t size, size_t flags, json_error_t *error), (text, size, flags, error), NULL, ENOMEM)
FAULT(json_t *, json_loads, (const char *text, size_t flags, json_error_t *error), (text, flags, error), NULL, ENOMEM)
FAULT(char *, json_dumps, (const json_t *value, size_t flags), (value, flags), NULL, ENOMEM)
FAULT_MORE(json_t *, json_pack, (const char *format, ...), json_vpack_ex(NULL, 0, format, more), format, NULL, ENOMEM)
FAULT(json_t *, json_object, (void), (), NULL, ENOMEM)
FAULT(json_t *, json_array, (void), (), NULL, ENOMEM)
FAULT(json_t *, json_real, (double value), (value), NULL, ENOMEM)
FAULT(json_t *, json_copy, (json_t *value), (value), NULL, ENOMEM)
FAULT_AFTER(int, json_object_set_new, (json_t *object, const char *key, json_t *value), (object, key, value), -1, ENOMEM)
FAULT_AFTER(int, json_array_append_new, (json_t *array, json_t *value), (array, value), -1, ENOMEM)
FAULT(void *, zmq_ctx_new, (void), (), NULL, EMFILE)
FAULT(void *, zmq_socket, (void *context, int type), (context, type), NULL, EMFILE)
FAULT(int, zmq_setsockopt, (void *socket, int option, const void *value, size_t size), (socket, option, value, size), -1, EINVAL)
FAULT(int, zmq_bind, (void *socket, const char *address), (socket, address), -1, EADDRINUSE)
FAULT(int, zmq_connect, (void *socket, const char *address), (socket, address), -1, EMTHREAD)
FAULT(int, zmq_send, (void *socket, const void *bytes, size_t n, int flags), (socket, bytes, n, flags), -1, EAGAIN)
FAULT(int, zmq_recv, (void *socket, void *bytes, size_t n, int flags), (socket, bytes, n, flags), -1, EAGAIN)
FAULT(int, zmq_msg_recv, (zmq_msg_t *message, void *socket, int flags), (message, socket, flags), -1, EAGAIN)
FAULT(int, zmq_poll, (zmq_pollitem_t *items, int n, long timeout), (items, n, timeout), -1, EINTR)
FAULT(int, zmq_socket_monitor, (void *socket, const char *address, int events), (socket, address, events), -1, EMFILE)
FAULT(struct mosquitto *, mosquitto_new, (const char *name, bool clean, void *context), (name, clean, context), NULL, ENOMEM)
FAULT(int, mosquitto_connect_async, (struct mosquitto *client, const char *host, int port, int keepalive), (client, host, port, keepalive),
      MOSQ_ERR_ERRNO, EMFILE)
FAULT(int, mosquitto_subscribe, (struct mosquitto *client, int *id, const char *topic, int qos), (client, id, topic, qos), MOSQ_ERR_NOMEM,
      ENOMEM)
FAULT(int, mosquitto_loop_read, (struct mosquitto *client, int most), (client, most), MOSQ_ERR_CONN_LOST, ECONNRESET)
FAULT(int, mosquitto_loop_write, (struct mosquitto *client, int most), (client, most), MOSQ_ERR_CONN_LOST, EPIPE)
FAULT(int, mosquitto_loop_misc, (struct mosquitto *client), (client), MOSQ_ERR_CONN_LOST, ECONNRESET)
FAULT(struct udev *, udev_new, (void), (), NULL, ENOMEM)
FAULT(struct udev_monitor *, udev_monitor_new_from_netlink, (struct udev *udev, const char *name), (udev, name), NULL, EMFILE)
FAULT(void *, dlopen, (const char *path, int flags), (path, flags), NULL, ENOMEM)
FAULT(int, uv_loop_init, (uv_loop_t *loop), (loop), UV_EMFILE, EMFILE)
FAULT(int, uv_async_init, (uv_loop_t *loop, uv_async_t *async, uv_async_cb called), (loop, async, called), UV_EMFILE, EMFILE)
FAULT(int, uv_poll_init, (uv_loop_t *loop, uv_poll_t *watch, int fd), (loop, watch, fd), UV_ENOMEM, ENOMEM)
FAULT(int, uv_poll_start, (uv_poll_t *watch, int events, uv_poll_cb called), (watch, events, called), UV_ENOMEM, ENOMEM)
FAULT(int, uv_signal_init, (uv_loop_t *loop, uv_signal_t *watch), (loop, watch), UV_EMFILE, EMFILE)
FAULT(int, uv_signal_start, (uv_signal_t *watch, uv_signal_cb called, int number), (watch, called, number), UV_EINVAL, EINVAL)
FAULT_MORE(struct MHD_Daemon *, MHD_start_daemon, (unsigned flags, uint16_t port, MHD_AcceptPolicyCallback accept, void *accepts,
                                                   MHD_AccessHandlerCallback answer, void *arg, ...),
           MHD_start_daemon_va(flags, port, accept, accepts, answer, arg, more), arg, NULL, ENOMEM)
FAULT(struct MHD_Response *, MHD_create_response_from_buffer, (size_t size, void *bytes, enum MHD_ResponseMemoryMode mode), (size, bytes, mode),
      NULL, ENOMEM)
FAULT(enum MHD_Result, MHD_add_response_header, (struct MHD_Response *response, const char *name, const char *value), (response, name, value),
      MHD_NO, ENOMEM)
FAULT(enum MHD_Result, MHD_queue_response, (struct MHD_Connection *connection, unsigned code, struct MHD_Response *response),
      (connection, code, response), MHD_NO, ENOMEM)
