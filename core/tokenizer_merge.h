/* core/tokenizer_merge.h: byte-pair merges of one piece, exactly as the reference does them: of all
 * neighbours whose joined bytes are a token, the one of lowest rank is joined first, the leftmost
 * among equals. Internal to the tokenizer. */
#ifndef NIB_CORE_TOKENIZER_MERGE_H
#define NIB_CORE_TOKENIZER_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/tokenizer_table.h"

/* Scratch of one encode call. */
struct nib_merge_scratch {
    void *memory; /* aligned to 8 */
    size_t bytes;
    bool cleared; /* false at the start of a call */
};

/* Scratch for pieces of up to that many bytes. */
size_t nib_merge_scratch_bytes(size_t piece_bytes_max);

/* The longest piece that this scratch allows. */
size_t nib_merge_piece_bytes_max(size_t scratch_bytes);

/* Merges piece[0..bytes), 0 < bytes <= the scratch's piece maximum. Stores at most ids_max ids;
 * returns how many the piece has. */
size_t nib_merge_piece(const struct nib_token_table *table, struct nib_merge_scratch *scratch, const uint8_t *piece,
                       size_t bytes, uint32_t *ids, size_t ids_max);

#endif
