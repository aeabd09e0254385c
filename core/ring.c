/* core/ring.c: owns the cells of one ring, carved from an arena at boot.
 * Limits: NIB_MAX_RING_CELLS, NIB_MAX_RING_ELEM_BYTES. Two threads: one pushes, one pops. push and
 * pop fail only by being full or empty; the counters wrap at 2^32, which a power of two divides. */
#include "core/ring.h"

#include <string.h>

#define RING_ALIGN 64u

static bool sizes_allowed(uint32_t cells_count, uint32_t elem_bytes)
{
    return cells_count != 0 && (cells_count & (cells_count - 1)) == 0 && cells_count <= NIB_MAX_RING_CELLS &&
           elem_bytes != 0 && elem_bytes <= NIB_MAX_RING_ELEM_BYTES;
}

size_t nib_ring_bytes(uint32_t cells_count, uint32_t elem_bytes)
{
    if (!sizes_allowed(cells_count, elem_bytes))
        return 0;
    return (size_t)cells_count * elem_bytes + RING_ALIGN;
}

enum nib_err nib_ring_init(struct nib_ring *ring, struct nib_arena *arena, uint32_t cells_count, uint32_t elem_bytes,
                           struct nib_msg *msg)
{
    if (!sizes_allowed(cells_count, elem_bytes))
        return nib_fail(msg, NIB_E_ARG,
                        "a ring of %u elements of %u bytes: allowed is a power of two up to %u of "
                        "1 to %u bytes",
                        cells_count, elem_bytes, NIB_MAX_RING_CELLS, NIB_MAX_RING_ELEM_BYTES);
    uint8_t *cells = nib_arena_take(arena, (size_t)cells_count * elem_bytes, RING_ALIGN);
    if (!cells)
        return nib_fail(msg, NIB_E_NOMEM, "a ring of %u elements of %u bytes does not fit the arena", cells_count,
                        elem_bytes);
    ring->cells = cells;
    ring->cells_count = cells_count;
    ring->elem_bytes = elem_bytes;
    atomic_init(&ring->pushed, 0);
    atomic_init(&ring->popped, 0);
    return NIB_OK;
}

static uint8_t *cell(const struct nib_ring *ring, unsigned count)
{
    return ring->cells + (size_t)(count & (ring->cells_count - 1)) * ring->elem_bytes;
}

bool nib_ring_push(struct nib_ring *ring, const void *elem)
{
    unsigned pushed = atomic_load_explicit(&ring->pushed, memory_order_relaxed);
    /* acquire: the consumer has finished reading the cell before we write over it */
    unsigned popped = atomic_load_explicit(&ring->popped, memory_order_acquire);
    if (pushed - popped == ring->cells_count)
        return false;
    memcpy(cell(ring, pushed), elem, ring->elem_bytes);
    atomic_store_explicit(&ring->pushed, pushed + 1, memory_order_release);
    return true;
}

bool nib_ring_pop(struct nib_ring *ring, void *ret_elem)
{
    unsigned popped = atomic_load_explicit(&ring->popped, memory_order_relaxed);
    unsigned pushed = atomic_load_explicit(&ring->pushed, memory_order_acquire);
    if (pushed == popped)
        return false;
    memcpy(ret_elem, cell(ring, popped), ring->elem_bytes);
    atomic_store_explicit(&ring->popped, popped + 1, memory_order_release);
    return true;
}

uint32_t nib_ring_used(const struct nib_ring *ring)
{
    /* popped first: a later pushed is never behind it */
    unsigned popped = atomic_load_explicit(&ring->popped, memory_order_acquire);
    unsigned pushed = atomic_load_explicit(&ring->pushed, memory_order_acquire);
    unsigned used = pushed - popped;
    return used < ring->cells_count ? used : ring->cells_count;
}
