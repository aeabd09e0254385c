/* tests/gpu/bench.c: each op, and whole steps, at a model's true shape with synthetic weights: time, share of the roof. One thread.
 *
 * Every layer has weights of its own (one random matrix, repacked to each place), so that nothing is read from the cache that
 * a real model would not find there. Biases and what the KV holds are zeros, so that rows with other tokens stay apart and choose
 * other experts, evenly, or as unevenly as asked for: by the router's biases. An op is timed over all layers in one graph, and by what a step takes
 * without it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"
#include "tests/gpu/model.h"
#include "tests/gpu/random.h"

#define ROOF_BYTES 4.54e12 /* measured: plain loads */
#define ROOF_FLOPS 790e12  /* measured: bf16 */

enum { SLOTS = 256, CTX = 2304, ROWS = 2048 };

static const struct nib_shape *shape;

/* Random canonical weights that all layers share. */
static nib_cu_ptr random_words(struct rig *rig, uint64_t bytes, bool bf16)
{
    enum { CHUNK = 8 << 20 };
    static uint64_t seed = 3;
    uint16_t *p = malloc(CHUNK);
    if (!p)
        rig_die("out of host memory");
    for (uint64_t i = 0; i < CHUNK / 2; i++) {
        const uint32_t r = (uint32_t)(random_next(&seed) >> 40);
        /* bf16: sign and mantissa random, magnitude around 2^-6 */
        p[i] = (uint16_t)(bf16 ? (r & 0x807d) | (0x78 + (r >> 8 & 3)) << 7 : r);
    }
    nib_cu_ptr to = rig_take(rig, bytes);
    for (uint64_t i = 0; i < bytes; i += CHUNK)
        rig_up(rig, to + i, p, bytes - i < CHUNK ? bytes - i : CHUNK);
    free(p);
    return to;
}

static void repack(struct rig *rig, enum nib_gpu_op op, struct nib_gpu_repack r)
{
    rig_up(rig, rig->m.repack, &r, sizeof r);
    (void)rig_launch(rig, op, 0, (struct rig_bucket){0});
    rig_wait(rig);
}

/* QKV, attention output and LM head are in the rig's form, from the same words: their second bit is never set, so no byte is
 * a NaN of E4M3. */
static nib_cu_ptr placed(struct rig *rig, enum nib_gpu_op op, uint64_t bytes, nib_cu_ptr src, nib_cu_ptr scales,
                         uint32_t n, uint32_t k, enum nib_gpu_matrix matrix)
{
    nib_cu_ptr to = rig_take(rig, bytes);
    for (uint32_t n0 = 0; n0 < n; n0 += 5120)
        repack(rig, op,
               (struct nib_gpu_repack){.dst = to,
                                       .src = src,
                                       .scales = scales,
                                       .n = n,
                                       .k = k,
                                       .n0 = n0,
                                       .n1 = n0 + 5120 < n ? n0 + 5120 : n,
                                       .matrix = (uint32_t)matrix});
    return to;
}

static nib_cu_ptr dense(struct rig *rig, nib_cu_ptr src, nib_cu_ptr scales, uint32_t n, uint32_t k,
                        enum nib_gpu_matrix matrix)
{
    if (scales && rig->dense == NIB_DENSE_MXFP8)
        return placed(rig, NIB_GPU_REPACK_MXFP8, rig->k->mxfp8_bytes(n, k), src, scales, n, k, matrix);
    return placed(rig, NIB_GPU_REPACK_DENSE, rig->k->dense_bytes(n, k), src, 0, n, k, matrix);
}

static nib_cu_ptr head(struct rig *rig, nib_cu_ptr src, nib_cu_ptr scales, uint32_t n, uint32_t k)
{
    if (rig->dense == NIB_DENSE_MXFP8)
        return dense(rig, src, scales, n, k, NIB_GPU_M_PLAIN);
    return placed(rig, NIB_GPU_REPACK_HEAD, rig->k->head_bytes(n, k), src, 0, n, k, NIB_GPU_M_PLAIN);
}

