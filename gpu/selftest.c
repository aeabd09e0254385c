/* gpu/selftest.c: owns the order of the self-test and its verdict. See gpu/selftest.h.
 * Limits: gpu/trial.h's. Boot thread. Fails with the kernel's name and how far it is off. */
#include "gpu/selftest.h"

#include <math.h>
#include <string.h>

#include "gpu/trial.h"

/* The one list of kernels: how each is checked. Those of the boot but `sum` run while the weights are loaded. */
static nib_trial_check *const checks[NIB_GPU_OP_COUNT] = {
    [NIB_GPU_SUM] = nib_trial_sum,
    [NIB_GPU_BEGIN] = nib_trial_begin,
    [NIB_GPU_EMBED] = nib_trial_embed,
    [NIB_GPU_QKV] = nib_trial_qkv,
    [NIB_GPU_QKV_BATCH] = nib_trial_qkv,
    [NIB_GPU_QKV_PROMPT] = nib_trial_qkv,
    [NIB_GPU_KV_FP8] = nib_trial_kv8,
    [NIB_GPU_ATTN_FP8] = nib_trial_attn,
    [NIB_GPU_ATTN_BATCH_FP8] = nib_trial_attn,
    [NIB_GPU_ATTN_PROMPT_FP8] = nib_trial_attn,
    [NIB_GPU_ATTN] = nib_trial_attn,
    [NIB_GPU_ATTN_BATCH] = nib_trial_attn,
    [NIB_GPU_ATTN_PROMPT] = nib_trial_attn,
    [NIB_GPU_OUT] = nib_trial_out,
    [NIB_GPU_OUT_BATCH] = nib_trial_out,
    [NIB_GPU_OUT_PROMPT] = nib_trial_out,
    [NIB_GPU_ROUTE] = nib_trial_route,
    [NIB_GPU_UP] = nib_trial_up,
    [NIB_GPU_UP_BATCH] = nib_trial_up,
    [NIB_GPU_UP_SHORT] = nib_trial_up,
    [NIB_GPU_UP_PROMPT] = nib_trial_up,
    [NIB_GPU_DOWN] = nib_trial_down,
    [NIB_GPU_DOWN_BATCH] = nib_trial_down,
    [NIB_GPU_DOWN_SHORT] = nib_trial_down,
    [NIB_GPU_DOWN_PROMPT] = nib_trial_down,
    [NIB_GPU_COMBINE] = nib_trial_combine,
    [NIB_GPU_TOKEN] = nib_trial_token,
    [NIB_GPU_HEAD] = nib_trial_head,
    [NIB_GPU_HEAD_BATCH] = nib_trial_head,
    [NIB_GPU_SCAN] = nib_trial_scan,
    [NIB_GPU_SAMPLE] = nib_trial_sample,
};

/* What repacking feeds. All of them wrong at once, in kernels that share nothing else, is the repacking's doing. */
static const enum nib_gpu_op dense_readers[] = {NIB_GPU_QKV, NIB_GPU_QKV_PROMPT, NIB_GPU_OUT, NIB_GPU_OUT_PROMPT};
static const enum nib_gpu_op head_readers[] = {NIB_GPU_HEAD, NIB_GPU_HEAD_BATCH};
static const enum nib_gpu_op mxfp8_readers[] = {NIB_GPU_QKV_MXFP8, NIB_GPU_QKV_PROMPT_MXFP8, NIB_GPU_OUT_MXFP8,
                                                NIB_GPU_OUT_PROMPT_MXFP8, NIB_GPU_HEAD_MXFP8};
static const enum nib_gpu_op mx_readers[] = {NIB_GPU_UP, NIB_GPU_UP_PROMPT, NIB_GPU_DOWN, NIB_GPU_DOWN_PROMPT};

static void run(struct nib_trial *t, int first, int last)
{
    for (int op = first; op <= last && !t->err; op++) {
        const enum nib_gpu_op form = nib_gpu_op_in((enum nib_gpu_op)op, t->dense);
        nib_trial_forget(t);
        if (nib_trial_due(t, form))
            checks[op](t, form);
    }
}

/* A step of decode rows in slots 0, 1, 2, at the edges of pages and beyond the window, the last one fed back, and of prompt
 * rows of a new sequence in slot 3, across a page. */
