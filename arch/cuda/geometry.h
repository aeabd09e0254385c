/* arch/cuda/geometry.h: sizes and launch geometry of a CUDA row; included once by each row's table.c, which sets NIB_SM and
 * NIB_SHARED_BYTES. Pure functions of the machine block; any thread; cannot fail. */
#ifndef NIB_ARCH_CUDA_GEOMETRY_H
#define NIB_ARCH_CUDA_GEOMETRY_H

#include <stdbool.h>

#include "arch/cuda/layout.h"
#if NIB_SM >= 90
#include "arch/sm90/batch_attn.h"
#include "arch/sm90/batch_dense.h"
#include "arch/sm90/batch_mx.h"
#include "arch/sm90/few_mx.h"
#include "arch/sm90/prompt.h"
#include "arch/sm90/route_cluster.h"
#include "arch/sm90/token.h"
#endif

#define NIB_SM_SHARED    (227u * 1024) /* of a multiprocessor; how many blocks share it is a guess that costs only speed */
#define NIB_BLOCK_SHARED 1024u         /* what a block takes besides */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint64_t route_bytes(uint32_t rows, uint32_t experts)
{
    return cu_route_expert_at(rows, experts) + 4 * cu_route_array(rows);
}

static uint64_t scratch_bytes(const struct nib_shape *shape, uint32_t slots, uint32_t rows)
{
    (void)slots;
    (void)rows;
#if NIB_SM >= 90
    return cu_batch_acts_at() +
           cu_batch_acts_bytes(shape->hidden > nib_q_dim(shape) ? shape->hidden : nib_q_dim(shape));
#else
    (void)shape;
    return sizeof(struct cu_scratch);
#endif
}

static uint32_t splits_max(uint32_t ctx_tokens)
{
    return least(CU_DIV_UP(ctx_tokens, CU_ATTN_KEYS), CU_ATTN_SPLITS);
}

/* A block with `warps` rings of `ring` bytes, `rows` rows of k activations, and the warps' sums. */
static uint32_t gemv_shared_bytes(uint32_t warps, uint32_t ring, uint32_t rows, uint32_t k)
{
    return warps * ring + rows * cu_row_stride(k) + 2 * warps * CU_DIV_UP(rows, 8) * 512;
}

/* As many blocks as the tiles need and the multiprocessors hold. */
static void gemv_launch(const struct nib_gpu_machine *m, uint32_t warps, uint32_t tiles, uint32_t ring, uint32_t rows,
                        uint32_t k, uint32_t blocks_sm, struct nib_gpu_geometry *ret)
{
    ret->block = warps * 32;
    ret->shared_bytes = gemv_shared_bytes(warps, ring, least(rows, CU_GEMV_ROWS), k);
    const uint32_t fit = NIB_SM_SHARED / (ret->shared_bytes + NIB_BLOCK_SHARED);
    ret->grid[0] = least(tiles, m->sms * (fit < 1 ? 1 : least(fit, blocks_sm)));
    /* blocks that start while the op before ends go where there is room first: none gets more than its part */
    const uint32_t most = CU_DIV_UP(ret->grid[0], m->sms), alone = NIB_SM_SHARED / (most + 1) + 16;
    if (NIB_SM >= 90 && ret->shared_bytes < alone)
        ret->shared_bytes = alone / 16 * 16;
}

#define CU_MXFP8_RING_BYTES (CU_MXFP8_RING * CU_MXFP8_SPAN * CU_MXFP8_BYTES)

