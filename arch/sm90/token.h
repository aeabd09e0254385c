/* arch/sm90/token.h: how the fused decode kernel (arch/sm90/token.cuh) shares a layer's weights among its blocks, and what
 * the blocks hand to each other. C, also for the row's table and tests. Pure; any thread; cannot fail.
 *
 * A stage is what one bulk copy brings: one share of the inputs of a tile of 16 output rows, multiplied by one warp; of an expert
 * four, two by a warp (a piece). The shares are those of the warps of the row's other kernels (arch/cuda/gemv.cuh, arch/sm90/few_mx.cuh),
 * and sums are added in the same order, so that both ways give the same bits. Each block takes an even, contiguous range of
 * an op's stages; a tile may be cut once, between two blocks. */
#ifndef NIB_ARCH_SM90_TOKEN_H
#define NIB_ARCH_SM90_TOKEN_H

#include "arch/cuda/layout.h"

#define CU_TOKEN_WARPS   14                      /* that multiply */
#define CU_TOKEN_COURIER (CU_TOKEN_WARPS * 32)   /* first thread of the warp that makes the experts' activations */
#define CU_TOKEN_FEEDER  (CU_TOKEN_COURIER + 32) /* first thread of the warp that asks for weights */
#define CU_TOKEN_THREADS (CU_TOKEN_FEEDER + 32)
#define CU_TOKEN_SLOTS   32            /* stages asked for and not yet read, at most */
#define CU_TOKEN_SHARED  (227u * 1024) /* dynamic, all of a multiprocessor */

/* Stages on their way at most: what blocks hand to each other waits behind them (arch/sm90/NOTES.md). */
#define CU_TOKEN_AHEAD_QKV   4
#define CU_TOKEN_AHEAD_OUT   2
#define CU_TOKEN_STEP_QKV    2           /* so many stages of QKV are asked for at a time */
#define CU_TOKEN_AHEAD_FIRST 5           /* of the best expert, as soon as it is known: nothing is handed over then */
#define CU_TOKEN_AHEAD       0x44445557u /* experts, two asked for at a time: a digit a phase, the first in the lowest */
/* The same when dense stages have half the bytes. */
#define CU_TOKEN_MXFP8_QKV   4
#define CU_TOKEN_MXFP8_EARLY 16 /* so many stages of QKV, while nothing is handed over, have more on their way: */
#define CU_TOKEN_MXFP8_MORE  10
#define CU_TOKEN_MXFP8_STEP  3 /* so many stages of QKV are asked for at a time */
#define CU_TOKEN_MXFP8_OUT   4
#define CU_TOKEN_MXFP8       0x44445556u
/* Of the head, by each block, to the second-level cache. */
#define CU_TOKEN_HEAD_ASKS  15
#define CU_TOKEN_HEAD_BYTES 8192
#ifndef CU_TOKEN_MS
#define CU_TOKEN_MS 500 /* a wait gives up so long after the block saw the step; a sanitizer wants more */
#endif

/* Largest model and grid. Hidden: one float4 a thread of a block of CU_ROW_THREADS. */
#define CU_TOKEN_HIDDEN  3072
#define CU_TOKEN_INNER   2880
#define CU_TOKEN_Q       4096
#define CU_TOKEN_QKV_DIM 5120
#define CU_TOKEN_BLOCKS  256
#define CU_TOKEN_LIST    28  /* stages of an op that a block has */
#define CU_TOKEN_ASKS    85  /* stages of a layer that a block has */
#define CU_TOKEN_CHOSEN  44  /* of these the experts' */
#define CU_TOKEN_TILES   16  /* tiles of up, and four times those of down, that a block has a part of */
#define CU_TOKEN_DENSE   8   /* the same of QKV and OUT */
#define CU_TOKEN_PARTS   96  /* sums of 16 rows that a block holds of one op: 3 tiles of down */
#define CU_TOKEN_UP_SUMS 104 /* the same of up: 13 tiles */

/* A warp multiplies half of a stage, two shares of the expert's inputs. */
#define CU_TOKEN_HALF   (CU_MX_SPLIT / 2) /* shares of a stage */
#define CU_TOKEN_PIECES (CU_TOKEN_HALF / 2)

/* Stages [lo, hi) of an op are a block's; a tile has `per` of them. */
struct cu_share {
    uint32_t lo, hi, per;
};

NIB_BOTH struct cu_share cu_share_of(uint32_t tiles, uint32_t per, uint32_t blocks, uint32_t block)
{
    const uint64_t all = (uint64_t)tiles * per;
    const struct cu_share s = {(uint32_t)(all * block / blocks), (uint32_t)(all * (block + 1) / blocks), per};
    return s;
}

