/* tests/gpu/token_share_test.c: what the blocks of the fused decode kernel do (arch/sm90/token.h), for every shape and several
 * numbers of multiprocessors: together each stage once, within the bounds of a block's lists and of its numbers. */
#define NIB_SM 90
#include "arch/sm90/token.h"

#include <stdlib.h>
#include <string.h>

#include "core/limits.h"
#include "tests/harness.h"

enum { STAGES_MAX = 4096, STAGE_BYTES_MAX = 16 << 10 };

static struct nib_gpu_machine machine(const struct nib_shape *shape, uint32_t sms)
{
    struct nib_gpu_machine m = {.sms = sms};
    nib_gpu_machine_model(&m, shape);
    return m;
}

static void count(uint8_t *seen, uint32_t at, struct cu_token_stage s, uint32_t unit_bytes)
{
    ck_assert_uint_lt(at, STAGES_MAX);
    ck_assert_uint_le(s.units * unit_bytes, STAGE_BYTES_MAX);
    seen[at]++;
}

static void all_once(const uint8_t *seen, uint32_t stages, const char *what, const char *shape, uint32_t sms)
{
    for (uint32_t i = 0; i < stages; i++)
        ck_assert_msg(seen[i] == 1, "%s of %s on %u: stage %u is done %u times", what, shape, sms, i, seen[i]);
}

static void check_dense(const struct nib_gpu_machine *m, struct cu_token_form form, uint32_t blocks, const char *shape)
{
    static const enum cu_token_op ops[] = {CU_TOKEN_QKV, CU_TOKEN_OUT};
    const uint32_t tiles[] = {(m->heads + 2 * m->kv_heads) * 4, cu_tiles(m->hidden)};
    for (int o = 0; o < 2; o++) {
        uint8_t seen[STAGES_MAX] = {0};
        const uint32_t parts = o == 1 ? CU_OUT_WARPS : CU_GEMV_WARPS;
        for (uint32_t b = 0; b < blocks; b++) {
            const struct cu_share share = cu_token_share(ops[o], m, blocks, b);
            ck_assert_uint_le(share.hi - share.lo, CU_TOKEN_LIST);
            for (uint32_t i = 0; i < share.hi - share.lo; i++) {
                const struct cu_token_stage s = cu_token_find(ops[o], m, form, share, i);
                count(seen, s.tile * parts + s.part, s, form.unit_bytes);
            }
        }
        all_once(seen, tiles[o] * parts, "a dense product", shape, m->sms);
    }
}

/* Each tile of x is ended by one block, which has room for its weights of the router. */
static void check_router(const struct nib_gpu_machine *m, uint32_t blocks, const char *shape)
{
    const uint32_t of_tile = (m->experts + 31) / 32 * CU_TOKEN_ROUTE_BYTES;
    uint32_t ended = 0;
    for (uint32_t b = 0; b < blocks; b++) {
        const uint32_t bytes = cu_token_route_bytes(m, blocks, b);
        ck_assert_uint_eq(bytes % of_tile, 0);
        ck_assert_msg(bytes / of_tile <= CU_TOKEN_DENSE, "block %u of %s on %u ends %u tiles of x", b, shape, m->sms,
                      bytes / of_tile);
        ended += bytes / of_tile;
    }
    ck_assert_uint_eq(ended, cu_tiles(m->hidden));
}