/* deep: bytes of a warp's ring where rings are deep. */
static void dense_launch(const struct nib_gpu_machine *m, bool mxfp8, uint32_t warps, uint32_t deep, uint32_t n,
                         uint32_t k, uint32_t rows, struct nib_gpu_geometry *ret)
{
    const uint32_t ring = mxfp8 ? CU_MXFP8_RING_BYTES : CU_DENSE_RING * CU_DENSE_BYTES;
    const uint32_t bytes = cu_deep_bytes(warps, deep, mxfp8 ? CU_MXFP8_SPAN * CU_MXFP8_BYTES : CU_DENSE_BYTES, k);
    if (rows <= CU_DEEP_ROWS && bytes + CU_ATTN_SHARED + 2 * NIB_BLOCK_SHARED <= NIB_SM_SHARED)
        *ret = (struct nib_gpu_geometry){{least(cu_tiles(n), m->sms), 1, 1}, warps * 32, bytes, 0};
    else
        gemv_launch(m, warps, cu_tiles(n), ring, rows, k, CU_DENSE_BLOCKS, ret);
}

#if NIB_SM >= 90
/* One block a multiprocessor. */
static void mx_launch(const struct nib_gpu_machine *m, uint32_t n, uint32_t k, uint32_t rows,
                      struct nib_gpu_geometry *ret)
{
    const struct cu_few_room room = cu_few_room(cu_few_kind(rows), k);
    ret->block = CU_FEW_THREADS;
    /* when no stage fits: more than there is, which boot refuses */
    ret->shared_bytes = room.stages ? room.bytes : NIB_SM_SHARED + room.stage_bytes;
    ret->grid[0] = least(rows * m->experts_used * cu_tiles(n), m->sms);
}
#else
/* As many blocks as the multiprocessors hold, and no more: so none of them gets more than its part. */
static void mx_launch(const struct nib_gpu_machine *m, uint32_t n, uint32_t k, uint32_t rows,
                      struct nib_gpu_geometry *ret)
{
    ret->block = CU_MX_THREADS;
    ret->shared_bytes = cu_mx_room(cu_mx_rows(rows), k).bytes;
    const uint32_t fit = NIB_SM_SHARED / (ret->shared_bytes + NIB_BLOCK_SHARED + CU_MX_STATIC);
    ret->grid[0] = least(rows * m->experts_used * cu_tiles(n), m->sms * least(fit < 1 ? 1 : fit, CU_MX_BLOCKS));
}
#endif

/* Lists of one expert's prompt rows, at most. */
static uint32_t prompt_groups(const struct nib_gpu_machine *m, uint32_t prompt)
{
    const uint32_t picks = prompt * m->experts_used;
    return least(m->experts + picks / CU_GEMM_M, picks);
}

static void decode_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t rows,
                            struct nib_gpu_geometry *ret)
{
    const uint32_t hidden = m->hidden, inner = m->intermediate, q_dim = m->heads * NIB_HEAD_DIM;
    if (op == NIB_GPU_QKV) {
        dense_launch(m, mxfp8, CU_GEMV_WARPS, CU_DEEP_QKV, q_dim + 2 * m->kv_heads * NIB_HEAD_DIM, hidden, rows, ret);
        /* the op before has a row's block on a multiprocessor each, where no other begins */
        const uint32_t each = ret->grid[0] / m->sms;
        if (NIB_SM >= 90 && each > 0 && rows < m->sms)
            ret->grid[0] = least(ret->grid[0], each * (m->sms - rows));
    } else if (op == NIB_GPU_OUT)
        dense_launch(m, mxfp8, CU_OUT_WARPS, CU_DEEP_OUT, hidden, q_dim, rows, ret);
    else if (op == NIB_GPU_UP)
        mx_launch(m, 2 * inner, hidden, rows, ret);
    else if (op == NIB_GPU_DOWN)
        mx_launch(m, hidden, inner, rows, ret);
    else {
        /* ATTN: enough blocks to fill the card, but each costs its start whatever the context; a block with more splits takes
         * them in turn */
        const uint32_t splits = least(m->splits_max, CU_DIV_UP(CU_ATTN_BLOCKS, rows * m->kv_heads));
        *ret = (struct nib_gpu_geometry){{m->kv_heads, rows, splits}, CU_ATTN_THREADS, CU_ATTN_SHARED, 0};
    }
}