/* The same of down, but no block begins with a tile's last stage: the block before would hand over half of the last expert's sums, which it
 * has when all others have ended, and this one would wait for them. It has both halves instead. */
NIB_BOTH struct cu_share cu_share_down(uint32_t tiles, uint32_t per, uint32_t blocks, uint32_t block)
{
    struct cu_share s = cu_share_of(tiles, per, blocks, block);
    s.lo -= s.lo % per == per - 1;
    s.hi -= s.hi % per == per - 1;
    return s;
}

/* Tiles [lo, hi) of one choice's up product, none cut. The choices are shifted against each other so that a block's tiles of all
 * of them together are even to one. */
NIB_BOTH struct cu_share cu_share_choice(uint32_t tiles, uint32_t choice, uint32_t choices, uint32_t blocks,
                                         uint32_t block)
{
    const uint64_t all = (uint64_t)choices * tiles, shift = (uint64_t)choice * blocks, by = (uint64_t)choices * blocks;
    const struct cu_share s = {(uint32_t)((all * block + shift) / by), (uint32_t)((all * (block + 1) + shift) / by), 1};
    return s;
}

/* Which stage a block takes as its i-th: first what it has of a tile that the next block ends, so that the next need not wait
 * for it; last the end of a tile that the block before began. */
NIB_BOTH uint32_t cu_share_stage(struct cu_share s, uint32_t i)
{
    const uint32_t head = s.hi % s.per, tail = (s.per - s.lo % s.per) % s.per, n = s.hi - s.lo;
    if (i < head)
        return s.hi - head + i;
    return i < n - tail ? s.lo + tail + (i - head) : s.lo + (i - (n - tail));
}

/* Of the stages of a tile, those of this block: [first, end). */
NIB_BOTH uint32_t cu_share_first(struct cu_share s, uint32_t tile)
{
    return tile * s.per < s.lo ? s.lo - tile * s.per : 0;
}

NIB_BOTH uint32_t cu_share_end(struct cu_share s, uint32_t tile)
{
    return (tile + 1) * s.per > s.hi ? s.hi - tile * s.per : s.per;
}

/* Blocks of a launch: as many as multiprocessors, but each has a whole tile's worth of every op but the router's, so that what
 * a block hands over shows that it has taken in what came before. 0: this model cannot be done so. */
NIB_BOTH uint32_t cu_token_blocks(const struct nib_gpu_machine *m)
{
    const uint32_t out = cu_tiles(m->hidden), qkv = (m->heads + 2 * m->kv_heads) * (NIB_HEAD_DIM / CU_TILE);
    const uint32_t up = m->experts_used * cu_tiles(2 * m->intermediate);
    uint32_t blocks = m->sms < CU_TOKEN_BLOCKS ? m->sms : CU_TOKEN_BLOCKS;
    blocks = out < blocks ? out : blocks;
    blocks = qkv < blocks ? qkv : blocks;
    blocks = up < blocks ? up : blocks;
    if (blocks == 0)
        return 0;
    const uint32_t most = CU_DIV_UP(qkv * CU_GEMV_WARPS, blocks) + 1, experts = (CU_DIV_UP(up, blocks) + 1) * 2;
    const uint32_t per = 2 * m->experts_used, stages = CU_DIV_UP(out * per, blocks) + 1,
                   down = (stages + per - 2) / per + 1; /* tiles of down */
    const int fits = m->hidden <= CU_TOKEN_HIDDEN && m->intermediate <= CU_TOKEN_INNER &&
                     m->heads * NIB_HEAD_DIM <= CU_TOKEN_Q && m->heads == m->kv_heads * NIB_GQA_GROUP &&
                     qkv * CU_TILE <= CU_TOKEN_QKV_DIM && m->window + 31 <= CU_ATTN_KEYS &&
                     m->experts_used == NIB_MAX_EXPERTS_USED && most <= CU_TOKEN_LIST && experts <= CU_TOKEN_LIST &&
                     CU_DIV_UP(out * CU_OUT_WARPS, blocks) < CU_TOKEN_LIST &&
                     most + CU_DIV_UP(out * CU_OUT_WARPS, blocks) + experts + stages + 2 <= CU_TOKEN_ASKS &&
                     experts + stages <= CU_TOKEN_CHOSEN && CU_DIV_UP(qkv, blocks) + 2 <= CU_TOKEN_DENSE &&
                     CU_TOKEN_DENSE * CU_GEMV_WARPS <= CU_TOKEN_PARTS && CU_DIV_UP(out, blocks) + 2 <= CU_TOKEN_DENSE &&
                     CU_TOKEN_DENSE * CU_OUT_WARPS <= CU_TOKEN_PARTS && down <= CU_TOKEN_TILES / NIB_MAX_EXPERTS_USED &&
                     down * m->experts_used * CU_MX_SPLIT <= CU_TOKEN_PARTS &&
                     CU_DIV_UP(up, blocks) <= CU_TOKEN_TILES && CU_DIV_UP(up, blocks) * CU_MX_SPLIT <= CU_TOKEN_UP_SUMS;
    return fits ? blocks : 0;
}

