/* arch/sm90/token.cuh: one decode row through all layers in one launch: embedding, then for each layer what the ops QKV to COMBINE
 * do, with their arithmetic and so their bits; arch/sm90/NOTES.md tells the schedule.
 *
 * A block a multiprocessor, all at once on the card. One warp streams the block's share of all weights through a ring in shared
 * memory, without a stop; the others multiply. Blocks hand vectors to each other as packets (struct cu_token). A wait that outlasts the
 * deadline marks the step as broken: every wait of the block ends then, and soon of all, and the host is told. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/sm90/token_attn_long.cuh"
#include "arch/sm90/token_courier.cuh"
#include "arch/sm90/token_feed.cuh"
#include "arch/sm90/token_piece.cuh"
#include "arch/sm90/token_x.cuh"

/* Until the courier has what the block before hands over. */
__device__ __forceinline__ void cut_wait(int which, uint32_t layer)
{
    (void)bar_wait(&room().cut_bar[which], layer & 1);
}

/* This block's sum of row lane % 16 of a dense tile: of its own stages and, if it ends the tile, of the block before. */
template <uint32_t PARTS>
__device__ __forceinline__ float dense_total(const token_at &b, int which, const token_sums *sums, uint32_t first, uint32_t end)
{
    const uint32_t row = threadIdx.x % CU_TILE;
    float own[PARTS];
#pragma unroll
    for (uint32_t c = 0; c < PARTS; c++)
        own[c] = sums[c][row]; /* those of other blocks are not used */
    float sum = own[0];
    if (first) {
        cut_wait(which, b.layer);
        sum = room().cut[row];
    }
#pragma unroll
    for (uint32_t c = 1; c < PARTS; c++)
        sum = c >= first && c < end ? sum + own[c] : sum;
    return sum;
}

__device__ __forceinline__ float wide16(uint32_t raw)
{
    return __uint_as_float(raw << 16);
}

/* Stages as hidden sizes around 2,880 give them; others take the slower loop. */
template <class Form, enum cu_token_op OP>
using dense_stage = dense_fixed<Form, OP == CU_TOKEN_QKV ? CU_DIV_UP(2880 / CU_DENSE_UNIT, CU_GEMV_WARPS)
                                                         : CU_TOKEN_Q / CU_DENSE_UNIT / CU_OUT_WARPS>;

/* Until other warps have taken an op's inputs in. */
template <enum cu_token_op OP> __device__ __forceinline__ void inputs_wait()
{
    if (OP != CU_TOKEN_OUT)
        token_sync();
    token_sync();
}

/* Such a stage, held while other warps take its inputs in. */
template <class Form, enum cu_token_op OP>
__device__ __forceinline__ float2 dense_held(uint32_t number, const token_dense &d, uint32_t acts)
{
    dense_stage<Form, OP> stage;
    stage_wait(number);
    stage.load(d.weights);
    if (stage.rest == 0)
        stage_free<2>(number);
    inputs_wait<OP>();
    return stage.multiply(d.weights, d.units, acts + d.acts, [&] { stage_free<2>(number); });
}

/* Warps that take the inputs of a dense product in; the others have its first stages, which they hold meanwhile. */
template <class Form, enum cu_token_op OP> __device__ __forceinline__ constexpr uint32_t dense_takers()
{
    return !Form::holds         ? CU_TOKEN_WARPS
           : OP == CU_TOKEN_QKV ? Form::x_takers / 32
                                : Form::attn_takers / 32;
}

template <class Form, enum cu_token_op OP> __device__ __forceinline__ uint32_t dense_first()
{
    return (threadIdx.x / 32 + CU_TOKEN_WARPS - dense_takers<Form, OP>()) % CU_TOKEN_WARPS;
}

/* Stage i of an op. */
__device__ __forceinline__ uint4 dense_packed(enum cu_token_op op, uint32_t i)
{
    return lds16(smem_at(&room().dense[op][i]));
}

__device__ __forceinline__ token_dense dense_at(enum cu_token_op op, uint32_t i)
{
    return token_dense(dense_packed(op, i));
}

/* Stage i is held. */
template <class Form, enum cu_token_op OP> __device__ __forceinline__ bool dense_holds(const token_dense &d, uint32_t i)
{
    return i + dense_takers<Form, OP>() < CU_TOKEN_WARPS && dense_stage<Form, OP>::fits(d.units);
}