static nib_cu_ptr experts(struct rig *rig, nib_cu_ptr codes, nib_cu_ptr scales, uint32_t n, uint32_t k,
                          enum nib_gpu_matrix matrix)
{
    const uint64_t bytes = rig->k->mx_bytes(n, k);
    nib_cu_ptr to = rig_take(rig, shape->experts * bytes);
    for (uint32_t e = 0; e < shape->experts; e++)
        repack(rig, NIB_GPU_REPACK_MX,
               (struct nib_gpu_repack){.dst = to + e * bytes,
                                       .src = codes,
                                       .scales = scales,
                                       .n = n,
                                       .k = k,
                                       .n0 = 0,
                                       .n1 = n,
                                       .matrix = (uint32_t)matrix});
    return to;
}

/* Router biases of normal numbers, by which the logarithm of how likely an expert is has about the deviation `spread` among experts: half of it times the
 * deviation of a logit, by a simulation. */
static nib_cu_ptr router_bias(struct rig *rig, double spread, uint64_t *seed)
{
    uint16_t bias[NIB_MAX_EXPERTS];
    for (uint32_t e = 0; e < shape->experts; e++)
        bias[e] = nib_bf16_encode((float)(spread * 0.5 * 0.162 * (double)model_normal(seed)));
    const nib_cu_ptr to = rig_take(rig, sizeof bias);
    rig_up(rig, to, bias, shape->experts * sizeof bias[0]);
    return to;
}

static void fill_weights(struct rig *rig, double spread)
{
    const struct nib_shape *s = shape;
    const uint32_t h = s->hidden, inner = s->intermediate, q = nib_q_dim(s), qkv = nib_qkv_dim(s);
    struct nib_gpu_machine *m = &rig->m;
    const nib_cu_ptr words = random_words(rig, 5120ull * (q > h ? q : h) * 2, true);
    const nib_cu_ptr codes = random_words(rig, (uint64_t)2 * inner * h / 2, false);
    const nib_cu_ptr scales = rig_take(rig, (uint64_t)2 * inner * h / 32);
    rig_fill(rig, scales, 118, (uint64_t)2 * inner * h / 32);
    const nib_cu_ptr small = random_words(rig, (uint64_t)s->experts * 2 * inner * 2, true);
    const nib_cu_ptr zeros = rig_take(rig, (uint64_t)s->experts * 2 * inner * 2);
    rig_fill(rig, zeros, 0, (uint64_t)s->experts * 2 * inner * 2);
    m->embed = random_words(rig, (uint64_t)s->vocab * h * 2, true);
    m->lm_head = head(rig, words, scales, s->vocab, h);
    m->final_norm = small;
    uint64_t seed = 1;
    for (uint32_t i = 0; i < s->layers; i++) {
        struct nib_gpu_layer *l = &m->layer[i];
        l->attn_norm = l->mlp_norm = l->sinks = small;
        l->qkv_bias = l->out_bias = l->up_bias = l->down_bias = zeros;
        l->router_bias = router_bias(rig, spread, &seed);
        l->qkv = dense(rig, words, scales, qkv, h, NIB_GPU_M_QKV);
        l->out = dense(rig, words, scales, h, q, NIB_GPU_M_PLAIN);
        l->router = dense(rig, words + i * 64 * 1024, 0, s->experts, h, NIB_GPU_M_PLAIN);
        l->up = experts(rig, codes, scales, 2 * inner, h, NIB_GPU_M_UP);
        l->down = experts(rig, codes, scales, h, inner, NIB_GPU_M_PLAIN);
        const uint64_t pages = i % 2 ? m->kv_pages : (uint64_t)m->slots * m->ring_pages;
        l->kv = rig_take(rig, pages * m->page_stride);
        rig_fill(rig, l->kv, 0, pages * m->page_stride);
    }
}

