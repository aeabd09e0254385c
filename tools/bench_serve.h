/* tools/bench_serve.h: what the two files of `nibble bench serve` share: the load, and its results in three forms. */
#ifndef NIB_TOOLS_BENCH_SERVE_H
#define NIB_TOOLS_BENCH_SERVE_H

#include <jansson.h>
#include <stdbool.h>

#include "tools/cputime.h"
#include "tools/load.h"
#include "tools/plot.h"

#define NIB_BENCH_MAX_POINTS NIB_PLOT_MAX_POINTS

/* What the daemon says of itself. */
struct nib_bench_server {
    char model[128], row[64];
    uint32_t context_tokens, slots, queue, text_ids;
};

struct nib_bench_point {
    double load;            /* clients, or requests a second */
    uint32_t beside_tokens; /* 0: nobody is beside */
    struct nib_load_result result;
    bool cpu_known;
    struct nib_cputime cpu; /* of the daemon, during this point */
};

struct nib_bench_report {
    struct nib_bench_server server;
    struct nib_load load;                                    /* what all points have in common */
    bool open;                                               /* points are rates, not clients */
    struct nib_bench_point points[2 * NIB_BENCH_MAX_POINTS]; /* [count]; each twice when there is a client beside */
    uint32_t count;
};

/* One line about the daemon and the heads of the columns; then a line a point. */
void nib_bench_print_head(const struct nib_bench_report *report);
void nib_bench_print_point(const struct nib_bench_report *report, const struct nib_bench_point *point);

/* NIB_E_IO: the file cannot be written. */
enum nib_err nib_bench_write_json(const struct nib_bench_report *report, const char *path,
                                  struct nib_msg *msg) NIB_CHECKED;
enum nib_err nib_bench_write_plot(const struct nib_bench_report *report, const char *path,
                                  struct nib_msg *msg) NIB_CHECKED;

#endif