static void check_experts(const struct nib_gpu_machine *m, uint32_t blocks, const char *shape)
{
    const uint32_t tiles[2] = {cu_tiles(2 * m->intermediate), cu_tiles(m->hidden)};
    uint8_t seen[2][STAGES_MAX] = {{0}};
    for (uint32_t b = 0; b < blocks; b++)
        for (uint32_t down = 0; down < 2; down++) {
            const enum cu_token_op op = down ? CU_TOKEN_DOWN : CU_TOKEN_UP;
            uint32_t listed = 0;
            for (uint32_t c = 0; c < m->experts_used; c++) {
                const uint32_t n = cu_token_chosen(op, m, blocks, b, c);
                listed += n;
                for (uint32_t i = 0; i < n; i++) {
                    const struct cu_token_stage s = cu_token_find_chosen(op, m, blocks, b, c, i);
                    ck_assert_uint_eq(s.choice, c);
                    count(seen[down], (c * tiles[down] + s.tile) * 2 + s.part, s, CU_MX_BYTES);
                }
            }
            ck_assert_uint_ge(listed, 1); /* what a block gives shows that it has taken */
            ck_assert_uint_le(listed, CU_TOKEN_LIST);
        }
    for (uint32_t b = 0; b < blocks; b++) {
        const struct cu_share share = cu_token_share(CU_TOKEN_DOWN, m, blocks, b);
        ck_assert_msg(share.lo % share.per < share.per - 1 && share.hi / share.per > share.lo / share.per,
                      "block %u of %s on %u waits for the block before, or ends no tile", b, shape, m->sms);
    }
    for (int down = 0; down < 2; down++)
        all_once(seen[down], m->experts_used * tiles[down] * 2, "an expert product", shape, m->sms);
}

/* A block's stages of a layer fit in the list of those it asks for. */
static void check_asks(const struct nib_gpu_machine *m, uint32_t blocks)
{
    for (uint32_t b = 0; b < blocks; b++) {
        uint32_t asks = 0;
        for (int op = CU_TOKEN_QKV; op < CU_TOKEN_OPS; op++) {
            const struct cu_share share = cu_token_share((enum cu_token_op)op, m, blocks, b);
            asks += op == CU_TOKEN_UP ? 0 : share.hi - share.lo;
        }
        uint32_t chosen = 0;
        for (uint32_t c = 0; c < m->experts_used; c++) {
            asks += cu_token_chosen(CU_TOKEN_UP, m, blocks, b, c);
            chosen += cu_token_chosen(CU_TOKEN_UP, m, blocks, b, c) + cu_token_chosen(CU_TOKEN_DOWN, m, blocks, b, c);
        }
        ck_assert_uint_le(asks, CU_TOKEN_ASKS);
        ck_assert_uint_le(chosen, CU_TOKEN_CHOSEN);
    }
}

START_TEST(each_stage_is_done_once)
{
    static const uint32_t sms[] = {16, 78, 96, 114, 120, 132, 144, 160};
    size_t shapes_count, fused = 0;
    const struct nib_shape *shapes = nib_shapes(&shapes_count);
    for (size_t i = 0; i < shapes_count; i++)
        for (size_t k = 0; k < sizeof sms / sizeof sms[0]; k++) {
            const struct nib_gpu_machine m = machine(&shapes[i], sms[k]);
            const uint32_t blocks = cu_token_blocks(&m);
            ck_assert_uint_le(blocks, sms[k]);
            if (blocks == 0)
                continue;
            fused++;
            check_dense(&m, (struct cu_token_form){CU_DENSE_BYTES, 1}, blocks, shapes[i].name);
            check_dense(&m, (struct cu_token_form){CU_MXFP8_BYTES, CU_MXFP8_SPAN}, blocks, shapes[i].name);
            check_experts(&m, blocks, shapes[i].name);
            check_router(&m, blocks, shapes[i].name);
            check_asks(&m, blocks);
        }
    ck_assert_uint_ge(fused, 20);
}
END_TEST

/* The order names every phase once, a choice's down after its up. */
START_TEST(the_experts_order_is_one)
{
    uint32_t at[CU_TOKEN_PHASES];
    memset(at, 0xff, sizeof at);
    for (uint32_t i = 0; i < CU_TOKEN_PHASES; i++) {
        const uint32_t phase = CU_TOKEN_ORDER >> 4 * i & 15;
        ck_assert_uint_lt(phase, CU_TOKEN_PHASES);
        ck_assert_uint_eq(at[phase], ~0u);
        at[phase] = i;
    }
    for (uint32_t choice = 0; choice < NIB_MAX_EXPERTS_USED; choice++)
        ck_assert_uint_gt(at[4 + choice], at[choice]);
}
END_TEST

NIB_SUITE(token_share, each_stage_is_done_once, the_experts_order_is_one)