static void open_machine(struct rig *rig, double spread)
{
    const struct nib_shape *s = shape;
    const uint64_t experts_bytes =
        s->experts * (rig->k->mx_bytes(2 * s->intermediate, s->hidden) + rig->k->mx_bytes(s->hidden, s->intermediate));
    const uint64_t dense_bytes =
        rig->k->dense_bytes(nib_qkv_dim(s), s->hidden) + rig->k->dense_bytes(s->hidden, nib_q_dim(s));
    const uint64_t page = 2ull * s->kv_heads * 8192, pages = SLOTS * (CTX / 64) + SLOTS * (ROWS / 64 + 3);
    const uint64_t bytes =
        s->layers * (experts_bytes + dense_bytes) + s->layers / 2 * page * pages + (uint64_t)s->vocab * s->hidden * 4;
    rig_arena(rig, bytes + (3ull << 30), false);
    rig_machine(rig, s, s->layers, SLOTS, CTX, ROWS, SLOTS * CTX / 64);
    for (uint32_t i = 0; i < SLOTS * (CTX / 64); i++)
        rig->host_tables[i] = i;
    rig_up(rig, rig->m.tables, rig->host_tables, SLOTS * (CTX / 64) * 4);
    rig_up(rig, rig->m.sampling, rig->host_sampling, SLOTS * sizeof(struct nib_sampling));
    rig_send_machine(rig);
    fill_weights(rig, spread);
    rig_send_machine(rig);
}

static struct CUgraphExec_st *capture(struct rig *rig, enum nib_gpu_op op, struct rig_bucket b)
{
    struct CUgraph_st *graph = NULL;
    struct CUgraphExec_st *exec = NULL;
    RIG_CU(rig, cuStreamBeginCapture, rig->stream, NIB_CU_CAPTURE_RELAXED);
    if (op == NIB_GPU_OP_COUNT)
        rig_step(rig, b);
    else
        for (uint32_t l = 0; l < rig->m.layers; l++)
            (void)rig_launch(rig, op, l, b);
    RIG_CU(rig, cuStreamEndCapture, rig->stream, &graph);
    RIG_CU(rig, cuGraphInstantiateWithFlags, &exec, graph, 0);
    RIG_CU(rig, cuGraphDestroy, graph);
    return exec;
}

/* Median microseconds of one launch of an op, or of a whole graph. */
static double time_graph(struct rig *rig, struct CUgraphExec_st *exec)
{
    double all[7];
    for (int i = -2; i < 7; i++) {
        float ms = 0;
        RIG_CU(rig, cuEventRecord, rig->event[0], rig->stream);
        RIG_CU(rig, cuGraphLaunch, exec, rig->stream);
        RIG_CU(rig, cuEventRecord, rig->event[1], rig->stream);
        rig_wait(rig);
        RIG_CU(rig, cuEventElapsedTime, &ms, rig->event[0], rig->event[1]);
        if (i < 0)
            continue;
        int j = i;
        for (; j > 0 && all[j - 1] > (double)ms; j--)
            all[j] = all[j - 1];
        all[j] = (double)ms;
    }
    return all[3] * 1e3;
}

static double time_op(struct rig *rig, enum nib_gpu_op op, struct rig_bucket b)
{
    struct CUgraphExec_st *exec = capture(rig, op, b);
    const double us = time_graph(rig, exec) / rig->m.layers;
    RIG_CU(rig, cuGraphExecDestroy, exec);
    return us;
}

