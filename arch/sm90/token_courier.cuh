/* arch/sm90/token_courier.cuh: the warp that does for the block, while others multiply, what these would have to wait for: it makes the experts' activations of
 * their sums, takes biases and the block before's sums of a cut tile in, and fetches the keys and values that attention reads first to the
 * second-level cache. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/sm90/token_attn.cuh"
#include "arch/sm90/token_first.cuh"
#include "arch/sm90/token_piece.cuh"
#include "arch/sm90/token_ring.cuh"

/* What the block's first unit of a layer reads first. */
__device__ __forceinline__ void courier_keys(uint32_t layer)
{
    const attn_splits splits(layer);
    const uint32_t kv_heads = room().m.kv_heads, kv_head_bytes = kv_heads * PAGE_HEAD_BYTES;
    const token_units units(kv_heads * splits.count);
    if (units.first >= units.all)
        return;
    const attn_keys_of of(layer % 2 == 0, units.first / kv_heads, splits.keys);
    const attn_span span = attn_span_of(layer, units.first % kv_heads, of);
    const uint32_t lines = min(of.last - of.base, (uint32_t)CU_ATTN_KEYS) * 2;
    for (uint32_t i = threadIdx.x % 32; i < lines; i += 32)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(span.at_key(of.base + i / 2) + i % 2 * kv_head_bytes));
}

/* Biases come to shared memory before what is streamed meanwhile: a plain load would wait behind it. All lanes: this one's copies make
 * its arrival at the mbarrier. */
__device__ __forceinline__ void bias_arrive(uint64_t *bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_at(bar)) : "memory");
}

__device__ __forceinline__ void bias_copy(void *to, nib_gpu_ptr from)
{
    copy16(smem_at(to), (const void *)from, true);
}

/* The chosen experts' biases: the lower lanes a tile of up each, the upper ones a choice of a tile of down. */
__device__ __forceinline__ void courier_biases(uint32_t layer)
{
    const struct nib_gpu_machine &m = room().m;
    const uint32_t lane = threadIdx.x % 32, of = lane % 16, c = of % NIB_MAX_EXPERTS_USED;
    const struct cu_share share = room().share[CU_TOKEN_DOWN];
    const uint32_t per = 2 * NIB_MAX_EXPERTS_USED, t = of / NIB_MAX_EXPERTS_USED, tile = share.lo / per + t;
    static_assert(CU_TOKEN_TILES == 16, "half a warp");
    if (lane < 16 && 2 * of < room().listed[CU_TOKEN_UP]) {
        const uint32_t choice = token_piece(room().piece[2 * CU_TOKEN_PIECES * of]).choice; /* all of up comes first */
        const nib_gpu_ptr from =
            m.layer[layer].up_bias + ((uint64_t)room().expert[choice] * m.intermediate + (room().tile[choice] + of) * 8) * 4;
        bias_copy(room().up_bias[of], from);
        bias_copy(room().up_bias[of] + 4, from + 16);
    }
    if (lane >= 16 && tile * per < share.hi) {
        const nib_gpu_ptr from =
            m.layer[layer].down_bias + ((uint64_t)room().expert[c] * m.hidden + tile * CU_TILE) * 2;
        bias_copy(room().down_bias[t][c], from);
        bias_copy(room().down_bias[t][c] + 8, from + 16);
    }
    bias_arrive(&room().bias_bar[1]);
}

/* Those of QKV and OUT: eight rows a lane, as done_qkv and done_out want them. */
__device__ __forceinline__ void courier_dense_biases(uint32_t layer)
{
    const struct nib_gpu_layer &l = room().m.layer[layer];
    const uint32_t lane = threadIdx.x % 32, out = lane / 16, half = lane % 2, t = lane % 16 / 2;
    const uint32_t per = out ? CU_OUT_WARPS : CU_GEMV_WARPS;
    const struct cu_share share = room().share[out ? CU_TOKEN_OUT : CU_TOKEN_QKV];
    const uint32_t tile = share.lo / per + t;
    static_assert(CU_TOKEN_DENSE == 8, "half a warp");
    if (tile * per < share.hi)
        bias_copy(room().dense_bias[out][t] + half * 8,
                  out ? l.out_bias + (tile * CU_TILE + half * 8) * 2
                      : l.qkv_bias + (tile / 4 * NIB_HEAD_DIM + tile % 4 * 8 + half * 32) * 2);
    bias_arrive(&room().bias_bar[0]);
}

