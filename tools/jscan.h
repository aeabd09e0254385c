/* tools/jscan.h: a pull scanner for untrusted JSON in memory.
 *
 * It allocates nothing, does not recurse, and gives one event a call, so that a hostile 100 MB
 * header costs its own bytes and nothing more. Strict RFC 8259: one value, no comments, no trailing
 * commas, no leading zeros, nesting at most NIB_MAX_JSON_DEPTH. Text is checked to be UTF-8 only
 * where a string is decoded. Any thread. */
#ifndef NIB_TOOLS_JSCAN_H
#define NIB_TOOLS_JSCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/limits.h"

enum nib_jevent {
    NIB_J_BAD = 0, /* not JSON; every later call gives the same */
    NIB_J_OBJECT,  /* { */
    NIB_J_OBJECT_END,
    NIB_J_ARRAY, /* [ */
    NIB_J_ARRAY_END,
    NIB_J_KEY, /* the member's value comes next */
    NIB_J_STRING,
    NIB_J_NUMBER,
    NIB_J_TRUE,
    NIB_J_FALSE,
    NIB_J_NULL,
    NIB_J_DONE, /* the one value has ended and only white space followed */
};

struct nib_jscan {
    const char *at;   /* next byte to read */
    const char *end;  /* one past the last byte */
    const char *text; /* last KEY, STRING or NUMBER: its raw bytes, without quotes */
    size_t text_bytes;
    unsigned depth; /* open objects and arrays */
    unsigned state; /* private */
    bool is_object[NIB_MAX_JSON_DEPTH];
};

/* Starts at bytes[0..count), which must outlive the scanner. */
void nib_jscan_init(struct nib_jscan *scan, const char *bytes, size_t count);

/* The next event. */
enum nib_jevent nib_jscan_next(struct nib_jscan *scan);

/* After NIB_J_OBJECT or NIB_J_ARRAY: reads on to its end. After any other value: nothing.
 * Returns false when the text is not JSON. */
bool nib_jscan_skip(struct nib_jscan *scan, enum nib_jevent event);

/* Decodes the last KEY or STRING into buf as UTF-8 with a NUL after it. False, with buf undefined,
 * when it does not fit in cap bytes with its NUL, has a bad escape or is not UTF-8. A decoded NUL
 * is allowed: use *ret_bytes. */
bool nib_jscan_text(const struct nib_jscan *scan, char *buf, size_t cap, size_t *ret_bytes);

/* True when the last KEY or STRING is exactly this text, written without escapes. */
bool nib_jscan_is(const struct nib_jscan *scan, const char *text);

/* The last NUMBER as an unsigned integer: digits only, no sign, fraction or exponent. */
bool nib_jscan_u64(const struct nib_jscan *scan, uint64_t *ret);

#endif
