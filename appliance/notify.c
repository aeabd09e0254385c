/* appliance/notify.c: owns the socket to systemd and what is owed to it. Limits: 400 bytes a message. Front thread, main
 * before it. A message that systemd has no room for is lost, but READY and STOPPING are said again until it has. */
#include "appliance/notify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#define NIB_NOTIFY_EXTEND_US 60000000u /* a load that makes no step for a minute is stalled */

static struct {
    int fd; /* -1: nobody wants to know */
    struct sockaddr_un to;
    socklen_t to_bytes;
    char owed[80]; /* READY or STOPPING, not yet taken; empty: none */
} notify = {.fd = -1};

void nib_notify_init(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t n = path ? strlen(path) : 0;
    if (n < 2 || n >= sizeof notify.to.sun_path || (path[0] != '/' && path[0] != '@'))
        return;
    notify.to.sun_family = AF_UNIX;
    memcpy(notify.to.sun_path, path, n);
    if (path[0] == '@')
        notify.to.sun_path[0] = '\0'; /* an abstract name */
    notify.to_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    notify.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

/* False: systemd's queue is full now. */
static bool tell(const char *text)
{
    const struct sockaddr *to = (const struct sockaddr *)&notify.to;
    return notify.fd < 0 ||
           sendto(notify.fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL, to, notify.to_bytes) >= 0 ||
           (errno != EAGAIN && errno != EINTR);
}

/* Nothing may overtake what is owed. */
static void tell_or_lose(const char *text)
{
    nib_notify_retry();
    if (notify.owed[0] == '\0')
        (void)tell(text);
}

static void tell_surely(const char *text)
{
    (void)snprintf(notify.owed, sizeof notify.owed, "%s", text);
    nib_notify_retry();
}

void nib_notify_retry(void)
{
    if (notify.owed[0] != '\0' && tell(notify.owed))
        notify.owed[0] = '\0';
}

uint64_t nib_notify_watchdog_ms(void)
{
    uint64_t us = 0;
    return sd_watchdog_enabled(0, &us) > 0 ? us / 2000 : 0;
}

void nib_notify_status(bool booting, const char *fmt, ...)
{
    char text[400];
    int at = 0;
    if (booting)
        at = snprintf(text, sizeof text, "EXTEND_TIMEOUT_USEC=%u\n", NIB_NOTIFY_EXTEND_US);
    at += snprintf(text + at, sizeof text - (size_t)at, "STATUS=");
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text + at, sizeof text - (size_t)at, fmt, args);
    va_end(args);
    tell_or_lose(text);
}

void nib_notify_ready(void)
{
    tell_surely("READY=1");
}

void nib_notify_stopping(uint64_t most_ms)
{
    char text[80];
    (void)snprintf(text, sizeof text, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64, most_ms * 1000u);
    tell_surely(text);
}

void nib_notify_watchdog(void)
{
    tell_or_lose("WATCHDOG=1");
}

enum nib_err nib_notify_listen_fd(int *ret_fd, struct nib_msg *msg)
{
    int n = sd_listen_fds(1);
    if (n == 0) {
        *ret_fd = -1;
        return NIB_OK;
    }
    if (n != 1)
        return nib_fail(msg, NIB_E_ARG, "systemd passed %d sockets; the daemon serves exactly one", n);
    if (sd_is_socket(SD_LISTEN_FDS_START, AF_UNIX, SOCK_STREAM, 1) <= 0)
        return nib_fail(msg, NIB_E_ARG, "the socket from systemd is not a listening UNIX stream socket");
    *ret_fd = SD_LISTEN_FDS_START;
    return NIB_OK;
}
