/* appliance/notify.c: owns nothing. Limits: 400 bytes a message. Front thread. A message that
 * cannot be sent is lost; systemd then acts by its own timeouts. */
#include "appliance/notify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#define NIB_NOTIFY_EXTEND_US 60000000u /* a load that makes no step for a minute is stalled */

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
    (void)sd_notify(0, text);
}

void nib_notify_ready(void)
{
    (void)sd_notify(0, "READY=1");
}

void nib_notify_stopping(uint64_t most_ms)
{
    char text[80];
    (void)snprintf(text, sizeof text, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64, most_ms * 1000u);
    (void)sd_notify(0, text);
}

void nib_notify_watchdog(void)
{
    (void)sd_notify(0, "WATCHDOG=1");
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
