/* appliance/log.h: one line an event to stderr, with the "<N>" level prefix that systemd reads.
 *
 * Callers pass constants, numbers and names from the configuration; bytes of a request never come
 * here. A line is written with one write(2). Any thread. */
#ifndef NIB_APPLIANCE_LOG_H
#define NIB_APPLIANCE_LOG_H

#include "core/err.h"

enum nib_log_level { NIB_LOG_ERR = 3, NIB_LOG_WARN = 4, NIB_LOG_NOTICE = 5, NIB_LOG_INFO = 6 };

/* Whether stderr goes to the journal (JOURNAL_STREAM), where the prefix has meaning, or to a terminal. Boot only. */
void nib_log_init(void);

void nib_log(enum nib_log_level level, const char *fmt, ...) NIB_PRINTF(2, 3);

/* On a terminal: how far loading is, on a line that the next of either replaces. Elsewhere nothing. One thread. */
void nib_log_progress(double done_mb, double total_mb);

#endif
