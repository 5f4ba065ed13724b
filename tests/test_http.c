/* SPDX-License-Identifier: MIT */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/http.h"
#include "dsp/clock.h"
#include "tests/test.h"

enum { ANSWER = 65536 };

static int port;
static int asked, niceness; /* by the server's thread; read after the answer */

static int print_small(void *arg, FILE *file)
{
    asked++;
    niceness = getpriority(PRIO_PROCESS, 0);
    fprintf(file, "hello %s\n", (const char *)arg);
    return 200;
}
static int print_large(void *arg, FILE *file)
{
    (void)arg;
    for (int i = 0; i < 4200; i++) { /* more than what sockets keep */
        fprintf(file, "%01023d\n", i);
    }
    return 503;
}
static const struct http_page pages[] = {{"/small", "text/plain", print_small}, {"/large", "text/x-large", print_large}};

static struct http *open_server(void)
{
    struct ssm_error err = {0};
    char address[32];
    struct http *http = NULL;
    for (int i = 0; i < 50 && !http; i++) { /* whatever else runs here */
        port = 20000 + (getpid() * 7 + i * 131) % 10000;
        snprintf(address, sizeof address, "127.0.0.1:%d", port);
        http = http_open(address, pages, 2, "there", &err);
    }
    assert_non_null(http);
    return http;
}

static int reach(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    return fd;
}

/* All that comes until the other end closes or 10 s pass; the number of bytes, of which ANSWER - 1 are kept. */
static size_t read_all(int fd, char answer[ANSWER])
{
    size_t n = 0, kept = 0;
    char bytes[4096];
    for (struct pollfd ready = {fd, POLLIN, 0}; poll(&ready, 1, 10000) == 1;) {
        ssize_t got = recv(fd, bytes, sizeof bytes, 0);
        if (got <= 0) {
            break;
        }
        size_t keep = (size_t)got < ANSWER - 1 - kept ? (size_t)got : ANSWER - 1 - kept;
        memcpy(answer + kept, bytes, keep);
        kept += keep;
        n += (size_t)got;
    }
    answer[kept] = '\0';
    return n;
}

