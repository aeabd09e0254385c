/* tools/progress.c: owns the progress line. Reads the clock and writes to stderr. One thread. Cannot fail. */
#include "tools/progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_S  0.1
#define BAR_CELLS 24

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void nib_bytes_text(uint64_t bytes, char out[16])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    int unit = 0;
    for (; value >= 999.5 && unit < 6; unit++)
        value /= 1000;
    (void)snprintf(out, 16, "%.*f %s", unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2, value, units[unit]);
}

void nib_progress_begin(struct nib_progress *p, const char *label, uint64_t total_bytes)
{
    *p = (struct nib_progress){.label = label, .total_bytes = total_bytes, .on = isatty(STDERR_FILENO) == 1};
    p->begin_s = now_s();
}

static void draw(const struct nib_progress *p)
{
    char bar[BAR_CELLS + 1];
    char done[16];
    char total[16];
    char rate[16];
    double share = p->total_bytes ? (double)p->done_bytes / (double)p->total_bytes : 1.0;
    double seconds = p->drawn_s - p->begin_s;
    double per_s = seconds > 0 ? (double)p->done_bytes / seconds : 0;
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < (int)(share * BAR_CELLS) ? '#' : '.';
    bar[BAR_CELLS] = 0;
    nib_bytes_text(p->done_bytes, done);
    nib_bytes_text(p->total_bytes, total);
    nib_bytes_text((uint64_t)per_s, rate);
    (void)fprintf(stderr, "\r\033[K%s [%s] %3.0f %%  %s of %s  %s/s", p->label, bar, share * 100, done, total, rate);
    if (per_s > 0)
        (void)fprintf(stderr, "  %.0f s left", (double)(p->total_bytes - p->done_bytes) / per_s);
    (void)fflush(stderr);
}

void nib_progress_add(void *arg, uint64_t bytes)
{
    struct nib_progress *p = arg;
    p->done_bytes += bytes;
    if (!p->on)
        return;
    double now = now_s();
    if (now - p->drawn_s < REDRAW_S)
        return;
    p->drawn_s = now;
    draw(p);
}

double nib_progress_end(struct nib_progress *p)
{
    if (p->on)
        (void)fputs("\r\033[K", stderr);
    return now_s() - p->begin_s;
}