static void make_step(struct nib_trial *t, uint32_t decode, uint32_t prompt)
{
    static const uint32_t decode_pos[NIB_TRIAL_DECODE] = {300, 64, 5}, prompt_pos = 118;
    const uint64_t serial = *t->serial;
    struct nib_gpu_step *s = &t->mailbox[serial % NIB_GPU_MAILBOX];
    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i < decode + prompt; i++) {
        const bool decoded = i < decode, fed_back = decoded && i == NIB_TRIAL_DECODE - 1;
        s->rows[i] = (struct nib_row){.token = fed_back ? 0 : (i * 37 + 11) % t->shape.vocab,
                                      .pos = decoded ? decode_pos[i] : prompt_pos + i - decode,
                                      .slot = (uint16_t)(decoded ? i : NIB_TRIAL_SLOTS - 1)};
        s->rows[i].flags = (uint16_t)((decoded ? NIB_ROW_DECODE : 0) | (fed_back ? NIB_ROW_FEEDBACK : 0) |
                                      (!decoded && i == decode ? NIB_ROW_FIRST : 0));
        if (decoded || i + 1 == decode + prompt) {
            s->rows[i].flags |= NIB_ROW_LOGITS;
            s->want[s->want_count++] = (uint16_t)i;
        }
    }
    s->serial = serial;
    s->rows_count = decode + prompt;
    s->decode_count = t->decode = decode;
    t->prompt = prompt;
    t->want = s->want_count;
    t->step = s;
    t->last[NIB_TRIAL_DECODE - 1] = 5;
    nib_trial_send(t, t->m.last, t->last, NIB_TRIAL_SLOTS * 4);
    nib_trial_send(t, t->m.tables, t->host_tables, NIB_TRIAL_SLOTS * NIB_TRIAL_PAGES * 4);
    nib_trial_send(t, t->m.sampling, t->host_sampling, NIB_TRIAL_SLOTS * sizeof(struct nib_sampling));
    if (prompt) /* the new sequence's come with it */
        nib_trial_fill(t, t->m.tables + (NIB_TRIAL_SLOTS - 1) * NIB_TRIAL_PAGES * 4, 0, NIB_TRIAL_PAGES * 4);
}

/* As a step runs, each op alone, in a bucket of just so many rows, or of `many`. */
static void run_step(struct nib_trial *t, uint32_t decode, uint32_t prompt, uint32_t many)
{
    if (t->err)
        return;
    t->many = many;
    make_step(t, decode, prompt);
    run(t, NIB_GPU_BEGIN, NIB_GPU_EMBED);
    for (t->layer = 0; t->layer < t->shape.layers; t->layer++)
        run(t, NIB_GPU_QKV, NIB_GPU_COMBINE);
    t->layer = 0;
    run(t, NIB_GPU_TOKEN, NIB_GPU_SAMPLE);
    ++*t->serial;
}

static bool good(const struct nib_gpu_verdict *v)
{
    return v->ran && v->error <= v->bound;
}

static void judge_repack(struct nib_gpu_selftest *r, enum nib_gpu_op op, const enum nib_gpu_op *readers, size_t count)
{
    const struct nib_gpu_verdict *best = &r->op[readers[0]];
    for (size_t i = 1; i < count; i++)
        if (r->op[readers[i]].error * best->bound < best->error * r->op[readers[i]].bound)
            best = &r->op[readers[i]];
    r->op[op] = *best;
    if (!good(&r->op[NIB_GPU_BEGIN]) || !good(&r->op[NIB_GPU_EMBED])) /* then these are wrong without its doing */
        r->op[op].error = 0;
}

/* Whether the op has a part in the test. In the test of MXFP8 only the router reads what repack_dense makes, and in a row without
 * HEAD_BATCH only HEAD what repack_head makes: a fault of either is named as the reader's. */
static bool tested(const struct nib_trial *t, enum nib_gpu_op op)
{
    if (!t->k->has(op))
        return false;
    if (op == NIB_GPU_REPACK_DENSE || op == NIB_GPU_REPACK_MXFP8)
        return (op == NIB_GPU_REPACK_MXFP8) == (t->dense == NIB_DENSE_MXFP8);
    if (op == NIB_GPU_REPACK_HEAD)
        return t->dense == NIB_DENSE_BF16 && t->k->has(NIB_GPU_HEAD_BATCH);
    if (op == NIB_GPU_KV_FP8 || op == NIB_GPU_ATTN_FP8 || op == NIB_GPU_ATTN_PROMPT_FP8)
        return t->kv == NIB_KV_FP8;
    if (op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_PROMPT)
        return t->kv == NIB_KV_BF16;
    return nib_gpu_op_in(nib_gpu_op_plain(op), t->dense) == op;
}

