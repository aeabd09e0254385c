/* tools/synth_hf_tokenizer.c: owns the writing of tokenizer.json from a vocabulary blob. Takes heap for a hash of the
 * tokens (about 6 MB for o200k). Main thread. Fails on the disk and on memory. */
#include <stdlib.h>
#include <string.h>

#include "core/tokenizer.h"
#include "core/vocab.h"
#include "tools/synth_hf.h"

/* o200k's pattern, as the published tokenizer.json writes it; the same pattern as core/tokenizer_split.c. */
#define O200K_PATTERN                                                                                                  \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*"                                    \
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                             \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+"                                    \
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                             \
    "\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

#define ENDOFPROMPT_DISTANCE 20 /* <|endofprompt|>, which the published file lists among the reserved ids */

struct table {
    struct nib_vocab vocab;
    const uint8_t **tokens; /* [ordinary] where each begins */
    uint32_t *slots;        /* [mask + 1] id + 1, or 0 */
    uint32_t mask;
};

static uint32_t hash_of(const uint8_t *bytes, uint32_t n)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (uint32_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 16777619u;
    return h ^ h >> 15;
}

static bool has_token(const struct table *t, const uint8_t *bytes, uint32_t n)
{
    for (uint32_t slot = hash_of(bytes, n) & t->mask; t->slots[slot]; slot = (slot + 1) & t->mask) {
        uint32_t id = t->slots[slot] - 1;
        if (t->vocab.lens[id] == n && memcmp(t->tokens[id], bytes, n) == 0)
            return true;
    }
    return false;
}

static enum nib_err open_table(struct table *t, const uint8_t *blob, size_t blob_bytes, struct nib_msg *msg)
{
    enum nib_err err = nib_vocab_parse(blob, blob_bytes, &t->vocab, msg);
    if (err)
        return err;
    uint32_t slots = 1024;
    while (slots < 2 * t->vocab.ordinary)
        slots *= 2;
    t->mask = slots - 1;
    t->slots = calloc(slots, sizeof *t->slots);
    t->tokens = calloc(t->vocab.ordinary, sizeof *t->tokens);
    if (!t->slots || !t->tokens)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a table of %u tokens", t->vocab.ordinary);
    const uint8_t *at = t->vocab.bytes;
    for (uint32_t id = 0; id < t->vocab.ordinary; id++) {
        uint32_t slot = hash_of(at, t->vocab.lens[id]) & t->mask;
        while (t->slots[slot])
            slot = (slot + 1) & t->mask;
        t->slots[slot] = id + 1;
        t->tokens[id] = at;
        at += t->vocab.lens[id];
    }
    return NIB_OK;
}

/* The code points of GPT-2's byte alphabet: printable Latin-1 is itself, the others follow from 256 in order. */
static void byte_alphabet(uint16_t ret_points[256])
{
    uint16_t next = 256;
    for (uint16_t b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        ret_points[b] = printable ? b : next++;
    }
}

/* A JSON string. Only the quote and the backslash of the alphabet need an escape. */
static void print_token(FILE *file, const uint16_t points[256], const uint8_t *bytes, uint32_t n)
{
    (void)fputc('"', file);
    for (uint32_t i = 0; i < n; i++) {
        uint16_t c = points[bytes[i]];
        if (c == '"' || c == '\\')
            (void)fputc('\\', file);
        if (c < 0x80) {
            (void)fputc(c, file);
        } else {
            (void)fputc(0xc0 | c >> 6, file);
            (void)fputc(0x80 | (c & 63), file);
        }
    }
    (void)fputc('"', file);
}

static void print_special(FILE *file, const char *name, uint32_t id, bool first)
{
    (void)fprintf(file,
                  "%s\n    {\"id\": %u, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
                  "\"rstrip\": false, \"normalized\": false, \"special\": true}",
                  first ? "" : ",", id, name);
}

/* The nine, and the reserved ids between and after them, as the published file does. */
static void print_specials(FILE *file, const struct nib_shape *s)
{
    (void)fputs("  \"added_tokens\": [", file);
    for (uint32_t d = 0; d <= ENDOFPROMPT_DISTANCE; d++) {
        char reserved[40];
        const char *name = d == ENDOFPROMPT_DISTANCE ? "<|endofprompt|>" : nib_special_name(d);
        (void)snprintf(reserved, sizeof reserved, "<|reserved_%u|>", s->special_base + d);
        if (s->special_base + d < s->vocab)
            print_special(file, name ? name : reserved, s->special_base + d, d == 0);
    }
    (void)fputs("\n  ],\n", file);
}

/* All splits of a token into two tokens, in the order of the tokens they make. */
static void print_merges(FILE *file, const struct table *t, const uint16_t points[256])
{
    bool first = true;
    (void)fputs("    \"merges\": [", file);
    for (uint32_t id = 0; id < t->vocab.ordinary; id++) {
        uint32_t n = t->vocab.lens[id];
        for (uint32_t left = 1; left < n; left++) {
            const uint8_t *token = t->tokens[id];
            if (!has_token(t, token, left) || !has_token(t, token + left, n - left))
                continue;
            (void)fputs(first ? "\n      [" : ",\n      [", file);
            print_token(file, points, token, left);
            (void)fputs(", ", file);
            print_token(file, points, token + left, n - left);
            (void)fputc(']', file);
            first = false;
        }
    }
    (void)fputs("\n    ]\n", file);
}

static void print_tokenizer(FILE *file, const struct table *t, const struct nib_shape *s)
{
    static const char byte_level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
                                     "\"use_regex\": false}";
    uint16_t points[256];
    byte_alphabet(points);
    (void)fputs("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n", file);
    print_specials(file, s);
    (void)fprintf(
        file,
        "  \"normalizer\": null,\n  \"pre_tokenizer\": {\n    \"type\": \"Sequence\",\n"
        "    \"pretokenizers\": [\n      {\"type\": \"Split\", \"pattern\": {\"Regex\": \"%s\"}, \"behavior\": "
        "\"Isolated\", \"invert\": false},\n      %s\n    ]\n  },\n  \"post_processor\": %s,\n"
        "  \"decoder\": %s,\n",
        O200K_PATTERN, byte_level, byte_level, byte_level);
    (void)fputs(
        "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
        "    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n    \"vocab\": {",
        file);
    for (uint32_t id = 0; id < t->vocab.ordinary; id++) {
        (void)fputs(id ? ",\n      " : "\n      ", file);
        print_token(file, points, t->tokens[id], t->vocab.lens[id]);
        (void)fprintf(file, ": %u", id);
    }
    (void)fputs("\n    },\n", file);
    print_merges(file, t, points);
    (void)fputs("  }\n}\n", file);
}

enum nib_err nib_synth_hf_tokenizer(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes,
                                    struct nib_msg *msg)
{
    struct table t = {0};
    FILE *file = NULL;
    enum nib_err err = open_table(&t, blob, blob_bytes, msg);
    if (!err)
        err = nib_synth_create(synth->out, "tokenizer.json", &file, msg);
    if (!err) {
        print_tokenizer(file, &t, synth->shape);
        err = nib_synth_finish(file, synth->out, "tokenizer.json", msg);
    }
    free(t.slots);
    free(t.tokens);
    return err;
}