/* Instead of taking x in: the product of the warp's first stage of QKV of the next layer, or the first. */
template <class Form> __device__ __noinline__ void qkv_hold(uint32_t layer)
{
    const uint32_t i = dense_first<Form, CU_TOKEN_QKV>();
    if (Form::holds && i < room().listed[CU_TOKEN_QKV]) {
        const token_dense d = dense_at(CU_TOKEN_QKV, i);
        if (dense_holds<Form, CU_TOKEN_QKV>(d, i)) {
            piece_keep(d.leaf, dense_held<Form, CU_TOKEN_QKV>(layer * room().asks + i, d, smem_at(room().acts)));
            return;
        }
    }
    inputs_wait<CU_TOKEN_QKV>();
}

/* What follows a tile's last stage of the block's. */
template <enum cu_token_op OP, uint32_t PARTS, class Done> __device__ __forceinline__ void dense_done(const token_at &b, const token_dense &d, int which, Done done)
{
    const uint32_t lane = threadIdx.x % 32;
    const float sum = dense_total<PARTS>(b, which, room().sums + d.item * PARTS, d.first, d.end);
    if (d.end < PARTS) {
        if (lane < CU_TILE)
            packet_put(&room().packets->cut[which][blockIdx.x][lane], __float_as_uint(sum), b.epoch);
        return;
    }
    (void)bar_wait(&room().bias_bar[0], b.layer & 1);
    done(b, d, sum, wide16(room().dense_bias[OP == CU_TOKEN_OUT][d.item][lane % CU_TILE]));
}

/* Rows of QKV, sum and bias of lane % 16, to attention. */
__device__ __forceinline__ void qkv_done(const token_at &b, const token_dense &d, float sum, float bias)
{
    const uint32_t tile = d.tile, lane = threadIdx.x % 32, rotated = room().m.heads + room().m.kv_heads;
    const uint32_t at_dim = tile % 4 * 8 + lane % 8;
    const float own = sum + bias;
    float y = __shfl_sync(~0u, own, lane % 8), y32 = __shfl_sync(~0u, own, lane % 8 + 8);
    if (tile / 4 < rotated)
        rotate(y, y32, room().cos[at_dim], room().sin[at_dim]);
    const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16(lane & 8 ? y32 : y)), pair = bits | __shfl_down_sync(~0u, bits, 1) << 16;
    const uint4 eight =
        make_uint4(pair, __shfl_down_sync(~0u, pair, 2), __shfl_down_sync(~0u, pair, 4), __shfl_down_sync(~0u, pair, 6));
    if (lane == 0 || lane == 8)
        eight_bf16_put(room().packets->qkv, (tile / 4 * NIB_HEAD_DIM + tile % 4 * 8 + lane * 4) / 2, eight, b.epoch);
}

/* As done_qkv. */
template <class Form> __device__ __noinline__ void token_qkv()
{
    const token_at b(CU_TOKEN_QKV);
    const uint32_t count = room().listed[CU_TOKEN_QKV];
#pragma unroll 1
    for (uint32_t i = dense_first<Form, CU_TOKEN_QKV>(); i < count; i += CU_TOKEN_WARPS) {
        const token_dense d = dense_at(CU_TOKEN_QKV, i);
        if (!dense_holds<Form, CU_TOKEN_QKV>(d, i)) {
            stage_wait(b.stage + i);
            piece_keep(d.leaf, dense_piece<Form>(d.weights, d.units, smem_at(room().acts) + d.acts));
            stage_free<2>(b.stage + i);
        }
        if (tile_last(&room().count[d.item], d.of))
            dense_done<CU_TOKEN_QKV, CU_GEMV_WARPS>(b, d, CUT_QKV, qkv_done);
    }
}

/* A row of x, sum and bias of lane % 16, to all blocks and, as a tile of x, to token_route. */
__device__ __forceinline__ void out_done(const token_at &b, const token_dense &d, float sum, float bias)
{
    const uint32_t n = d.tile * CU_TILE + threadIdx.x % CU_TILE;
    float &own = room().x[n - room().x_first];
    const float x = own + (sum + bias);
    if (threadIdx.x % 32 < CU_TILE)
        word_put(room().packets->x_out, n, __float_as_uint(x), b.epoch);
    __syncwarp(); /* all have read it */
    own = x;
    bulk_arrive(smem_at(&room().x_bar[d.item]));
}

