/* tools/bench_report.c: the results of `nibble bench serve` as text, JSON and a plot. Owns nothing. Limits:
 * NIB_BENCH_MAX_POINTS. One thread. Fails when a file cannot be written. */
#include "tools/bench_serve.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static uint32_t errors_of(const struct nib_load_result *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NIB_LOAD_ERROR_COUNT; i++)
        n += r->errors[i];
    return n;
}

static double a_second(double count, const struct nib_load_result *r)
{
    return r->seconds > 0 ? count / r->seconds : 0;
}

/* Microseconds of the daemon's processors for each token of an answer. */
static double cpu_us(const struct nib_bench_point *p, double seconds)
{
    return p->result.tokens_out ? seconds * 1e6 / (double)p->result.tokens_out : 0;
}

void nib_bench_print_head(const struct nib_bench_report *r)
{
    const struct nib_bench_server *s = &r->server;
    (void)printf("%s on row %s, %u slots, context %u tokens; %u tokens in, %u out, temperature %.6g, seed %llu\n",
                 s->model, s->row, s->slots, s->context_tokens, r->load.prompt_tokens, r->load.answer_tokens,
                 r->load.temperature, (unsigned long long)r->load.seed);
    (void)printf("%9s %8s %6s %9s %9s | %-26s | %-23s | %-26s | cpu us\n", "", "", "", "tokens/s", "tokens/s",
                 "first text, ms", "between texts, ms", "whole answer, ms");
    (void)printf("%9s %8s %6s %9s %9s | %8s %8s %8s | %7s %7s %7s | %8s %8s %8s | a token\n",
                 r->open ? "request/s" : "clients", "finished", "errors", "in", "out", "p50", "p90", "p99", "p50",
                 "p90", "p99", "p50", "p90", "p99");
    (void)fflush(stdout);
}

void nib_bench_print_point(const struct nib_bench_report *report, const struct nib_bench_point *p)
{
    const struct nib_load_result *r = &p->result;
    (void)printf("%9.6g %8u %6u %9.1f %9.1f | %8.1f %8.1f %8.1f | %7.2f %7.2f %7.2f | %8.1f %8.1f %8.1f | ", p->load,
                 r->finished, errors_of(r), a_second((double)r->tokens_in, r), a_second((double)r->tokens_out, r),
                 r->first.p50 * 1e3, r->first.p90 * 1e3, r->first.p99 * 1e3, r->gap.p50 * 1e3, r->gap.p90 * 1e3,
                 r->gap.p99 * 1e3, r->whole.p50 * 1e3, r->whole.p90 * 1e3, r->whole.p99 * 1e3);
    if (p->cpu_known)
        (void)printf("%.1f\n", cpu_us(p, p->cpu.all_s));
    else
        (void)printf("?\n");
    for (uint32_t i = 0; i < NIB_LOAD_ERROR_COUNT; i++)
        if (r->errors[i])
            (void)printf("%9s %u %s\n", "", r->errors[i], nib_load_error_name((enum nib_load_error)i));
    if (r->why.text[0])
        (void)printf("%9s first error: %s\n", "", r->why.text);
    if (p->beside_tokens) { /* the point before is the same load alone */
        const double alone = p[-1].result.gap.p50, token_alone = p[-1].result.token_gap.p50;
        (void)printf(
            "%9s beside prompts of %u tokens: %u of them in %.1f ms (p50), %u errors; p99 between texts %.2f x the "
            "p50 of the load alone, a token %.2f x\n",
            "", p->beside_tokens, r->beside.count, r->beside.p50 * 1e3, r->beside_errors,
            alone > 0 ? r->gap.p99 / alone : 0, token_alone > 0 ? r->token_gap.p99 / token_alone : 0);
    }
    if (r->tokens_cached)
        (void)printf("%9s %llu of %llu prompt tokens were known from prompts before\n", "",
                     (unsigned long long)r->tokens_cached, (unsigned long long)r->tokens_in);
    if (report->open && r->waited)
        (void)printf("%9s %u requests found all %d connections busy when they arrived\n", "", r->waited,
                     NIB_LOAD_MAX_CONNS);
    (void)fflush(stdout);
}

static json_t *spread_json(const struct nib_load_spread *s)
{
    if (s->count == 0)
        return json_null();
    return json_pack("{s:I, s:f, s:f, s:f, s:f}", "count", (json_int_t)s->count, "p50", s->p50 * 1e3, "p90",
                     s->p90 * 1e3, "p99", s->p99 * 1e3, "max", s->max * 1e3);
}

