/* tools/bench.c: `nibble bench`: prefill and decode speed of an image on this machine, beside the memory's read rate.
 * Owns a machine (appliance/machine.h) of its own; no daemon is needed. One thread drives the engine, as the stepper would.
 * Fails with the sentence of the part that failed. */
#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "appliance/machine.h"
#include "core/arith.h"
#include "tools/commands.h"
#include "tools/memrate.h"
#include "tools/progress.h"
#include "tools/synth_weights.h"
#include "tools/units.h"

enum { PASSES = 5, RATE_PASSES = 5 };
enum { FORMAT_TEXT, FORMAT_JSON, FORMAT_CSV };

struct options {
    struct nib_machine_options machine;
    uint32_t prompt; /* tokens of a sequence's prompt */
    uint32_t tokens; /* decode steps timed */
    uint32_t batch;  /* sequences */
    uint32_t format; /* FORMAT_ */
};

struct result {
    double load_s; /* weights to their places, hashes checked */
    double read_bytes_s;
    double prefill_s;                  /* best pass: all prompts */
    double decode_s;                   /* best pass: all decode steps */
    double decode_p50_s, decode_p99_s; /* of one step, all passes */
};

struct bench {
    const struct options *options;
    struct nib_machine machine;
    struct nib_step step;
    struct nib_step_out out;
    struct nib_kv_table tables[NIB_MAX_SLOTS];
    struct nib_sampling sampling[NIB_MAX_SLOTS];
    uint32_t in_flight; /* steps submitted and not collected */
    uint32_t *pages;    /* [batch * pages a sequence] */
    double *steps_s;    /* [PASSES * tokens] */
    struct result result;
};

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A token of the made-up prompt: spread over the ordinary ids. */
static uint32_t prompt_token(const struct nib_shape *s, uint32_t slot, uint32_t pos)
{
    uint32_t hash = (slot * 7919u + pos + 1) * 2654435761u;
    return (hash >> 7) % s->special_base;
}

static enum nib_err collect(struct bench *b, struct nib_msg *msg)
{
    struct nib_engine *engine = b->machine.engine;
    b->in_flight--;
    return engine->ops->collect(engine, &b->out, msg);
}

/* Submits the step, and collects the oldest when no more may be under way: as the stepper does. */
static enum nib_err run_step(struct bench *b, struct nib_msg *msg)
{
    struct nib_engine *engine = b->machine.engine;
    b->step.serial++;
    enum nib_err err = engine->ops->submit(engine, &b->step, msg);
    if (err)
        return err;
    b->in_flight++;
    return b->in_flight == engine->dims.steps_ahead ? collect(b, msg) : NIB_OK;
}

static enum nib_err run_out(struct bench *b, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    while (b->in_flight && !err)
        err = collect(b, msg);
    return err;
}

