/* arch/sm90/token_room.cuh: the shared memory of a block of the fused decode kernel, and what its threads carry along. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/cuda/gemv.cuh"
#include "arch/sm90/token.h"

typedef float token_sums[CU_TILE];
enum { CUT_QKV, CUT_OUT, CUT_DOWN, CUTS };

#define ATTN_TEAMS 2 /* in long contexts */

struct token_attn_room {
    union {
        uint4 v[ATTN_KEY_WARPS][32 * 8];
        float o[ATTN_KEY_WARPS][2 * NIB_GQA_GROUP][NIB_HEAD_DIM]; /* of these the first half: a warp's lie where its values did */
        float long_o[ATTN_TEAMS * ATTN_KEY_WARPS][NIB_GQA_GROUP][NIB_HEAD_DIM];
    };
    union {
        float2 state[ATTN_KEY_WARPS][NIB_GQA_GROUP]; /* largest score, sum */
        float2 long_state[ATTN_TEAMS * ATTN_KEY_WARPS][NIB_GQA_GROUP];
    };
};

static_assert(2 * NIB_GQA_GROUP * NIB_HEAD_DIM * 4 == 32 * 8 * 16, "a warp's outputs and its values");

#define TOKEN_OWN (8 * CU_TILE)

/* A stage as it is asked for. The low bits of multiples of 16: which of a layer's matrices, and how many may be on their way
 * with it (struct token_kind). */
struct __align__(16) token_ask {
    uint32_t offset, to, bytes; /* bytes from the matrix' first; shared address */
    int32_t after;              /* so many of the layer's stages must have been read; negative: of the layer before all but so many */
};
#define TOKEN_ASK_LOW 15u

/* A stage of a dense matrix as a warp multiplies it. Packed in the place of its cu_token_stage. */
struct token_dense {
    uint32_t weights;    /* shared address */
    uint32_t acts;       /* bytes from the vector's first */
    uint32_t units, of;  /* its units; stages of its tile that the block has */
    uint32_t leaf;       /* shared address of its sums */
    uint32_t tile, item; /* of the matrix, of the block */
    uint32_t first, end; /* of the tile's stages those of the block */

    __device__ __forceinline__ uint4 packed() const
    {
        return make_uint4(weights, acts | units << 16 | of << 24, leaf, tile | item << 16 | first << 24 | end << 28);
    }

    __device__ __forceinline__ explicit token_dense(uint4 p)
        : weights(p.x), acts(p.y & 0xffff), units(p.y >> 16 & 255), of(p.y >> 24), leaf(p.z), tile(p.w & 0xffff), item(p.w >> 16 & 255),
          first(p.w >> 24 & 15), end(p.w >> 28)
    {
    }

    token_dense() = default;
};

/* Half of an expert's stage, two shares of the inputs: what a warp multiplies at a time. Pieces are numbered as they are asked for, two a
 * stage. Packed, as the ring wants the room. */
struct token_piece {
    uint32_t weights, acts; /* shared addresses, multiples of 16 */
    uint32_t leaves;        /* of its sums, multiple of 64 */
    uint32_t first, last;   /* units of its shares */
    uint32_t bar;           /* shared address of the mbarrier that waits for its sums, multiple of 8 */
    uint32_t choice;
    bool down;

    __device__ __forceinline__ uint2 packed() const
    {
        return make_uint2(weights / 16 | acts / 16 << 14 | last << 28 | (uint32_t)down << 31,
                          leaves / 64 | first << 12 | choice << 15 | bar / 8 << 17);
    }

    __device__ __forceinline__ explicit token_piece(uint2 p)
        : weights(p.x << 4 & 0x3fff0), acts(p.x >> 10 & 0x3fff0), leaves(p.y << 6 & 0x3ffc0), first(p.y >> 12 & 7), last(p.x >> 28 & 7),
          bar(p.y >> 14 & 0x3fff8), choice(p.y >> 15 & 3), down(p.x >> 31)
    {
    }

    token_piece() = default;
};
static_assert(CU_TOKEN_SHARED + 1024 <= 16u << 14 && sizeof(token_sums) == 64 && NIB_MAX_EXPERTS_USED <= 4 &&
                  CU_TOKEN_HIDDEN <= 7 * CU_MX_SPLIT * CU_MX_UNIT,
              "a piece packed");

