/* arch/cuda/layout.h: where the CUDA rows keep things; C, included by the kernels and by the rows' tables.
 *
 * Weights lie in the order in which the lanes of mma.m16n8k16 hold their A operand, so that 16 bytes of a lane are its
 * fragment. Lane l holds rows g = l / 4 and g + 8 of a tile of 16 output rows; t = l % 4 says which inputs. The order of the
 * inputs inside 32 is ours, the same for weights and activations: lane t has inputs 8t .. 8t+7, the first four in the first
 * mma of 16, the last four in the second. So activations stay in their natural order, 16 bytes a lane and 32 inputs.
 *
 * dense: [tile][unit of 32 inputs][2 mma][lane][16 bytes].
 * mxfp8: [tile][unit of 32 inputs]: codes [lane][16 bytes], the four pairs of inputs a 32-bit word each; scales [g][2 bytes]: rows
 *        g and g + 8. A byte is the exponent of a bf16: the E8M0 code plus 120, as the codes stand for 2^120 times their bits
 *        (arch/cuda/weights.cuh). A block with a NaN, or a code above 134, whose sum would overflow, is codes 0 and the byte
 *        255: NaN. Missing rows have 0.
 *        A word w of codes: in the low half the even input, in the high half the odd one: row g at bits 15 (sign), 10..4; row g + 8
 *        there in w << 4 xor w >> 4.
 * bf13:  the head's matrix, when the dense matrices are bf16: nothing is lost, and 13 of 16 bits need be read. [tile][span of 64 inputs]:
 *        carriers 0 .. 11 [3][lane][16 bytes], carrier 12 [lane][4 bytes]; behind all tiles [tile][span] high words [3][lane][4
 *        bytes]; behind these [tile] a byte, the tile's base.
 *        Words 0 .. 15 of a lane and span are the 16 of its two dense units, in the dense order; both halves of a word, a weight each,
 *        are packed alike. The exponents of a tile's weights lie between its base and 31 more, and a weight's code is the difference. If
 *        they do not, or one is 0 or 255 (missing rows are zeros), the tile is wide: its base is CU_BF13_WIDE, the codes are the exponents' low 5
 *        bits, and the high words, which nothing else reads, have the upper 3. A tile of nothing but zeros, as of rows that no token has, has the
 *        base CU_BF13_ZERO and codes of 0: its sums are multiplied by 0.
 *        Carrier i has of weight i the sign at bit 15, the code at 11..7 and the mantissa at 6..0. Bits 14..12 carry words 13 .. 15: of
 *        word 13 + j bits 11..0 (code, mantissa), three at a time from the top, in carriers 4j .. 4j + 3, the sign at bit 14 - j of carrier
 *        12. High word q has at bits 3f+2 .. 3f the upper bits of word 5q + f, f < 5, and at bit 15 bit q of word 15's.
 *        An odd last unit's second half is weights of the base, which nobody multiplies.
 * mx:    [tile][unit of 64 inputs]: codes [lane][16 bytes], a 32-bit word an mma; scales [g][4 bytes]: row g blocks 0, 1;
 *        row g + 8 blocks 0, 1, as one word, rotated right by a bit: so the last lies where a float has its exponent. A block with scale code 0 counts as
 *        zeros. Missing inputs and rows have code and scale 0. From sm_90 on, behind all tiles: [tile][row of it] a byte,
 *        the row's reference: its largest scale code, when no other of a block with elements is more than CU_MX_SPREAD below it; 0: none.
 * A word of codes w: in the low half the even input of each pair, in the high half the odd one. Fragment registers 0 to 3 have their code at bits 15 (sign), 11..9 of
 * each half of w << 6, w << 9, w ^ w >> 3 and w ^ w << 2: any four codes have a word, and only one (mx_word in arch/cuda/repack.cuh). */
#ifndef NIB_ARCH_CUDA_LAYOUT_H
#define NIB_ARCH_CUDA_LAYOUT_H

#include "arch/gpu_abi.h"

#ifndef NIB_SM
#error "NIB_SM: the folder's compute capability, 80 or 90"
#endif

#ifdef __CUDACC__
#define NIB_BOTH __host__ __device__ static inline
#else
#define NIB_BOTH static inline
#endif

