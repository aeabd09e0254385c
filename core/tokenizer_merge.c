/* core/tokenizer_merge.c: owns the merging of one piece into tokens. Short pieces, nearly all there
 * are, are merged on the stack by looking for the lowest rank each time; long ones with a queue in
 * the caller's scratch, so that no text costs more than O(n log n). Limits: SHORT_BYTES; the
 * scratch. Any thread with its own scratch. Cannot fail. */
#include "core/tokenizer_merge.h"

#include <string.h>

#include "core/tokenizer_queue.h"

#define SHORT_BYTES 64u

size_t nib_merge_scratch_bytes(size_t piece_bytes_max)
{
    return sizeof(struct nib_queue_fixed) + piece_bytes_max * NIB_QUEUE_POSITION_BYTES;
}

size_t nib_merge_piece_bytes_max(size_t scratch_bytes)
{
    if (scratch_bytes < sizeof(struct nib_queue_fixed) + SHORT_BYTES * NIB_QUEUE_POSITION_BYTES)
        return SHORT_BYTES;
    return (scratch_bytes - sizeof(struct nib_queue_fixed)) / NIB_QUEUE_POSITION_BYTES;
}

static size_t merge_short(const struct nib_token_table *table, const uint8_t *piece, size_t bytes, uint32_t *ids,
                          size_t ids_max)
{
    uint8_t start[SHORT_BYTES + 1]; /* of each part, then the end */
    uint32_t rank[SHORT_BYTES + 1]; /* of the pair that starts at each part */
    size_t parts = bytes;
    for (size_t i = 0; i <= bytes; i++) {
        start[i] = (uint8_t)i;
        rank[i] = i + 1 < bytes ? nib_token_find(table, piece + i, 2) : NIB_TOKEN_NONE;
    }
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < parts; i++)
            if (rank[i] < rank[best])
                best = i;
        if (parts < 2 || rank[best] == NIB_TOKEN_NONE)
            break;
        memmove(start + best + 1, start + best + 2, parts - best - 1);
        memmove(rank + best + 1, rank + best + 2, (parts - best - 1) * sizeof *rank);
        parts--;
        for (size_t i = best > 0 ? best - 1 : 0; i <= best; i++)
            rank[i] = i + 1 < parts ? nib_token_find(table, piece + start[i], (size_t)start[i + 2] - start[i])
                                    : NIB_TOKEN_NONE;
    }
    for (size_t i = 0; i < parts && i < ids_max; i++)
        ids[i] = nib_token_find(table, piece + start[i], (size_t)start[i + 1] - start[i]);
    return parts;
}

/* A long piece under way: the parts tile it, and each position where one starts knows its length. */
struct piece {
    const struct nib_token_table *table;
    const uint8_t *text; /* [bytes] */
    uint32_t bytes;
    struct nib_pair_queue queue; /* pairs[bytes] */
};

_Static_assert(NIB_MAX_TOKEN_BYTES <= UINT8_MAX, "a part is a token, so that its length fits nib_pair's byte");

/* Queues the pair that starts at `at` if its bytes are a token. */
static void pair_put(struct piece *p, uint32_t at)
{
    const struct nib_pair *pairs = p->queue.pairs;
    uint32_t second = at + pairs[at].len;
    if (second >= p->bytes)
        return;
    uint32_t rank = nib_token_find(p->table, p->text + at, (size_t)pairs[at].len + pairs[second].len);
    if (rank != NIB_TOKEN_NONE)
        nib_queue_put(&p->queue, at, rank);
}

/* Joins the part at `at` with the next one and queues its new pairs. */
static void pair_join(struct piece *p, uint32_t at)
{
    struct nib_pair *pairs = p->queue.pairs;
    uint32_t second = at + pairs[at].len;
    nib_queue_drop(&p->queue, second);
    pairs[at].len = (uint8_t)(pairs[at].len + pairs[second].len);
    uint32_t after = at + pairs[at].len;
    if (after < p->bytes)
        pairs[after].back = pairs[at].len;
    if (at > 0) {
        uint32_t before = at - pairs[at].back;
        nib_queue_drop(&p->queue, before);
        pair_put(p, before);
    }
    pair_put(p, at);
}

static size_t merge_long(const struct nib_token_table *table, struct nib_merge_scratch *scratch, const uint8_t *piece,
                         size_t bytes, uint32_t *ids, size_t ids_max)
{
    struct nib_queue_fixed *fixed = scratch->memory;
    struct piece p = {.table = table, .text = piece, .bytes = (uint32_t)bytes};
    if (!scratch->cleared)
        nib_queue_clear(fixed);
    scratch->cleared = true;
    nib_queue_init(&p.queue, fixed, fixed + 1, bytes);
    for (uint32_t at = 0; at + 1 < bytes; at++)
        pair_put(&p, at);
    for (;;) {
        uint32_t at = nib_queue_pop(&p.queue);
        if (at == NIB_PAIR_NONE)
            break;
        pair_join(&p, at);
    }
    size_t parts = 0;
    for (uint32_t at = 0; at < bytes; at += p.queue.pairs[at].len, parts++)
        if (parts < ids_max)
            ids[parts] = nib_token_find(table, piece + at, p.queue.pairs[at].len);
    return parts;
}

size_t nib_merge_piece(const struct nib_token_table *table, struct nib_merge_scratch *scratch, const uint8_t *piece,
                       size_t bytes, uint32_t *ids, size_t ids_max)
{
    uint32_t whole = nib_token_find(table, piece, bytes);
    if (whole != NIB_TOKEN_NONE) {
        if (ids_max > 0)
            ids[0] = whole;
        return 1;
    }
    if (bytes <= SHORT_BYTES)
        return merge_short(table, piece, bytes, ids, ids_max);
    return merge_long(table, scratch, piece, bytes, ids, ids_max);
}
