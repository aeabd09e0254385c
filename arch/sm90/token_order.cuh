/* arch/sm90/token_order.cuh: in which order a block asks for a layer's stages, where in the ring each lies, when it may be asked for and
 * what warps multiply of it: the same in every layer and step, so that only the first launch finds it (struct token_plan). The warp that asks, before
 * the block's lists are used. */
#pragma once
#include "arch/sm90/token_room.cuh"

/* Which of a layer's matrices a stage is of: QKV, OUT, or CU_TOKEN_UP and behind it one for each phase of the experts; how many
 * may be on their way with it. */
struct token_kind {
    uint32_t matrix, ahead;
};
static_assert(CU_TOKEN_UP + CU_TOKEN_PHASES <= TOKEN_ASK_LOW + 1, "a matrix fits");
static_assert(((CU_TOKEN_AHEAD - 0x22222222u) & 0x88888888u) == 0 && ((CU_TOKEN_MXFP8 - 0x22222222u) & 0x88888888u) == 0,
              "of two stages asked for at a time the first is not waited for before the second");
static_assert(CU_TOKEN_AHEAD_QKV <= TOKEN_ASK_LOW && CU_TOKEN_MXFP8_QKV <= TOKEN_ASK_LOW && CU_TOKEN_MXFP8_MORE <= TOKEN_ASK_LOW && CU_TOKEN_MXFP8_OUT <= TOKEN_ASK_LOW, "a number fits");

/* Places stages one behind the other; one that does not fit before the ring's end begins at its start. */
struct token_order {
    uint32_t head, given;  /* offset of the next stage; bytes of the ring handed out so far */
    uint32_t placed, read; /* stages; of these those that must have been read before the last one placed is asked for */
    uint32_t *behind;      /* bytes handed out up to a stage's end and what was left over behind it */

    __device__ __forceinline__ void skip(uint32_t n)
    {
        given += n;
        head += n;
        if (placed)
            behind[placed - 1] = given;
    }

    /* As ask number i of the layer, of which `origin` were asked for before the first one placed. */
    __device__ __forceinline__ void place(struct cu_token_stage &s, uint32_t i, uint32_t unit, uint32_t origin,
                                          token_kind kind)
    {
        const uint32_t n = s.units * unit, bytes = room().ring_bytes;
        if (head + n > bytes) {
            skip(bytes - head);
            head = 0;
        }
        while (given + n - (read ? behind[read - 1] : 0) > bytes || placed - read >= CU_TOKEN_SLOTS)
            read++;
        s.to = room().ring + head;
        room().ask[i] = {s.offset | kind.matrix, s.to, n | kind.ahead, (int32_t)(origin + read)};
        head += n;
        given += n;
        behind[placed++] = given;
    }
};

/* The choice's part of up or down that a phase of the experts asks for. */
struct token_phase {
    uint32_t down, choice, first, end; /* of the op's list */

    __device__ __forceinline__ explicit token_phase(uint32_t phase)
    {
        const uint32_t order = CU_TOKEN_ORDER >> 4 * phase;
        down = order >> 2 & 1;
        choice = order & 3;
        first = room().chosen[down][choice];
        end = room().chosen[down][choice + 1];
    }
};

/* The experts' stages come first: all that was asked for before has been read when they are known, so that they begin at the ring's
 * start. The output projection is laid so that the ring's end falls between two of its stages: all of it fits. */