static size_t ask(const void *request, size_t size, char answer[ANSWER])
{
    int fd = reach();
    send(fd, request, size, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    size_t n = read_all(fd, answer);
    close(fd);
    return n;
}

static void assert_serves(void)
{
    char answer[ANSWER];
    const char request[] = "GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    ask(request, sizeof request - 1, answer);
    assert_int_equal(strncmp(answer, "HTTP/1.1 200 ", 13), 0);
    assert_non_null(strstr(answer, "\r\n\r\nhello there\n"));
}

/* ---- The cases. ---- */

static void pages_are_served_and_others_are_told_what_there_is(void **state)
{
    (void)state;
    char answer[ANSWER];
    struct http *http = open_server();
    assert_serves();
    assert_true(niceness > getpriority(PRIO_PROCESS, 0));
    const char head[] = "HEAD /small HTTP/1.0\r\n\r\n", other[] = "GET /small/ HTTP/1.0\r\n\r\n";
    const char post[] = "POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789";
    const char body[] = "GET /small HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", large[] = "GET /large HTTP/1.0\r\n\r\n";
    ask(head, sizeof head - 1, answer);
    assert_non_null(strstr(answer, "200 OK"));
    assert_null(strstr(answer, "hello"));
    ask(other, sizeof other - 1, answer);
    assert_non_null(strstr(answer, "404 "));
    assert_non_null(strstr(answer, "there is: /small /large\n"));
    asked = 0;
    ask(post, sizeof post - 1, answer);
    assert_non_null(strstr(answer, "405 "));
    assert_non_null(strstr(answer, "Allow: GET, HEAD"));
    ask(body, sizeof body - 1, answer);
    assert_null(strstr(answer, "hello"));
    assert_int_equal(asked, 0);
    assert_true(ask(large, sizeof large - 1, answer) > 4200 << 10);
    assert_non_null(strstr(answer, "503 "));
    assert_non_null(strstr(answer, "Content-Type: text/x-large"));
    http_close(http);
}

static void a_connection_serves_several_requests(void **state)
{
    (void)state;
    char answer[ANSWER];
    struct http *http = open_server();
    const char twice[] = "GET /small HTTP/1.1\r\nHost: x\r\n\r\nGET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    asked = 0;
    ask(twice, sizeof twice - 1, answer);
    assert_int_equal(asked, 2);
    http_close(http);
}

/* A hundred clients that say nothing, or not all: who comes after them is served at once. */
static void idle_clients_keep_nobody_out(void **state)
{
    (void)state;
    enum { CLIENTS = 100 };
    int fds[CLIENTS];
    struct http *http = open_server();
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = reach();
        send(fds[i], "GET /sm", (size_t)(i % 8), MSG_NOSIGNAL);
    }
    int64_t before = clock_now();
    assert_serves();
    assert_true(clock_now() - before < 2000000000);
    int open = 0;
    for (int i = 0; i < CLIENTS; i++) {
        char byte;
        open += recv(fds[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN; /* else ended by the server */
    }
    assert_true(open <= HTTP_CONNECTIONS + 4); /* some may be on their way in or out */
    for (int i = 0; i < CLIENTS; i++) {
        close(fds[i]);
    }
    http_close(http);
}

/* Who does not read a large page holds its memory until somebody needs the place, and stops nobody. */
static void clients_that_do_not_read_stop_nobody(void **state)
{
    (void)state;
    int fds[2 * HTTP_CONNECTIONS];
    struct http *http = open_server();
    for (int i = 0; i < 2 * HTTP_CONNECTIONS; i++) {
        fds[i] = reach();
        send(fds[i], "GET /large HTTP/1.0\r\n\r\n", 23, MSG_NOSIGNAL);
    }
    assert_serves();
    http_close(http); /* with answers on their way */
    for (int i = 0; i < 2 * HTTP_CONNECTIONS; i++) {
        close(fds[i]);
    }
}

static void a_client_that_says_nothing_is_let_go(void **state)
{
    (void)state;
    char answer[ANSWER];
    struct http *http = open_server();
    int64_t before = clock_now();
    int fd = reach();
    send(fd, "GET /small HT", 13, MSG_NOSIGNAL);
    read_all(fd, answer);
    int64_t took = clock_now() - before;
    assert_true(took > 3000000000 && took < 9000000000);
    close(fd);
    http_close(http);
}

/* Requests that are bytes at random, mutations of a good one, and far too long. */
static void garbage_does_no_harm(void **state)
{
    (void)state;
    static char request[1 << 18], answer[ANSWER];
    const char good[] = "GET /small?a=%20b HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    uint64_t seed = 7;
    struct http *http = open_server();
    for (int i = 0; i < 600; i++) {
        size_t n = i % 50 == 49 ? sizeof request : i % 2 ? 1 + test_bits(&seed) % 300 : sizeof good - 1;
        for (size_t k = 0; k < n && i % 2; k++) {
            request[k] = (char)test_bits(&seed);
        }
        for (size_t k = 0; k < n && i % 2 == 0; k++) {
            request[k] = test_bits(&seed) % 40 ? good[k] : (char)test_bits(&seed);
        }
        memcpy(request, i % 50 == 49 ? "GET /" : request, 5);
        int fd = reach(); /* an answer is not waited for: to half a request there is none */
        send(fd, request, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        recv(fd, answer, ANSWER, MSG_DONTWAIT);
        close(fd);
    }
    assert_serves();
    http_close(http);
}

static void an_address_that_is_taken_or_none_is_refused(void **state)
{
    (void)state;
    struct ssm_error err = {0};
    char address[32];
    struct http *http = open_server();
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    assert_null(http_open(address, pages, 2, NULL, &err));
    assert_int_equal(err.code, 69);
    assert_non_null(strstr(err.text, address));
    assert_null(http_open("no-such-host.invalid:1", pages, 2, NULL, &err));
    assert_int_equal(err.code, 78);
    http_close(http);
    http = http_open(address, pages, 2, "there", &err); /* free again at once */
    assert_non_null(http);
    assert_serves();
    http_close(http);
    http_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_served_and_others_are_told_what_there_is),
        cmocka_unit_test(a_connection_serves_several_requests),
        cmocka_unit_test(idle_clients_keep_nobody_out),
        cmocka_unit_test(clients_that_do_not_read_stop_nobody),
        cmocka_unit_test(a_client_that_says_nothing_is_let_go),
        cmocka_unit_test(garbage_does_no_harm),
        cmocka_unit_test(an_address_that_is_taken_or_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
