/* core/arith.h: checked arithmetic for numbers that come from a file, a socket or a config.
 * Each returns true and stores the result, or returns false on overflow and leaves *ret untouched. Any thread. */
#ifndef NIB_CORE_ARITH_H
#define NIB_CORE_ARITH_H

#include <stdbool.h>
#include <stdint.h>

static inline bool nib_add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *ret = sum;
    return true;
}

static inline bool nib_mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *ret = product;
    return true;
}

/* Rounds up to a power-of-two alignment. */
static inline bool nib_align_u64(uint64_t value, uint64_t align, uint64_t *ret)
{
    uint64_t sum;
    if (!nib_add_u64(value, align - 1, &sum))
        return false;
    *ret = sum & ~(align - 1);
    return true;
}

/* The same for sizes already known to be small (shape constants): cannot overflow by construction. */
static inline uint64_t nib_round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static inline uint64_t nib_div_up(uint64_t value, uint64_t by)
{
    return (value + by - 1) / by;
}

static inline uint64_t nib_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

#endif