/* Bytes of weights an op must read for one decode row, `dense` for each of a dense matrix; and flops for a row. */
static double op_bytes(enum nib_gpu_op op, double dense)
{
    const struct nib_shape *s = shape;
    const double h = s->hidden, q = nib_q_dim(s), i = s->intermediate, used = s->experts_used;
    switch (op) {
    case NIB_GPU_QKV:
    case NIB_GPU_QKV_PROMPT:
        return nib_qkv_dim(s) * h * dense;
    case NIB_GPU_OUT:
    case NIB_GPU_OUT_PROMPT:
        return q * h * dense;
    case NIB_GPU_ROUTE:
        return s->experts * h * 2;
    case NIB_GPU_UP:
    case NIB_GPU_UP_PROMPT:
        return used * 2 * i * h * 17 / 32;
    case NIB_GPU_DOWN:
    case NIB_GPU_DOWN_PROMPT:
        return used * i * h * 17 / 32;
    case NIB_GPU_HEAD:
        return s->vocab * h * (dense == 2 ? 13.0 / 8 : dense); /* bf13 */
    default:
        return 0;
    }
}

static double op_flops(enum nib_gpu_op op)
{
    const bool mx = op == NIB_GPU_UP || op == NIB_GPU_UP_PROMPT || op == NIB_GPU_DOWN || op == NIB_GPU_DOWN_PROMPT;
    if (op == NIB_GPU_HEAD)
        return 2.0 * shape->vocab * shape->hidden;
    return mx ? op_bytes(op, 2) * 32 / 17 * 2 : op_bytes(op, 2);
}

static void send(struct rig *rig, struct rig_bucket b, uint32_t pos, uint64_t serial)
{
    struct nib_gpu_step *step = &rig->mailbox[serial % NIB_GPU_MAILBOX];
    step->rows_count = b.decode + b.prompt;
    step->decode_count = b.decode;
    step->want_count = b.want;
    step->fault = 0;
    for (uint32_t i = 0; i < step->rows_count; i++)
        step->rows[i] =
            i < b.decode ? (struct nib_row){.token = (i * 7919 + 5) % shape->vocab,
                                            .pos = pos,
                                            .slot = (uint16_t)i,
                                            .flags = (uint16_t)(NIB_ROW_DECODE | NIB_ROW_LOGITS |
                                                                (b.decode == 1 ? NIB_ROW_FEEDBACK : 0))}
                         : (struct nib_row){.token = (i * 7919) % shape->vocab, .pos = i - b.decode, .slot = SLOTS - 1};
    for (uint32_t i = 0; i < b.want; i++)
        step->want[i] = (uint16_t)i;
    step->serial = serial;
}

/* Steps one after another, two in flight, tokens fed back on the device; microseconds a step. */
static double time_steps(struct rig *rig, struct rig_bucket b, uint32_t pos, uint32_t count)
{
    struct CUgraphExec_st *exec = rig_fused(rig, b) ? NULL : capture(rig, NIB_GPU_OP_COUNT, b); /* as the engine does */
    uint64_t first = 0;
    double start = 0;
    rig_down(rig, &first, rig->m.next_serial, 8);
    if (exec)
        RIG_CU(rig, cuGraphUpload, exec, rig->stream);
    rig_wait(rig);
    for (uint64_t i = 0; i < count + 2; i++) {
        if (i < count) {
            send(rig, b, pos + (b.prompt ? 0 : (uint32_t)i % 64), first + i);
            if (exec)
                RIG_CU(rig, cuGraphLaunch, exec, rig->stream);
            else
                rig_step(rig, b);
        }
        if (i < 2)
            continue;
        const volatile struct nib_gpu_result *out = &rig->outbox[(first + i - 2) % NIB_GPU_MAILBOX];
        const double end = rig_now() + RIG_WAIT_S;
        while (out->serial != first + i - 2)
            if (rig_now() > end)
                rig_die("a step did not end");
        if (out->fault || out->count != b.want)
            rig_die("a step broke");
        if (i == 2) /* the first step has ended */
            start = rig_now();
    }
    const double us = (rig_now() - start) * 1e6 / (count - 1);
    rig_wait(rig);
    if (exec)
        RIG_CU(rig, cuGraphExecDestroy, exec);
    return us;
}

