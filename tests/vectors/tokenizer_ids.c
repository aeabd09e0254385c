/* tests/vectors/tokenizer_ids.c: the tokenizer as a filter, for tokenizer_full.py, and its benchmark.
 *
 *     tokenizer_ids VOCABULARY            reads (u32 bytes, text)* from stdin, writes (u32 count, u32 ids[count])*;
 *                                         a count of 2^32-1 stands for a refused text
 *     tokenizer_ids VOCABULARY --pieces   the same with the bytes of each piece that the pattern cuts, instead of ids
 *     tokenizer_ids VOCABULARY --bench F  MB/s on the text file F, and the time of 1 MiB of each hostile kind
 *
 * VOCABULARY is a .tiktoken file. One thread; ends with a sentence on any error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/tokenizer.h"
#include "core/tokenizer_split.h"
#include "core/vocab.h"

#define FILE_BYTES_MAX (16u << 20)

static struct nib_msg msg;

static void *get_memory(size_t bytes)
{
    void *p = malloc(bytes);
    if (!p) {
        (void)fprintf(stderr, "tokenizer_ids: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static void check(enum nib_err err)
{
    if (!err)
        return;
    (void)fprintf(stderr, "tokenizer_ids: %s\n", msg.text);
    exit(1);
}

static char *read_file(const char *path, size_t *ret_bytes)
{
    char *text = get_memory(FILE_BYTES_MAX);
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(1);
    }
    *ret_bytes = fread(text, 1, FILE_BYTES_MAX, f);
    (void)fclose(f);
    return text;
}

static const struct nib_tokenizer *open_tokenizer(const char *path)
{
    size_t text_bytes, blob_bytes, arena_bytes;
    char *text = read_file(path, &text_bytes);
    uint8_t *blob = get_memory(NIB_VOCAB_HEADER_BYTES + text_bytes);
    const struct nib_shape *shape = nib_shape_find("20b");
    check(nib_vocab_build_tiktoken(text, text_bytes, UINT32_MAX, shape->vocab, shape->special_base, blob,
                                   NIB_VOCAB_HEADER_BYTES + text_bytes, &blob_bytes, &msg));
    free(text);
    check(nib_tokenizer_plan(blob, blob_bytes, &arena_bytes, &msg));
    struct nib_arena arena;
    nib_arena_init(&arena, get_memory(arena_bytes), arena_bytes);
    const struct nib_tokenizer *tok;
    check(nib_tokenizer_open(&arena, blob, blob_bytes, &tok, &msg));
    return tok;
}

/* The bytes of each piece of a valid text; returns how many there are. */
static size_t cut(const char *text, size_t bytes, uint32_t *pieces)
{
    size_t count = 0;
    for (size_t at = 0, end; at < bytes; at = end) {
        end = nib_split_next((const uint8_t *)text, bytes, at);
        pieces[count++] = (uint32_t)(end - at);
    }
    return count;
}

static void filter(const struct nib_tokenizer *tok, bool pieces)
{
    size_t scratch_bytes = nib_tokenizer_scratch_bytes(NIB_MAX_TEXT_BYTES);
    void *scratch = get_memory(scratch_bytes);
    char *text = get_memory(NIB_MAX_TEXT_BYTES);
    uint32_t *ids = get_memory(NIB_MAX_TEXT_BYTES * sizeof *ids), bytes;
    while (fread(&bytes, sizeof bytes, 1, stdin) == 1) {
        size_t count;
        if (bytes > NIB_MAX_TEXT_BYTES || fread(text, 1, bytes, stdin) != bytes)
            exit(1);
        uint32_t out = UINT32_MAX;
        if (!nib_tokenizer_encode(tok, scratch, scratch_bytes, text, bytes, ids, NIB_MAX_TEXT_BYTES, &count, &msg))
            out = (uint32_t)(pieces ? (count = cut(text, bytes, ids)) : count);
        (void)fwrite(&out, sizeof out, 1, stdout);
        if (out != UINT32_MAX)
            (void)fwrite(ids, sizeof *ids, count, stdout);
    }
}

/* Time of this thread on a processor, so that a busy machine measures alike. */
static double now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

struct bench {
    const struct nib_tokenizer *tok;
    void *scratch;
    size_t scratch_bytes;
    uint32_t *ids; /* [NIB_MAX_TEXT_BYTES] */
};

