/* SPDX-License-Identifier: MIT */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/http.h"

static int print_page(void *arg, FILE *file)
{
    (void)arg;
    fputs("here\n", file);
    return 200;
}
static const struct http_page page = {"/metrics", "text/plain", print_page};

/* Every input is what one client sends; the server's thread reads it as it does in the daemon. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct http *http;
    static uint32_t client; /* a thousand from each address: their ports stay taken for a minute */
    int port = 20000 + getpid() % 10000; /* another fuzzer's is another one */
    char answer[4096], address[32];
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK + 1 + client++ / 1000 % 65536)}};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    http = http ? http : http_open(address, &page, 1, NULL, NULL);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool bound = http && bind(fd, (struct sockaddr *)&from, sizeof from) == 0;
    if (!bound || (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINTR)) { /* the fuzzer's own alarm */
        abort();
    }
    send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    poll(&(struct pollfd){fd, POLLIN, 0}, 1, 2); /* half a request has no answer */
    recv(fd, answer, sizeof answer, MSG_DONTWAIT);
    struct linger reset = {.l_onoff = 1}; /* leave no port waiting */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
    return 0;
}