#if NIB_SM >= 90
/* One block a multiprocessor, of which each takes items in turns. */
static void prompt_launch(const struct nib_gpu_machine *m, uint32_t n, uint32_t lists, uint32_t shared_bytes,
                          struct nib_gpu_geometry *ret)
{
    const uint32_t items = CU_DIV_UP(cu_tiles(n), CU_PROMPT_TILES) * lists;
    *ret = (struct nib_gpu_geometry){{least(items, m->sms), 1, 1}, CU_PROMPT_THREADS, shared_bytes, 0};
}

static void products_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t rows,
                              struct nib_gpu_geometry *ret)
{
    const uint32_t hidden = m->hidden, qkv = (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM;
    const uint32_t mx = CU_PROMPT_SHARED(CU_PROMPT_MX_STAGES, CU_PROMPT_MX_BYTES);
    const uint32_t dense = mxfp8 ? CU_PROMPT_SHARED(CU_PROMPT_MXFP8_STAGES, CU_PROMPT_MXFP8_BYTES)
                                 : CU_PROMPT_SHARED(CU_PROMPT_DENSE_STAGES, CU_PROMPT_DENSE_BYTES);
    if (op == NIB_GPU_QKV_PROMPT)
        prompt_launch(m, qkv, CU_DIV_UP(rows, 32), dense, ret);
    else if (op == NIB_GPU_OUT_PROMPT)
        prompt_launch(m, hidden, CU_DIV_UP(rows, 32), dense, ret);
    else if (op == NIB_GPU_UP_PROMPT)
        prompt_launch(m, 2 * m->intermediate, prompt_groups(m, rows), mx, ret);
    else
        prompt_launch(m, hidden, prompt_groups(m, rows), mx, ret);
}
static const uint32_t attn_shared_bytes = CU_PROMPT_ATTN_SHARED;
#else
static const uint32_t attn_shared_bytes = CU_ATTN_PROMPT_SHARED;

static void gemm_launch(uint32_t n, uint32_t y, uint32_t shared_bytes, struct nib_gpu_geometry *ret)
{
    ret->grid[0] = CU_DIV_UP(cu_tiles(n), CU_GEMM_N / CU_TILE);
    ret->grid[1] = y;
    ret->block = CU_GEMM_THREADS;
    ret->shared_bytes = shared_bytes;
}

static void products_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t rows,
                              struct nib_gpu_geometry *ret)
{
    const uint32_t hidden = m->hidden, qkv = (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM;
    const uint32_t mx = CU_MX_STAGES * CU_MX_STAGE_BYTES;
    const uint32_t dense = mxfp8 ? CU_MXFP8_STAGES * CU_MXFP8_STAGE_BYTES : CU_DENSE_STAGES * CU_DENSE_STAGE_BYTES;
    if (op == NIB_GPU_QKV_PROMPT)
        gemm_launch(qkv, CU_DIV_UP(rows, CU_GEMM_M), dense, ret);
    else if (op == NIB_GPU_OUT_PROMPT)
        gemm_launch(hidden, CU_DIV_UP(rows, CU_GEMM_M), dense, ret);
    else if (op == NIB_GPU_UP_PROMPT)
        gemm_launch(2 * m->intermediate, prompt_groups(m, rows), mx, ret);
    else
        gemm_launch(hidden, prompt_groups(m, rows), mx, ret);
}
#endif

static void prompt_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t rows,
                            struct nib_gpu_geometry *ret)
{
    if (op == NIB_GPU_ATTN_PROMPT || op == NIB_GPU_ATTN_PROMPT_FP8)
        *ret = (struct nib_gpu_geometry){
            {m->kv_heads, CU_DIV_UP(rows, CU_ATTN_PROMPT_POS), 1}, CU_ATTN_THREADS, attn_shared_bytes, 0};
    else
        products_geometry(op, mxfp8, m, rows, ret);
}