/* The router's weights for the tiles of x that the block ends, and the norm's: of a unit the half that is the tile's, 16 bytes a lane and tile of experts,
 * so that lane (g, t) = (lane / 4, lane % 4) of who multiplies finds its words at 2 g + t % 2 and 16 places behind it. */
__device__ __forceinline__ void courier_router(uint32_t layer)
{
    const struct nib_gpu_layer &l = room().m.layer[layer];
    const struct cu_share share = room().share[CU_TOKEN_OUT];
    const uint32_t lane = threadIdx.x % 32, units = room().m.hidden / CU_DENSE_UNIT, tiles = cu_tiles(room().m.experts);
    uint32_t to = room().router + lane * 16;
#pragma unroll 1
    for (uint32_t tile = share.lo / CU_OUT_WARPS, t = 0; tile < share.hi / CU_OUT_WARPS; tile++, t++) {
        const uint32_t piece = lane / 16 * 512 + lane % 16 / 2 * 64 + tile % 2 * 32 + lane % 2 * 16;
        for (uint32_t e = 0; e < tiles; e++, to += CU_TOKEN_ROUTE_BYTES / 2)
            copy16(to, (const void *)(l.router + ((uint64_t)e * units + tile / 2) * CU_DENSE_BYTES + piece), true);
        to += tiles % 2 * (CU_TOKEN_ROUTE_BYTES / 2);
        if (lane < 2)
            bias_copy(room().route_norm[t] + lane * 8, l.mlp_norm + (tile * CU_TILE + lane * 8) * 2);
    }
    bias_arrive(&room().route_bar);
}

/* What the layer reads besides, to the cache: each block a part. */
__device__ __forceinline__ void courier_small(uint32_t layer)
{
    const struct nib_gpu_machine &m = room().m;
    const struct nib_gpu_layer &l = m.layer[layer];
    const uint32_t lane = threadIdx.x % 32;
    const nib_gpu_ptr from = lane == 1 ? l.attn_norm : l.mlp_norm;
    const uint32_t bytes = lane == 1 || lane == 2 ? m.hidden * 2 : 0;
    for (uint32_t line = blockIdx.x * 128; line < bytes; line += gridDim.x * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + line));
}

/* Of the head's weights what its blocks read first, to the cache: between the last layer's weights and the head's beginning memory has nothing to do. */
__device__ __forceinline__ void courier_head()
{
    const uint64_t all = (uint64_t)room().m.vocab * room().m.hidden; /* bytes: in each form it has as many */
    const uint32_t own = (uint32_t)min(all / gridDim.x, (uint64_t)CU_TOKEN_HEAD_ASKS * CU_TOKEN_HEAD_BYTES) / 16 * 16;
    const uint8_t *from = at<const uint8_t>(room().m.lm_head, (uint64_t)blockIdx.x * own);
    if (threadIdx.x % 32 == 0)
#pragma unroll 1
        for (uint32_t i = 0; i < own; i += CU_TOKEN_HEAD_BYTES)
            prefetch_bulk(from + i, min(own - i, (uint32_t)CU_TOKEN_HEAD_BYTES));
    __syncwarp();
}

/* The activations of the block's tiles of up, as done_up makes them, tile after tile as their sums are there: eight lanes a tile, so that those which warps end at
 * about the same time are done together. */
