/* appliance/notify.h: what the daemon tells systemd, through libsystemd.
 *
 * Nothing is allocated: lines are formatted on the stack and sent with sd_notify. Without
 * NOTIFY_SOCKET every call does nothing. Front thread. */
#ifndef NIB_APPLIANCE_NOTIFY_H
#define NIB_APPLIANCE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

/* Milliseconds between watchdog pings: half of what systemd asks for; 0 = no watchdog. */
uint64_t nib_notify_watchdog_ms(void);

/* "STATUS=..." and, during boot, EXTEND_TIMEOUT_USEC so that a slow load is not taken for a stall.
 */
void nib_notify_status(bool booting, const char *fmt, ...) NIB_PRINTF(2, 3);

void nib_notify_ready(void);
/* STOPPING=1, and that it may take `most_ms` from now. */
void nib_notify_stopping(uint64_t most_ms);
void nib_notify_watchdog(void);

/* The listening socket systemd passed, or -1. NIB_E_ARG: it passed something else than one
 * listening UNIX stream socket. */
enum nib_err nib_notify_listen_fd(int *ret_fd, struct nib_msg *msg) NIB_CHECKED;

#endif
