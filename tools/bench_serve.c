/* tools/bench_serve.c: `nibble bench serve`: options, the daemon that is measured, and its loads one after another.
 * Owns the report. Limits: NIB_BENCH_MAX_POINTS loads. Main thread. Fails with the sentence of the part that failed; what was
 * measured until then is printed and written. */
#include "tools/bench_serve.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "appliance/machine.h"
#include "tools/bench_daemon.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/units.h"

#define REQUESTS_MIN 16
#define RATE_MAX     100000.0

struct options {
    const char *socket; /* of a daemon that runs; NULL: one of our own */
    const char *json, *plot;
    struct nib_bench_daemon_options daemon;
    double requests[NIB_BENCH_MAX_POINTS]; /* [requests_count] of each point, or one for all */
    uint32_t requests_count;               /* 0: not given */
    double loads[NIB_BENCH_MAX_POINTS];    /* [loads_count] */
    uint32_t loads_count;
    uint32_t beside_tokens; /* 0: every load is run alone only */
};

static volatile sig_atomic_t stop;
static struct nib_bench_report report;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

/* "1,8,64": each from min to max, whole numbers unless the least is below 1. */
static bool parse_list(const char *what, const char *text, double min, double max, double *values, uint32_t *ret_count)
{
    const bool whole = min >= 1;
    const char *at = text;
    for (uint32_t count = 0;;) {
        char *end = NULL;
        const double value = *at >= '0' && *at <= '9' ? strtod(at, &end) : NAN;
        const bool good = value >= min && value <= max && (!whole || floor(value) == value);
        if (!good || !end || (*end != ',' && *end != '\0') || count == NIB_BENCH_MAX_POINTS) {
            (void)fprintf(stderr, "%s is \"%s\"; allowed are 1 to %d %s from %g to %g, with commas\n", what, text,
                          NIB_BENCH_MAX_POINTS, whole ? "whole numbers" : "numbers", min, max);
            return false;
        }
        values[count++] = value;
        *ret_count = count;
        if (*end == '\0')
            return true;
        at = end + 1;
    }
}

static bool parse_loads(const char *what, struct options *o, bool open, double min, double max)
{
    if (!parse_list(what, optarg, min, max, o->loads, &o->loads_count))
        return false;
    report.open = open;
    for (uint32_t i = 1; i < o->loads_count; i++)
        if (o->loads[i] <= o->loads[i - 1]) {
            (void)fprintf(stderr, "%s is \"%s\"; the numbers must ascend\n", what, optarg);
            return false;
        }
    return true;
}

static bool parse_number(const char *what, const char *text, double max, double *ret)
{
    char *end = NULL;
    const double value = *text >= '0' && *text <= '9' ? strtod(text, &end) : NAN;
    if (end && value >= 0 && value <= max && *end == '\0') {
        *ret = value;
        return true;
    }
    (void)fprintf(stderr, "%s is \"%s\"; allowed are 0 to %.17g\n", what, text, max);
    return false;
}

static bool parse_seed(const char *text)
{
    double value;
    if (!parse_number("nibble bench serve: --seed", text, 0x1p48 - 1, &value))
        return false;
    report.load.seed = (uint64_t)value;
    return true;
}

static bool parse_option(int option, struct options *o)
{
    switch (option) {
    case 'S':
        o->socket = optarg;
        return true;
    case 'j':
        o->json = optarg;
        return true;
    case 'P':
        o->plot = optarg;
        return true;
    case 'c':
        return parse_loads("nibble bench serve: --clients", o, false, 1, NIB_LOAD_MAX_CONNS);
    case 'r':
        return parse_loads("nibble bench serve: --rates", o, true, 0.001, RATE_MAX);
    case 'q':
        return parse_list("nibble bench serve: --requests", optarg, 1, NIB_LOAD_MAX_REQUESTS, o->requests,
                          &o->requests_count);
    case 'b':
        return nib_option_count("nibble bench serve: --beside", optarg, NIB_MAX_CTX_TOKENS - 1, &o->beside_tokens);
    case 'p':
        return nib_option_count("nibble bench serve: --prompt", optarg, NIB_MAX_CTX_TOKENS, &report.load.prompt_tokens);
    case 'n':
        return nib_option_count("nibble bench serve: --tokens", optarg, NIB_MAX_CTX_TOKENS, &report.load.answer_tokens);
    case 'T':
        return parse_number("nibble bench serve: --temperature", optarg, 2, &report.load.temperature);
    case 'e':
        return parse_seed(optarg);
    case 's':
        return nib_option_shape("nibble bench serve: --shape", optarg, &o->daemon.shape);
    case 'w':
        return nib_option_dense("nibble bench serve: --dense", optarg, &o->daemon.dense);
    case 'k':
        return nib_option_kv("nibble bench serve: --kv", optarg, &o->daemon.kv);
    case 'v':
        o->daemon.vocab_path = optarg;
        return true;
    case 'd':
        return nib_option_device("nibble bench serve: --device", optarg, &o->daemon.device);
    case 't':
        return nib_option_count("nibble bench serve: --threads", optarg, NIB_MAX_THREADS, &o->daemon.threads);
    case 'l':
        return nib_option_count("nibble bench serve: --slots", optarg, NIB_MAX_SLOTS, &o->daemon.slots);
    case 'm':
        return nib_option_size("nibble bench serve: --memory-limit", optarg, &o->daemon.memory_bytes);
    default:
        return false;
    }
}