/* What a block does of every layer and step. Its first launch finds it, and leaves it in memory for later ones (struct cu_token). */
struct __align__(sizeof(token_sums)) token_plan {
    struct token_ask ask[CU_TOKEN_ASKS]; /* a layer's stages, in order: `asks` of them */
    union {
        struct cu_token_stage list[CU_TOKEN_UP][CU_TOKEN_LIST]; /* what this block does of the dense matrices, while that is found */
        uint4 dense[CU_TOKEN_UP][CU_TOKEN_LIST];                /* packed, from then on */
    };
    uint2 piece[CU_TOKEN_PIECES * CU_TOKEN_CHOSEN]; /* of up and down, packed: `pieces` of them */
    uint32_t asks, pieces;
    uint32_t listed[CU_TOKEN_OPS];
    uint32_t chosen[2][NIB_MAX_EXPERTS_USED + 1]; /* of up, down: where a choice's stages begin in the list */
    uint32_t tile[NIB_MAX_EXPERTS_USED];          /* of up: a choice's tile, less the block's number of it */
    uint32_t down_tiles;                          /* of down that the block has a part of */
    struct cu_share share[CU_TOKEN_OPS];
    uint32_t x_first;          /* the first of the rows that the block adds to */
    uint32_t ring, ring_bytes; /* shared address */
    uint32_t router;           /* shared address of its weights, a tile of x that the block ends after the other */
};
static_assert(sizeof(token_plan) <= CU_TOKEN_PLAN && sizeof(token_plan) / 16 <= CU_TOKEN_THREADS, "16 bytes a thread");
static_assert(offsetof(struct cu_token, plan) % 16 == 0 && sizeof(struct cu_scratch) % 16 == 0, "read by sixteens");

/* In front of the ring. What shares a place is never needed at the same time: to take in x or an expert's activations a thread
 * needs what all blocks made of the op before, its own too; elsewhere a barrier lies between. Everything that lasts lies here
 * and not in registers: what does not fit those would lie in the first-level cache, of which the ring leaves little. */
struct token_room : token_plan {
    union {
        token_attn_room attn;
        uint4 gated[NIB_MAX_EXPERTS_USED * (CU_TOKEN_INNER * 2 / 16)]; /* fp16, by choice, whole units */
        struct cu_token_stage experts[2][CU_TOKEN_LIST];               /* what this block does of up and down, while its plan is made */
    };
    union {
        struct {
            uint4 acts[CU_TOKEN_Q * 2 / 16]; /* inputs of the products: bf16, of the experts fp16 */
            token_sums sums[CU_TOKEN_DENSE * CU_GEMV_WARPS];
        };
        struct {
            uint4 acts_x[CU_TOKEN_HIDDEN * 2 / 16];
            /* of the chosen experts, behind x, by tile of the block */
            uint32_t up_bias[CU_TOKEN_TILES][CU_TILE / 2]; /* pairs */
            uint16_t down_bias[CU_TOKEN_TILES / NIB_MAX_EXPERTS_USED][NIB_MAX_EXPERTS_USED][CU_TILE];
            token_sums down_sums[CU_TOKEN_PARTS];
        };
    };
    uint32_t count[CU_TOKEN_DENSE]; /* stages of a dense tile that have left their sums */
    /* the sums of a tile of up, of a choice of a tile of down are there */
    uint64_t up_bar[CU_TOKEN_UP_SUMS / CU_MX_SPLIT], down_bar[CU_TOKEN_TILES / NIB_MAX_EXPERTS_USED][NIB_MAX_EXPERTS_USED];
    uint64_t full[CU_TOKEN_SLOTS], empty[CU_TOKEN_SLOTS]; /* of the ring */
    uint64_t cut_bar[CUTS];                               /* `cut` is there */
    float cut[2 * CU_TILE];                               /* what the block before has handed over: of QKV, OUT, down in turn */
    uint64_t best_bar;                                    /* `best` is there */
    uint32_t best;                                        /* the layer's best expert, or TOKEN_NONE: the launch has given up */
    uint64_t chosen_bar;                                  /* `expert` is there */
    uint64_t bias_bar[2];                                 /* a layer's biases are there: of QKV and OUT; of the experts */
    uint64_t route_bar;                                   /* a layer's router's weights are there */
    uint64_t x_bar[CU_TOKEN_DENSE];                       /* a tile of x behind the attention is there */
    uint64_t scale_bar;                                   /* `scale` is there */
    float scale;                                          /* of the norm of x for the experts */
    /* by tile of the block, bf16 */
    __align__(16) uint16_t dense_bias[2][CU_TOKEN_DENSE][CU_TILE]; /* QKV, OUT */
    __align__(16) uint16_t route_norm[CU_TOKEN_DENSE][CU_TILE];    /* norm weights of x, for the router */
    __align__(16) float x[TOKEN_OWN]; /* the rows that this block adds to */
    uint32_t asked, freed; /* stages of the launch asked for, and read */
    float cos[NIB_HEAD_DIM / 2], sin[NIB_HEAD_DIM / 2];
    __align__(16) float square[CU_ROW_THREADS / 32];
    uint32_t expert[NIB_MAX_EXPERTS_USED]; /* of this layer, best first; by the warp that asks for their weights */
    float weight[NIB_MAX_EXPERTS_USED];
    struct nib_row row;
    uint32_t epoch;    /* of the step's first layer */
    uint32_t layer;    /* where the warps that multiply are */
    uint64_t deadline; /* ns, globaltimer */
    uint32_t late;     /* a wait of this block outlasted it */
    struct cu_token *packets;
    struct nib_gpu_machine m; /* a copy that ends with the model's last layer, behind which the ring begins */
};