/* Decode rows of a bucket from which on the op's work is its _BATCH kernel's; 0: there is none. */
static uint32_t batch_from(enum nib_gpu_op op)
{
#if NIB_SM >= 90
    if (op == NIB_GPU_QKV)
        return CU_BATCH_QKV_FROM;
    if (op == NIB_GPU_OUT)
        return CU_BATCH_OUT_FROM;
    if (op == NIB_GPU_HEAD)
        return CU_BATCH_HEAD_FROM;
    if (op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_FP8)
        return CU_BATCH_ATTN_FROM;
    if (op == NIB_GPU_UP || op == NIB_GPU_DOWN)
        return CU_BATCH_MX_FROM;
#endif
    (void)op;
    return 0;
}

static bool has(enum nib_gpu_op form)
{
    const enum nib_gpu_op op = nib_gpu_op_plain(form), few = nib_gpu_op_few(op);
    return op == NIB_GPU_TOKEN ? NIB_SM >= 90 : op == few || batch_from(few) != 0;
}

/* Which of an op's kernels for decode rows a bucket has: `op` itself, that with _BATCH or that with _SHORT. */
static enum nib_gpu_op decode_form(enum nib_gpu_op op, const struct nib_gpu_machine *m, uint32_t rows)
{
    if (batch_from(op) == 0 || rows < batch_from(op))
        return op;
    const bool lists = op == NIB_GPU_UP || op == NIB_GPU_DOWN;
    return (enum nib_gpu_op)(op + (lists && cu_lists_short(rows, m->experts_used, m->experts) ? 2 : 1));
}