enum cu_token_op { CU_TOKEN_QKV, CU_TOKEN_OUT, CU_TOKEN_UP, CU_TOKEN_DOWN, CU_TOKEN_OPS };

/* A stage of an op, the same in every layer. */
struct cu_token_stage {
    uint32_t offset;   /* bytes from the matrix' first */
    uint16_t tile;     /* of the matrix */
    uint8_t part;      /* which of the tile's stages; experts: which half of the inputs */
    uint8_t choice;    /* experts: whose */
    uint8_t u0, units; /* inputs: first unit, number */
    uint16_t reserved; /* 16 bytes in all */
    uint32_t to;       /* shared address in the ring */
};

/* What a block does of an op that cuts tiles. */
NIB_BOTH struct cu_share cu_token_share(enum cu_token_op op, const struct nib_gpu_machine *m, uint32_t blocks,
                                        uint32_t block)
{
    const uint32_t out = cu_tiles(m->hidden);
    if (op == CU_TOKEN_QKV)
        return cu_share_of((m->heads + 2 * m->kv_heads) * (NIB_HEAD_DIM / CU_TILE), CU_GEMV_WARPS, blocks, block);
    if (op == CU_TOKEN_OUT)
        return cu_share_of(out, CU_OUT_WARPS, blocks, block);
    return cu_share_down(out, 2 * m->experts_used, blocks, block);
}

/* Bytes of the router's weights that a block has in shared memory: those of the tiles of x that it ends, in halves of units (CU_DENSE_UNIT) of two
 * tiles of experts each. */
#define CU_TOKEN_ROUTE_BYTES 1024 /* of a tile, for 32 experts */
NIB_BOTH uint32_t cu_token_route_bytes(const struct nib_gpu_machine *m, uint32_t blocks, uint32_t block)
{
    const struct cu_share s = cu_token_share(CU_TOKEN_OUT, m, blocks, block);
    return (s.hi / s.per - s.lo / s.per) * CU_DIV_UP(m->experts, 32) * CU_TOKEN_ROUTE_BYTES;
}

/* Stages of a choice that are a block's, of up or down. */
NIB_BOTH uint32_t cu_token_chosen(enum cu_token_op op, const struct nib_gpu_machine *m, uint32_t blocks, uint32_t block,
                                  uint32_t choice)
{
    if (op == CU_TOKEN_UP) {
        const struct cu_share s =
            cu_share_choice(cu_tiles(2 * m->intermediate), choice, m->experts_used, blocks, block);
        return 2 * (s.hi - s.lo);
    }
    const struct cu_share s = cu_token_share(op, m, blocks, block);
    uint32_t n = 0;
    for (uint32_t i = s.lo; i < s.hi; i++)
        n += i % s.per / 2 == choice;
    return n;
}

/* In which order the experts' stages are asked for: all up products first, so that an expert's activations have had time to
 * come from all blocks when its down product begins. Bit 2: down; bits 0, 1: the choice. */
#define CU_TOKEN_PHASES 8
#define CU_TOKEN_ORDER  0x76543210u /* the first in the lowest digit: U0 U1 U2 U3 D0 D1 D2 D3 */

/* How a dense matrix lies: bytes of a unit; units of which a share has a whole number, as in the row's other kernels. */
struct cu_token_form {
    uint32_t unit_bytes, span;
};

/* Stage s, counted through all blocks, of a dense op whose tiles have `parts`. */
NIB_BOTH struct cu_token_stage cu_token_dense_stage(uint32_t s, uint32_t parts, uint32_t units,
                                                    struct cu_token_form form)
{
    const uint32_t tile = s / parts, part = s % parts, spans = CU_DIV_UP(units, form.span);
    const uint32_t u0 = spans * part / parts * form.span, next = spans * (part + 1) / parts * form.span;
    const uint32_t end = next < units ? next : units;
    const struct cu_token_stage stage = {(tile * units + u0) * form.unit_bytes,
                                         (uint16_t)tile,
                                         (uint8_t)part,
                                         0,
                                         (uint8_t)u0,
                                         (uint8_t)(end - u0),
                                         0,
                                         0};
    return stage;
}

