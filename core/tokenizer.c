/* core/tokenizer.c: owns the open tokenizer: which ids exist, text to ids, ids to bytes. Limits:
 * NIB_MAX_TEXT_BYTES a text, NIB_MAX_VOCAB ids. Opened on the boot thread, read by any. Opening
 * fails on a malformed blob or a small arena; encoding on invalid UTF-8 or too little room. */
#include "core/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "core/tokenizer_merge.h"
#include "core/tokenizer_split.h"
#include "core/tokenizer_table.h"
#include "core/utf8.h"

struct nib_tokenizer {
    struct nib_token_table table;
};

static const char *const special_names[NIB_SPECIAL_SPAN] = {
    [NIB_TOK_STARTOFTEXT] = "<|startoftext|>",
    [NIB_TOK_ENDOFTEXT] = "<|endoftext|>",
    [NIB_TOK_RETURN] = "<|return|>",
    [NIB_TOK_CONSTRAIN] = "<|constrain|>",
    [NIB_TOK_CHANNEL] = "<|channel|>",
    [NIB_TOK_START] = "<|start|>",
    [NIB_TOK_END] = "<|end|>",
    [NIB_TOK_MESSAGE] = "<|message|>",
    [NIB_TOK_CALL] = "<|call|>",
};

const char *nib_special_name(uint32_t distance)
{
    return distance < NIB_SPECIAL_SPAN ? special_names[distance] : NULL;
}

enum nib_err nib_tokenizer_plan(const void *blob, size_t bytes, size_t *ret_arena_bytes, struct nib_msg *msg)
{
    struct nib_vocab vocab;
    enum nib_err err = nib_vocab_parse_header(blob, bytes, &vocab, msg);
    if (!err)
        *ret_arena_bytes =
            sizeof(struct nib_tokenizer) + _Alignof(struct nib_tokenizer) + nib_token_table_bytes(vocab.ordinary);
    return err;
}

enum nib_err nib_tokenizer_open(struct nib_arena *arena, const void *blob, size_t bytes,
                                const struct nib_tokenizer **ret, struct nib_msg *msg)
{
    struct nib_vocab vocab;
    enum nib_err err = nib_vocab_parse(blob, bytes, &vocab, msg);
    if (err)
        return err;
    struct nib_tokenizer *tok = nib_arena_take(arena, sizeof *tok, _Alignof(struct nib_tokenizer));
    if (!tok)
        return nib_fail(msg, NIB_E_NOMEM, "tokenizer: the arena has not %zu bytes left", sizeof *tok);
    err = nib_token_table_build(&tok->table, &vocab, arena, msg);
    if (!err)
        *ret = tok;
    return err;
}

uint32_t nib_tokenizer_vocab(const struct nib_tokenizer *tok)
{
    return tok->table.vocab.vocab;
}

uint32_t nib_tokenizer_special_base(const struct nib_tokenizer *tok)
{
    return tok->table.vocab.special_base;
}

size_t nib_tokenizer_scratch_bytes(size_t text_bytes_max)
{
    return nib_merge_scratch_bytes(text_bytes_max);
}

enum nib_err nib_tokenizer_encode(const struct nib_tokenizer *tok, void *scratch, size_t scratch_bytes,
                                  const char *text, size_t bytes, uint32_t *ids, size_t ids_max, size_t *ret_count,
                                  struct nib_msg *msg)
{
    struct nib_merge_scratch merge = {.memory = scratch, .bytes = scratch_bytes};
    const uint8_t *in = (const uint8_t *)text;
    size_t piece_max = nib_merge_piece_bytes_max(scratch_bytes), count = 0;
    if (bytes > NIB_MAX_TEXT_BYTES)
        return nib_fail(msg, NIB_E_LIMIT, "the text has %zu bytes; at most %u are allowed", bytes, NIB_MAX_TEXT_BYTES);
    size_t valid = nib_utf8_valid_bytes(in, bytes);
    if (valid != bytes)
        return nib_fail(msg, NIB_E_FORMAT, "the text is not valid UTF-8 at byte %zu", valid);
    for (size_t at = 0, end; at < bytes; at = end) {
        end = nib_split_next(in, bytes, at);
        if (end - at > piece_max)
            return nib_fail(msg, NIB_E_LIMIT,
                            "the text has %zu bytes without a break at byte %zu; at most %zu are allowed", end - at, at,
                            piece_max);
        count += nib_merge_piece(&tok->table, &merge, in + at, end - at, ids + count, ids_max - count);
        if (count > ids_max)
            return nib_fail(msg, NIB_E_LIMIT, "the text has more than the %zu tokens allowed", ids_max);
    }
    *ret_count = count;
    return NIB_OK;
}

size_t nib_tokenizer_decode(const struct nib_tokenizer *tok, uint32_t id, const uint8_t **ret_bytes)
{
    const struct nib_vocab *v = &tok->table.vocab;
    *ret_bytes = id < v->ordinary ? v->bytes + tok->table.starts[id] : NULL;
    return id < v->ordinary ? v->lens[id] : 0;
}

uint32_t nib_tokenizer_special(const struct nib_tokenizer *tok, enum nib_special special)
{
    NIB_MUST(nib_special_name((uint32_t)special));
    return tok->table.vocab.special_base + (uint32_t)special;
}

bool nib_tokenizer_is_special(const struct nib_tokenizer *tok, uint32_t id, enum nib_special *ret_special)
{
    uint32_t base = tok->table.vocab.special_base;
    if (id < base || !nib_special_name(id - base))
        return false;
    *ret_special = (enum nib_special)(id - base);
    return true;
}

size_t nib_tokenizer_decode_special(const struct nib_tokenizer *tok, uint32_t id, char *out, size_t out_max)
{
    uint32_t base = tok->table.vocab.special_base;
    char text[32];
    if (id < base || !nib_tokenizer_id_valid(tok, id))
        return 0;
    const char *name = nib_special_name(id - base);
    if (name)
        (void)snprintf(text, sizeof text, "%s", name);
    else
        (void)snprintf(text, sizeof text, "<|reserved_%u|>", id);
    size_t len = strlen(text);
    if (len >= out_max)
        return 0;
    memcpy(out, text, len + 1);
    return len;
}

bool nib_tokenizer_id_valid(const struct nib_tokenizer *tok, uint32_t id)
{
    return id < tok->table.vocab.vocab;
}

bool nib_tokenizer_id_generable(const struct nib_tokenizer *tok, uint32_t id)
{
    enum nib_special special;
    return id < tok->table.vocab.ordinary || nib_tokenizer_is_special(tok, id, &special);
}

void nib_tokenizer_fill_banned(const struct nib_tokenizer *tok, uint32_t *words)
{
    uint32_t count = (tok->table.vocab.vocab + 31) / 32;
    for (uint32_t w = 0; w < count; w++) {
        uint32_t banned = 0;
        for (uint32_t b = 0; b < 32; b++)
            banned |= (uint32_t)!nib_tokenizer_id_generable(tok, 32 * w + b) << b;
        words[w] = banned;
    }
}