#define CU_TILE        16   /* output rows of a weight tile */
#define CU_DENSE_UNIT  32   /* inputs of a dense unit */
#define CU_DENSE_BYTES 1024 /* of a unit of a tile */
#define CU_MXFP8_CODES 512  /* of a unit of a tile */
#define CU_MXFP8_BYTES (CU_MXFP8_CODES + CU_TILE)
#define CU_BF13_SPAN   2   /* dense units */
#define CU_BF13_PIECE  512 /* bytes of four carriers of a span of a tile; there are three */
#define CU_BF13_BYTES  (3 * CU_BF13_PIECE + 128)
#define CU_BF13_HIGH   (3 * 128) /* bytes of the high words of a span of a tile */
#define CU_BF13_WIDE   255
#define CU_BF13_ZERO   254
#define CU_BF13_MAX    223 /* of a base: the scale 2^(base - 96) is a float */
#define CU_MX_UNIT     64
#define CU_MX_CODES    512 /* bytes of a unit of a tile */
#define CU_MX_SCALES   32  /* behind them */
#define CU_MX_BYTES    (CU_MX_CODES + CU_MX_SCALES)
#define CU_MX_SPREAD   24 /* codes below the reference at which a weight is still an fp16 (arch/sm90/prompt_forms.cuh) */
#define CU_MX_REF_MIN  64 /* references: far from the ends of fp32 */
#define CU_MX_REF_MAX  190

#define CU_GEMV_WARPS   9 /* share the inputs of a tile: 2880 is 90 dense units, 45 mx units */
#define CU_GEMV_THREADS (CU_GEMV_WARPS * 32)
#define CU_DENSE_PACE   3            /* stages of a warp on their way while the ring is filled first, and one */
#define CU_OUT_WARPS    8            /* the same of the attention's output projection: 4096 inputs are 128 units */
#define CU_DEEP_QKV     (18u * 1024) /* bytes of a warp's ring in a bucket of up to CU_DEEP_ROWS, where QKV and OUT */
#define CU_DEEP_OUT     (20u * 1024) /* have one block a multiprocessor: attention's block has room beside */
/* GEMV_ROWS: rows of one pass over the weights; RING: units (mx, mxfp8: spans of units) in flight a warp; BLOCKS: of a multiprocessor. The
 * portable row fits in 99 KB of a block. Other rings may be given to nvcc and the table alike, to compare them. */
#if NIB_SM >= 90
#define CU_GEMV_ROWS 16
#define CU_LIST_ROWS                                                                                                   \
    64 /* decode rows of an expert's list; more than CU_GEMV_ROWS only where the batch kernels take them */
#define CU_LIST_MEAN                                                                                                   \
    8 /* rows of a list on average, were all experts chosen: up to here no list has more than CU_GEMV_ROWS */
#ifndef CU_DENSE_RING
#define CU_DENSE_RING 8
#endif
#ifndef CU_DENSE_BLOCKS
#define CU_DENSE_BLOCKS 2
#endif
#ifndef CU_MXFP8_RING
#define CU_MXFP8_RING 7
#endif
#ifndef CU_MXFP8_SPAN
#define CU_MXFP8_SPAN 2
#endif
#ifndef CU_BF13_RING
#define CU_BF13_RING 5
#endif
#define CU_ROUTE_RING      12
#define CU_ROUTE_RING_MANY 6
#define CU_DEEP_ROWS       2
#else
#define CU_GEMV_ROWS 4
#define CU_LIST_ROWS CU_GEMV_ROWS
#define CU_LIST_MEAN 0
#ifndef CU_DENSE_RING
#define CU_DENSE_RING 4
#endif
#ifndef CU_DENSE_BLOCKS
#define CU_DENSE_BLOCKS 3
#endif
#ifndef CU_MXFP8_RING
#define CU_MXFP8_RING 8
#endif
#ifndef CU_MXFP8_SPAN
#define CU_MXFP8_SPAN 1
#endif
#ifndef CU_BF13_RING
#define CU_BF13_RING 3
#endif
#define CU_ROUTE_RING      4
#define CU_ROUTE_RING_MANY 4
#define CU_DEEP_ROWS       0
#endif
#ifndef CU_MX_SPAN
#define CU_MX_SPAN 3 /* mx units of a stage of the ring: 2880 inputs are 15 */
#endif
#define CU_MX_STAGE (CU_MX_SPAN * CU_MX_BYTES)
#define CU_MX_SPLIT 8 /* shares of an item's inputs, each summed alone; then they are added in order */

/* Expert products of decode rows before sm_90. A block: sums, rings of CU_MX_RING stages a warp, rows of
 * activations. */
