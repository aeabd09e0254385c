/* tests/core/tokenizer_merge_test.c: merges against the plain definition (look at every neighbour, join the lowest rank,
 * leftmost first, again) with random vocabularies whose ranks have no order that training would give; the queue
 * against a sorted list. */
#include "core/tokenizer_merge.h"
#include "core/tokenizer_queue.h"
#include "tests/harness.h"

#define PIECE_MAX 600u

/* The definition; n * n. */
static size_t merge_plainly(const struct nib_token_table *table, const uint8_t *piece, size_t bytes, uint32_t *ids)
{
    size_t start[PIECE_MAX + 1], parts = bytes;
    for (size_t i = 0; i <= bytes; i++)
        start[i] = i;
    for (;;) {
        size_t best = SIZE_MAX;
        uint32_t best_rank = NIB_TOKEN_NONE;
        for (size_t i = 0; i + 1 < parts; i++) {
            uint32_t rank = nib_token_find(table, piece + start[i], start[i + 2] - start[i]);
            if (rank < best_rank) {
                best_rank = rank;
                best = i;
            }
        }
        if (best == SIZE_MAX)
            break;
        memmove(&start[best + 1], &start[best + 2], (parts - best - 1) * sizeof *start);
        parts--;
    }
    for (size_t i = 0; i < parts; i++)
        ids[i] = nib_token_find(table, piece + start[i], start[i + 1] - start[i]);
    return parts;
}

/* All single bytes and some random strings over few letters, in random order of rank. */
static struct nib_token_table random_table(uint64_t *seed, unsigned letters, uint32_t tokens_max, uint8_t *storage,
                                           uint8_t *lens, struct nib_arena *arena)
{
    struct nib_token_table table;
    struct nib_vocab vocab = {.lens = lens, .bytes = storage};
    uint8_t *at = storage;
    for (uint32_t b = 0; b < 256; b++, vocab.ordinary++) {
        *at++ = (uint8_t)b;
        lens[b] = 1;
    }
    while (vocab.ordinary < tokens_max) {
        unsigned spread = nib_test_rand(seed) % 8 == 0 ? 40 : 5;
        uint8_t len = (uint8_t)(2 + nib_test_rand(seed) % spread);
        for (uint8_t i = 0; i < len; i++)
            at[i] = (uint8_t)('a' + nib_test_rand(seed) % letters);
        bool twin = false;
        const uint8_t *other = storage;
        for (uint32_t id = 0; id < vocab.ordinary; other += lens[id++])
            twin |= lens[id] == len && memcmp(other, at, len) == 0;
        if (twin) {
            tokens_max--;
            continue;
        }
        at += len;
        lens[vocab.ordinary++] = len;
    }
    vocab.token_bytes = (uint32_t)(at - storage);
    arena->used = 0;
    ck_assert(!nib_token_table_build(&table, &vocab, arena, NULL));
    return table;
}

START_TEST(merges_follow_the_definition)
{
    uint64_t seed = nib_test_seed();
    size_t arena_bytes = nib_token_table_bytes(1024), scratch_bytes = nib_merge_scratch_bytes(PIECE_MAX);
    struct nib_arena arena;
    nib_arena_init(&arena, malloc(arena_bytes), arena_bytes);
    uint8_t *storage = malloc(1024 * 64), *lens = malloc(1024);
    struct nib_merge_scratch scratch = {.memory = malloc(scratch_bytes), .bytes = scratch_bytes};
    size_t pieces = 0, joined = 0, wrong = 0;
    for (int round = 0; round < 300; round++) {
        unsigned letters = 1 + (unsigned)(nib_test_rand(&seed) % 4);
        uint32_t tokens = 256 + (uint32_t)(nib_test_rand(&seed) % 300);
        struct nib_token_table table = random_table(&seed, letters, tokens, storage, lens, &arena);
        for (int k = 0; k < 20; k++, pieces++) {
            size_t bytes = 1 + nib_test_rand(&seed) % (k % 2 ? PIECE_MAX : 70);
            uint8_t *piece = malloc(bytes);
            uint32_t got[PIECE_MAX], want[PIECE_MAX];
            for (size_t i = 0; i < bytes; i++)
                piece[i] = (uint8_t)('a' + nib_test_rand(&seed) % letters);
            uint32_t whole = nib_token_find(&table, piece, bytes);
            want[0] = whole;
            size_t want_count = whole != NIB_TOKEN_NONE ? 1 : merge_plainly(&table, piece, bytes, want);
            size_t count = nib_merge_piece(&table, &scratch, piece, bytes, got, PIECE_MAX);
            wrong += count != want_count || memcmp(got, want, count * sizeof *got) != 0;
            joined += bytes - count;
            free(piece);
        }
    }
    printf("%zu pieces, %zu merges\n", pieces, joined);
    ck_assert_uint_eq(wrong, 0);
    ck_assert_uint_gt(joined, pieces * 50);
    free(arena.base);
    free(storage);
    free(lens);
    free(scratch.memory);
}
END_TEST