/* Best of five, milliseconds. */
static double best_ms(const struct bench *b, const char *text, size_t bytes, size_t *ret_count)
{
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        double start = now_ms();
        check(nib_tokenizer_encode(b->tok, b->scratch, b->scratch_bytes, text, bytes, b->ids, NIB_MAX_TEXT_BYTES,
                                   ret_count, &msg));
        double ms = now_ms() - start;
        best = ms < best ? ms : best;
    }
    return best;
}

/* One MiB of characters drawn by a fixed generator from first..last, code points of three UTF-8 bytes or of ASCII. */
static size_t fill_random(char *text, uint32_t first, uint32_t last)
{
    uint64_t state = 1;
    size_t at = 0;
    while (at + 3 <= 1u << 20) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t cp = first + (uint32_t)(state >> 33) % (last - first + 1);
        if (cp >= 0x800) {
            text[at++] = (char)(0xe0 | cp >> 12);
            text[at++] = (char)(0x80 | (cp >> 6 & 63));
            cp = 0x80 | (cp & 63);
        }
        text[at++] = (char)cp;
    }
    return at;
}

static void bench_hostile(const struct bench *b, char *text)
{
    static const struct {
        const char *name, *unit;
    } runs[] = {{"letter x", "x"},
                {"letter A", "A"},
                {"ab", "ab"},
                {"space", " "},
                {"newline", "\n"},
                {"space newline", " \n"},
                {"tab", "\t"},
                {"U+65E5", "\xe6\x97\xa5"},
                {"digit", "7"},
                {"!", "!"},
                {"/", "/"},
                {"=", "="},
                {"mark U+0301", "\xcc\x81"},
                {"emoji", "\xf0\x9f\x98\x80"},
                {"unassigned U+0378", "\xcd\xb8"},
                {"apostrophe s", "'s"},
                {"U+10FFFF", "\xf4\x8f\xbf\xbf"}};
    static const struct {
        const char *name;
        uint32_t first, last;
    } draws[] = {{"random a-z", 'a', 'z'},
                 {"random !-/", '!', '/'},
                 {"random CJK", 0x4e00, 0x9fff},
                 {"random Hangul", 0xac00, 0xd7a3}};
    size_t count;
    (void)printf("%-20s %9s %9s\n", "1 MiB of", "ids", "ms");
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        size_t unit = strlen(runs[i].unit), at = 0;
        for (; at + unit <= 1u << 20; at += unit)
            memcpy(text + at, runs[i].unit, unit);
        double ms = best_ms(b, text, at, &count);
        (void)printf("%-20s %9zu %9.1f\n", runs[i].name, count, ms);
    }
    for (size_t i = 0; i < sizeof draws / sizeof draws[0]; i++) {
        size_t bytes = fill_random(text, draws[i].first, draws[i].last);
        double ms = best_ms(b, text, bytes, &count);
        (void)printf("%-20s %9zu %9.1f\n", draws[i].name, count, ms);
    }
}

static void bench(const struct nib_tokenizer *tok, const char *path)
{
    struct bench b = {.tok = tok, .scratch_bytes = nib_tokenizer_scratch_bytes(NIB_MAX_TEXT_BYTES)};
    b.scratch = get_memory(b.scratch_bytes);
    memset(b.scratch, 0, b.scratch_bytes);
    b.ids = get_memory(NIB_MAX_TEXT_BYTES * sizeof *b.ids);
    size_t bytes, count;
    char *text = read_file(path, &bytes);
    bytes = bytes < NIB_MAX_TEXT_BYTES ? bytes : NIB_MAX_TEXT_BYTES;
    double ms = best_ms(&b, text, bytes, &count);
    (void)printf("%s: %zu bytes, %zu ids, %.1f ms, %.1f MB/s\n", path, bytes, count, ms, (double)bytes / ms / 1e3);
    bench_hostile(&b, text);
    free(text);
    free(b.ids);
    free(b.scratch);
}

int main(int argc, char **argv)
{
    bool pieces = argc == 3 && strcmp(argv[2], "--pieces") == 0;
    if (argc != 2 && !pieces && !(argc == 4 && strcmp(argv[2], "--bench") == 0)) {
        (void)fprintf(stderr, "usage: tokenizer_ids VOCABULARY [--pieces | --bench TEXTFILE]\n");
        return 2;
    }
    const struct nib_tokenizer *tok = open_tokenizer(argv[1]);
    if (argc == 4)
        bench(tok, argv[3]);
    else
        filter(tok, pieces);
    return 0;
}
