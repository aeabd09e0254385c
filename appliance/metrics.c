/* appliance/metrics.c: owns nothing. Front thread. Cannot fail; text that does not fit sets
 * `full`. */
#include "appliance/metrics.h"

/* Upper bounds, microseconds. */
static const uint64_t bounds[NIB_HIST_BUCKETS] = {
    1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 60000000,
};

void nib_hist_add(struct nib_hist *hist, uint64_t us)
{
    size_t i = 0;
    while (i < NIB_HIST_BUCKETS && us > bounds[i])
        i++;
    hist->counts[i]++;
    hist->sum_us += us;
    hist->count++;
}

static void head(struct nib_out *out, const char *name, const char *type, const char *help)
{
    nib_out_fmt(out, "# HELP nibbled_%s %s\n# TYPE nibbled_%s %s\n", name, help, name, type);
}

void nib_metric_out(struct nib_out *out, const char *name, const char *type, const char *help, double value)
{
    head(out, name, type, help);
    nib_out_fmt(out, "nibbled_%s %.17g\n", name, value);
}

void nib_hist_out(struct nib_out *out, const char *name, const char *help, const struct nib_hist *hist)
{
    head(out, name, "histogram", help);
    uint64_t below = 0;
    for (size_t i = 0; i < NIB_HIST_BUCKETS; i++) {
        below += hist->counts[i];
        nib_out_fmt(out, "nibbled_%s_bucket{le=\"%g\"} %llu\n", name, (double)bounds[i] / 1e6,
                    (unsigned long long)below);
    }
    nib_out_fmt(out, "nibbled_%s_bucket{le=\"+Inf\"} %llu\nnibbled_%s_sum %.6f\nnibbled_%s_count %llu\n", name,
                (unsigned long long)hist->count, name, (double)hist->sum_us / 1e6, name,
                (unsigned long long)hist->count);
}

void nib_metrics_out(struct nib_out *out, const struct nib_metrics *m)
{
    const struct {
        const char *name, *type, *help;
        uint64_t value;
    } rows[] = {
        {"requests_received_total", "counter", "Generation requests.", m->received},
        {"requests_finished_total", "counter", "Answered to the end.", m->finished},
        {"requests_refused_total", "counter", "Answered with an error before any token.", m->refused},
        {"requests_cancelled_total", "counter", "Given up by the client, or cut on shutdown.", m->cancelled},
        {"requests_failed_total", "counter", "Ended by a failure of the engine.", m->failed},
        {"requests_active", "gauge", "Generation requests in the daemon now.", m->active},
        {"connections", "gauge", "Open client connections.", m->connections},
        {"connections_total", "counter", "Client connections ever.", m->connections_total},
        {"peers_refused_total", "counter", "Requests refused by the peer rules.", m->peers_refused},
        {"deadlines_total", "counter", "Connections closed for being too slow to send.", m->deadlines},
        {"slow_readers_total", "counter", "Connections closed for not reading their answer.", m->slow_readers},
        {"prompt_tokens_total", "counter", "Tokens of accepted prompts.", m->prompt_tokens},
        {"answer_tokens_total", "counter", "Tokens given to clients.", m->answer_tokens},
        {"reasoning_tokens_total", "counter", "Of them, reasoning.", m->reasoning_tokens},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        nib_metric_out(out, rows[i].name, rows[i].type, rows[i].help, (double)rows[i].value);
    head(out, "responses_total", "counter", "Responses by status class.");
    for (int i = 1; i < 6; i++)
        nib_out_fmt(out, "nibbled_responses_total{class=\"%dxx\"} %llu\n", i, (unsigned long long)m->responses[i]);
    nib_hist_out(out, "time_to_first_token_seconds", "From request to first token.", &m->ttft);
    nib_hist_out(out, "inter_token_seconds", "Between two tokens of one answer.", &m->between);
    nib_hist_out(out, "request_seconds", "From request to end.", &m->total);
}
