/* core/span.h: bytes that belong to someone else.
 *
 * A span never owns and is not NUL-terminated. ptr NULL means "absent"; a non-NULL ptr with len 0 is present and
 * empty. Any thread. */
#ifndef NIB_CORE_SPAN_H
#define NIB_CORE_SPAN_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct nib_span {
    const char *ptr;
    size_t len; /* bytes */
};

/* The span of a string literal: as a value, and as the initialiser of a static object. */
#define NIB_SPAN(literal) ((struct nib_span){"" literal, sizeof(literal) - 1})
#define NIB_SPAN_INIT(literal)                                                                                         \
    {                                                                                                                  \
        "" literal, sizeof(literal) - 1                                                                                \
    }

static inline struct nib_span nib_span_of(const char *ptr, size_t len)
{
    return (struct nib_span){ptr, len};
}

/* Same bytes; an absent span equals an empty one. */
static inline bool nib_span_eq(struct nib_span a, struct nib_span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool nib_span_starts(struct nib_span s, struct nib_span prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

#endif