/* The attention's output is taken in, or the warp's first stage held meanwhile; then as done_out. What the warp multiplies first is found
 * beforehand. */
template <class Form> __device__ __noinline__ void token_out()
{
    const token_at b(CU_TOKEN_OUT);
    const uint32_t count = room().listed[CU_TOKEN_OUT];
    uint32_t i = dense_first<Form, CU_TOKEN_OUT>();
    uint4 packed = dense_packed(CU_TOKEN_OUT, i);
    float2 rows = make_float2(0, 0);
    bool held = Form::holds && i < count && dense_holds<Form, CU_TOKEN_OUT>(token_dense(packed), i);
    if (threadIdx.x < Form::attn_takers)
        take_attention<Form::attn_takers>();
    else if (held)
        rows = dense_held<Form, CU_TOKEN_OUT>(b.stage + i, token_dense(packed), smem_at(room().acts));
    else
        inputs_wait<CU_TOKEN_OUT>();
#pragma unroll 1
    for (; i < count; held = false) {
        const token_dense d(packed);
        if (!held) {
            stage_wait(b.stage + i);
            rows = dense_piece<Form>(d.weights, d.units, smem_at(room().acts) + d.acts);
            stage_free<2>(b.stage + i);
        }
        piece_keep(d.leaf, rows);
        if (tile_last(&room().count[d.item], d.of))
            dense_done<CU_TOKEN_OUT, CU_OUT_WARPS>(b, d, CUT_OUT, out_done);
        i += CU_TOKEN_WARPS;
        packed = dense_packed(CU_TOKEN_OUT, i);
    }
}

/* What a tile of x, the block's `item`th, adds to the router's sums of 32 experts, as soon as it is there. */
__device__ __forceinline__ void route_tile(const token_at &b, uint32_t tile, uint32_t item, uint32_t group)
{
    const uint32_t lane = threadIdx.x % 32, groups = CU_DIV_UP(room().m.experts, 32), e = group * 32 + lane / 4 + lane % 4 * 8;
    const uint32_t weights = room().router + (item * groups + group) * CU_TOKEN_ROUTE_BYTES + (lane / 4 * 2 + lane % 2) * 16;
    const uint4 norm = lds16(smem_at(room().route_norm[item]) + lane % 2 * 16); /* of the lane's eight rows */
    const float4 w0 = bf16_four(make_uint2(norm.x, norm.y)), w1 = bf16_four(make_uint2(norm.z, norm.w));
    (void)bar_wait(&room().x_bar[item], b.layer & 1);
    const float *rows = room().x + tile * CU_TILE - room().x_first + lane % 2 * 8;
    const float4 x0 = *(const float4 *)rows, x1 = *(const float4 *)(rows + 4);
    const uint4 in = make_uint4(route_inputs(x0.x, x0.y, w0.x, w0.y), route_inputs(x0.z, x0.w, w0.z, w0.w),
                                route_inputs(x1.x, x1.y, w1.x, w1.y), route_inputs(x1.z, x1.w, w1.z, w1.w));
    float low[4], high[4]; /* all columns are alike: of each tile of experts a lane takes one row */
    route_parts(low, lds16(weights), lds16(weights + 256), in, tile % 2);
    route_parts(high, lds16(weights + 512), lds16(weights + 768), in, tile % 2);
    const float even = lane & 2 ? high[0] : low[0], odd = lane & 2 ? high[2] : low[2];
    if (e < room().m.experts)
        sum_add(&room().packets->routed[b.epoch & 1][e], route_fixed(lane & 1 ? odd : even));
}

/* Instead of taking in x for the experts: what the tiles of x that the block ends add to the router's sums. */
template <class Form> __device__ __noinline__ void token_route()
{
    const token_at b(CU_TOKEN_OUT);
    const struct cu_share share = room().share[CU_TOKEN_OUT];
    const uint32_t first = share.lo / CU_OUT_WARPS, tiles = share.hi / CU_OUT_WARPS - first, groups = CU_DIV_UP(room().m.experts, 32);
    (void)bar_wait(&room().route_bar, b.layer & 1);
#pragma unroll 1
    for (uint32_t i = threadIdx.x / 32 - Form::x_takers / 32; i < tiles * groups; i += CU_TOKEN_WARPS - Form::x_takers / 32)
        route_tile(b, first + i / groups, i / groups, i % groups);
    inputs_wait<CU_TOKEN_QKV>();
}