#define CU_MX_RING    3
#define CU_MX_WARPS   12
#define CU_MX_THREADS (CU_MX_WARPS * 32)
#define CU_MX_BLOCKS  2           /* of a multiprocessor */
#define CU_MX_STATIC  (6u * 1024) /* shared memory that a block declares: groups */
#define CU_MX_TEAM    4           /* warps that share an item, each two shares */
#define CU_MX_LEFT    512         /* bytes that a warp leaves: sums of 2 shares */
#define CU_MX_SUMS                                                                                                     \
    (2 * (CU_MX_WARPS / CU_MX_TEAM * (CU_MX_TEAM - 1)) * CU_MX_LEFT) /* all but the first of a team leave sums */
#define CU_MX_SHARED   (98u * 1024)
#define CU_MX_ROWS_MAX 32 /* of activations that a block holds at a time */

#define CU_GEMM_THREADS      256
#define CU_GEMM_N            128 /* output rows of a prompt tile */
#define CU_GEMM_M            128 /* tokens of a prompt tile */
#define CU_GEMM_K            64
#define CU_DENSE_STAGES      3
#define CU_MXFP8_STAGES      4
#define CU_MX_STAGES         4
#define CU_DENSE_STAGE_BYTES (CU_GEMM_N * CU_GEMM_K * 2 + CU_GEMM_M * CU_GEMM_K * 2)
#define CU_MXFP8_STAGE_BYTES (CU_GEMM_N / CU_TILE * 2 * CU_MXFP8_BYTES + CU_GEMM_M * CU_GEMM_K * 2)
#define CU_MX_STAGE_BYTES    (CU_GEMM_N / CU_TILE * CU_MX_BYTES + CU_GEMM_M * CU_GEMM_K * 2)

#define CU_ATTN_THREADS    256
#define CU_ATTN_KEYS       160 /* keys a decode block takes at a time, 32 a warp: what a window of 128 touches */
#define CU_ATTN_SPLITS     64  /* at most: beyond 64 x 160 keys the splits grow, by the row's own position */
#define CU_ATTN_BLOCKS     256 /* of a decode launch, about */
#define CU_KV8_THREADS     256
#define CU_ATTN_PART       66 /* floats of a partial: max, sum, values */
#define CU_ATTN_PROMPT_POS 16 /* rows of a prompt block: 2 a warp, with all 8 query heads of a KV head */

#define CU_ATTN_SHARED        (CU_ATTN_KEYS / 32 * (4096 + 8 * (64 + 2) * 4) + 16) /* struct attn_shared */
#define CU_ATTN_PROMPT_SHARED (4 * 64 * 128)                                       /* struct attn_pages */

#define CU_ROUTE_THREADS  256
#define CU_ROUTE_ROWS     8   /* of a block, at most */
#define CU_ROUTE_SPREAD   64  /* rows of a step up to which each tile of experts has its own block */
#define CU_ROW_THREADS    768 /* embed, combine: a block a row */
#define CU_ROW_PARTS      3   /* float4 a thread: NIB_MAX_HIDDEN / 4 / CU_ROW_THREADS, rounded up */
#define CU_MANY_THREADS   256 /* combine of many rows */
#define CU_MANY_PARTS     3
#define CU_MANY_ROWS      160
#define CU_BEGIN_THREADS  512
#define CU_BEGIN_BLOCKS   32
#define CU_REPACK_THREADS 256
#define CU_SAMPLE_THREADS 512
#define CU_SLICES         32 /* of the vocabulary, a block each: at most */

#define CU_DIV_UP(a, b) (((a) + (b)-1) / (b))

NIB_BOTH uint64_t cu_up(uint64_t bytes, uint64_t align)
{
    return (bytes + align - 1) & ~(align - 1);
}

NIB_BOTH uint32_t cu_tiles(uint32_t n)
{
    return CU_DIV_UP(n, CU_TILE);
}

NIB_BOTH uint32_t cu_mx_units(uint32_t k)
{
    return CU_DIV_UP(k, CU_MX_UNIT);
}

/* Where the rows' references lie. */
NIB_BOTH uint64_t cu_mx_refs_at(uint32_t n, uint32_t k)
{
    return (uint64_t)cu_tiles(n) * cu_mx_units(k) * CU_MX_BYTES;
}

NIB_BOTH uint64_t cu_mx_bytes(uint32_t n, uint32_t k)
{
    return cu_up(cu_mx_refs_at(n, k) + (NIB_SM >= 90 ? cu_tiles(n) * CU_TILE : 0), 64);
}

