/* appliance/metrics.h: counters and histograms, as Prometheus text. Fixed memory. Front thread. */
#ifndef NIB_APPLIANCE_METRICS_H
#define NIB_APPLIANCE_METRICS_H

#include <stdint.h>

#include "appliance/json_out.h"

#define NIB_HIST_BUCKETS 14

struct nib_hist {
    uint64_t counts[NIB_HIST_BUCKETS + 1]; /* the last: above all bounds */
    uint64_t sum_us, count;
};

/* The front's ledger: received == finished + refused + cancelled + failed + active. */
struct nib_metrics {
    uint64_t received; /* generation requests whose head came in */
    uint64_t finished, refused, cancelled, failed;
    uint64_t active;       /* now */
    uint64_t responses[6]; /* by status / 100 */
    uint64_t connections, connections_total, peers_refused, deadlines, slow_readers;
    uint64_t prompt_tokens, answer_tokens, reasoning_tokens;
    struct nib_hist ttft, between, total;
};

void nib_hist_add(struct nib_hist *hist, uint64_t us);

/* One metric of each kind. */
void nib_metric_out(struct nib_out *out, const char *name, const char *type, const char *help, double value);
void nib_hist_out(struct nib_out *out, const char *name, const char *help, const struct nib_hist *hist);

/* Everything in *metrics. */
void nib_metrics_out(struct nib_out *out, const struct nib_metrics *metrics);

#endif
