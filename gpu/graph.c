/* gpu/graph.c: owns one captured graph a bucket, all made at boot; buckets whose layers are one kernel have none.
 *
 * Buckets are bounds on decode rows, on prompt rows, or on both, in powers of two, so that a step's graph launches at most
 * twice the blocks that the step needs. Steps with a draft have buckets of their own: attention begins before the op before it
 * has ended, reading the keys of earlier steps, and a draft's rows see each other's keys, which are of this step; so there it
 * waits, and no kernel does all layers in one. Limits: NIB_GPU_MAX_BUCKETS. Boot thread makes them; choosing one is pure. Fails
 * with the call that failed; what was made is freed by nib_gpu_graphs_free. */
#include "core/arith.h"
#include "gpu/state.h"

#define PROMPT_ROWS_MIN 32 /* the smallest bound on prompt rows */

static struct nib_gpu_geometry geometry(const struct nib_gpu_engine *e, enum nib_gpu_op op,
                                        const struct nib_gpu_bucket *b)
{
    struct nib_gpu_geometry g = {0};
    e->k->geometry(op, &e->machine, b->decode, b->prompt, b->want, &g);
    return g;
}

static void add(struct nib_gpu_engine *e, uint32_t decode, uint32_t prompt, bool draft)
{
    const struct nib_engine_dims *d = &e->base.dims;
    NIB_MUST(e->buckets_count < NIB_GPU_MAX_BUCKETS);
    e->buckets[e->buckets_count++] =
        (struct nib_gpu_bucket){.decode = decode,
                                .prompt = prompt,
                                .want = (uint32_t)nib_min_u64(d->slots, (uint64_t)decode + prompt),
                                .draft = draft};
}

static uint32_t next_bound(uint32_t bound, uint32_t max)
{
    return bound < max && bound * 2 > max ? max : bound * 2;
}

static void list(struct nib_gpu_engine *e)
{
    const uint32_t slots = e->base.dims.slots, rows = e->base.dims.step_rows_max;
    const uint32_t least = rows < PROMPT_ROWS_MIN ? rows : PROMPT_ROWS_MIN;
    e->buckets_count = 0;
    for (uint32_t n = 1; n <= slots; n = next_bound(n, slots))
        add(e, n, 0, false);
    for (uint32_t n = least; n <= rows; n = next_bound(n, rows))
        add(e, 0, n, false);
    for (uint32_t n = least; n <= rows; n = next_bound(n, rows))
        add(e, slots, n, false);
    for (uint32_t n = 2; n <= slots && e->plan->sched.draft_tokens != 0; n = next_bound(n, slots))
        add(e, n, 0, true);
}

struct nib_gpu_bucket *nib_gpu_bucket_for(struct nib_gpu_engine *e, uint32_t decode, uint32_t prompt, bool draft)
{
    for (uint32_t i = 0; i < e->buckets_count; i++) {
        struct nib_gpu_bucket *b = &e->buckets[i];
        if (decode <= b->decode && prompt <= b->prompt && draft == b->draft)
            return b;
    }
    return NULL;
}

/* Function attributes are set before a capture begins. */
static enum nib_err allow(struct nib_gpu_engine *e, enum nib_gpu_op op, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    for (uint32_t i = 0; i < e->buckets_count && !err; i++) {
        struct nib_gpu_geometry g = geometry(e, op, &e->buckets[i]);
        if (g.grid[0])
            err = nib_gpu_module_allow(e->gpu, op, g.block, g.shared_bytes, msg);
    }
    return err;
}

static enum nib_err launch_range(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b, enum nib_gpu_op first,
                                 enum nib_gpu_op last, uint32_t layer, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    for (int op = (int)first; op <= (int)last && !err; op++) {
        const enum nib_gpu_op form = nib_gpu_op_in((enum nib_gpu_op)op, e->plan->dense);
        struct nib_gpu_geometry g = geometry(e, form, b);
        const enum nib_gpu_op few = nib_gpu_op_few((enum nib_gpu_op)op);
        if (b->draft && (few == NIB_GPU_ATTN || few == NIB_GPU_ATTN_FP8))
            g.overlap = 0;
        if (g.grid[0])
            err = nib_gpu_launch(e->gpu, form, &g, (struct nib_gpu_target){e->stream, e->machine_at, layer}, msg);
    }
    return err;
}