NIB_BOTH uint64_t cu_dense_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)cu_tiles(n) * (k / CU_DENSE_UNIT) * CU_DENSE_BYTES;
}

NIB_BOTH uint64_t cu_mxfp8_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)cu_tiles(n) * (k / CU_DENSE_UNIT) * CU_MXFP8_BYTES;
}

NIB_BOTH uint32_t cu_bf13_spans(uint32_t k)
{
    return CU_DIV_UP(k / CU_DENSE_UNIT, CU_BF13_SPAN);
}

/* Where the high words lie. */
NIB_BOTH uint64_t cu_bf13_high_at(uint32_t n, uint32_t k)
{
    return (uint64_t)cu_tiles(n) * cu_bf13_spans(k) * CU_BF13_BYTES;
}

/* Where the tiles' bases lie. */
NIB_BOTH uint64_t cu_bf13_bases_at(uint32_t n, uint32_t k)
{
    return cu_bf13_high_at(n, k) + (uint64_t)cu_tiles(n) * cu_bf13_spans(k) * CU_BF13_HIGH;
}

NIB_BOTH uint64_t cu_bf13_bytes(uint32_t n, uint32_t k)
{
    return cu_up(cu_bf13_bases_at(n, k) + cu_tiles(n), 64);
}

/* Bytes of a row of activations in shared memory: an odd multiple of 64, so that rows g and g + 1 lie in other banks. */
NIB_BOTH uint32_t cu_row_stride(uint32_t k)
{
    return (k * 2 + 63) / 64 % 2 ? (k * 2 + 63) / 64 * 64 : (k * 2 + 63) / 64 * 64 + 64;
}

/* Dynamic shared memory of a block of QKV or OUT whose warps have deep rings, of whole stages; with today's shapes no other launch of it
 * has as much. */
NIB_BOTH uint32_t cu_deep_bytes(uint32_t warps, uint32_t ring, uint32_t stage, uint32_t k)
{
    return warps * (ring / stage * stage) + CU_DEEP_ROWS * cu_row_stride(k) + 2 * warps * 512;
}

/* First unit of share `i` of `shares` of an expert's inputs. */
NIB_BOTH uint32_t cu_mx_first(uint32_t units, uint32_t i, uint32_t shares)
{
    const uint32_t first = CU_DIV_UP(units, CU_MX_SPAN) * i / shares * CU_MX_SPAN;
    return first < units ? first : units;
}

/* A block of an expert product before sm_90: sums, rings of `depth` stages a warp, rows of activations. */
struct cu_mx_room {
    uint32_t depth, acts_at, bytes;
};

/* Room for `rows` rows of k inputs. */
NIB_BOTH struct cu_mx_room cu_mx_room(uint32_t rows, uint32_t k)
{
    const uint32_t acts = rows * cu_row_stride(cu_mx_units(k) * CU_MX_UNIT), stages = CU_MX_WARPS * CU_MX_STAGE;
    const uint32_t fit = (CU_MX_SHARED - CU_MX_SUMS - acts) / stages;
    const uint32_t depth = fit < CU_MX_RING ? fit : CU_MX_RING;
    const struct cu_mx_room room = {depth, CU_MX_SUMS + depth * stages, CU_MX_SUMS + depth * stages + acts};
    return room;
}

/* Rows that a launch for `decode` rows has room for: at least a whole group. */
NIB_BOTH uint32_t cu_mx_rows(uint32_t decode)
{
    return decode == 1 ? 2 : CU_GEMV_ROWS;
}

/* Whether lists of a step with so many decode rows are none longer than CU_GEMV_ROWS: as many rows as that, or short lists on average. If so, then of
 * fewer rows, too. */
NIB_BOTH bool cu_lists_short(uint32_t decode, uint32_t used, uint32_t experts)
{
    return decode <= CU_GEMV_ROWS || decode * used <= CU_LIST_MEAN * experts;
}

/* Rows of a block of the router when `groups` of them share `rows`: as few as do. */
NIB_BOTH uint32_t cu_route_rows(uint32_t rows, uint32_t groups)
{
    uint32_t each = 1;
    while (each < CU_ROUTE_ROWS && groups * each < rows)
        each *= 2;
    return each;
}

/* Dynamic shared memory of a block of the router with `rows` rows: as gemv_shared_bytes. */
NIB_BOTH uint32_t cu_route_bytes(uint32_t ring, uint32_t rows, uint32_t hidden)
{
    return CU_ROUTE_THREADS / 32 * (ring * CU_DENSE_BYTES + 2 * 512) + rows * cu_row_stride(hidden);
}

