/* appliance/log.c: owns what stderr is, and whether a line of progress stands there. Limits: a line of 1,024 bytes, cut
 * beyond. Any thread. Cannot fail: a line that cannot be written is lost. */
#include "appliance/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define NIB_LOG_LINE_BYTES 1024

#define NIB_LOG_WIPE "\r                                        \r" /* longer than a line of progress */

static bool log_prefix, log_terminal;
static atomic_bool log_progress; /* the terminal's last line is one of progress */

void nib_log_init(void)
{
    log_prefix = getenv("JOURNAL_STREAM") != NULL;
    log_terminal = !log_prefix && isatty(STDERR_FILENO);
}

void nib_log_progress(double done_mb, double total_mb)
{
    char line[80];
    if (!log_terminal)
        return;
    int n = snprintf(line, sizeof line, "\rnibbled: loading %.0f of %.0f MB ", done_mb, total_mb);
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written;
    atomic_store(&log_progress, true);
}

void nib_log(enum nib_log_level level, const char *fmt, ...)
{
    char line[NIB_LOG_LINE_BYTES];
    const char *wipe = atomic_exchange(&log_progress, false) ? NIB_LOG_WIPE : "";
    int at =
        log_prefix ? snprintf(line, sizeof line, "<%d>", (int)level) : snprintf(line, sizeof line, "%snibbled: ", wipe);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line + at, sizeof line - (size_t)at - 1, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    size_t used = (size_t)at + (size_t)n;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written;
}