/* As done_down, of the block's stages of the choices' halves of its `item`th tile; the block that has the last of them adds up the choices, as combine
 * does. A choice is added as soon as its sums are there, so that little is left to do behind the last one. */
__device__ __forceinline__ void down_done(const token_at &b, uint32_t item)
{
    struct cu_share share = room().share[CU_TOKEN_DOWN];
    share.per = 2 * NIB_MAX_EXPERTS_USED; /* known to the compiler */
    const uint32_t tile = share.lo / share.per + item, first = cu_share_first(share, tile), end = cu_share_end(share, tile);
    const uint32_t lane = threadIdx.x % 32, row = lane % CU_TILE, at_row = tile * CU_TILE + row;
    const token_sums *sums = room().down_sums + (item * NIB_MAX_EXPERTS_USED + first / 2) * CU_MX_SPLIT;
    const float x = end == share.per ? room().x[at_row - room().x_first] : 0;
    float sum = 0, open = 0; /* open: of a choice of which only the first half was there */
    (void)bar_wait(&room().bias_bar[1], b.layer & 1);
    if (first) {
        cut_wait(CUT_DOWN, b.layer);
        sum = room().cut[row];
        open = room().cut[CU_TILE + row];
    }
#pragma unroll 1
    for (uint32_t c = first / 2; 2 * c < end; c++, sums += CU_MX_SPLIT) {
        const float weight = room().weight[c], bias = wide16(room().down_bias[item][c][row]);
        (void)bar_wait(&room().down_bar[item][c], b.layer & 1);
        const float half = leaves_sum<CU_TOKEN_HALF - 1>(sums[0][row], sums + 1, row);
        open = first <= 2 * c ? half : open;
        const float all = leaves_sum<CU_TOKEN_HALF>(open, sums + CU_TOKEN_HALF, row);
        sum = 2 * c + 1 < end ? __fmaf_rn(weight, mx_finish(all) + bias, sum) : sum;
    }
    cu_packet *cut = room().packets->cut[CUT_DOWN][blockIdx.x];
    if (lane >= CU_TILE)
        return;
    if (end == share.per) {
        word_put(room().packets->x_down, at_row, __float_as_uint(x + sum), b.epoch);
    } else {
        packet_put(cut + row, __float_as_uint(sum), b.epoch);
        packet_put(cut + CU_TILE + row, __float_as_uint(open), b.epoch);
    }
}

/* Of a choice's activations those that a piece of down multiplies, as soon as all of them are made: a lane every 32nd word of 128 bits. Other warps
 * of the block may bring the same. When a word is there, all blocks have chosen, and this one needs no more what else lies here. */
__device__ __forceinline__ void gated_take(const token_piece &p, uint32_t epoch)
{
    enum { WORDS = CU_DIV_UP(2 * CU_DIV_UP(CU_TOKEN_INNER / CU_MX_UNIT, CU_MX_SPLIT) * (CU_MX_UNIT / 8), 32) };
    const uint32_t lane = threadIdx.x % 32, at = (p.acts - smem_at(room().gated)) / 16, n = (p.first + p.last) * (CU_MX_UNIT / 8);
    const uint32_t end = p.choice * cu_mx_units(room().m.intermediate) * (CU_MX_UNIT / 8) + room().m.intermediate / 8; /* behind it zeros */
    const uint32_t made = min(n, end - at), *from = room().packets->gated[epoch & 1] + (at + lane) * 4;
    const uint32_t *last = room().packets->gated[epoch & 1] + (at + made - 1) * 4;
    uint4 v[WORDS];
    /* The last word alone first, as what asks for all of them slows the stream. */
    for (uint32_t turn = 0; made && !eight_ask(last).x && !token_late(turn); turn++)
        ;
    for (uint32_t turn = 0;; turn++) {
        bool there = true;
#pragma unroll
        for (uint32_t i = 0; i < WORDS; i++) {
            v[i] = make_uint4(0, 0, 0, 0);
            if (lane + 32 * i < made)
                v[i] = eight_ask(from + i * 128);
        }
#pragma unroll
        for (uint32_t i = 0; i < WORDS; i++)
            there &= v[i].x || lane + 32 * i >= made;
        if (there || token_late(turn))
            break;
    }
#pragma unroll
    for (uint32_t i = 0; i < WORDS; i++)
        if (lane + 32 * i < n)
            sts16(p.acts + (lane + 32 * i) * 16, v[i]);
    __syncwarp();
}