/* Slices of the vocabulary of each of `want` rows, of about so many blocks in all. */
NIB_BOTH uint32_t cu_slices(uint32_t want, uint32_t blocks)
{
    const uint32_t each = want ? blocks / want : 1;
    return each < 1 ? 1 : each < CU_SLICES ? each : CU_SLICES;
}

/* Keys of one split for a row at `pos`. */
NIB_BOTH uint32_t cu_split_keys(uint32_t pos)
{
    uint32_t keys = CU_ATTN_KEYS;
    while (pos / keys >= CU_ATTN_SPLITS)
        keys *= 2;
    return keys;
}

/* Assignments of one expert that one block takes: consecutive places. */
struct cu_group {
    uint32_t expert, place, count;
};
#define CU_GROUPS_MAX        (NIB_MAX_EXPERTS + NIB_MAX_SLOTS) /* of 4 rows or more */
#define CU_GROUPS_PROMPT_MAX (NIB_MAX_EXPERTS + NIB_MAX_STEP_ROWS * NIB_MAX_EXPERTS_USED / CU_GEMM_M)

/* `route`: this head, then logits fp32 [R][E], expert u32 [A], weight fp32 [A], place u32 [A], row u32 [A]. */
struct cu_route {
    uint32_t groups, groups_prompt;
    uint32_t reserved[2];
    struct cu_group group[CU_GROUPS_MAX];
    struct cu_group group_prompt[CU_GROUPS_PROMPT_MAX];
};

NIB_BOTH uint64_t cu_route_logits_at(void)
{
    return cu_up(sizeof(struct cu_route), 256);
}

NIB_BOTH uint64_t cu_route_expert_at(uint32_t rows, uint32_t experts)
{
    return cu_route_logits_at() + cu_up((uint64_t)rows * experts * 4, 256);
}

/* bytes of each of expert, weight, place, row */
NIB_BOTH uint64_t cu_route_array(uint32_t rows)
{
    return cu_up((uint64_t)rows * NIB_MAX_EXPERTS_USED * 4, 256);
}

/* What a slice of the vocabulary knows of a row's logits. */
struct cu_part {
    float max;    /* of z after bias and bans */
    float best;   /* of z after penalties */
    uint32_t id;  /* of best, the lowest */
    uint32_t bad; /* a NaN or +inf was met */
};

/* The largest d + g of a slice. */
struct cu_draw {
    double score;
    uint32_t id, reserved;
};

/* Tiles that blocks have taken, and blocks that have ended. */
struct cu_tickets {
    uint32_t taken, ended;
};

#define CU_ATTN_CHUNKS                                                                                                 \
    8192 /* more than there can be: of rows that are cut some 17 times the multiprocessors, of others a KV head each */

/* What a block of a full layer's attention gets at a time: splits of a row's KV head (sm90/batch_attn_chunks.cuh). */
struct cu_attn_chunk {
    uint32_t pos;
    uint16_t slot;
    uint8_t of, doublings; /* the row's splits; of the keys of one */
    uint8_t row, head, split, splits;
    uint32_t unused;
};

/* `scratch`: tickets, which the last block to arrive sets back to 0, then parts. */
struct cu_scratch {
    uint32_t attn[NIB_MAX_SLOTS * NIB_MAX_EXPERTS]; /* [row][kv head] blocks that have written their partial */
    uint32_t drawn[NIB_MAX_SLOTS];                  /* slices of a row that are drawn */
    uint32_t sampled;                               /* rows that are sampled */
    uint32_t routed;                                /* blocks of the route op that have their logits */
    struct cu_tickets head;
    uint32_t dealt;  /* chunks that a full layer's blocks have asked for (sm90/batch_attn_plan.cuh) */
    uint32_t chunks; /* of each of the step's full layers */
    uint32_t parts;  /* that the blocks of an expert product have asked for (sm90/batch_mx_deal.cuh) */
    uint32_t reserved[57];
    struct cu_part part[NIB_MAX_SLOTS][CU_SLICES];
    struct cu_draw draw[NIB_MAX_SLOTS][CU_SLICES];
    uint8_t picked[NIB_MAX_SLOTS][NIB_MAX_EXPERTS_USED]; /* a row's experts, plus 1; 0: read (sm90/route_cluster.cuh) */
    struct cu_attn_chunk chunk[CU_ATTN_CHUNKS];
};

#endif
