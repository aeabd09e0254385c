/* tests/gpu/logits.c: runs a list of steps on the GPU engine and writes the logits it sampled from. For comparisons.
 *
 *     logits IMAGE STEPS OUT ROW LIMIT_MIB [NAME=SHIFT ...]
 *
 * STEPS is little-endian: u32 slots, ctx_tokens, step_rows_max; then for each step u32 rows_count and its rows, each a struct
 * nib_row. OUT gets fp32 [rows that want logits][vocab], in the order of the steps and of their rows. ROW is a GPU row of the
 * capability table; LIMIT_MIB plans as if the card were that large, 0 for all of it.
 *
 * NAME=SHIFT multiplies a part of the weights by 2^SHIFT on the way to the device, which is exact: up and down (an expert's
 * matrices with their biases), out (attention's, with its bias), router, q (queries, with their bias), sinks. The comparison
 * does the same to its side, and so can choose how far one layer reaches into the next.
 *
 * Owns one machine (appliance/machine.h). Main thread; readers of the engine's call shifted_read. Slot s has the pages s,
 * s + slots, ...: no sequence's pages lie together. Any failure is one sentence and exit code 1. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "appliance/machine.h"
#include "core/sample.h"
#include "gpu/state.h"

enum { PART_UP, PART_DOWN, PART_OUT, PART_ROUTER, PART_Q, PART_SINKS, PART_COUNT, SHIFT_MAX = 16 };
enum { STEP_MS_MAX = 200000 }; /* the stand-in for libcuda is slow */
static const char *const part_names[PART_COUNT] = {"up", "down", "out", "router", "q", "sinks"};
static int shifts[PART_COUNT];

static struct nib_machine machine;
static struct nib_step step;
static struct nib_step_out out;
static struct nib_kv_table tables[NIB_MAX_SLOTS];
static struct nib_sampling sampling[NIB_MAX_SLOTS];
static struct nib_msg msg;

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    (void)fprintf(stderr, "logits: %s: %s\n", what, msg.text[0] ? msg.text : "failed");
    exit(1);
}

static int part_of(enum nib_tensor_id id)
{
    switch (id) {
    case NIB_T_UP_SCALES:
    case NIB_T_UP_BIAS:
        return PART_UP;
    case NIB_T_DOWN_SCALES:
    case NIB_T_DOWN_BIAS:
        return PART_DOWN;
    case NIB_T_OUT_WEIGHT:
    case NIB_T_OUT_BIAS:
        return PART_OUT;
    case NIB_T_ROUTER_WEIGHT:
    case NIB_T_ROUTER_BIAS:
        return PART_ROUTER;
    case NIB_T_QKV_WEIGHT:
    case NIB_T_QKV_BIAS:
        return PART_Q;
    case NIB_T_SINKS:
        return PART_SINKS;
    default:
        return PART_COUNT;
    }
}

/* Zero stays zero; made-up weights are far from the exponent's ends. */
static void shift_bf16(uint8_t *bytes, size_t count, int shift)
{
    for (size_t i = 0; i < count; i++) {
        const int code = bytes[2 * i] | bytes[2 * i + 1] << 8, exponent = code >> 7 & 0xff;
        if ((code & 0x7fff) == 0)
            continue;
        NIB_MUST(exponent > SHIFT_MAX && exponent < 255 - SHIFT_MAX);
        const int shifted = code + shift * 128;
        bytes[2 * i] = (uint8_t)(shifted & 0xff);
        bytes[2 * i + 1] = (uint8_t)(shifted >> 8 & 0xff);
    }
}

static void shift_scales(uint8_t *codes, size_t count, int shift)
{
    for (size_t i = 0; i < count; i++) {
        NIB_MUST(codes[i] > SHIFT_MAX && codes[i] < 255 - SHIFT_MAX);
        codes[i] = (uint8_t)(codes[i] + shift);
    }
}

static enum nib_err shifted_read(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n,
                                 struct nib_msg *why)
{
    enum nib_err err = nib_image_read(arg, t->offset + at, buf, n, why);
    const int part = part_of(t->id);
    if (err || part == PART_COUNT || shifts[part] == 0)
        return err;
    if (t->dtype == NIB_DTYPE_U8) {
        shift_scales(buf, n, shifts[part]);
        return NIB_OK;
    }
    uint64_t count = n / 2;
    if (part == PART_Q) { /* rows of q come first */
        const uint64_t end = t->bytes / nib_qkv_dim(machine.image.shape) * nib_q_dim(machine.image.shape);
        const uint64_t left = at < end ? (end - at) / 2 : 0;
        count = count < left ? count : left;
    }
    shift_bf16(buf, count, shifts[part]);
    return NIB_OK;
}

static void parse_shift(const char *text)
{
    const char *value = strchr(text, '=');
    for (int part = 0; value && part < PART_COUNT; part++) {
        if (strlen(part_names[part]) != (size_t)(value - text) ||
            strncmp(text, part_names[part], (size_t)(value - text)))
            continue;
        char *end;
        long shift = strtol(value + 1, &end, 10);
        if (*end || end == value + 1 || shift < -SHIFT_MAX || shift > SHIFT_MAX)
            break;
        shifts[part] = (int)shift;
        return;
    }
    (void)fprintf(stderr,
                  "logits: '%s' is no shift; NAME=SHIFT with NAME up, down, out, router, q or sinks, SHIFT %d to %d\n",
                  text, -SHIFT_MAX, SHIFT_MAX);
    exit(2);
}

