/* core/arena.c: owns no memory; moves one offset through a block that the caller owns.
 * Limits: the block's size. Boot thread. Fails by returning NULL when full or sealed. */
#include "core/arena.h"

#include "core/arith.h"
#include "core/err.h"

void nib_arena_init(struct nib_arena *arena, void *base, size_t bytes)
{
    NIB_MUST(base || bytes == 0);
    *arena = (struct nib_arena){.base = base, .bytes = bytes, .used = 0, .sealed = false};
}

void *nib_arena_take(struct nib_arena *arena, size_t bytes, size_t align)
{
    NIB_MUST(align != 0 && (align & (align - 1)) == 0);
    if (arena->sealed || !arena->base)
        return NULL;
    uint64_t start, end;
    uint64_t base = (uintptr_t)arena->base;
    if (!nib_align_u64(base + arena->used, align, &start) || !nib_add_u64(start, bytes, &end) ||
        end - base > arena->bytes)
        return NULL;
    arena->used = (size_t)(end - base);
    return arena->base + (start - base);
}

void nib_arena_seal(struct nib_arena *arena)
{
    arena->sealed = true;
}
