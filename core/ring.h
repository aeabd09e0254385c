/* core/ring.h: a ring of fixed elements between exactly one producer and one consumer thread.
 *
 * Elements are copied in and out. Nothing blocks, nothing is allocated: a full ring refuses the
 * push, an empty ring refuses the pop, and the caller decides what to do (an eventfd, a wait). C11
 * atomics: what the producer wrote before a push is seen by the consumer after the pop. */
#ifndef NIB_CORE_RING_H
#define NIB_CORE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/arena.h"
#include "core/err.h"

struct nib_ring {   /* NOLINT(clang-analyzer-optin.performance.Padding): wanted, see below */
    uint8_t *cells; /* [cells_count][elem_bytes] */
    uint32_t cells_count;
    uint32_t elem_bytes;
    /* each counter on its own cache line: the other thread only reads it */
    _Alignas(64) atomic_uint pushed; /* elements ever pushed, modulo 2^32; written by the producer */
    _Alignas(64) atomic_uint popped; /* elements ever popped; written by the consumer */
};

/* Bytes nib_ring_init takes from the arena, padding included. */
size_t nib_ring_bytes(uint32_t cells_count, uint32_t elem_bytes);

/* An empty ring. cells_count: a power of two, 1..NIB_MAX_RING_CELLS; elem_bytes:
 * 1..NIB_MAX_RING_ELEM_BYTES. NIB_E_ARG: a size is outside its range. NIB_E_NOMEM: the arena is too
 * small. Boot thread. */
enum nib_err nib_ring_init(struct nib_ring *ring, struct nib_arena *arena, uint32_t cells_count, uint32_t elem_bytes,
                           struct nib_msg *msg) NIB_CHECKED;

/* Copies the element in. False, and nothing changes, when the ring is full. Producer only. */
bool nib_ring_push(struct nib_ring *ring, const void *elem) NIB_CHECKED;

/* Moves the oldest element out. False, and nothing changes, when empty. Consumer only. */
bool nib_ring_pop(struct nib_ring *ring, void *ret_elem) NIB_CHECKED;

/* Elements inside now. Exact for the caller's own side: the producer never sees fewer, the consumer
 * never sees more, than there are. */
uint32_t nib_ring_used(const struct nib_ring *ring);

#endif
