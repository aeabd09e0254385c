/* core/tokenizer_queue.h: the order in which pairs of a long piece are merged: lowest rank first,
 * leftmost among equals. Internal to the tokenizer. One thread a queue.
 *
 * Each rank has a list of positions in rising order, and a bitmap finds the lowest rank that has
 * any. A pair that would have to go into the middle of its list goes to a binary heap instead. On
 * runs of one character the heap stays empty; in the worst case everything is in the heap, and a
 * call costs O(log n). */
#ifndef NIB_CORE_TOKENIZER_QUEUE_H
#define NIB_CORE_TOKENIZER_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "core/limits.h"

#define NIB_PAIR_NONE UINT32_MAX

#define NIB_QUEUE_WORDS0 (NIB_MAX_VOCAB / 64)
#define NIB_QUEUE_WORDS1 (NIB_QUEUE_WORDS0 / 64)

/* The part whose size does not depend on the piece. */
struct nib_queue_fixed {
    uint64_t ranks[NIB_QUEUE_WORDS0]; /* bit set: this rank's list is not empty */
    uint64_t upper[NIB_QUEUE_WORDS1]; /* bit set: this word of ranks[] is not 0 */
    uint64_t top;                     /* bit set: this word of upper[] is not 0 */
    uint32_t head[NIB_MAX_VOCAB];     /* of each list that is not empty */
    uint32_t tail[NIB_MAX_VOCAB];
};

/* A position of the piece and the pair that starts there; side by side, since a merge touches all of it. */
struct nib_pair {
    uint32_t rank; /* NIB_PAIR_NONE: not queued */
    uint32_t prev; /* position in the list, or a mark that the pair is in the heap */
    uint32_t next; /* position in the list */
    uint8_t len;   /* bytes of the part that starts here; the merge's own, as back */
    uint8_t back;  /* bytes of the part that ends here */
};

struct nib_pair_queue {
    struct nib_queue_fixed *fixed;
    uint64_t *heap;         /* [positions] rank << 32 | position; entries of pairs since gone are skipped */
    struct nib_pair *pairs; /* [positions] */
    size_t heap_len;
    size_t positions;
};

#define NIB_QUEUE_POSITION_BYTES (sizeof(uint64_t) + sizeof(struct nib_pair))

/* Empties the bitmaps; once before the first queue over this memory. A queue popped to its end
 * leaves them empty. */
void nib_queue_clear(struct nib_queue_fixed *fixed);

/* An empty queue over positions * NIB_QUEUE_POSITION_BYTES bytes, aligned to 8. Every part is one byte long. */
void nib_queue_init(struct nib_pair_queue *queue, struct nib_queue_fixed *fixed, void *memory, size_t positions);

/* Queues the pair at `at`, which must not be queued. rank < NIB_MAX_VOCAB. Until the first pop,
 * `at` must rise. */
void nib_queue_put(struct nib_pair_queue *queue, uint32_t at, uint32_t rank);

/* Takes the pair at `at` out, if it is queued. */
void nib_queue_drop(struct nib_pair_queue *queue, uint32_t at);

/* Takes out the pair of lowest rank, leftmost among equals; NIB_PAIR_NONE when the queue is empty.
 */
uint32_t nib_queue_pop(struct nib_pair_queue *queue);

#endif