/* The warp's place in the order in which pieces are dealt. Last come those that share a scheduler with the courier or the warp that asks for weights, 2 and 3:
 * where pieces do not come out even these two have less beside them. */
__device__ __forceinline__ uint32_t piece_rank()
{
    static_assert(CU_TOKEN_WARPS == 14 && CU_TOKEN_COURIER / 32 % 4 == 2 && CU_TOKEN_FEEDER / 32 % 4 == 3, "two schedulers have four warps that multiply, two three");
    const uint32_t row = threadIdx.x / 32 / 4, scheduler = threadIdx.x / 32 % 4;
    return scheduler < 2 ? row * 2 + scheduler : 2 + 3 * scheduler + row;
}

/* The experts' products, dealt to the warps in turns in the order in which they are asked for. The loop is in the program once: what all warps run
 * should be little. Tiles of up are ended by the courier, those of down by the last warps, which have no piece of the last ones. */
__device__ __noinline__ void token_experts()
{
    const token_at b(CU_TOKEN_UP);
    const uint32_t pieces = room().pieces, list = smem_at(room().piece), rank = piece_rank();
    uint32_t i = rank;
    uint2 next = i < pieces ? lds8(list + i * 8) : make_uint2(0, 0);
    while (i < pieces) {
        const token_piece p(next);
        const uint32_t number = b.stage + i / CU_TOKEN_PIECES;
        i += CU_TOKEN_WARPS;
        if (i < pieces)
            next = lds8(list + i * 8);
        if (p.down)
            gated_take(p, b.epoch);
        stage_wait(number);
        const float2 rows = mx_piece(p.weights, p.first, p.last, p.acts);
        stage_free<1>(number);
        mx_keep(p.leaves, rows);
        bulk_arrive(p.bar);
    }
    const uint32_t item = rank + room().down_tiles - CU_TOKEN_WARPS; /* by the last warp the tile that the next block goes on with */
    if (item < room().down_tiles)
        down_done(b, item);
}

/* The layers, by the warps that multiply. */
template <class Form> __device__ __forceinline__ void token_layers()
{
    for (;;) {
        token_qkv<Form>();
        if (threadIdx.x >= Form::attn_takers)
            qkv_ended();
        if (threadIdx.x < ATTN_LONG_THREADS && attn_is_long())
            token_attention_long();
        else if (threadIdx.x < CU_ATTN_THREADS)
            token_attention();
        token_out<Form>();
        if (threadIdx.x < Form::x_takers)
            x_take<Form::x_takers>(FOR_EXPERTS);
        else
            token_route<Form>();
        token_experts();
        if (room().layer + 1 == room().m.layers)
            break;
        if (threadIdx.x < Form::x_takers)
            x_take<Form::x_takers>(FOR_QKV);
        else
            qkv_hold<Form>(room().layer + 1);
    }
    if (blockIdx.x > 0)
        return;
    x_take<Form::x_takers>(FOR_HEAD);
    if (threadIdx.x == 0)
        room().packets->epoch = room().epoch + room().m.layers - 1;
}

/* The step's rotation, by a warp that does not take x in. */
__device__ __forceinline__ void token_rope()
{
    const uint32_t lane = threadIdx.x % 32;
    static_assert(NIB_HEAD_DIM / 2 == 32, "a lane a pair");
    rope_angle(&room().m, room().row.pos, lane, &room().cos[lane], &room().sin[lane]);
}

/* The token to begin with. */
template <class Form> __device__ __forceinline__ void token_open()
{
    const struct nib_gpu_machine *m = &room().m;
    const struct nib_row r = room().row;
    uint32_t token = r.flags & NIB_ROW_FEEDBACK ? at<const uint32_t>(m->last)[r.slot] : r.token;
    if (token >= m->vocab) {
        fault(m, NIB_GPU_TOKEN);
        token = 0;
    }
    x_begin<Form::x_takers>(at<const uint2>(m->embed, (uint64_t)token * m->hidden * 2));
}

