/* core/tokenizer_table.h: finds a token by its bytes. Internal to the tokenizer. Read-only once
 * built: any thread. */
#ifndef NIB_CORE_TOKENIZER_TABLE_H
#define NIB_CORE_TOKENIZER_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "core/arena.h"
#include "core/err.h"
#include "core/vocab.h"

#define NIB_TOKEN_NONE UINT32_MAX

struct nib_token_slot {
    uint32_t id;  /* NIB_TOKEN_NONE: empty */
    uint32_t tag; /* upper half of the hash */
};

struct nib_token_table {
    struct nib_vocab vocab;
    uint32_t *starts;             /* [ordinary + 1] offset of each token in vocab.bytes */
    uint32_t *pairs;              /* [65536] id of each two-byte token, first byte high */
    struct nib_token_slot *slots; /* [slot_mask + 1] tokens of three bytes and more, linear probing */
    size_t slot_mask;
    uint32_t singles[256]; /* id of each one-byte token */
};

/* Arena bytes of the arrays above for a vocabulary of that many tokens. */
size_t nib_token_table_bytes(uint32_t ordinary);

/* Takes the arrays and fills them. NIB_E_NOMEM; NIB_E_FORMAT when two tokens are equal, or when so
 * many share a hash that finding one would be slow (no honest vocabulary does). Boot thread. */
NIB_CHECKED enum nib_err nib_token_table_build(struct nib_token_table *table, const struct nib_vocab *vocab,
                                               struct nib_arena *arena, struct nib_msg *msg);

/* The slow half of nib_token_find: 3..NIB_MAX_TOKEN_BYTES bytes. */
uint32_t nib_token_find_long(const struct nib_token_table *table, const uint8_t *bytes, size_t len);

/* Id of the token with these bytes (len > 0), or NIB_TOKEN_NONE. */
static inline uint32_t nib_token_find(const struct nib_token_table *table, const uint8_t *bytes, size_t len)
{
    if (len == 1)
        return table->singles[bytes[0]];
    if (len == 2)
        return table->pairs[bytes[0] << 8 | bytes[1]];
    if (len > NIB_MAX_TOKEN_BYTES)
        return NIB_TOKEN_NONE;
    return nib_token_find_long(table, bytes, len);
}

#endif