static struct nib_gpu_engine *open_engine(char **argv, const uint32_t dims[3])
{
    static uint32_t banned[NIB_MAX_VOCAB / 32];
    const struct nib_machine_options options = {
        .image = argv[1],
        .device = NIB_DEVICE_GPU,
        .row = argv[4],
        .ask = {.slots = dims[0],
                .ctx_tokens = dims[1],
                .step_rows_max = dims[2],
                .memory_limit_bytes = strtoull(argv[5], NULL, 10) << 20},
    };
    need(nib_machine_plan(&machine, &options, &msg) == NIB_OK, "plan");
    need(machine.row->gpu, "the row must be one of a GPU");
    need(nib_machine_map(&machine, &msg) == NIB_OK, "map");
    bool hashed = true;
    for (int part = 0; part < PART_COUNT; part++)
        hashed = hashed && shifts[part] == 0;
    const struct nib_gpu_engine_open open = {.gpu = &machine.gpu,
                                             .plan = &machine.plan,
                                             .host = machine.base[NIB_SPACE_HOST],
                                             .kernels = machine.row->gpu_kernels,
                                             .profile = &machine.profile,
                                             .image = &machine.image,
                                             .source = {.read = shifted_read, .arg = &machine.file, .hashed = hashed},
                                             .banned = banned,
                                             .step_ms_max = STEP_MS_MAX};
    need(nib_gpu_engine_open(&open, &machine.engine, &msg) == NIB_OK, "open");
    return (struct nib_gpu_engine *)(void *)machine.engine;
}

static void give_pages(void)
{
    const struct nib_engine_dims *d = &machine.plan.dims;
    const uint32_t n = (d->ctx_tokens + NIB_KV_PAGE_TOKENS - 1) / NIB_KV_PAGE_TOKENS;
    need((uint64_t)n * d->slots <= d->kv_pages, "the plan has too few KV pages for all slots at the whole context");
    uint32_t *pages = malloc((size_t)n * d->slots * sizeof *pages);
    need(pages != NULL, "memory");
    for (uint32_t s = 0; s < d->slots; s++) {
        tables[s] = (struct nib_kv_table){.pages = pages + (size_t)s * n, .pages_count = n};
        nib_sample_defaults(&sampling[s]);
        for (uint32_t i = 0; i < n; i++)
            pages[(size_t)s * n + i] = s + i * d->slots;
    }
    step.tables = tables;
    step.sampling = sampling;
}

/* The logits lie on the device until the next step; the pinned ring, not in use after loading, brings them here. */
static void write_logits(struct nib_gpu_engine *e, FILE *to)
{
    const struct nib_gpu_flight *flight = &e->flight[e->collected % NIB_GPU_MAILBOX];
    const size_t vocab = e->machine.vocab;
    if (flight->want_count == 0)
        return;
    need(flight->want_count <= NIB_MAX_STEPS_AHEAD * e->logits_rows,
         "more rows want logits than the pinned ring holds");
    need(NIB_CU(e->cuda, &msg, cuMemcpyDtoHAsync, e->logits, e->machine.logits,
                flight->want_count * vocab * sizeof(float), e->stream) == NIB_OK &&
             nib_gpu_idle(e, e->step_us_max, &msg) == NIB_OK,
         "copy");
    for (uint32_t wanted = 0; wanted < flight->want_count; wanted++)
        for (uint32_t i = 0; i < flight->want_count; i++)
            if (flight->out[i] == wanted)
                need(fwrite(e->logits + i * vocab, sizeof(float), vocab, to) == vocab, "cannot write the logits");
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        (void)fprintf(stderr, "usage: logits IMAGE STEPS OUT ROW LIMIT_MIB [NAME=SHIFT ...]\n");
        return 2;
    }
    for (int i = 6; i < argc; i++)
        parse_shift(argv[i]);
    uint32_t dims[3], rows_count, steps = 0;
    FILE *from = fopen(argv[2], "rb"), *to = fopen(argv[3], "wb");
    need(from && to, strerror(errno));
    need(fread(dims, sizeof dims[0], 3, from) == 3, "the list of steps is cut");
    struct nib_gpu_engine *e = open_engine(argv, dims);
    give_pages();
    while (fread(&rows_count, sizeof rows_count, 1, from) == 1) {
        need(rows_count > 0 && rows_count <= NIB_MAX_STEP_ROWS, "the list of steps has a step of a wrong size");
        need(fread(step.rows, sizeof step.rows[0], rows_count, from) == rows_count, "the list of steps is cut");
        step.rows_count = rows_count;
        step.serial = ++steps;
        need(e->base.ops->submit(&e->base, &step, &msg) == NIB_OK, "submit");
        need(e->base.ops->collect(&e->base, &out, &msg) == NIB_OK, "collect");
        for (uint32_t i = 0; i < out.count; i++)
            need(!out.sampled[i].failed, "a row's logits hold a NaN");
        write_logits(e, to);
    }
    need(fclose(to) == 0, "cannot write the logits");
    (void)fclose(from);
    char device[160];
    nib_machine_device(&machine, device, sizeof device);
    (void)printf("%s, row %s, %u steps\n", device, machine.row->name, steps);
    free((void *)(uintptr_t)tables[0].pages);
    nib_machine_close(&machine);
    return 0;
}
