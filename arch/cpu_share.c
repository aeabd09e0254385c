/* arch/cpu_share.c: owns the cutting of a phase into items and the dense products.
 * Limits: none of its own. Every worker. Cannot fail. */
#include "arch/cpu_state.h"

enum {
    ITEMS_PER_THREAD = 8, /* so that a worker which lost its core costs an eighth of its share */
    ITEM_ROWS = 16        /* rows of an item of row work, at most */
};
#define ITEM_BYTES_MIN (64u << 10) /* weights of an item: enough for the memory to stream */

struct nib_cpu_share nib_cpu_share_outputs(const struct nib_cpu *cpu, uint32_t n, uint64_t row_bytes, uint32_t peers)
{
    uint64_t want = nib_div_up((uint64_t)cpu->pool.threads * ITEMS_PER_THREAD, peers);
    uint64_t per = nib_div_up(n, want);
    uint64_t least = nib_div_up(ITEM_BYTES_MIN, row_bytes);
    if (per < least)
        per = least;
    per = nib_round_up(nib_round_up(per, 16), cpu->k->tile_n); /* 16 fp32: a cache line of outputs */
    return (struct nib_cpu_share){.per = (uint32_t)per, .items = (uint32_t)nib_div_up(n, per)};
}

struct nib_cpu_share nib_cpu_share_rows(const struct nib_cpu *cpu, uint32_t rows)
{
    uint64_t per = nib_div_up(rows, (uint64_t)cpu->pool.threads * ITEMS_PER_THREAD);
    per = per > ITEM_ROWS ? ITEM_ROWS : per;
    return (struct nib_cpu_share){.per = (uint32_t)per, .items = rows ? (uint32_t)nib_div_up(rows, per) : 0};
}

bool nib_cpu_take(struct nib_cpu *cpu, struct nib_cpu_share share, uint32_t n, uint32_t *ret_first, uint32_t *ret_end)
{
    uint32_t item = nib_pool_take(&cpu->pool);
    if (item >= share.items)
        return false;
    *ret_first = item * share.per;
    *ret_end = (uint32_t)nib_min_u64(n, (uint64_t)*ret_first + share.per);
    return true;
}

static void add_range(float *to, const struct nib_matmul *mm, uint32_t n0, uint32_t n1)
{
    for (uint32_t i = 0; i < mm->m; i++)
        for (uint32_t j = n0; j < n1; j++)
            to[i * mm->ldy + j] += mm->y[i * mm->ldy + j];
}

void nib_cpu_dense(struct nib_cpu *cpu, uint32_t worker, const struct nib_matmul *mm, uint32_t decode_rows,
                   float *add_to)
{
    struct nib_matmul decode = *mm, prefill = *mm;
    decode.m = decode_rows;
    prefill.m = mm->m - decode_rows;
    prefill.x = (const uint8_t *)mm->x + decode_rows * cpu->k->acts_bytes(mm->k);
    prefill.y = mm->y + decode_rows * mm->ldy;
    struct nib_cpu_share share = nib_cpu_share_outputs(cpu, mm->n, (uint64_t)mm->k * 2, 1);
    uint32_t n0, n1;
    while (nib_cpu_take(cpu, share, mm->n, &n0, &n1)) {
        decode.n0 = prefill.n0 = n0;
        decode.n1 = prefill.n1 = n1;
        if (decode.m)
            cpu->k->dense_gemv(&decode);
        if (prefill.m)
            cpu->k->dense_gemm(&prefill, cpu->thread + worker * cpu->thread_bytes);
        if (add_to)
            add_range(add_to, mm, n0, n1);
    }
}