__device__ __forceinline__ void courier_gated(uint32_t layer)
{
    const uint32_t lane = threadIdx.x % 32, row = lane % 8, count = room().listed[CU_TOKEN_UP] / 2, epoch = room().epoch + layer;
    uint32_t choice = 0; /* of tile `lane` */
#pragma unroll
    for (uint32_t c = 1; c < NIB_MAX_EXPERTS_USED; c++)
        choice += lane >= room().chosen[0][c] / 2;
    const uint32_t where = choice * cu_mx_units(room().m.intermediate) * (CU_MX_UNIT / 8) + room().tile[choice] + lane;
    uint32_t *const own = room().packets->gated[epoch & 1], *const old = room().packets->gated[~epoch & 1];
    (void)bar_wait(&room().bias_bar[1], layer & 1);
#pragma unroll 1
    for (uint32_t next = 0, ends; next < count; next += ends) {
        const uint32_t item = min(next + lane / 8, count - 1), word = __shfl_sync(~0u, where, item) * 4, biases = room().up_bias[item][row];
        const token_sums *sums = behind_ring().up_sums + item * CU_MX_SPLIT;
        uint32_t *to = own + word, *clear = old + word;
        asm("" : "+l"(to), "+l"(clear)); /* found before the wait */
        (void)bar_wait(&room().up_bar[next], layer & 1);
        const bool there = next + lane / 8 < count && bar_ended(&room().up_bar[item], layer & 1);
        const uint32_t missing = ~__ballot_sync(~0u, there);
        ends = missing ? max((__ffs(missing) - 1) / 8, 1) : 4;
        const float gate = leaves_sum<CU_MX_SPLIT - 1>(sums[0][row], sums + 1, row),
                    up = leaves_sum<CU_MX_SPLIT - 1>(sums[0][row + 8], sums + 1, row + 8);
        const float a =
            swiglu(mx_finish(gate) + __uint_as_float(biases << 16), mx_finish(up) + __uint_as_float(biases & 0xffff0000u));
        const uint32_t bits = __half_as_ushort(__float2half(a)), pair = bits | __shfl_down_sync(~0u, bits, 1) << 16;
        const uint4 eight =
            make_uint4(pair, __shfl_down_sync(~0u, pair, 2), __shfl_down_sync(~0u, pair, 4), __shfl_down_sync(~0u, pair, 6));
        if (row == 0 && lane / 8 < ends)
            eight_fp16_store(to, clear, eight);
    }
}

/* What the block before has of a tile that this one ends. Whoever ends it may not have to wait for memory. */
__device__ __noinline__ void courier_cut(enum cu_token_op op, int which, uint32_t per, uint32_t layer)
{
    const uint32_t lane = threadIdx.x % 32, wants = room().share[op].lo % per ? (which == CUT_DOWN ? 2 : 1) * CU_TILE : 0;
    if (lane < wants)
        room().cut[lane] = __uint_as_float(packet_get(&room().packets->cut[which][blockIdx.x - 1][lane], room().epoch + layer));
    bulk_arrive_one(smem_at(&room().cut_bar[which]));
}

__device__ __noinline__ void token_courier()
{
#pragma unroll 1
    for (uint32_t layer = 0; layer < room().m.layers; layer++) {
        courier_dense_biases(layer);
        courier_router(layer);
        courier_small(layer);
        courier_keys(layer);
        courier_cut(CU_TOKEN_QKV, CUT_QKV, CU_GEMV_WARPS, layer);
        courier_cut(CU_TOKEN_OUT, CUT_OUT, CU_OUT_WARPS, layer);
        if (!courier_first(layer))
            return;
        (void)bar_wait(&room().chosen_bar, layer & 1);
        courier_biases(layer); /* behind the first stages, before most others */
        courier_gated(layer);
        if (layer + 1 == room().m.layers)
            courier_head();
        courier_cut(CU_TOKEN_DOWN, CUT_DOWN, 2 * NIB_MAX_EXPERTS_USED, layer);
    }
}
