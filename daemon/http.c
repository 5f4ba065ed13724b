/* SPDX-License-Identifier: MIT */
#include "daemon/http.h"

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/socket.h"
#include "model/refuse.h"

/* microhttpd's own limit lies above ours, so that it always takes one more and tells of it. */
enum { SPARE = 4, IDLE_S = 5, MEMORY = 16384, NICE = 10 };

struct http {
    const struct http_page *pages;
    int n;
    void *arg;
    struct MHD_Daemon *server;
    /* The server's thread only. */
    struct connection {
        int fd;
        uint64_t number; /* counts connections; 0: none here */
    } connections[HTTP_CONNECTIONS + SPARE];
    uint64_t number;
};

/* ---- Connections. ---- */

/* End the oldest connection when there are too many; microhttpd notices, and tells of it as of any other that ends. */
static void end_oldest(struct http *http)
{
    struct connection *oldest = NULL;
    int n = 0;
    for (int i = 0; i < HTTP_CONNECTIONS + SPARE; i++) {
        struct connection *connection = &http->connections[i];
        n += connection->number > 0;
        if (connection->number > 0 && (!oldest || connection->number < oldest->number)) {
            oldest = connection;
        }
    }
    if (n > HTTP_CONNECTIONS) {
        shutdown(oldest->fd, SHUT_RDWR);
    }
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **slot, enum MHD_ConnectionNotificationCode what)
{
    struct http *http = arg;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*slot) {
            ((struct connection *)*slot)->number = 0;
        }
        return;
    }
    if (http->number == 0) {
        setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + NICE); /* of this thread alone: behind all who compute */
    }
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    for (int i = 0; i < HTTP_CONNECTIONS + SPARE && info && !*slot; i++) {
        if (http->connections[i].number == 0) {
            http->connections[i] = (struct connection){info->connect_fd, ++http->number};
            *slot = &http->connections[i];
        }
    }
    end_oldest(http);
}

/* ---- Requests. ---- */

static enum MHD_Result answer(struct MHD_Connection *connection, int status, const char *type, char *text, size_t size)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    }
    enum MHD_Result result = MHD_queue_response(connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_page(const struct http *http, struct MHD_Connection *connection, const struct http_page *page)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    int status = file ? page->print(http->arg, file) : 0;
    if (!file || fclose(file) != 0) {
        free(text);
        return MHD_NO;
    }
    return answer(connection, status, page->type, text, size);
}

static int print_not_found(void *arg, FILE *file)
{
    const struct http *http = arg;
    fputs("there is:", file);
    for (int i = 0; i < http->n; i++) {
        fprintf(file, " %s", http->pages[i].path);
    }
    fputc('\n', file);
    return MHD_HTTP_NOT_FOUND;
}

static int print_not_allowed(void *arg, FILE *file)
{
    (void)arg;
    fputs("only GET and HEAD\n", file);
    return MHD_HTTP_METHOD_NOT_ALLOWED;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **started)
{
    (void)version, (void)upload;
    struct http *http = arg;
    struct http other = {.arg = http};
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        return answer_page(&other, connection, &(struct http_page){"", "text/plain", print_not_allowed});
    }
    if (*upload_size > 0) {
        return MHD_NO; /* nobody has a body to send */
    }
    if (!*started) {
        *started = http; /* an answer before the request's end would end the connection with it */
        return MHD_YES;
    }
    for (int i = 0; i < http->n; i++) {
        if (strcmp(path, http->pages[i].path) == 0) {
            return answer_page(http, connection, &http->pages[i]);
        }
    }
    return answer_page(&other, connection, &(struct http_page){"", "text/plain", print_not_found});
}

/* ---- Opening. ---- */

struct http *http_open(const char *address, const struct http_page *pages, int n, void *arg, struct ssm_error *err)
{
    int fd = socket_listen_tcp(address, err);
    struct http *http = fd >= 0 ? calloc(1, sizeof *http) : NULL;
    if (!http) {
        if (fd >= 0) {
            close(fd);
            refuse_memory(err);
        }
        return NULL;
    }
    *http = (struct http){.pages = pages, .n = n, .arg = arg};
    /* poll: with epoll, 0.9.75 misses the end of a client that left together with its last bytes. */
    http->server = MHD_start_daemon(MHD_USE_POLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, http,
                                    MHD_OPTION_LISTEN_SOCKET, fd,
                                    MHD_OPTION_NOTIFY_CONNECTION, on_connection, http,
                                    MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS + SPARE,
                                    MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                                    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY,
                                    MHD_OPTION_END);
    if (!http->server) {
        refuse(err, 71, "can't start the web server on %s: too many threads or too little memory", address);
        close(fd);
        free(http);
        return NULL;
    }
    return http;
}

void http_close(struct http *http)
{
    if (http) {
        MHD_stop_daemon(http->server);
        free(http);
    }
}