START_TEST(ids_past_the_room_are_counted_not_stored)
{
    uint64_t seed = nib_test_seed();
    size_t arena_bytes = nib_token_table_bytes(1024), scratch_bytes = nib_merge_scratch_bytes(PIECE_MAX);
    struct nib_arena arena;
    nib_arena_init(&arena, malloc(arena_bytes), arena_bytes);
    uint8_t *storage = malloc(1024 * 64), *lens = malloc(1024);
    struct nib_merge_scratch scratch = {.memory = malloc(scratch_bytes), .bytes = scratch_bytes};
    struct nib_token_table table = random_table(&seed, 3, 280, storage, lens, &arena);
    for (size_t bytes = 10; bytes <= PIECE_MAX; bytes += 59) {
        uint8_t piece[PIECE_MAX];
        uint32_t all[PIECE_MAX];
        for (size_t i = 0; i < bytes; i++)
            piece[i] = (uint8_t)('a' + nib_test_rand(&seed) % 3);
        size_t count = nib_merge_piece(&table, &scratch, piece, bytes, all, PIECE_MAX);
        uint32_t *some = malloc((count - 1) * sizeof *some);
        ck_assert_uint_eq(nib_merge_piece(&table, &scratch, piece, bytes, some, count - 1), count);
        ck_assert_mem_eq(some, all, (count - 1) * sizeof *some);
        free(some);
    }
    free(arena.base);
    free(storage);
    free(lens);
    free(scratch.memory);
}
END_TEST

/* Two pairs put for each one popped, as merges do at worst; the model is an array of ranks by position. */
START_TEST(the_queue_pops_lowest_and_leftmost)
{
    uint64_t seed = nib_test_seed();
    enum { POSITIONS = 500 };
    struct nib_queue_fixed *fixed = malloc(sizeof *fixed);
    void *memory = malloc(POSITIONS * NIB_QUEUE_POSITION_BYTES);
    nib_queue_clear(fixed);
    for (int round = 0; round < 200; round++) {
        struct nib_pair_queue queue;
        uint32_t model[POSITIONS], ranks = 1 + (uint32_t)(nib_test_rand(&seed) % (round % 2 ? 5 : NIB_MAX_VOCAB));
        size_t positions = 2 + nib_test_rand(&seed) % (POSITIONS - 1), merges = 0;
        nib_queue_init(&queue, fixed, memory, positions);
        memset(model, 0xff, sizeof model);
        for (uint32_t at = 0; at + 1 < positions; at++)
            if (nib_test_rand(&seed) % 4)
                nib_queue_put(&queue, at, model[at] = (uint32_t)(nib_test_rand(&seed) % ranks));
        for (;;) {
            uint32_t want = NIB_PAIR_NONE;
            for (uint32_t at = 0; at < positions; at++)
                if (model[at] != NIB_PAIR_NONE && (want == NIB_PAIR_NONE || model[at] < model[want]))
                    want = at;
            ck_assert_uint_eq(nib_queue_pop(&queue), want);
            if (want == NIB_PAIR_NONE)
                break;
            model[want] = NIB_PAIR_NONE;
            for (int put = 0; put < 2 && merges < positions / 2; put++) {
                uint32_t at = (uint32_t)(nib_test_rand(&seed) % positions);
                nib_queue_drop(&queue, at);
                nib_queue_put(&queue, at, model[at] = (uint32_t)(nib_test_rand(&seed) % ranks));
            }
            merges++;
        }
        ck_assert_uint_eq(fixed->top, 0);
    }
    for (size_t i = 0; i < NIB_QUEUE_WORDS0; i++)
        ck_assert(fixed->ranks[i] == 0);
    free(fixed);
    free(memory);
}
END_TEST

NIB_SUITE(tokenizer_merge, merges_follow_the_definition, ids_past_the_room_are_counted_not_stored,
          the_queue_pops_lowest_and_leftmost)
