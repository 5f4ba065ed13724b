/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/notify.h"
#include "dsp/clock.h"
#include "tests/test.h"

static char path[64];

/* systemd's end; abstract with '@'. */
static int listen_at(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(path, sizeof path, name, getpid());
    memcpy(address.sun_path, path, strlen(path));
    address.sun_path[0] = path[0] == '@' ? '\0' : path[0];
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    setenv("NOTIFY_SOCKET", path, 1);
    return fd;
}

/* "" when nothing came. */
static const char *hear(int fd)
{
    static char text[2048];
    ssize_t n = recv(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static void systemd_hears_each_step(void **state)
{
    (void)state;
    static const char *const names[] = {"/tmp/ssm-notify-%d", "@ssm-notify-%d"};
    for (int i = 0; i < 2; i++) {
        int fd = listen_at(names[i]);
        notify_loading("model m");
        assert_string_equal(hear(fd), "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=loading model m");
        notify_ready("3 streams");
        assert_string_equal(hear(fd), "READY=1\nSTATUS=3 streams");
        notify_stopping(9.5);
        assert_string_equal(hear(fd), "STOPPING=1\nEXTEND_TIMEOUT_USEC=10500000\nSTATUS=draining");
        close(fd);
        unlink(path);
    }
}

static void the_watchdog_is_fed_where_it_is_asked_for(void **state)
{
    (void)state;
    char pid[16];
    int fd = listen_at("/tmp/ssm-notify-%d");
    unsetenv("WATCHDOG_USEC");
    notify_alive();
    assert_string_equal(hear(fd), "");
    setenv("WATCHDOG_USEC", "10000000", 1);
    notify_alive();
    assert_string_equal(hear(fd), "WATCHDOG=1");
    setenv("WATCHDOG_PID", "1", 1); /* another process's */
    notify_alive();
    assert_string_equal(hear(fd), "");
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("WATCHDOG_PID", pid, 1);
    notify_alive();
    assert_string_equal(hear(fd), "WATCHDOG=1");
    close(fd);
    unlink(path);
}

/* No socket, nobody behind it, a name that is none or too long, a listener that does not read, a status without end. */
static void nobody_listening_costs_nothing(void **state)
{
    (void)state;
    static char long_text[4096];
    memset(long_text, 'x', sizeof long_text - 1);
    const char *const names[] = {NULL, "", "/", "relative", "/tmp/ssm-nobody-there", long_text};
    for (int i = 0; i < 6; i++) {
        if (names[i]) {
            setenv("NOTIFY_SOCKET", names[i], 1);
        } else {
            unsetenv("NOTIFY_SOCKET");
        }
        notify_ready("here");
    }
    int fd = listen_at("/tmp/ssm-notify-%d");
    int64_t before = clock_now();
    for (int i = 0; i < 2000; i++) {
        notify_ready(long_text);
    }
    assert_true(clock_now() - before < 2000000000);
    assert_int_equal(strlen(hear(fd)), 1023);
    close(fd);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(systemd_hears_each_step),
        cmocka_unit_test(the_watchdog_is_fed_where_it_is_asked_for),
        cmocka_unit_test(nobody_listening_costs_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
