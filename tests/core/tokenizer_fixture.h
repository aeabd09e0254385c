/* tests/core/tokenizer_fixture.h: opens tokenizers for tests. Memory is exact, so that the sanitizer sees any step
 * past it; it is freed by the end of the test's process. */
#ifndef NIB_TESTS_TOKENIZER_FIXTURE_H
#define NIB_TESTS_TOKENIZER_FIXTURE_H

#include "core/tokenizer.h"
#include "core/vocab.h"
#include "tests/harness.h"

#define O200K_PATH "etc/o200k/o200k_base.tiktoken"

/* Memory that lives as long as the test's process, kept in sight of the leak checker. */
static inline void *fixture_memory(size_t bytes)
{
    static void *kept[64];
    static size_t count;
    ck_assert_uint_lt(count, sizeof kept / sizeof kept[0]);
    return kept[count++] = malloc(bytes);
}

/* The bytes of a file of the tree in a block of exactly that size. */
static inline uint8_t *fixture_file(const char *path, size_t *ret_bytes)
{
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s cannot be opened: run from the tree's root", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    size_t bytes = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(bytes);
    ck_assert_uint_eq(fread(data, 1, bytes, f), bytes);
    (void)fclose(f);
    *ret_bytes = bytes;
    return data;
}

static inline const struct nib_tokenizer *fixture_open(const uint8_t *blob, size_t bytes)
{
    struct nib_msg msg = {""};
    size_t arena_bytes;
    ck_assert_msg(!nib_tokenizer_plan(blob, bytes, &arena_bytes, &msg), "%s", msg.text);
    struct nib_arena arena;
    nib_arena_init(&arena, fixture_memory(arena_bytes), arena_bytes);
    const struct nib_tokenizer *tok = NULL;
    ck_assert_msg(!nib_tokenizer_open(&arena, blob, bytes, &tok, &msg), "%s", msg.text);
    return tok;
}

/* o200k's first ordinary_max tokens in the ids of a shape. */
static inline const struct nib_tokenizer *fixture_o200k(const char *shape_name, uint32_t ordinary_max)
{
    struct nib_msg msg = {""};
    const struct nib_shape *shape = nib_shape_find(shape_name);
    size_t text_bytes, blob_bytes;
    uint8_t *text = fixture_file(O200K_PATH, &text_bytes);
    uint8_t *blob = malloc(NIB_VOCAB_HEADER_BYTES + text_bytes);
    ck_assert_msg(!nib_vocab_build_tiktoken((const char *)text, text_bytes, ordinary_max, shape->vocab,
                                            shape->special_base, blob, NIB_VOCAB_HEADER_BYTES + text_bytes, &blob_bytes,
                                            &msg),
                  "%s", msg.text);
    uint8_t *exact = memcpy(fixture_memory(blob_bytes), blob, blob_bytes);
    free(text);
    free(blob);
    return fixture_open(exact, blob_bytes);
}

/* Encodes a copy whose end is a block's end, with scratch of the planned size; fails the test on an error. */
static inline size_t fixture_encode(const struct nib_tokenizer *tok, const char *text, size_t bytes, uint32_t *ids,
                                    size_t ids_max)
{
    struct nib_msg msg = {""};
    size_t scratch_bytes = nib_tokenizer_scratch_bytes(bytes), count = 0;
    void *scratch = malloc(scratch_bytes);
    char *copy = malloc(bytes ? bytes : 1);
    memcpy(copy, text, bytes);
    ck_assert_msg(!nib_tokenizer_encode(tok, scratch, scratch_bytes, copy, bytes, ids, ids_max, &count, &msg), "%s",
                  msg.text);
    free(copy);
    free(scratch);
    return count;
}

#endif