/* What this block does: a thread a stage. */
template <class Form> __device__ __forceinline__ void prepare_lists(const struct nib_gpu_machine *m)
{
    const uint32_t op_at = threadIdx.x / CU_TOKEN_LIST, i = threadIdx.x % CU_TOKEN_LIST, blocks = gridDim.x, block = blockIdx.x;
    const enum cu_token_op op = (enum cu_token_op)op_at;
    if (op_at >= CU_TOKEN_OPS)
        return;
    const struct cu_share share = cu_token_share(op, m, blocks, block);
    room().share[op] = share; /* of up not used */
    if (op < CU_TOKEN_UP) {
        room().listed[op] = share.hi - share.lo;
        if (i < share.hi - share.lo)
            room().list[op][i] = cu_token_find(op, m, {Form::unit_bytes, Form::span}, share, i);
        return;
    }
    uint32_t first = 0, own = ~0u, own_choice = 0; /* this stage is the own'th of its choice's */
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
        const uint32_t n = cu_token_chosen(op, m, blocks, block, c);
        room().chosen[op - CU_TOKEN_UP][c] = first;
        if (i >= first && i < first + n) {
            own = i - first;
            own_choice = c;
        }
        first += n;
    }
    room().chosen[op - CU_TOKEN_UP][NIB_MAX_EXPERTS_USED] = room().listed[op] = first;
    if (own != ~0u)
        room().experts[op - CU_TOKEN_UP][i] = cu_token_find_chosen(op, m, blocks, block, own_choice, own);
}

/* What this block does, if a launch has left it in memory: each thread 16 bytes. False: none has. */
template <class Form> __device__ __forceinline__ bool plan_read(const struct cu_token *packets)
{
    uint32_t made;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(made) : "l"(&packets->plan[blockIdx.x].made) : "memory");
    if (made == Form::unit_bytes && threadIdx.x < sizeof(token_plan) / 16)
        ((uint4 *)(token_plan *)&room())[threadIdx.x] = ((const uint4 *)packets->plan[blockIdx.x].bytes)[threadIdx.x];
    return made == Form::unit_bytes;
}

/* By the warp that has made it. */
template <class Form> __device__ __forceinline__ void plan_write(struct cu_token *packets)
{
    for (uint32_t i = threadIdx.x % 32; i < sizeof(token_plan) / 16; i += 32)
        ((uint4 *)packets->plan[blockIdx.x].bytes)[i] = ((const uint4 *)(const token_plan *)&room())[i];
    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(&packets->plan[blockIdx.x].made), "r"(Form::unit_bytes) : "memory");
}

/* What does not depend on the step. True: the block's plan is still to be made from its lists. */
template <class Form> __device__ __forceinline__ bool token_prepare(const struct nib_gpu_machine *m)
{
    const uint32_t tid = threadIdx.x;
    struct cu_token *packets = at<struct cu_token>(m->scratch, sizeof(struct cu_scratch));
    if (tid == CU_TOKEN_FEEDER)
        bars_open();
    if (tid < CU_TOKEN_DENSE)
        room().count[tid] = 0;
    if (tid < NIB_MAX_EXPERTS_USED) /* to be read by who waits in vain */
        room().expert[tid] = 0;
    if (tid == 0) {
        room().packets = packets;
        room().layer = 0;
        room().deadline = ~0ull;
        room().late = 0;
        room().asked = room().freed = 0;
    }
    const uint32_t words = (offsetof(struct nib_gpu_machine, layer) + m->layers * sizeof m->layer[0]) / 8;
    for (uint32_t i = tid; i < words; i += CU_TOKEN_THREADS)
        ((uint64_t *)&room().m)[i] = ((const uint64_t *)m)[i];
    if (__syncthreads_and(plan_read<Form>(packets)))
        return false;
    if (tid == 0) {
        const uint32_t end = smem_at(&room().m.layer[m->layers]);
        room().ring = (end + 127) / 128 * 128;
        room().ring_bytes = smem_at(token_dynamic) + CU_TOKEN_SHARED - sizeof(token_behind) - room().ring;
        const struct cu_share down = cu_token_share(CU_TOKEN_DOWN, m, gridDim.x, blockIdx.x);
        room().x_first = min(cu_token_share(CU_TOKEN_OUT, m, gridDim.x, blockIdx.x).lo / CU_OUT_WARPS, down.lo / down.per) * CU_TILE;
        const uint32_t router = cu_token_route_bytes(m, gridDim.x, blockIdx.x);
        if (router > sizeof(token_behind)) /* it takes of the ring */
            room().ring_bytes -= router;
        room().router = router > sizeof(token_behind) ? room().ring + room().ring_bytes : smem_at(&behind_ring());
        room().down_tiles = CU_DIV_UP(down.hi, down.per) - down.lo / down.per;
    }
    prepare_lists<Form>(m);
    __syncthreads();
    return true;
}

