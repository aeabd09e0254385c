/* appliance/json_in.c: owns the pool that jansson draws on. Limits: the pool's bytes,
 * NIB_MAX_JSON_DEPTH. Front thread. Fails when the text is not what it must be or the pool is full.
 */
#include "appliance/json_in.h"

#include <setjmp.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static struct {
    uint8_t *base;
    size_t bytes;
    size_t used;
    size_t peak;
    bool parsing; /* jansson's parser runs */
    jmp_buf full; /* where a full pool leads while it does */
} pool;

static void *pool_take(size_t bytes)
{
    size_t at = (pool.used + alignof(max_align_t) - 1) & ~(alignof(max_align_t) - 1);
    if (at > pool.bytes || bytes > pool.bytes - at) {
        if (pool.parsing)
            longjmp(pool.full, 1);
        return NULL;
    }
    pool.used = at + bytes;
    if (pool.used > pool.peak)
        pool.peak = pool.used;
    return pool.base + at;
}

static void pool_drop(void *p)
{
    (void)p; /* nib_json_reset drops all */
}

void nib_json_pool_init(void *memory, size_t bytes)
{
    pool.base = memory;
    pool.bytes = bytes;
    pool.used = pool.peak = 0;
    json_set_alloc_funcs(pool_take, pool_drop);
    size_t seed = 0; /* secret: else a client could choose keys that all collide */
    while (seed == 0)
        if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
            seed = (size_t)(uintptr_t)memory ^ (size_t)getpid();
    json_object_seed(seed);
}

void *nib_json_take(size_t bytes)
{
    return pool_take(bytes);
}

void nib_json_reset(void)
{
    pool.used = 0;
}

size_t nib_json_pool_peak(void)
{
    return pool.peak;
}

/* Brackets outside strings; jansson's own parser recurses, so the depth is bounded first. */
static bool depth_ok(const char *text, size_t bytes)
{
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > NIB_MAX_JSON_DEPTH)
                return false;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

static const char *reason(enum json_error_code code)
{
    switch (code) {
    case json_error_invalid_utf8:
        return "not valid UTF-8";
    case json_error_duplicate_key:
        return "a key is given twice";
    case json_error_premature_end_of_input:
        return "the text ends too early";
    case json_error_end_of_input_expected:
        return "something follows the end of the value";
    case json_error_numeric_overflow:
        return "a number is out of range";
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "a NUL character is not allowed";
    default:
        return "not valid JSON";
    }
}

/* False: the pool is full. jansson 2.14 must not be given a NULL here: its reader of strings goes on
 * with what it could not store. It holds nothing but pool memory, so it can be left in the middle. */
static bool load(const char *text, size_t bytes, json_t **ret_root, json_error_t *ret_error)
{
    pool.parsing = true;
    if (setjmp(pool.full) != 0) {
        pool.parsing = false;
        return false;
    }
    *ret_root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, ret_error);
    pool.parsing = false;
    return true;
}

enum nib_err nib_json_parse(const char *text, size_t bytes, json_t **ret_root, struct nib_msg *msg)
{
    nib_json_reset();
    if (!depth_ok(text, bytes))
        return nib_fail(msg, NIB_E_LIMIT, "the body is nested deeper than %d levels", NIB_MAX_JSON_DEPTH);
    json_error_t error;
    json_t *root = NULL;
    if (!load(text, bytes, &root, &error))
        return nib_fail(msg, NIB_E_FULL, "the body needs more than %zu bytes to parse", pool.bytes);
    if (root) {
        *ret_root = root;
        return NIB_OK;
    }
    return nib_fail(msg, NIB_E_FORMAT, "the body cannot be read at line %d, column %d: %s", error.line, error.column,
                    reason(json_error_code(&error)));
}
