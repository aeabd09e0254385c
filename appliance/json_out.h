/* appliance/json_out.h: JSON text into a buffer that the caller owns.
 *
 * Writes never pass the end: the first that does not fit sets `full`, and all later ones do
 * nothing. Any thread that owns the buffer. */
#ifndef NIB_APPLIANCE_JSON_OUT_H
#define NIB_APPLIANCE_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/span.h"

struct nib_out {
    char *ptr;
    size_t bytes;
    size_t used;
    bool full;
};

static inline struct nib_out nib_out_of(char *ptr, size_t bytes)
{
    return (struct nib_out){.ptr = ptr, .bytes = bytes};
}

/* Bytes as they are. */
void nib_out_raw(struct nib_out *out, const char *ptr, size_t len);
void nib_out_text(struct nib_out *out, const char *text);

/* Numbers and names that need no escape. */
void nib_out_fmt(struct nib_out *out, const char *fmt, ...) NIB_PRINTF(2, 3);

/* The inside of a JSON string: valid UTF-8 with what JSON demands escaped. */
void nib_out_escaped(struct nib_out *out, struct nib_span text);

/* The same between quotes. */
void nib_out_string(struct nib_out *out, struct nib_span text);

/* Bytes that nib_out_escaped would write. */
size_t nib_out_escaped_bytes(struct nib_span text);

#endif