/* Experts that the decode rows choose in a layer, and adds the rows of the one that most choose. Leaves its routing. */
static uint32_t experts_of(struct rig *rig, struct rig_bucket b, uint32_t layer, uint8_t *route, uint64_t bytes,
                           uint32_t *most)
{
    uint32_t rows[NIB_MAX_EXPERTS] = {0}, count = 0, longest = 0;
    (void)rig_launch(rig, NIB_GPU_ROUTE, layer, b);
    rig_down(rig, route, rig->m.route, bytes);
    for (uint32_t i = 0; i < b.decode * shape->experts_used; i++) {
        struct nib_gpu_choice choice;
        rig->k->forms.choice(&rig->m, route, i / shape->experts_used, i % shape->experts_used, &choice);
        count += rows[choice.expert]++ == 0;
        longest = rows[choice.expert] > longest ? rows[choice.expert] : longest;
    }
    *most += longest;
    return count;
}

/* The means of that over the layers; leaves the routing of a layer that is near the first. */
static double experts_read(struct rig *rig, struct rig_bucket b, double *ret_most)
{
    const uint64_t bytes = rig->k->route_bytes(ROWS, shape->experts);
    uint8_t *route = malloc(bytes);
    uint32_t count[NIB_MAX_LAYERS], sum = 0, most = 0, near = 0;
    if (!route)
        rig_die("out of host memory");
    for (uint32_t l = 0; l < shape->layers; l++)
        sum += count[l] = experts_of(rig, b, l, route, bytes, &most);
    const double mean = sum / (double)shape->layers;
    *ret_most = most / (double)shape->layers;
    for (uint32_t l = 1; l < shape->layers; l++)
        if (fabs(count[l] - mean) < fabs(count[near] - mean))
            near = l;
    (void)experts_of(rig, b, near, route, bytes, &most);
    free(route);
    return mean;
}

static void bench_ops(struct rig *rig, struct rig_bucket b)
{
    const uint32_t rows = b.decode + b.prompt;
    double sum = 0, most;
    for (int op = NIB_GPU_EMBED; op <= NIB_GPU_SCAN; op++) {
        struct nib_gpu_geometry g;
        const double bytes = op_bytes((enum nib_gpu_op)op, rig->dense == NIB_DENSE_MXFP8 ? 33.0 / 32 : 2);
        rig->k->geometry(nib_gpu_op_in((enum nib_gpu_op)op, rig->dense), &rig->m, b.decode, b.prompt, b.want, &g);
        if (g.grid[0] == 0)
            continue;
        if (b.decode > 1 && nib_gpu_op_few((enum nib_gpu_op)op) == NIB_GPU_UP)
            (void)experts_read(rig, b, &most);
        const double us = time_op(rig, (enum nib_gpu_op)op, b);
        const bool layered = op >= NIB_GPU_QKV && op <= NIB_GPU_COMBINE;
        sum += layered ? us * rig->m.layers : us;
        printf("  %-12s %8.2f us, grid %5u %3u %3u, %6u bytes", nib_gpu_op_symbol((enum nib_gpu_op)op) + 8, us,
               g.grid[0], g.grid[1], g.grid[2], g.shared_bytes);
        if (bytes > 0 && rows == 1)
            printf(", %5.0f GB/s, %2.0f %%", bytes / us * 1e-3, bytes / us * 1e8 / ROOF_BYTES);
        if (op_flops((enum nib_gpu_op)op) > 0 && b.prompt)
            printf(", %5.1f TFLOP/s, %2.0f %%", op_flops((enum nib_gpu_op)op) * rows / us * 1e-6,
                   op_flops((enum nib_gpu_op)op) * rows / us * 1e8 / ROOF_FLOPS);
        printf("\n");
    }
    printf("  sum %.0f us\n", sum);
}

static double time_sample(struct rig *rig, struct rig_bucket b, float temperature, float top_p)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        rig->host_sampling[i].temperature = temperature;
        rig->host_sampling[i].top_p = top_p;
    }
    rig_up(rig, rig->m.sampling, rig->host_sampling, SLOTS * sizeof(struct nib_sampling));
    return time_op(rig, NIB_GPU_SAMPLE, b);
}