/* Whether one kernel does all layers. */
static bool fused(const struct nib_gpu_engine *e, const struct nib_gpu_bucket *b)
{
    return !b->draft && geometry(e, nib_gpu_op_in(NIB_GPU_TOKEN, e->plan->dense), b).grid[0];
}

/* The layers of a step: by one kernel where the row has one for such a bucket, or op by op. */
static enum nib_err launch_layers(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b, struct nib_msg *msg)
{
    const uint32_t layers = e->base.shape->layers;
    if (fused(e, b))
        return launch_range(e, b, NIB_GPU_TOKEN, NIB_GPU_TOKEN, 0, msg);
    enum nib_err err = launch_range(e, b, NIB_GPU_EMBED, NIB_GPU_EMBED, 0, msg);
    for (uint32_t l = 0; l < layers && !err; l++)
        err = launch_range(e, b, NIB_GPU_QKV, NIB_GPU_COMBINE, l, msg);
    return err;
}

static enum nib_err launch_step(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b, struct nib_msg *msg)
{
    enum nib_err err = launch_range(e, b, NIB_GPU_BEGIN, NIB_GPU_BEGIN, 0, msg);
    if (!err)
        err = launch_layers(e, b, msg);
    return err ? err : launch_range(e, b, NIB_GPU_HEAD, NIB_GPU_SAMPLE, 0, msg);
}

static enum nib_err capture(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b, struct CUgraph_st **ret_graph,
                            struct nib_msg *msg)
{
    struct CUgraph_st *graph = NULL;
    enum nib_err err = NIB_CU(e->cuda, msg, cuStreamBeginCapture, e->stream, NIB_CU_CAPTURE_RELAXED);
    if (err)
        return err;
    err = launch_step(e, b, msg);
    struct nib_msg why;
    enum nib_err end = NIB_CU(e->cuda, &why, cuStreamEndCapture, e->stream, &graph);
    if (!err && end)
        err = nib_fail(msg, end, "%s", why.text);
    if (!err)
        *ret_graph = graph;
    else if (graph)
        (void)e->cuda->cuGraphDestroy(graph);
    return err;
}

static enum nib_err make(struct nib_gpu_engine *e, struct nib_gpu_bucket *b, struct nib_msg *msg)
{
    struct CUgraph_st *graph = NULL;
    enum nib_err err = capture(e, b, &graph, msg);
    if (err)
        return err;
    err = NIB_CU(e->cuda, msg, cuGraphInstantiateWithFlags, &b->exec, graph, 0);
    struct nib_msg why;
    enum nib_err freed = NIB_CU(e->cuda, &why, cuGraphDestroy, graph);
    if (!err && freed)
        err = nib_fail(msg, freed, "%s", why.text);
    /* now, not at the first launch */
    return err ? err : NIB_CU(e->cuda, msg, cuGraphUpload, b->exec, e->stream);
}

/* The few kernels of a fused step are launched one by one: the next step's begin while this one's end, which a graph behind a graph does not. */
enum nib_err nib_gpu_graph_launch(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b, struct nib_msg *msg)
{
    return b->exec ? NIB_CU(e->cuda, msg, cuGraphLaunch, b->exec, e->stream) : launch_step(e, b, msg);
}

enum nib_err nib_gpu_graphs_make(struct nib_gpu_engine *e, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    list(e);
    for (int op = NIB_GPU_BEGIN; op <= NIB_GPU_SAMPLE && !err; op++)
        err = allow(e, nib_gpu_op_in((enum nib_gpu_op)op, e->plan->dense), msg);
    for (uint32_t i = 0; i < e->buckets_count && !err; i++) {
        struct nib_gpu_bucket *b = &e->buckets[i];
        struct nib_msg why;
        if (fused(e, b))
            continue;
        err = make(e, b, &why);
        if (err)
            err = nib_fail(msg, err, "the graph for %u answers and %u prompt tokens cannot be made: %s", b->decode,
                           b->prompt, why.text);
    }
    return err ? err : nib_gpu_idle(e, e->step_us_max, msg);
}

void nib_gpu_graphs_free(struct nib_gpu_engine *e)
{
    for (uint32_t i = 0; i < e->buckets_count; i++)
        if (e->buckets[i].exec)
            (void)e->cuda->cuGraphExecDestroy(e->buckets[i].exec);
    e->buckets_count = 0;
}