/* A kernel that a row may lack for such a model. */
static bool optional(enum nib_gpu_op op)
{
    return nib_gpu_op_plain(op) == NIB_GPU_TOKEN || nib_gpu_op_few(op) != op;
}

/* The first kernel that is off names the row's fault. */
static enum nib_err judge(const struct nib_trial *t, struct nib_msg *msg)
{
    struct nib_gpu_selftest *r = t->report;
    if (t->dense == NIB_DENSE_MXFP8)
        judge_repack(r, NIB_GPU_REPACK_MXFP8, mxfp8_readers, sizeof mxfp8_readers / sizeof mxfp8_readers[0]);
    else {
        judge_repack(r, NIB_GPU_REPACK_DENSE, dense_readers, sizeof dense_readers / sizeof dense_readers[0]);
        judge_repack(r, NIB_GPU_REPACK_HEAD, head_readers, sizeof head_readers / sizeof head_readers[0]);
    }
    judge_repack(r, NIB_GPU_REPACK_MX, mx_readers, sizeof mx_readers / sizeof mx_readers[0]);
    for (int op = 0; op < NIB_GPU_OP_COUNT; op++) {
        const struct nib_gpu_verdict *v = &r->op[op];
        if (good(v) || (!v->ran && optional((enum nib_gpu_op)op)) || !tested(t, (enum nib_gpu_op)op))
            continue;
        r->struck = true;
        if (v->bound > 0)
            return nib_fail(msg, NIB_E_UNSUPPORTED, "kernel %s is wrong: %s off by %.2g, allowed is %.2g",
                            nib_gpu_op_symbol((enum nib_gpu_op)op), v->what, v->error, v->bound);
        return nib_fail(msg, NIB_E_UNSUPPORTED, "kernel %s is wrong: %.0f differences in its %s, allowed is none",
                        nib_gpu_op_symbol((enum nib_gpu_op)op), v->error, v->what ? v->what : "run");
    }
    return NIB_OK;
}

static enum nib_err load(struct nib_gpu *gpu, const struct nib_gpu_kernels *kernels, const struct nib_profile *profile,
                         struct nib_gpu_selftest *report, struct nib_msg *msg)
{
    size_t free_bytes, total_bytes;
    enum nib_err err = nib_gpu_load(gpu, kernels, profile, msg);
    if (!err || err == NIB_E_NOMEM)
        return err;
    const enum nib_cuda_class class = nib_cuda_classify(gpu->cuda.cuMemGetInfo(&free_bytes, &total_bytes));
    gpu->lost = class >= NIB_CUDA_EXIT;
    report->struck = class != NIB_CUDA_RESET;
    return gpu->lost ? NIB_E_DEVICE : NIB_E_UNSUPPORTED;
}

enum nib_err nib_gpu_selftest(struct nib_gpu *gpu, const struct nib_gpu_kernels *kernels,
                              const struct nib_profile *profile, const struct nib_shape *shape, enum nib_dense dense,
                              enum nib_kv_form kv, struct nib_gpu_selftest *report, struct nib_msg *msg)
{
    const uint64_t begin = nib_gpu_now_us();
    *report = (struct nib_gpu_selftest){0};
    struct nib_trial t = {.gpu = gpu, .k = kernels, .dense = dense, .kv = kv, .report = report, .msg = msg};
    t.err = load(gpu, kernels, profile, report, msg);
    if (!t.err) {
        nib_trial_open(&t, profile, shape);
        run(&t, NIB_GPU_SUM, NIB_GPU_SUM);
        run_step(&t, NIB_TRIAL_DECODE, NIB_TRIAL_PROMPT, 0);
        run_step(&t, 1, 0, 0);
        run_step(&t, NIB_TRIAL_DECODE, 0, NIB_MAX_SLOTS);
        nib_trial_close(&t);
    }
    if (!t.err)
        t.err = judge(&t, msg);
    report->us = nib_gpu_now_us() - begin;
    return t.err;
}