/* Requests of load i. */
static uint32_t requests_of(const struct options *o, uint32_t i)
{
    const double usual = report.open ? 4 * REQUESTS_MIN : fmax(REQUESTS_MIN, 2 * o->loads[i]);
    return (uint32_t)(o->requests_count == 0 ? usual : o->requests[o->requests_count == 1 ? 0 : i]);
}

static bool check(struct options *o, const char *image)
{
    const struct nib_load *l = &report.load;
    const int given = (o->socket != NULL) + (o->daemon.shape != NULL) + (image != NULL);
    o->daemon.image = image;
    o->daemon.ctx_tokens = l->prompt_tokens + l->answer_tokens;
    if (given != 1) {
        (void)fprintf(stderr, "nibble bench serve: name one image, a shape with --shape, or a daemon with --socket\n");
        return false;
    }
    if (!o->daemon.shape && o->daemon.dense != NIB_DENSE_BF16) {
        (void)fprintf(stderr, "nibble bench serve: --dense is for --shape; an image says itself what its dense "
                              "matrices are\n");
        return false;
    }
    if (o->daemon.ctx_tokens > NIB_MAX_CTX_TOKENS) {
        (void)fprintf(stderr, "nibble bench serve: %u tokens in and %u out are more than the %d of a context\n",
                      l->prompt_tokens, l->answer_tokens, NIB_MAX_CTX_TOKENS);
        return false;
    }
    if (o->daemon.ctx_tokens <= o->beside_tokens)
        o->daemon.ctx_tokens = o->beside_tokens + 1;
    if (o->requests_count > 1 && o->requests_count != o->loads_count) {
        (void)fprintf(stderr,
                      "nibble bench serve: --requests has %u numbers for %u loads; allowed are one, or one for each\n",
                      o->requests_count, o->loads_count);
        return false;
    }
    for (uint32_t i = 0; i < o->loads_count; i++) {
        const uint32_t requests = requests_of(o, i);
        if ((uint64_t)requests * l->answer_tokens <= NIB_LOAD_MAX_TOKENS)
            continue;
        (void)fprintf(stderr, "nibble bench serve: %u requests of %u tokens are more than the %u tokens of one load\n",
                      requests, l->answer_tokens, NIB_LOAD_MAX_TOKENS);
        return false;
    }
    /* the largest number of clients stands last */
    if (!o->daemon.slots && !report.open)
        o->daemon.slots = (uint32_t)o->loads[o->loads_count - 1] + (o->beside_tokens != 0);
    if (o->daemon.slots > NIB_MAX_SLOTS)
        o->daemon.slots = NIB_MAX_SLOTS;
    return true;
}

static bool parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"socket", required_argument, 0, 'S'},       {"shape", required_argument, 0, 's'},
        {"clients", required_argument, 0, 'c'},      {"rates", required_argument, 0, 'r'},
        {"requests", required_argument, 0, 'q'},     {"beside", required_argument, 0, 'b'},
        {"prompt", required_argument, 0, 'p'},       {"tokens", required_argument, 0, 'n'},
        {"temperature", required_argument, 0, 'T'},  {"seed", required_argument, 0, 'e'},
        {"json", required_argument, 0, 'j'},         {"plot", required_argument, 0, 'P'},
        {"dense", required_argument, 0, 'w'},        {"kv", required_argument, 0, 'k'},
        {"vocab", required_argument, 0, 'v'},        {"device", required_argument, 0, 'd'},
        {"threads", required_argument, 0, 't'},      {"slots", required_argument, 0, 'l'},
        {"memory-limit", required_argument, 0, 'm'}, {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
        if (!parse_option(option, o))
            return false;
    if (argc > optind + 1) {
        (void)fprintf(stderr, "nibble bench serve: one image, not %d\n", argc - optind);
        return false;
    }
    return check(o, argv[optind]);
}

static bool take_number(const json_t *object, const char *key, uint32_t *ret)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > UINT32_MAX)
        return false;
    *ret = (uint32_t)json_integer_value(value);
    return true;
}

