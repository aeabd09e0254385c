/* appliance/log.c: owns one flag. Limits: a line of 1,024 bytes, cut beyond. Any thread. Cannot
 * fail: a line that cannot be written is lost. */
#include "appliance/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define NIB_LOG_LINE_BYTES 1024

static bool log_prefix;

void nib_log_init(void)
{
    log_prefix = getenv("JOURNAL_STREAM") != NULL;
}

void nib_log(enum nib_log_level level, const char *fmt, ...)
{
    char line[NIB_LOG_LINE_BYTES];
    int at = log_prefix ? snprintf(line, sizeof line, "<%d>", (int)level) : snprintf(line, sizeof line, "nibbled: ");
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