/* The block's plan from its lists. The warp that asks for weights. */
template <class Form> __device__ __noinline__ void plan_make()
{
    if (threadIdx.x % 32 == 0)
        order_stages<Form>();
    __syncwarp();
    order_pieces();
    order_dense(CU_TOKEN_QKV, CU_GEMV_WARPS);
    order_dense(CU_TOKEN_OUT, CU_OUT_WARPS);
    __syncwarp();
    plan_write<Form>(room().packets);
}

/* The mbarriers of the experts' sums, at which pieces arrive, by the block's plan. A thread each. */
__device__ __forceinline__ void prepare_bars()
{
    const struct cu_share share = room().share[CU_TOKEN_DOWN];
    const uint32_t tid = threadIdx.x, per = 2 * NIB_MAX_EXPERTS_USED, first = share.lo / per * per + 2 * tid;
    const uint32_t lo = max(first, share.lo), hi = min(first + 2, share.hi);
    if (tid < CU_TOKEN_UP_SUMS / CU_MX_SPLIT)
        bulk_init<2 * CU_TOKEN_PIECES>(smem_at(&room().up_bar[tid]));
    if (lo < hi) /* stages of the choice */
        bulk_init(smem_at(&room().down_bar[tid / NIB_MAX_EXPERTS_USED][tid % NIB_MAX_EXPERTS_USED]), (hi - lo) * CU_TOKEN_PIECES);
}

/* The step begins; false: it has no decode row. */
__device__ __forceinline__ bool token_works()
{
    overlap_wait();
    return step_of(&room().m)->decode_count > 0;
}

/* The same and its row, by all warps but the one that asks for weights, which is still busy with the first. */
__device__ __forceinline__ bool token_begin()
{
    prepare_bars();
    const bool works = token_works();
    if (threadIdx.x == 0) {
        room().row = step_of(&room().m)->rows[0];
        room().deadline = token_now() + CU_TOKEN_MS * 1000000ull;
        room().epoch = *(volatile uint32_t *)&room().packets->epoch + 1;
    }
    asm volatile("bar.sync 3, %0;" ::"n"(CU_TOKEN_FEEDER) : "memory");
    return works;
}

template <class Form> __device__ __forceinline__ void token_step(const struct nib_gpu_machine *m)
{
    const bool feeds = threadIdx.x >= CU_TOKEN_FEEDER;
    overlap_next();
    if (token_prepare<Form>(m)) {
        if (feeds)
            plan_make<Form>();
        __syncthreads();
    }
    if (feeds) {
        const uint32_t early = token_feed_early();
        token_feeder<Form>(token_works(), early);
    } else if (!token_begin()) {
        return;
    } else if (threadIdx.x >= CU_TOKEN_COURIER) {
        token_courier();
    } else {
        if (threadIdx.x < Form::x_takers) {
            token_open<Form>();
        } else {
            if (threadIdx.x / 32 == Form::x_takers / 32)
                token_rope();
            qkv_hold<Form>(0);
        }
        token_layers<Form>();
    }
    if (*(volatile uint32_t *)&room().late)
        fault(m, NIB_GPU_TOKEN);
}

KERNEL(token, CU_TOKEN_THREADS, 1)
{
    token_step<token_bf16>(m);
}

KERNEL(token_mxfp8, CU_TOKEN_THREADS, 1)
{
    token_step<token_mxfp8>(m);
}