static enum nib_err prefill(struct bench *b, uint32_t slot, struct nib_msg *msg)
{
    const struct options *o = b->options;
    uint32_t rows_max = b->machine.plan.dims.step_rows_max;
    for (uint32_t pos = 0; pos < o->prompt;) {
        uint32_t rows = (uint32_t)nib_min_u64(rows_max, o->prompt - pos);
        b->step.rows_count = rows;
        for (uint32_t i = 0; i < rows; i++, pos++)
            b->step.rows[i] = (struct nib_row){.token = prompt_token(b->machine.plan.shape, slot, pos),
                                               .pos = pos,
                                               .slot = (uint16_t)slot,
                                               .flags = pos == 0 ? NIB_ROW_FIRST : 0};
        if (pos == o->prompt)
            b->step.rows[rows - 1].flags |= NIB_ROW_LOGITS;
        enum nib_err err = run_step(b, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err decode(struct bench *b, double *steps_s, struct nib_msg *msg)
{
    const struct options *o = b->options;
    for (uint32_t t = 0; t < o->tokens; t++) {
        b->step.rows_count = o->batch;
        for (uint32_t slot = 0; slot < o->batch; slot++)
            b->step.rows[slot] = (struct nib_row){.pos = o->prompt + t,
                                                  .slot = (uint16_t)slot,
                                                  .flags = NIB_ROW_LOGITS | NIB_ROW_DECODE | NIB_ROW_FEEDBACK};
        double begin = now_s();
        enum nib_err err = run_step(b, msg);
        if (err)
            return err;
        steps_s[t] = now_s() - begin;
    }
    return run_out(b, msg);
}

static enum nib_err run_pass(struct bench *b, uint32_t pass, struct nib_msg *msg)
{
    const struct options *o = b->options;
    struct result *r = &b->result;
    double begin = now_s();
    for (uint32_t slot = 0; slot < o->batch; slot++) {
        enum nib_err err = prefill(b, slot, msg);
        if (err)
            return err;
    }
    enum nib_err err = run_out(b, msg);
    if (err)
        return err;
    double middle = now_s();
    err = decode(b, b->steps_s + (size_t)pass * o->tokens, msg);
    if (err)
        return err;
    double end = now_s();
    if (pass == 0 || middle - begin < r->prefill_s)
        r->prefill_s = middle - begin;
    if (pass == 0 || end - middle < r->decode_s)
        r->decode_s = end - middle;
    return NIB_OK;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static enum nib_err measure_rate(struct bench *b, struct nib_msg *msg)
{
    const struct nib_plan *plan = &b->machine.plan;
    if (b->machine.row->gpu) {
        b->result.read_bytes_s = b->machine.profile.read_bytes_s; /* of the device's bus, as reads reach it */
        return NIB_OK;
    }
    return nib_memrate(b->machine.base[NIB_SPACE_HOST], plan->arena_bytes[NIB_SPACE_HOST], plan->threads, RATE_PASSES,
                       &b->result.read_bytes_s, msg);
}

/* Sequence i owns pages i*n .. i*n+n-1. */
static enum nib_err give_pages(struct bench *b, struct nib_msg *msg)
{
    const struct options *o = b->options;
    const struct nib_engine_dims *d = &b->machine.plan.dims;
    uint64_t tokens = (uint64_t)o->prompt + o->tokens;
    uint32_t n = (uint32_t)nib_div_up(tokens, NIB_KV_PAGE_TOKENS);
    if (o->batch > d->slots || tokens > d->ctx_tokens || (uint64_t)n * o->batch > d->kv_pages)
        return nib_fail(msg, NIB_E_LIMIT,
                        "%u sequences of %llu tokens do not fit the plan's %u slots, %u tokens and %u pages", o->batch,
                        (unsigned long long)tokens, d->slots, d->ctx_tokens, d->kv_pages);
    b->pages = calloc((size_t)n * o->batch, sizeof *b->pages);
    b->steps_s = calloc((size_t)PASSES * o->tokens, sizeof *b->steps_s);
    if (!b->pages || !b->steps_s)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for the bench's lists");
    for (uint32_t i = 0; i < n * o->batch; i++)
        b->pages[i] = i;
    for (uint32_t slot = 0; slot < o->batch; slot++) {
        b->tables[slot] = (struct nib_kv_table){.pages = b->pages + (size_t)slot * n, .pages_count = n};
        b->sampling[slot] = (struct nib_sampling){.top_p = 1, .repetition_penalty = 1};
    }
    b->step.tables = b->tables;
    b->step.sampling = b->sampling;
    return NIB_OK;
}

static void on_load(void *arg, uint64_t done, uint64_t total)
{
    struct nib_progress *bar = arg;
    bar->total_bytes = total;
    nib_progress_add(bar, done - bar->done_bytes);
}

static enum nib_err boot(struct bench *b, struct nib_msg *msg)
{
    struct nib_machine *m = &b->machine;
    enum nib_err err = nib_machine_plan(m, &b->options->machine, msg);
    for (uint32_t i = 0; i < m->struck_count; i++)
        (void)fprintf(stderr, "nibble bench: row %s is struck by its self-test: %s\n", m->struck[i].row,
                      m->struck[i].why.text);
    if (!err)
        err = nib_machine_map(m, msg);
    if (err)
        return err;
    struct nib_progress bar;
    nib_progress_begin(&bar, "loading", m->image.file_bytes);
    err = nib_machine_load(m, on_load, &bar, msg);
    b->result.load_s = nib_progress_end(&bar);
    return err;
}

static enum nib_err run(struct bench *b, struct nib_msg *msg)
{
    enum nib_err err = boot(b, msg);
    if (!err)
        err = give_pages(b, msg);
    if (!err)
        err = measure_rate(b, msg);
    for (uint32_t pass = 0; pass < PASSES && !err; pass++)
        err = run_pass(b, pass, msg);
    if (err)
        return err;
    size_t steps = (size_t)PASSES * b->options->tokens;
    qsort(b->steps_s, steps, sizeof *b->steps_s, by_size);
    b->result.decode_p50_s = b->steps_s[steps / 2];
    b->result.decode_p99_s = b->steps_s[steps - 1 - steps / 100];
    return NIB_OK;
}

/* Bytes one decode step at batch 1 reads: weights, and the keys and values of a context half grown. */
static double step_bytes(const struct bench *b)
{
    const struct nib_plan *plan = &b->machine.plan;
    const struct nib_shape *s = plan->shape;
    double token = (double)nib_plan_page_bytes(plan->row, plan->kv, s->kv_heads) / NIB_KV_PAGE_TOKENS;
    double context = b->options->prompt + b->options->tokens / 2.0;
    double window = context < s->window ? context : s->window;
    double full_layers = s->layers / 2.0;
    return (double)plan->decode_bytes + full_layers * token * (context + window);
}

static void print_text(const struct bench *b, double prefill, double decode_rate, double roof, double share)
{
    const struct options *o = b->options;
    const struct result *r = &b->result;
    const struct nib_plan *plan = &b->machine.plan;
    char device[160];
    nib_machine_device(&b->machine, device, sizeof device);
    (void)printf("%s on %s, row %s, %u thread%s, batch %u, best of %d\n", plan->shape->name, device, plan->row->name,
                 plan->threads, plan->threads == 1 ? "" : "s", o->batch, PASSES);
    if (b->machine.device_note.text[0])
        (void)printf("  %s: %s\n", b->machine.struck_count ? "on the CPU" : "no GPU", b->machine.device_note.text);
    (void)printf("  load          %9.2f s   %.2f GB/s\n", r->load_s, (double)plan->weight_bytes / 1e9 / r->load_s);
    (void)printf("  memory read   %9.2f GB/s\n", r->read_bytes_s / 1e9);
    (void)printf("  prefill       %9.1f tokens/s   %u tokens\n", prefill, o->prompt);
    (void)printf("  decode        %9.1f tokens/s   %u steps, p50 %.3f ms, p99 %.3f ms\n", decode_rate, o->tokens,
                 r->decode_p50_s * 1e3, r->decode_p99_s * 1e3);
    if (o->batch == 1)
        (void)printf("  decode roof   %9.1f tokens/s   %.3f GB a token: %.1f %% of the roof\n", roof,
                     step_bytes(b) / 1e9, share * 100);
    (void)printf("  prefill/decode %8.1f\n", prefill / decode_rate);
}

static void print(const struct bench *b)
{
    const struct options *o = b->options;
    const struct result *r = &b->result;
    const struct nib_plan *plan = &b->machine.plan;
    double prefill = (double)o->prompt * o->batch / r->prefill_s;
    double decode_rate = (double)o->tokens * o->batch / r->decode_s;
    double roof = o->batch == 1 ? r->read_bytes_s / step_bytes(b) : 0;
    double share = roof > 0 ? decode_rate / roof : 0;
    if (o->format == FORMAT_TEXT) {
        print_text(b, prefill, decode_rate, roof, share);
    } else if (o->format == FORMAT_CSV) {
        char roofs[64] = ",";
        if (roof > 0)
            (void)snprintf(roofs, sizeof roofs, "%.2f,%.4f", roof, share);
        (void)printf("shape,row,threads,batch,prompt,tokens,read_gb_s,prefill_tokens_s,decode_tokens_s,p50_ms,p99_ms,"
                     "roof_tokens_s,share\n%s,%s,%u,%u,%u,%u,%.2f,%.1f,%.2f,%.3f,%.3f,%s\n",
                     plan->shape->name, plan->row->name, plan->threads, o->batch, o->prompt, o->tokens,
                     r->read_bytes_s / 1e9, prefill, decode_rate, r->decode_p50_s * 1e3, r->decode_p99_s * 1e3, roofs);
    } else {
        json_t *json = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:f}", "shape",
                                 plan->shape->name, "row", plan->row->name, "threads", (int)plan->threads, "batch",
                                 (int)o->batch, "prompt", (int)o->prompt, "tokens", (int)o->tokens, "read_bytes_s",
                                 r->read_bytes_s, "prefill_tokens_s", prefill, "decode_tokens_s", decode_rate,
                                 "decode_p50_ms", r->decode_p50_s * 1e3, "decode_p99_ms", r->decode_p99_s * 1e3,
                                 "roof_tokens_s", roof > 0 ? json_real(roof) : json_null(), "share_of_roof",
                                 roof > 0 ? json_real(share) : json_null(), "load_s", r->load_s);
        (void)json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        (void)putchar('\n');
        json_decref(json);
    }
}

static const char *const formats[] = {"text", "json", "csv", NULL};

static bool parse_shape(const char *text, struct options *o)
{
    if (!nib_option_shape("nibble bench: --shape", text, &o->machine.made_up))
        return false;
    o->machine.made_up_source = nib_synth_source(o->machine.made_up);
    return true;
}

static bool parse_option(int option, struct options *o)
{
    struct nib_plan_request *ask = &o->machine.ask;
    switch (option) {
    case 'f':
        return nib_option_choice("nibble bench: --format", optarg, formats, &o->format);
    case 'm':
        o->machine.mask = optarg;
        return true;
    case 'd':
        return nib_option_device("nibble bench: --device", optarg, &o->machine.device);
    case 's':
        return parse_shape(optarg, o);
    case 'w':
        return nib_option_dense("nibble bench: --dense", optarg, &o->machine.made_up_dense);
    case 'k':
        return nib_option_kv("nibble bench: --kv", optarg, &ask->kv);
    case 't':
        return nib_option_count("nibble bench: --threads", optarg, NIB_MAX_THREADS, &ask->threads);
    case 'p':
        return nib_option_count("nibble bench: --prompt", optarg, NIB_MAX_CTX_TOKENS, &o->prompt);
    case 'n':
        return nib_option_count("nibble bench: --tokens", optarg, NIB_MAX_CTX_TOKENS, &o->tokens);
    case 'b':
        return nib_option_count("nibble bench: --batch", optarg, NIB_MAX_SLOTS, &o->batch);
    case 'r':
        return nib_option_count("nibble bench: --rows", optarg, NIB_MAX_STEP_ROWS, &ask->step_rows_max);
    case 'l':
        return nib_option_size("nibble bench: --memory-limit", optarg, &ask->memory_limit_bytes);
    default:
        return false;
    }
}

static bool parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {{"format", required_argument, 0, 'f'},
                                          {"mask", required_argument, 0, 'm'},
                                          {"threads", required_argument, 0, 't'},
                                          {"prompt", required_argument, 0, 'p'},
                                          {"tokens", required_argument, 0, 'n'},
                                          {"batch", required_argument, 0, 'b'},
                                          {"rows", required_argument, 0, 'r'},
                                          {"memory-limit", required_argument, 0, 'l'},
                                          {"device", required_argument, 0, 'd'},
                                          {"shape", required_argument, 0, 's'},
                                          {"dense", required_argument, 0, 'w'},
                                          {"kv", required_argument, 0, 'k'},
                                          {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
        if (!parse_option(option, o))
            return false;
    if (optind + (o->machine.made_up ? 0 : 1) != argc) {
        (void)fprintf(stderr, "nibble bench: name one image, or a shape with --shape\n");
        return false;
    }
    if (!o->machine.made_up && o->machine.made_up_dense != NIB_DENSE_BF16) {
        (void)fprintf(stderr,
                      "nibble bench: --dense is for --shape; an image says itself what its dense matrices are\n");
        return false;
    }
    o->machine.image = argv[optind];
    /* one sequence's context a slot, no more */
    o->machine.ask.ctx_tokens = (uint32_t)nib_min_u64((uint64_t)o->prompt + o->tokens, NIB_MAX_CTX_TOKENS);
    o->machine.ask.slots = o->batch;
    return true;
}

int nib_cmd_bench(int argc, char **argv)
{
    static struct bench bench;
    struct options o = {.prompt = 256, .tokens = 64, .batch = 1, .machine.self_test = true};
    struct nib_msg msg;
    if (!parse_args(argc, argv, &o))
        return NIB_EXIT_USAGE;
    bench.options = &o;
    enum nib_err err = run(&bench, &msg);
    if (err)
        (void)fprintf(stderr, "nibble bench: %s\n", msg.text);
    else
        print(&bench);
    const bool lost = nib_machine_lost(&bench.machine);
    nib_machine_close(&bench.machine);
    free(bench.pages);
    free(bench.steps_s);
    if (lost) {
        /* the driver's own clean-up could wait for a GPU that never answers */
        (void)fflush(NULL);
        _exit(NIB_EXIT_FAILED);
    }
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}