template <class Form> __device__ __noinline__ void order_stages()
{
    struct token_order o = {0, 0, 0, 0, (uint32_t *)room().acts};
    static_assert(sizeof room().acts >= CU_TOKEN_ASKS * 4, "behind");
    uint32_t dense = 0, i = 0;
    for (uint32_t op = CU_TOKEN_QKV; op <= CU_TOKEN_OUT; op++)
        dense += room().listed[op];
    for (uint32_t phase = 0; phase < CU_TOKEN_PHASES; phase++) {
        const token_phase p(phase);
        const uint32_t ahead = Form::ahead >> 4 * phase & 15;
        for (uint32_t s = p.first; s < p.end; s++, i++)
            o.place(room().experts[p.down][s], dense + i, CU_MX_BYTES, dense, {CU_TOKEN_UP + phase, ahead});
    }
    const uint32_t experts = i;
    room().asks = dense + experts;
    i = 0;
    for (uint32_t op = CU_TOKEN_QKV; op <= CU_TOKEN_OUT; op++) {
        const uint32_t n = room().listed[op], bytes = n ? room().list[op][0].units * Form::unit_bytes : 0;
        if (op == CU_TOKEN_OUT && bytes)
            o.skip((room().ring_bytes - o.head) % bytes);
        for (uint32_t s = 0; s < n; s++, i++) {
            const uint32_t ahead = op == CU_TOKEN_OUT ? Form::ahead_out : s + 1 <= Form::early_qkv ? Form::more_qkv : Form::ahead_qkv;
            o.place(room().list[op][s], i, Form::unit_bytes, 0 - experts, {op, ahead});
        }
    }
}

/* The stages of a dense matrix whose tiles have `parts`, a lane each. Behind order_stages. */
__device__ __forceinline__ void order_dense(enum cu_token_op op, uint32_t parts)
{
    const uint32_t i = threadIdx.x % 32;
    struct cu_share share = room().share[op];
    share.per = parts;
    if (i >= room().listed[op])
        return;
    const struct cu_token_stage s = room().list[op][i];
    token_dense d;
    d.weights = s.to;
    d.acts = s.u0 * 64;
    d.units = s.units;
    d.tile = s.tile;
    d.item = s.tile - share.lo / parts;
    d.leaf = smem_at(room().sums + d.item * parts + s.part);
    d.first = cu_share_first(share, s.tile);
    d.end = cu_share_end(share, s.tile);
    d.of = d.end - d.first;
    room().dense[op][i] = d.packed();
}
static_assert(CU_TOKEN_LIST <= 32 && CU_GEMV_WARPS < 16 && CU_OUT_WARPS < 16 && CU_TOKEN_HIDDEN <= 1 << 15, "a stage packed");

/* The experts' pieces, a lane each. Behind order_stages. */
__device__ __forceinline__ void order_pieces()
{
    const struct cu_share share = room().share[CU_TOKEN_DOWN];
    uint32_t i = 0;
    for (uint32_t phase = 0; phase < CU_TOKEN_PHASES; phase++) {
        const token_phase p(phase);
        const uint32_t units = cu_mx_units(p.down ? room().m.intermediate : room().m.hidden), n = CU_TOKEN_PIECES * (p.end - p.first);
        const uint32_t acts = p.down ? smem_at(room().gated) + p.choice * units * CU_MX_UNIT * 2 : smem_at(room().acts);
        for (uint32_t j = threadIdx.x % 32; j < n; j += 32) {
            const uint32_t at = p.first + j / CU_TOKEN_PIECES;
            const struct cu_token_stage s = room().experts[p.down][at];
            const uint32_t part = s.part * CU_TOKEN_HALF + j % CU_TOKEN_PIECES * 2, u0 = cu_mx_first(units, part, CU_MX_SPLIT),
                           middle = cu_mx_first(units, part + 1, CU_MX_SPLIT), end = cu_mx_first(units, part + 2, CU_MX_SPLIT);
            token_piece piece;
            piece.weights = s.to + (u0 - s.u0) * CU_MX_BYTES;
            piece.acts = acts + u0 * CU_MX_UNIT * 2;
            piece.first = middle - u0;
            piece.last = end - middle;
            const uint32_t item = p.down ? s.tile - share.lo / share.per : at / 2;
            piece.leaves = smem_at((p.down ? room().down_sums + (item * NIB_MAX_EXPERTS_USED + p.choice) * CU_MX_SPLIT
                                           : behind_ring().up_sums + item * CU_MX_SPLIT) +
                                   part);
            piece.bar = smem_at(p.down ? &room().down_bar[item][p.choice] : &room().up_bar[item]);
            piece.choice = p.choice;
            piece.down = p.down;
            room().piece[i + j] = piece.packed();
            if (!p.down)
                room().tile[p.choice] = s.tile - item;
        }
        i += n;
    }
    room().pieces = i;
}