/* The _BATCH or _SHORT kernel that does the work of `op`. */
static void batch_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t rows,
                           struct nib_gpu_geometry *ret)
{
#if NIB_SM >= 90
    const uint32_t qkv = (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM;
    const bool few = rows <= CU_BATCH_FEW, some = rows <= CU_BATCH_ROWS;
    *ret = (struct nib_gpu_geometry){{0, 1, 1},
                                     CU_BATCH_THREADS,
                                     few    ? CU_BATCH_LESS
                                     : some ? CU_BATCH_SOME
                                            : CU_BATCH_SHARED,
                                     0};
    if (op == NIB_GPU_QKV) {
        ret->block = CU_BATCH_QKV_THREADS;
        ret->grid[0] = CU_DIV_UP(cu_tiles(qkv), CU_BATCH_QKV_TILES);
        if (!few) {
            const bool third = rows > 3 * CU_BATCH_QKV_ROWS;
            const uint32_t items = CU_DIV_UP(cu_tiles(qkv), CU_BATCH_QKV_MANY) *
                                   CU_DIV_UP(rows, third ? CU_BATCH_QKV_THIRD : CU_BATCH_QKV_ROWS);
            ret->shared_bytes = third ? CU_BATCH_SHARED : CU_BATCH_SOME;
            ret->grid[0] = least(items, m->sms);
        }
    } else if (op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_FP8) {
        *ret = (struct nib_gpu_geometry){{m->sms, 1, 1}, CU_BATCH_ATTN_THREADS, CU_BATCH_ATTN_SHARED, 0};
    } else if (op == NIB_GPU_OUT) {
        ret->block = CU_BATCH_OUT_THREADS;
        ret->grid[3] = some ? CU_BATCH_OUT_PARTS : CU_BATCH_OUT_MANY;
        ret->grid[0] = ret->grid[3] * CU_DIV_UP(cu_tiles(m->hidden), CU_BATCH_OUT_TILES) * (some ? 1 : 2);
    } else if (op == NIB_GPU_HEAD) {
        ret->grid[0] = least(CU_DIV_UP(cu_tiles(m->vocab), CU_BATCH_HEAD_TILES) + 1, m->sms) / 2 * 2;
        ret->shared_bytes = CU_BATCH_SHARED;
    } else if (op == NIB_GPU_UP || op == NIB_GPU_DOWN) {
        const bool lists = cu_lists_short(rows, m->experts_used, m->experts);
        *ret = (struct nib_gpu_geometry){
            {m->sms, 1, 1}, CU_BATCH_MX_THREADS, lists ? CU_MX_SHORT_SHARED : CU_BATCH_MX_SHARED, 0};
    }
#endif
    (void)op, (void)mxfp8, (void)m, (void)rows, (void)ret;
}

/* Ops over all rows of the step. */
static void rows_geometry(enum nib_gpu_op op, const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                          struct nib_gpu_geometry *ret)
{
    const uint32_t rows = decode + prompt;
    if (op == NIB_GPU_BEGIN) {
        *ret = (struct nib_gpu_geometry){{prompt ? CU_BEGIN_BLOCKS : 1, 1, 1}, CU_BEGIN_THREADS, 0, 0};
    } else if (op == NIB_GPU_ROUTE) {
        /* few rows: the experts' tiles on blocks of their own. Rows of a block: few enough that the card holds all blocks at once */
        const bool spread = rows <= (cu_tiles(m->experts) > 2 ? CU_ROUTE_SPREAD : CU_ROUTE_ROWS);
        const uint32_t x = spread ? cu_tiles(m->experts) : 1;
        const uint32_t each = cu_route_rows(rows * x, m->sms * (x > 1 ? 2 : 1));
        const uint32_t ring =
            each < CU_ROUTE_ROWS ? CU_ROUTE_RING : CU_ROUTE_RING_MANY; /* two blocks of many rows fit */
        *ret = (struct nib_gpu_geometry){{x, CU_DIV_UP(rows, each), 1}, CU_ROUTE_THREADS, 0, 0};
        ret->shared_bytes = cu_route_bytes(ring, each, m->hidden);
#if NIB_SM >= 90
        const uint32_t own = cu_route_each(m, rows);
        if (own) {
            const uint32_t clusters = CU_DIV_UP(rows, own * CU_ROUTE_BLOCKS), all = clusters + (clusters > 1);
            *ret = (struct nib_gpu_geometry){{CU_ROUTE_BLOCKS, all, 1, CU_ROUTE_BLOCKS}, CU_ROUTE_THREADS, 0, 0};
            ret->shared_bytes = cu_route_cluster_bytes(own, m->experts);
        }
#endif
    } else {
        const bool many =
            op == NIB_GPU_COMBINE && rows >= CU_MANY_ROWS && m->hidden <= CU_MANY_THREADS * CU_MANY_PARTS * 4;
        *ret = (struct nib_gpu_geometry){{rows, 1, 1}, many ? CU_MANY_THREADS : CU_ROW_THREADS, 0, 0};
    }
}

static void want_geometry(enum nib_gpu_op op, bool mxfp8, const struct nib_gpu_machine *m, uint32_t want,
                          struct nib_gpu_geometry *ret)
{
    if (op == NIB_GPU_SAMPLE) /* a multiprocessor holds one block, of SCAN two */
        *ret = (struct nib_gpu_geometry){{cu_slices(want, m->sms), want ? want : 1, 1}, CU_SAMPLE_THREADS, 0, 0};
    else if (op == NIB_GPU_SCAN && want)
        *ret = (struct nib_gpu_geometry){{cu_slices(want, 2 * m->sms), want, 1}, CU_SAMPLE_THREADS, 0, 0};
    else if (want && decode_form(NIB_GPU_HEAD, m, want) == NIB_GPU_HEAD)
        gemv_launch(m, CU_GEMV_WARPS, cu_tiles(m->vocab), mxfp8 ? CU_MXFP8_RING_BYTES : CU_BF13_RING * CU_BF13_BYTES,
                    want, m->hidden, CU_DENSE_BLOCKS, ret);
}

static void token_geometry(const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                           struct nib_gpu_geometry *ret)
{
#if NIB_SM >= 90
    if (decode == 1 && prompt == 0 && !m->kv_new)
        *ret = (struct nib_gpu_geometry){{cu_token_blocks(m), 1, 1}, CU_TOKEN_THREADS, CU_TOKEN_SHARED, 0};
#else
    (void)m, (void)decode, (void)prompt, (void)ret;
#endif
}

/* Attention over pages of the form that the machine does not have. */
static bool other_form(const struct nib_gpu_machine *m, enum nib_gpu_op op)
{
    const bool wide = op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_BATCH || op == NIB_GPU_ATTN_PROMPT;
    const bool fp8 = op == NIB_GPU_ATTN_FP8 || op == NIB_GPU_ATTN_BATCH_FP8 || op == NIB_GPU_ATTN_PROMPT_FP8;
    return m->kv_new ? wide : fp8;
}

static void geometry(enum nib_gpu_op form, const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                     uint32_t want, struct nib_gpu_geometry *ret)
{
    const enum nib_gpu_op op = nib_gpu_op_plain(form), few = nib_gpu_op_few(op);
    const bool mxfp8 = op != form;
    const uint32_t rows = few == NIB_GPU_HEAD ? want : decode;
    *ret = (struct nib_gpu_geometry){{0, 1, 1}, 32, 0, 0};
    if (other_form(m, op))
        return;
    switch (op) {
    case NIB_GPU_REPACK_DENSE:
    case NIB_GPU_REPACK_MX:
    case NIB_GPU_REPACK_MXFP8:
    case NIB_GPU_REPACK_HEAD:
    case NIB_GPU_SUM:
        *ret = (struct nib_gpu_geometry){{m->sms * 8, 1, 1}, CU_REPACK_THREADS, 0, 0};
        return;
    case NIB_GPU_BEGIN:
    case NIB_GPU_EMBED:
    case NIB_GPU_ROUTE:
    case NIB_GPU_COMBINE:
        rows_geometry(op, m, decode, prompt, ret);
        break;
    case NIB_GPU_KV_FP8:
        if (m->kv_new)
            *ret = (struct nib_gpu_geometry){{decode + prompt, 1, 1}, CU_KV8_THREADS, 0, 0};
        break;
    case NIB_GPU_QKV:
    case NIB_GPU_ATTN:
    case NIB_GPU_ATTN_FP8:
    case NIB_GPU_OUT:
    case NIB_GPU_UP:
    case NIB_GPU_DOWN:
        if (decode && decode_form(op, m, decode) == op)
            decode_geometry(op, mxfp8, m, decode, ret);
        break;
    case NIB_GPU_QKV_BATCH:
    case NIB_GPU_ATTN_BATCH:
    case NIB_GPU_ATTN_BATCH_FP8:
    case NIB_GPU_OUT_BATCH:
    case NIB_GPU_UP_BATCH:
    case NIB_GPU_UP_SHORT:
    case NIB_GPU_DOWN_BATCH:
    case NIB_GPU_DOWN_SHORT:
    case NIB_GPU_HEAD_BATCH:
        if (decode_form(few, m, rows) == op)
            batch_geometry(few, mxfp8, m, rows, ret);
        break;
    case NIB_GPU_QKV_PROMPT:
    case NIB_GPU_ATTN_PROMPT:
    case NIB_GPU_ATTN_PROMPT_FP8:
    case NIB_GPU_OUT_PROMPT:
    case NIB_GPU_UP_PROMPT:
    case NIB_GPU_DOWN_PROMPT:
        if (prompt)
            prompt_geometry(op, mxfp8, m, prompt, ret);
        break;
    case NIB_GPU_TOKEN:
        token_geometry(m, decode, prompt, ret);
        break;
    case NIB_GPU_HEAD:
    case NIB_GPU_SCAN:
    case NIB_GPU_SAMPLE:
        want_geometry(op, mxfp8, m, want, ret);
        break;
    default: /* the others are none's plain form */
        break;
    }
    ret->overlap = NIB_SM >= 90;
}

#endif
