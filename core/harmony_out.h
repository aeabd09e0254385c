/* core/harmony_out.h: text into a caller's buffer, counting on past its end.
 *
 * A writer never fails: what does not fit is only counted, so that the one who asked can say both numbers. Any thread
 * that owns the buffer. */
#ifndef NIB_CORE_HARMONY_OUT_H
#define NIB_CORE_HARMONY_OUT_H

#include <jansson.h>
#include <stdint.h>

#include "core/err.h"
#include "core/span.h"

struct nib_out {
    char *ptr;
    size_t cap; /* bytes of ptr */
    size_t len; /* bytes asked for; the text is whole when len <= cap */
};

void nib_out_put(struct nib_out *out, struct nib_span text);
void nib_out_spaces(struct nib_out *out, size_t count);

/* Puts a string literal. */
#define nib_out_lit(out, literal) nib_out_put(out, NIB_SPAN(literal))

/* True when the bytes written since offset `from` contain `text`. */
bool nib_out_contains(const struct nib_out *out, size_t from, struct nib_span text);

/* Each line of `text` after `prefix`, with a newline; lines end at LF or CR LF, a last empty line is not one. */
void nib_out_lines(struct nib_out *out, struct nib_span prefix, struct nib_span text);

/* `value` as compact JSON, byte for byte as Rust's serde_json prints it: no spaces, members in insertion order,
 * shortest round-trip numbers. NIB_E_LIMIT: nested deeper than NIB_MAX_JSON_DEPTH. */
NIB_CHECKED enum nib_err nib_out_json(struct nib_out *out, const json_t *value, struct nib_msg *msg);

/* The members of an object, in insertion order: jansson's iterator wants a pointer that is not const, yet only reads.
 */
static inline void *nib_json_first(const json_t *object)
{
    return json_object_iter((json_t *)(uintptr_t)object);
}

static inline void *nib_json_next(const json_t *object, void *iter)
{
    return json_object_iter_next((json_t *)(uintptr_t)object, iter);
}

/* The text of a JSON string; an absent span for anything else. */
static inline struct nib_span nib_json_text(const json_t *value)
{
    return nib_span_of(json_string_value(value), json_string_length(value));
}

static inline struct nib_span nib_json_key(void *iter)
{
    return nib_span_of(json_object_iter_key(iter), json_object_iter_key_len(iter));
}

#endif