/* BEGIN and SAMPLE of one step, again and again; and of a graph after another what is no kernel's. */
static void bench_ends(struct rig *rig, struct rig_bucket b)
{
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    send(rig, b, 1024, serial);
    const double begin = time_op(rig, NIB_GPU_BEGIN, b), top_p = time_sample(rig, b, 1, 0.9f);
    const double drawn = time_sample(rig, b, 1, 1), sample = time_sample(rig, b, 0, 1);
    struct CUgraphExec_st *exec = capture(rig, NIB_GPU_EMBED, b);
    float ms = 0;
    RIG_CU(rig, cuGraphLaunch, exec, rig->stream);
    RIG_CU(rig, cuEventRecord, rig->event[0], rig->stream);
    for (int i = 0; i < 20; i++)
        RIG_CU(rig, cuGraphLaunch, exec, rig->stream);
    RIG_CU(rig, cuEventRecord, rig->event[1], rig->stream);
    rig_wait(rig);
    RIG_CU(rig, cuEventElapsedTime, &ms, rig->event[0], rig->event[1]);
    RIG_CU(rig, cuGraphExecDestroy, exec);
    const double one = time_op(rig, NIB_GPU_EMBED, b) * rig->m.layers;
    printf("  begin %.2f, sample %.2f (drawn from all %.2f, top-p %.2f), between graphs %.2f us\n", begin, sample,
           drawn, top_p, (double)ms * 1e3 / 20 - one);
}

/* What a step gets shorter by without an op, for each layer if it is one of a layer's. Without all of them BEGIN and SAMPLE are left. */
static void bench_without(struct rig *rig, struct rig_bucket b)
{
    const double all = time_steps(rig, b, 1024, 10);
    printf("  a step less an op:");
    for (int op = NIB_GPU_QKV; op <= NIB_GPU_SCAN; op++) { /* without EMBED the rows become alike */
        struct nib_gpu_geometry g;
        /* without UP, DOWN would begin before the routing is done */
        if (nib_gpu_op_few((enum nib_gpu_op)op) == NIB_GPU_UP)
            continue;
        rig->k->geometry(nib_gpu_op_in((enum nib_gpu_op)op, rig->dense), &rig->m, b.decode, b.prompt, b.want, &g);
        if (g.grid[0] == 0)
            continue;
        rig->without = 1ull << op;
        const double us = all - time_steps(rig, b, 1024, 10);
        printf(" %s %.1f", nib_gpu_op_symbol((enum nib_gpu_op)op) + 8,
               op >= NIB_GPU_QKV && op <= NIB_GPU_COMBINE ? us / rig->m.layers : us);
    }
    rig->without = ((1ull << NIB_GPU_SAMPLE) - 1) & ~((1ull << (NIB_GPU_BEGIN + 1)) - 1);
    printf(", begin and sample %.1f us\n", time_steps(rig, b, 1024, 20));
    rig->without = 0;
}

/* Blocks a multiprocessor, for the ops that stream. */
static void bench_blocks(struct rig *rig)
{
    static const enum nib_gpu_op ops[] = {NIB_GPU_QKV, NIB_GPU_OUT, NIB_GPU_UP, NIB_GPU_DOWN, NIB_GPU_HEAD};
    const struct rig_bucket b = {1, 0, 1};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        printf("  %-6s blocks:", nib_gpu_op_symbol(ops[i]) + 8);
        for (uint32_t n = 1; n <= 12; n = n < 4 ? n + 1 : n * 2 > 12 ? n + 4 : n * 2) {
            rig->blocks[nib_gpu_op_in(ops[i], rig->dense)] = n * rig->sms;
            printf("  %u/SM %.2f", n, time_op(rig, ops[i], b));
        }
        rig->blocks[nib_gpu_op_in(ops[i], rig->dense)] = 0;
        printf(" us\n");
    }
}

