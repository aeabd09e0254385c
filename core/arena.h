/* core/arena.h: hands out pieces of one caller-given block, at boot, and never takes them back.
 *
 * The block comes from the plan (one a memory space). After nib_arena_seal every take is refused,
 * so that a late allocation is a NULL the caller must answer for, not a surprise. One thread at a
 * time (boot). */
#ifndef NIB_CORE_ARENA_H
#define NIB_CORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nib_arena {
    uint8_t *base;
    size_t bytes; /* of the whole block */
    size_t used;  /* handed out, with padding; only grows */
    bool sealed;
};

/* Starts an empty arena over base[0..bytes). base may be NULL only when bytes is 0. */
void nib_arena_init(struct nib_arena *arena, void *base, size_t bytes);

/* The next `bytes` bytes at an address that is a multiple of `align` (a power of two, else the
 * process stops). NULL, and nothing changes, when they do not fit or the arena is sealed. The bytes
 * are not cleared. A take of 0 bytes gives an address that must not be read. */
void *nib_arena_take(struct nib_arena *arena, size_t bytes, size_t align);

/* Ends allocation for good. */
void nib_arena_seal(struct nib_arena *arena);

#endif