/* A half of the inputs of an expert's tile. */
NIB_BOTH struct cu_token_stage cu_token_expert_stage(uint32_t tile, uint32_t choice, uint32_t half, uint32_t units)
{
    const uint32_t u0 = cu_mx_first(units, half, 2), end = cu_mx_first(units, half + 1, 2);
    const struct cu_token_stage stage = {(tile * units + u0) * CU_MX_BYTES,
                                         (uint16_t)tile,
                                         (uint8_t)half,
                                         (uint8_t)choice,
                                         (uint8_t)u0,
                                         (uint8_t)(end - u0),
                                         0,
                                         0};
    return stage;
}

/* Stage i of a block of a dense op. */
NIB_BOTH struct cu_token_stage cu_token_find(enum cu_token_op op, const struct nib_gpu_machine *m,
                                             struct cu_token_form form, struct cu_share share, uint32_t i)
{
    const uint32_t inputs = op == CU_TOKEN_OUT ? m->heads * NIB_HEAD_DIM : m->hidden;
    const uint32_t parts = op == CU_TOKEN_OUT ? CU_OUT_WARPS : CU_GEMV_WARPS;
    return cu_token_dense_stage(cu_share_stage(share, i), parts, inputs / CU_DENSE_UNIT, form);
}

/* Stage i of a block of a choice's up or down. Of down what the next block goes on with comes first. */
NIB_BOTH struct cu_token_stage cu_token_find_chosen(enum cu_token_op op, const struct nib_gpu_machine *m,
                                                    uint32_t blocks, uint32_t block, uint32_t choice, uint32_t i)
{
    if (op == CU_TOKEN_UP) {
        const struct cu_share s =
            cu_share_choice(cu_tiles(2 * m->intermediate), choice, m->experts_used, blocks, block);
        return cu_token_expert_stage(s.lo + i / 2, choice, i % 2, cu_mx_units(m->hidden));
    }
    const struct cu_share s = cu_token_share(op, m, blocks, block);
    uint32_t at = 0, stage = s.lo;
    for (uint32_t n = 0; n < s.hi - s.lo; n++) {
        stage = cu_share_stage(s, n);
        if (stage % s.per / 2 == choice && at++ == i)
            break;
    }
    return cu_token_expert_stage(stage / s.per, choice, stage % 2, cu_mx_units(m->intermediate));
}

/* What blocks hand to each other: a value of 32 bits and behind it the number of the layer it belongs to, counted on from step to step,
 * written and read as one word of 64 bits, so that nothing else need tell that the value is there. Each buffer is
 * written again a layer later, when every block has shown that it has read it. In `scratch`, behind struct cu_scratch. */
typedef uint64_t cu_packet;

/* Vectors that every block reads go as bare words instead, half as many bytes: the value's complement, and zero means that it is not
 * there. They have two buffers, by the layer's number in turns; whoever writes a word clears that of the other buffer, which all
 * blocks have read by then. A value of all ones, a NaN that no arithmetic makes, cannot be handed over. Of what QKV makes and of the
 * experts' activations eight are one word of 128 bits, whose first 32 bits say whether it is there: QKV's as the complement, the others
 * as they are.
 *
 * The router's sums grow by what each tile of x adds, and are there when all tiles are counted; they have two buffers as well, of which block 0 clears
 * the other one when it has read one. */

#define CU_TOKEN_PLAN 4080 /* bytes: what a block does of every step */

struct cu_token {
    uint32_t epoch, reserved[31];                                 /* of the last layer of the last step */
    uint32_t attn[2][CU_TOKEN_Q / 2];                             /* two bf16 */
    uint32_t x_out[2][CU_TOKEN_HIDDEN];                           /* fp32: x behind the attention */
    uint32_t gated[2][NIB_MAX_EXPERTS_USED * CU_TOKEN_INNER / 2]; /* fp16 by eights; by choice, whole units */
    uint32_t x_down[2][CU_TOKEN_HIDDEN];                          /* fp32: x behind the experts */
    uint32_t qkv[2][CU_TOKEN_QKV_DIM / 2]; /* two bf16, in words of 128 bits; q and k rotated, v */
    uint32_t part[CU_TOKEN_Q / NIB_HEAD_DIM][CU_ATTN_SPLITS][NIB_HEAD_DIM / 2]
                 [4]; /* attention of a split, in words of 128 bits: the layer's number; fp32: max or sum, two values */
    uint64_t
        routed[2]
              [NIB_MAX_EXPERTS]; /* the router's sums (route_fixed) times 256, and the number of tiles of x in them */
    cu_packet cut[3][CU_TOKEN_BLOCKS]
                 [2 * CU_TILE]; /* fp32: of qkv, out, down: sums of a tile that the next block ends */
    struct {
        uint32_t made, reserved[3]; /* bytes of a unit of the dense form it is for; 0: it is not there yet */
        uint8_t bytes[CU_TOKEN_PLAN];
    } plan[CU_TOKEN_BLOCKS]; /* struct token_plan: each block's own */
};

#endif
