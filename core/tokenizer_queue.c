/* core/tokenizer_queue.c: owns the merge order of a long piece. Limits: NIB_MAX_VOCAB ranks;
 * positions of the caller. One thread a queue. Cannot fail: its memory is full-sized from the
 * start. */
#include "core/tokenizer_queue.h"

#include <stdbool.h>
#include <string.h>

#include "core/err.h"

#define IN_HEAP (NIB_PAIR_NONE - 1) /* as prev[]: no position, no end of list */
#define NONE    NIB_PAIR_NONE

_Static_assert(NIB_QUEUE_WORDS1 <= 64, "three levels of 64 bits must cover the vocabulary");

void nib_queue_clear(struct nib_queue_fixed *fixed)
{
    memset(fixed->ranks, 0, sizeof fixed->ranks);
    memset(fixed->upper, 0, sizeof fixed->upper);
    fixed->top = 0;
}

void nib_queue_init(struct nib_pair_queue *queue, struct nib_queue_fixed *fixed, void *memory, size_t positions)
{
    uint64_t *heap = memory;
    struct nib_pair *pairs = (struct nib_pair *)(heap + positions);
    *queue = (struct nib_pair_queue){.fixed = fixed, .heap = heap, .pairs = pairs, .positions = positions};
    for (size_t at = 0; at < positions; at++)
        pairs[at] = (struct nib_pair){.rank = NONE, .len = 1, .back = 1};
}

static void rank_mark(struct nib_queue_fixed *f, uint32_t rank)
{
    f->ranks[rank >> 6] |= 1ull << (rank & 63);
    f->upper[rank >> 12] |= 1ull << (rank >> 6 & 63);
    f->top |= 1ull << (rank >> 12);
}

static void rank_unmark(struct nib_queue_fixed *f, uint32_t rank)
{
    f->ranks[rank >> 6] &= ~(1ull << (rank & 63));
    if (f->ranks[rank >> 6])
        return;
    f->upper[rank >> 12] &= ~(1ull << (rank >> 6 & 63));
    if (!f->upper[rank >> 12])
        f->top &= ~(1ull << (rank >> 12));
}

static bool rank_is_marked(const struct nib_queue_fixed *f, uint32_t rank)
{
    return f->ranks[rank >> 6] >> (rank & 63) & 1;
}

/* top must not be 0. */
static uint32_t rank_lowest(const struct nib_queue_fixed *f)
{
    uint32_t i = (uint32_t)__builtin_ctzll(f->top);
    i = i << 6 | (uint32_t)__builtin_ctzll(f->upper[i]);
    return i << 6 | (uint32_t)__builtin_ctzll(f->ranks[i]);
}

static void heap_sift_down(struct nib_pair_queue *q, size_t at)
{
    uint64_t key = q->heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= q->heap_len)
            break;
        if (child + 1 < q->heap_len && q->heap[child + 1] < q->heap[child])
            child++;
        if (q->heap[child] >= key)
            break;
        q->heap[at] = q->heap[child];
        at = child;
    }
    q->heap[at] = key;
}

static void heap_sift_up(struct nib_pair_queue *q, size_t at)
{
    uint64_t key = q->heap[at];
    while (at > 0 && q->heap[(at - 1) / 2] > key) {
        q->heap[at] = q->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    q->heap[at] = key;
}

/* The entry still stands for a queued pair. */
static bool heap_entry_lives(const struct nib_pair_queue *q, uint64_t key)
{
    uint32_t at = (uint32_t)key;
    return q->pairs[at].rank == key >> 32 && q->pairs[at].prev == IN_HEAP;
}

/* Throws out what does not live. Each merge puts at most two pairs and ends one position, so the
 * heap is first full after positions / 2 merges, and half of it goes then: all these calls together
 * cost O(positions). */
static void heap_compact(struct nib_pair_queue *q)
{
    size_t kept = 0;
    for (size_t i = 0; i < q->heap_len; i++)
        if (heap_entry_lives(q, q->heap[i]))
            q->heap[kept++] = q->heap[i];
    q->heap_len = kept;
    for (size_t i = kept / 2; i-- > 0;)
        heap_sift_down(q, i);
}

static void heap_put(struct nib_pair_queue *q, uint32_t at, uint32_t rank)
{
    if (q->heap_len == q->positions)
        heap_compact(q);
    NIB_MUST(q->heap_len < q->positions);
    q->heap[q->heap_len] = (uint64_t)rank << 32 | at;
    heap_sift_up(q, q->heap_len++);
    q->pairs[at].prev = IN_HEAP;
}

void nib_queue_put(struct nib_pair_queue *q, uint32_t at, uint32_t rank)
{
    struct nib_queue_fixed *f = q->fixed;
    q->pairs[at].rank = rank;
    if (!rank_is_marked(f, rank)) {
        rank_mark(f, rank);
        f->head[rank] = f->tail[rank] = at;
        q->pairs[at].prev = q->pairs[at].next = NONE;
    } else if (at > f->tail[rank]) {
        q->pairs[at].prev = f->tail[rank];
        q->pairs[at].next = NONE;
        q->pairs[f->tail[rank]].next = at;
        f->tail[rank] = at;
    } else if (at < f->head[rank]) {
        q->pairs[at].prev = NONE;
        q->pairs[at].next = f->head[rank];
        q->pairs[f->head[rank]].prev = at;
        f->head[rank] = at;
    } else {
        heap_put(q, at, rank);
    }
}

void nib_queue_drop(struct nib_pair_queue *q, uint32_t at)
{
    struct nib_queue_fixed *f = q->fixed;
    uint32_t rank = q->pairs[at].rank, prev = q->pairs[at].prev;
    if (rank == NONE)
        return;
    q->pairs[at].rank = NONE;
    if (prev == IN_HEAP)
        return;
    uint32_t next = q->pairs[at].next;
    if (prev != NONE)
        q->pairs[prev].next = next;
    else
        f->head[rank] = next;
    if (next != NONE)
        q->pairs[next].prev = prev;
    else
        f->tail[rank] = prev;
    if (prev == NONE && next == NONE)
        rank_unmark(f, rank);
}

/* Takes the first entry off; the heap is not empty. */
static void heap_pop(struct nib_pair_queue *q)
{
    q->heap[0] = q->heap[--q->heap_len];
    if (q->heap_len > 0)
        heap_sift_down(q, 0);
}

uint32_t nib_queue_pop(struct nib_pair_queue *q)
{
    while (q->heap_len > 0 && !heap_entry_lives(q, q->heap[0]))
        heap_pop(q);
    uint64_t best = UINT64_MAX;
    if (q->fixed->top) {
        uint32_t rank = rank_lowest(q->fixed);
        best = (uint64_t)rank << 32 | q->fixed->head[rank];
    }
    if (q->heap_len > 0 && q->heap[0] < best) {
        best = q->heap[0];
        heap_pop(q);
    }
    if (best == UINT64_MAX)
        return NONE;
    uint32_t at = (uint32_t)best;
    nib_queue_drop(q, at);
    return at;
}