extern __shared__ uint4 token_dynamic[];

__device__ __forceinline__ token_room &room()
{
    return *(token_room *)token_dynamic;
}

/* Behind the ring: sums of up, and before them, if there is room, the layer's weights of the router. Units that do not count, two at most, may be read here. */
struct token_behind {
    token_sums up_sums[CU_TOKEN_UP_SUMS];
};
static_assert(sizeof(struct token_behind) % 16 == 0 && sizeof(struct token_behind) >= CU_DENSE_BYTES && sizeof(struct token_behind) >= 2 * CU_MX_BYTES, "behind the ring");
static_assert(sizeof(token_plan) % sizeof(token_sums) == 0 && (CU_TOKEN_SHARED - sizeof(token_behind)) % sizeof(token_sums) == 0,
              "a piece has its sums' place as a number of such");

__device__ __forceinline__ token_behind &behind_ring()
{
    return *(token_behind *)((uint8_t *)token_dynamic + CU_TOKEN_SHARED - sizeof(token_behind));
}

__device__ __forceinline__ uint64_t token_now()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

/* To be called every turn of a wait; true: give up. */
__device__ __forceinline__ bool token_late(uint32_t turn)
{
    if (turn % 256 != 255)
        return false;
    volatile uint32_t *late = &room().late;
    if (!*late && token_now() > room().deadline)
        *late = 1;
    return *late;
}

/* Where in the step a warp that multiplies is. All follows from the layer, which lies in shared memory: nothing is in registers while
 * one phase after the other is called, each of which wants them all. */
struct token_at {
    uint32_t epoch, layer;
    uint32_t stage; /* number of the op's first stage; of up and down, which take turns, of both */

    __device__ __forceinline__ explicit token_at(enum cu_token_op op)
        : epoch(room().epoch + room().layer), layer(room().layer), stage(room().layer * room().asks)
    {
        for (uint32_t before = CU_TOKEN_QKV; before < op && before < CU_TOKEN_UP; before++)
            stage += room().listed[before];
    }
};

/* The warps that multiply. */
__device__ __forceinline__ void token_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"(CU_TOKEN_WARPS * 32) : "memory");
}

/* Each of these warps has ended QKV: those that write where others may still read wait for that, the others only tell it. */
__device__ __forceinline__ void qkv_wait()
{
    asm volatile("bar.sync 3, %0;" ::"n"(CU_TOKEN_WARPS * 32) : "memory");
}

__device__ __forceinline__ void qkv_ended()
{
    asm volatile("bar.arrive 3, %0;" ::"n"(CU_TOKEN_WARPS * 32) : "memory");
}
