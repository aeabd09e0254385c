/* tools/progress.h: one line on the terminal for long work: share done, bytes, rate, time left.
 * Draws on stderr, at most ten times a second, and only when stderr is a terminal. One thread. */
#ifndef NIB_TOOLS_PROGRESS_H
#define NIB_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct nib_progress {
    const char *label;
    uint64_t total_bytes;
    uint64_t done_bytes;
    double begin_s;
    double drawn_s;
    bool on;
};

void nib_progress_begin(struct nib_progress *p, const char *label, uint64_t total_bytes);
/* arg is the struct nib_progress; the form that core's callbacks have. */
void nib_progress_add(void *arg, uint64_t bytes);
/* Clears the line. Returns the seconds since begin. */
double nib_progress_end(struct nib_progress *p);

/* "13.8 GB": three digits and a decimal unit, into out. */
void nib_bytes_text(uint64_t bytes, char out[16]);

#endif
