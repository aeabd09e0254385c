/* core/tokenizer_table.c: owns the token table: direct arrays for one and two bytes, a hash table
 * for the rest. Limits: NIB_MAX_VOCAB tokens, NIB_MAX_TOKEN_PROBES looks a search. Built on the
 * boot thread, read by any. Building fails on equal or colliding tokens and on a full arena;
 * searching cannot fail. */
#include "core/tokenizer_table.h"

#include <string.h>

#define ARRAY_ALIGN 64u /* a cache line */

static uint64_t load(const uint8_t *p, size_t bytes)
{
    uint64_t word = 0;
    memcpy(&word, p, bytes);
    return word;
}

static uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

/* len >= 3; the last word overlaps the one before it. */
static uint64_t hash_of(const uint8_t *p, size_t len)
{
    uint64_t h = len * 0xd6e8feb86659fd93u;
    if (len < 4)
        return mix(mix(h, load(p, 2)), p[2]);
    if (len < 8)
        return mix(mix(h, load(p, 4)), load(p + len - 4, 4));
    for (size_t at = 0; at + 8 < len; at += 8)
        h = mix(h, load(p + at, 8));
    return mix(mix(h, load(p + len - 8, 8)), len);
}

static size_t slots_for(uint32_t ordinary)
{
    size_t slots = 512;
    while (slots < 2 * (size_t)ordinary)
        slots *= 2;
    return slots;
}

size_t nib_token_table_bytes(uint32_t ordinary)
{
    return ((size_t)ordinary + 1) * sizeof(uint32_t) + 65536 * sizeof(uint32_t) +
           slots_for(ordinary) * sizeof(struct nib_token_slot) + 3 * (size_t)ARRAY_ALIGN;
}

uint32_t nib_token_find_long(const struct nib_token_table *table, const uint8_t *bytes, size_t len)
{
    uint64_t h = hash_of(bytes, len);
    for (size_t at = h & table->slot_mask;; at = (at + 1) & table->slot_mask) {
        const struct nib_token_slot *slot = &table->slots[at];
        if (slot->id == NIB_TOKEN_NONE)
            return NIB_TOKEN_NONE;
        if (slot->tag != (uint32_t)(h >> 32))
            continue;
        const uint32_t *start = &table->starts[slot->id];
        if (start[1] - start[0] == len && memcmp(table->vocab.bytes + start[0], bytes, len) == 0)
            return slot->id;
    }
}

/* Adds a token that is not there yet; false when its run of probes grows too long. */
static bool slot_add(struct nib_token_table *table, uint32_t id, const uint8_t *bytes, size_t len)
{
    uint64_t h = hash_of(bytes, len);
    size_t at = h & table->slot_mask;
    for (int probes = 0; probes < NIB_MAX_TOKEN_PROBES; probes++, at = (at + 1) & table->slot_mask) {
        if (table->slots[at].id != NIB_TOKEN_NONE)
            continue;
        table->slots[at] = (struct nib_token_slot){.id = id, .tag = (uint32_t)(h >> 32)};
        return true;
    }
    return false;
}

static enum nib_err table_add(struct nib_token_table *table, uint32_t id, struct nib_msg *msg)
{
    const uint8_t *bytes = table->vocab.bytes + table->starts[id];
    size_t len = table->vocab.lens[id];
    uint32_t twin = nib_token_find(table, bytes, len);
    if (twin != NIB_TOKEN_NONE)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: tokens %u and %u are equal; each may be there once", twin, id);
    if (len == 1)
        table->singles[bytes[0]] = id;
    else if (len == 2)
        table->pairs[bytes[0] << 8 | bytes[1]] = id;
    else if (!slot_add(table, id, bytes, len))
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: token %u shares its hash with more than %d others", id,
                        NIB_MAX_TOKEN_PROBES);
    return NIB_OK;
}

enum nib_err nib_token_table_build(struct nib_token_table *table, const struct nib_vocab *vocab,
                                   struct nib_arena *arena, struct nib_msg *msg)
{
    size_t slots = slots_for(vocab->ordinary);
    table->vocab = *vocab;
    table->slot_mask = slots - 1;
    table->starts = nib_arena_take(arena, ((size_t)vocab->ordinary + 1) * sizeof *table->starts, ARRAY_ALIGN);
    table->pairs = nib_arena_take(arena, 65536 * sizeof *table->pairs, ARRAY_ALIGN);
    table->slots = nib_arena_take(arena, slots * sizeof *table->slots, ARRAY_ALIGN);
    if (!table->starts || !table->pairs || !table->slots)
        return nib_fail(msg, NIB_E_NOMEM, "tokenizer: its table needs %zu bytes and the arena has not that many left",
                        nib_token_table_bytes(vocab->ordinary));
    memset(table->singles, 0xff, sizeof table->singles);
    memset(table->pairs, 0xff, 65536 * sizeof *table->pairs);
    memset(table->slots, 0xff, slots * sizeof *table->slots);
    table->starts[0] = 0;
    for (uint32_t id = 0; id < vocab->ordinary; id++)
        table->starts[id + 1] = table->starts[id] + vocab->lens[id];
    for (uint32_t id = 0; id < vocab->ordinary; id++) {
        enum nib_err err = table_add(table, id, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}
