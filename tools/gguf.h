/* tools/gguf.h: reads the head of a GGUF file (versions 2 and 3, little-endian) that nobody has
 * checked: metadata, then the list of tensors.
 *
 * Source of the format: the GGUF description of the ggml project. Accepted: at most
 * NIB_MAX_SRC_KEYS keys and NIB_MAX_SRC_TENSORS tensors, a head of at most
 * NIB_MAX_SRC_HEADER_BYTES, no arrays of arrays, a power-of-two alignment of 8 to 65,536, tensor
 * types F32, F16, BF16, Q8_0 and MXFP4. Every count and length is compared with the bytes that are
 * left before it is used. One thread. */
#ifndef NIB_TOOLS_GGUF_H
#define NIB_TOOLS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/span.h"
#include "tools/weights.h"

enum nib_gguf_type {
    NIB_GGUF_U8,
    NIB_GGUF_I8,
    NIB_GGUF_U16,
    NIB_GGUF_I16,
    NIB_GGUF_U32,
    NIB_GGUF_I32,
    NIB_GGUF_F32,
    NIB_GGUF_BOOL,
    NIB_GGUF_STRING,
    NIB_GGUF_ARRAY,
    NIB_GGUF_U64,
    NIB_GGUF_I64,
    NIB_GGUF_F64,
    NIB_GGUF_TYPE_COUNT
};

struct nib_gguf_key {
    struct nib_span name;
    enum nib_gguf_type type; /* of the value; of the elements when it is an array */
    bool is_array;
    uint64_t count;        /* elements; 1 for a plain value */
    struct nib_span value; /* its bytes as stored, already checked */
};

struct nib_gguf {
    uint8_t *head; /* owned when opened from a file, else NULL */
    uint32_t version;
    uint32_t alignment;
    uint64_t data_offset;
    uint64_t tensor_count;
    uint32_t key_count;
    struct nib_gguf_key keys[NIB_MAX_SRC_KEYS];
};

/* Opens PATH, reads its head, adds its tensors to w (dims outermost first). *ret is to be closed;
 * on failure it is untouched and w may only be freed. */
enum nib_err nib_gguf_open(struct nib_weights *w, const char *path, struct nib_gguf *ret,
                           struct nib_msg *msg) NIB_CHECKED;
void nib_gguf_close(struct nib_gguf *gguf);

/* The same for bytes[0..count), the first bytes of a file already in w; *ret points into them. */
enum nib_err nib_gguf_parse(struct nib_weights *w, uint32_t file, const uint8_t *bytes, size_t count,
                            struct nib_gguf *ret, struct nib_msg *msg) NIB_CHECKED;

/* The key, or NULL. */
const struct nib_gguf_key *nib_gguf_find(const struct nib_gguf *gguf, const char *name);

/* A key's value, when it is there as a plain value of that sort: any integer type that is not
 * negative; F32 or F64; a string. */
bool nib_gguf_u64(const struct nib_gguf *gguf, const char *name, uint64_t *ret);
bool nib_gguf_real(const struct nib_gguf *gguf, const char *name, double *ret);
bool nib_gguf_string(const struct nib_gguf *gguf, const char *name, struct nib_span *ret);

/* Walks an array of strings: start with *at = 0 and call key->count times. */
struct nib_span nib_gguf_next_string(const struct nib_gguf_key *key, size_t *at);

/* Element i of an array of any integer type; negative ones are refused as UINT64_MAX. */
uint64_t nib_gguf_element(const struct nib_gguf_key *key, uint64_t i);

#endif