static json_t *point_json(const struct nib_bench_report *report, const struct nib_bench_point *p)
{
    const struct nib_load_result *r = &p->result;
    json_t *errors = json_object();
    for (uint32_t i = 0; i < NIB_LOAD_ERROR_COUNT; i++)
        json_object_set_new(errors, nib_load_error_name((enum nib_load_error)i), json_integer(r->errors[i]));
    json_t *json =
        json_pack("{s:f, s:f, s:I, s:I, s:o, s:I, s:s, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o}",
                  report->open ? "rate_s" : "clients", p->load, "seconds", r->seconds, "sent", (json_int_t)r->sent,
                  "finished", (json_int_t)r->finished, "errors", errors, "waited", (json_int_t)r->waited, "first_error",
                  r->why.text, "requests_s", a_second(r->finished, r), "tokens_in_s", a_second((double)r->tokens_in, r),
                  "tokens_out_s", a_second((double)r->tokens_out, r), "first_text_ms", spread_json(&r->first),
                  "between_texts_ms", spread_json(&r->gap), "between_tokens_ms", spread_json(&r->token_gap), "token_ms",
                  spread_json(&r->token), "whole_ms", spread_json(&r->whole));
    json_t *beside = json_null();
    if (p->beside_tokens)
        beside = json_pack("{s:I, s:I, s:o}", "prompt_tokens", (json_int_t)p->beside_tokens, "errors",
                           (json_int_t)r->beside_errors, "whole_ms", spread_json(&r->beside));
    json_object_set_new(json, "beside", beside);
    json_object_set_new(json, "tokens_cached", json_integer((json_int_t)r->tokens_cached));
    json_object_set_new(json, "cpu_us_token", p->cpu_known ? json_real(cpu_us(p, p->cpu.all_s)) : json_null());
    json_object_set_new(json, "cpu_front_us_token", p->cpu_known ? json_real(cpu_us(p, p->cpu.main_s)) : json_null());
    return json;
}

enum nib_err nib_bench_write_json(const struct nib_bench_report *r, const char *path, struct nib_msg *msg)
{
    const struct nib_bench_server *s = &r->server;
    json_t *points = json_array();
    for (uint32_t i = 0; i < r->count; i++)
        json_array_append_new(points, point_json(r, &r->points[i]));
    json_t *json = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:o}", "model", s->model, "row", s->row,
                             "slots", (json_int_t)s->slots, "queue", (json_int_t)s->queue, "context_tokens",
                             (json_int_t)s->context_tokens, "prompt_tokens", (json_int_t)r->load.prompt_tokens,
                             "answer_tokens", (json_int_t)r->load.answer_tokens, "temperature", r->load.temperature,
                             "seed", (json_int_t)r->load.seed, "points", points);
    FILE *file = json ? fopen(path, "w") : NULL;
    bool ok = file && json_dumpf(json, file, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0 && fputc('\n', file) != EOF;
    ok = file && fclose(file) == 0 && ok;
    json_decref(json);
    return ok ? NIB_OK : nib_fail(msg, NIB_E_IO, "cannot write %s: %s", path, strerror(errno));
}

enum nib_err nib_bench_write_plot(const struct nib_bench_report *r, const char *path, struct nib_msg *msg)
{
    char title[256];
    (void)snprintf(title, sizeof title, "%s on %s: %u tokens in, %u out", r->server.model, r->server.row,
                   r->load.prompt_tokens, r->load.answer_tokens);
    struct nib_plot plot = {.title = title,
                            .x_title = r->open ? "requests a second" : "clients",
                            .lines = {"p50", "p90", "p99"},
                            .panels = {{.title = "to the first text, ms"}, {.title = "between two texts, ms"}}};
    for (uint32_t from = 0; from < r->count; from++) {
        if (r->points[from].beside_tokens)
            continue;
        const uint32_t i = plot.count++;
        const struct nib_load_spread *spreads[] = {&r->points[from].result.first, &r->points[from].result.gap};
        plot.x[i] = r->points[from].load;
        for (uint32_t panel = 0; panel < NIB_PLOT_PANELS; panel++) {
            plot.panels[panel].ms[0][i] = spreads[panel]->p50 * 1e3;
            plot.panels[panel].ms[1][i] = spreads[panel]->p90 * 1e3;
            plot.panels[panel].ms[2][i] = spreads[panel]->p99 * 1e3;
        }
    }
    return nib_plot_write(&plot, path, msg);
}