/* What /v1/models and /health say. */
static enum nib_err ask_server(const struct options *o, const char *socket, struct nib_msg *msg)
{
    struct nib_bench_server *s = &report.server;
    json_t *models = NULL, *health = NULL;
    enum nib_err err = nib_client_get(socket, "/v1/models", &models, msg);
    if (!err)
        err = nib_client_get(socket, "/health", &health, msg);
    const json_t *model = json_array_get(json_object_get(models, "data"), 0);
    const char *id = json_string_value(json_object_get(model, "id"));
    const char *row = json_string_value(json_object_get(health, "row"));
    if (!err && (!id || !row || !take_number(model, "context_length", &s->context_tokens) ||
                 !take_number(model, "slots", &s->slots) || !take_number(model, "queue", &s->queue) ||
                 !take_number(model, "text_ids", &s->text_ids) || s->text_ids == 0))
        err = nib_fail(msg, NIB_E_FORMAT, "what answers on %s is no nibbled of this version", socket);
    if (!err && o->beside_tokens >= s->context_tokens)
        err = nib_fail(msg, NIB_E_LIMIT, "%u tokens beside are more than the daemon's context of %u", o->beside_tokens,
                       s->context_tokens);
    if (!err && report.load.prompt_tokens + report.load.answer_tokens > s->context_tokens)
        err = nib_fail(msg, NIB_E_LIMIT, "%u tokens in and %u out are more than the daemon's context of %u",
                       report.load.prompt_tokens, report.load.answer_tokens, s->context_tokens);
    if (!err) {
        (void)snprintf(s->model, sizeof s->model, "%s", id);
        (void)snprintf(s->row, sizeof s->row, "%s", row);
        report.load.text_ids = s->text_ids;
    }
    json_decref(models);
    json_decref(health);
    return err;
}

static enum nib_err run_point(const struct options *o, uint32_t i, uint32_t beside_tokens, pid_t pid,
                              struct nib_msg *msg)
{
    struct nib_bench_point *p = &report.points[report.count];
    struct nib_load load = report.load;
    struct nib_cputime before, after;
    load.requests = requests_of(o, i);
    load.seed += (uint64_t)report.count++
                 << 48; /* no prompt comes twice: the daemon may keep what it computed for the first */
    p->load = o->loads[i];
    load.beside_tokens = p->beside_tokens = beside_tokens;
    load.clients = report.open ? 0 : (uint32_t)p->load;
    load.rate_s = p->load;
    const bool known = pid && nib_cputime_of(pid, &before);
    const enum nib_err err = nib_load_run(&load, &stop, &p->result, msg);
    p->cpu_known = known && nib_cputime_of(pid, &after);
    if (p->cpu_known)
        p->cpu = (struct nib_cputime){after.main_s - before.main_s, after.all_s - before.all_s};
    nib_bench_print_point(&report, p);
    if (!err && p->result.finished == 0)
        return nib_fail(msg, NIB_E_STATE, "no request was answered");
    return err;
}

/* All points, or those until something fails; the report then holds no more than those. */
static enum nib_err run(const struct options *o, pid_t pid, struct nib_msg *msg)
{
    enum nib_err err = ask_server(o, report.load.socket, msg);
    if (err)
        return err;
    nib_bench_print_head(&report);
    for (uint32_t i = 0; i < o->loads_count && !err; i++) {
        err = run_point(o, i, 0, pid, msg);
        if (!err && o->beside_tokens)
            err = run_point(o, i, o->beside_tokens, pid, msg);
    }
    return err;
}

static enum nib_err write_files(const struct options *o, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    if (o->json && report.count)
        err = nib_bench_write_json(&report, o->json, msg);
    if (!err && o->plot && report.count)
        err = nib_bench_write_plot(&report, o->plot, msg);
    return err;
}

int nib_cmd_bench_serve(int argc, char **argv)
{
    struct options o = {.loads = {1}, .loads_count = 1};
    struct nib_bench_daemon daemon = {0};
    struct nib_msg msg, why;
    report.load = (struct nib_load){
        .prompt_tokens = 256, .answer_tokens = 64, .temperature = 1, .seed = 1, .stall_s = NIB_LOAD_STALL_S};
    if (!parse_args(argc, argv, &o))
        return NIB_EXIT_USAGE;
    const struct sigaction action = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    enum nib_err err = o.socket ? NIB_OK : nib_bench_daemon_start(&o.daemon, &stop, &daemon, &msg);
    report.load.socket = o.socket ? o.socket : daemon.socket;
    if (!err)
        err = run(&o, o.socket ? nib_cputime_listener(o.socket) : daemon.pid, &msg);
    if (err)
        (void)fprintf(stderr, "nibble bench serve: %s\n", msg.text);
    if (write_files(&o, &why) != NIB_OK) {
        (void)fprintf(stderr, "nibble bench serve: %s\n", why.text);
        err = NIB_E_IO;
    }
    nib_bench_daemon_stop(&daemon);
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}