static void bench_one(struct rig *rig)
{
    static const char *const ways[] = {"op by op, no overlap", "op by op", "fused"};
    for (int way = 0; way < (rig->k->has(NIB_GPU_TOKEN) ? 3 : 2); way++) {
        rig->overlap = way > 0;
        rig->apart = way < 2;
        for (uint32_t pos = 1024; pos <= 2048; pos += 1024) {
            const double us = time_steps(rig, (struct rig_bucket){1, 0, 1}, pos, 100);
            printf("decode, batch 1, context %u, %s: %.1f us a token, %.1f tokens/s\n", pos, ways[way], us, 1e6 / us);
        }
        (void)fflush(stdout);
    }
    rig->apart = false;
    printf("decode, batch 1, context 1024, op by op:\n");
    for (int overlap = 0; overlap < 2; overlap++) {
        rig->overlap = overlap;
        printf(" overlap %d\n", overlap);
        bench_ops(rig, (struct rig_bucket){1, 0, 1});
    }
    bench_blocks(rig);
}

static void bench_decode(struct rig *rig, uint32_t n)
{
    const struct rig_bucket b = {n, 0, n};
    double most;
    const double us = time_steps(rig, b, 1024, 20), experts = experts_read(rig, b, &most);
    printf("decode, batch %u: %.0f us a step, %.0f tokens/s; a layer reads %.1f experts, one for %.0f rows\n", n, us,
           n * 1e6 / us, experts, most);
    bench_ops(rig, b);
    bench_ends(rig, b);
    if (n <= 8)
        bench_without(rig, b);
}

static void bench_prompt(struct rig *rig, uint32_t n)
{
    const struct rig_bucket b = {0, n, 0};
    const double us = time_steps(rig, b, 0, 5);
    printf("prompt, %u rows: %.0f us, %.0f tokens/s\n", n, us, n * 1e6 / us);
    bench_ops(rig, b);
    bench_ends(rig, b);
}

/* Whole steps of each number of decode rows in a list such as 1,64,256: seconds, to compare an image with another. */
static void bench_batches(struct rig *rig, const char *list)
{
    rig->overlap = true;
    for (const char *at = list; *at;) {
        char *end = NULL;
        const unsigned long n = strtoul(at, &end, 10);
        if (end == at || n < 1 || n > SLOTS || (*end && *end != ','))
            rig_die("--batches takes numbers from 1 to 256, a comma between them");
        at = *end ? end + 1 : end;
        const struct rig_bucket b = {(uint32_t)n, 0, (uint32_t)n};
        for (int again = 0; again < 2; again++) {
            const double us = time_steps(rig, b, 1024, n > 64 ? 40 : 100);
            printf("decode, batch %lu: %.1f us a step, %.1f tokens/s\n", n, us, (double)n * 1e6 / us);
        }
        if (n > 1) { /* other experts are other figures */
            double most;
            const double experts = experts_read(rig, b, &most);
            printf("  a layer reads %.1f experts, one for %.0f rows\n", experts, most);
            bench_ops(rig, b);
        }
        (void)fflush(stdout);
    }
}

void rig_bench(struct rig *rig, const char *name, bool prompt, const char *batches, double spread)
{
    shape = nib_shape_find(name);
    if (!shape)
        rig_die("no such shape");
    const double start = rig_now();
    open_machine(rig, spread);
    printf("%s, dense %s, row %s, %.1f GB, made in %.1f s\n", name, nib_dense_name(rig->dense), rig->k->name,
           (double)rig->used * 1e-9, rig_now() - start);
    if (batches) {
        bench_batches(rig, batches);
        return;
    }
    bench_one(rig);
    for (uint32_t n = 2; n <= SLOTS; n *= 2) {
        (void)fflush(stdout);
        bench_decode(rig, n);
    }
    for (uint32_t n = 512; prompt && n <= ROWS; n *= 4) {
        (void)fflush(stdout);
        bench_prompt(rig, n);
    }
    (void)fflush(stdout);
}
