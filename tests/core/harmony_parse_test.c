/* The parser of answers: openai-harmony's messages where that has any, the oddities that models write, every short
 * sequence of tokens, and many long ones. NIB_HARMONY_PARSE names another vector file, NIB_HARMONY_SEQUENCES the number
 * of long sequences (tests/vectors/harmony_full.py sets both). */
#include <jansson.h>

#include "core/harmony_parse.h"
#include "tests/core/tokenizer_fixture.h"

/* As ck_assert, but cheap when it holds: Check's own writes to a file each time. */
#define must(cond) ((cond) ? (void)0 : ck_abort_msg("%s", #cond))

#define MESSAGES_MAX 256
#define TEXT_MAX     (64u << 10)

struct message {
    enum nib_harmony_kind kind;
    enum nib_harmony_channel channel;
    struct nib_span name;
    struct nib_span text;
};

/* What a client would have put together from the events. */
struct answer {
    struct message messages[MESSAGES_MAX];
    size_t count;
    size_t calls;
    bool open;
    enum nib_harmony_finish finish;
    char text[TEXT_MAX]; /* names and texts, end to end */
    size_t len;
};

static struct nib_span keep(struct answer *a, struct nib_span text)
{
    must(a->len + text.len <= TEXT_MAX);
    if (text.len > 0)
        memcpy(a->text + a->len, text.ptr, text.len);
    a->len += text.len;
    return nib_span_of(a->text + a->len - text.len, text.len);
}

/* Checks what holds for every event, then adds it. */
static void add_event(struct answer *a, const struct nib_harmony_event *e)
{
    struct message *m = &a->messages[a->count - a->open];
    if (e->type == NIB_EVENT_BEGIN) {
        must(!a->open);
        must(a->count < MESSAGES_MAX);
        must(e->message_index == a->count);
        must((e->text.len > 0) == (e->kind == NIB_KIND_CALL));
        must(e->text.len <= NIB_MAX_RECIPIENT_BYTES);
        *m = (struct message){e->kind, e->channel, keep(a, e->text), {a->text + a->len, 0}};
        a->count++;
        a->calls += e->kind == NIB_KIND_CALL;
        a->open = true;
    }
    must(a->open);
    must(e->kind == m->kind);
    must(e->channel == m->channel);
    must(e->message_index == a->count - 1);
    if (e->kind == NIB_KIND_CALL)
        must(e->call_index == a->calls - 1);
    must(nib_utf8_valid_bytes((const uint8_t *)e->text.ptr, e->text.len) == e->text.len);
    if (e->type == NIB_EVENT_TEXT) {
        must(e->text.len > 0);
        m->text.len += keep(a, e->text).len;
    } else if (e->type == NIB_EVENT_END) {
        must(e->text.len == 0);
        a->open = false;
    }
}

static void add_events(struct answer *a, const struct nib_harmony_event *events, size_t count)
{
    must(count <= NIB_HARMONY_EVENTS_MAX);
    for (size_t i = 0; i < count; i++)
        add_event(a, &events[i]);
}

static void end_answer(struct answer *a, struct nib_harmony_parser *p, bool cut)
{
    struct nib_harmony_event events[NIB_HARMONY_EVENTS_MAX];
    bool done = nib_harmony_parser_done(p);
    a->finish = (enum nib_harmony_finish)99;
    add_events(a, events, nib_harmony_parser_end(p, cut, events, &a->finish));
    must(!a->open);
    must(nib_harmony_parser_done(p));
    must(a->finish == (cut && !done ? NIB_TURN_LENGTH : a->calls > 0 ? NIB_TURN_TOOL_CALLS : NIB_TURN_STOP));
}

static void read_answer(struct answer *a, const struct nib_tokenizer *tok, const uint32_t *ids, size_t n, bool cut)
{
    struct nib_harmony_event events[NIB_HARMONY_EVENTS_MAX];
    struct nib_harmony_parser p;
    a->count = a->calls = a->len = 0;
    a->open = false;
    nib_harmony_parser_init(&p, tok);
    for (size_t i = 0; i < n; i++) {
        bool done = nib_harmony_parser_done(&p);
        size_t count = nib_harmony_parser_feed(&p, ids[i], events);
        must(!done || count == 0);
        add_events(a, events, count);
    }
    end_answer(a, &p, cut);
}

/* ---- openai-harmony's messages ---- */

static const char *const kinds[] = {"reasoning", "content", "call"};
static const char *const channels[] = {"none", "analysis", "commentary", "final"};
static const char *const finishes[] = {"stop", "tool_calls", "length"};

static bool is(const json_t *want, struct nib_span got)
{
    return nib_span_eq(nib_span_of(json_string_value(want), json_string_length(want)), got);
}

static bool same_answer(const struct answer *a, const json_t *want, size_t from, size_t line)
{
    bool same = a->count == json_array_size(want) - from;
    for (size_t i = 0; same && i < a->count; i++) {
        const struct message *m = &a->messages[i];
        const json_t *w = json_array_get(want, from + i);
        same = is(json_array_get(w, 0), nib_span_of(kinds[m->kind], strlen(kinds[m->kind]))) &&
               is(json_array_get(w, 1), nib_span_of(channels[m->channel], strlen(channels[m->channel]))) &&
               is(json_array_get(w, 2), m->name) && is(json_array_get(w, 3), m->text);
        if (!same)
            fprintf(stderr, "line %zu: message %zu is %s %s [%.*s] [%.*s]\n", line, i, kinds[m->kind],
                    channels[m->channel], (int)m->name.len, m->name.ptr, (int)m->text.len, m->text.ptr);
    }
    if (!same)
        fprintf(stderr, "line %zu differs, %zu messages\n", line, a->count);
    return same;
}

/* A case may hold several turns, one after another: a parser each. */
static bool same_turns(const struct nib_tokenizer *tok, const json_t *in, size_t line)
{
    static struct answer a;
    static uint32_t ids[4096];
    const json_t *list = json_object_get(in, "ids"), *out = json_object_get(in, "out");
    size_t n = json_array_size(list), at = 0, from = 0;
    ck_assert_uint_le(n, 4096);
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    while (at < n) {
        size_t end = at;
        while (end < n && ids[end] != 200002 && ids[end] != 200012)
            end++;
        end += end < n;
        read_answer(&a, tok, ids + at, end - at, true);
        json_t *rest = json_array();
        size_t take = end == n ? json_array_size(out) - from : a.count;
        for (size_t i = 0; i < take; i++)
            json_array_append(rest, json_array_get(out, from + i));
        bool same = same_answer(&a, rest, 0, line);
        json_decref(rest);
        if (!same)
            return false;
        from += a.count;
        at = end;
    }
    return is(json_object_get(in, "finish"), nib_span_of(finishes[a.finish], strlen(finishes[a.finish])));
}

START_TEST(equal_to_openai_harmony)
{
    const struct nib_tokenizer *tok = fixture_o200k("20b", UINT32_MAX);
    const char *path = getenv("NIB_HARMONY_PARSE");
    size_t bytes, cases = 0, differing = 0;
    char *text = (char *)fixture_file(path ? path : "tests/vectors/harmony_parse.jsonl", &bytes);
    for (char *line = text, *end; line < text + bytes; line = end + 1) {
        json_error_t error;
        end = memchr(line, '\n', (size_t)(text + bytes - line));
        ck_assert(end != NULL);
        json_t *in = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, &error);
        ck_assert_msg(in != NULL, "line %zu: %s", cases + 1, error.text);
        differing += !same_turns(tok, in, ++cases);
        json_decref(in);
    }
    printf("parse: %zu answers, %zu differ\n", cases, differing);
    ck_assert_uint_eq(differing, 0);
    ck_assert_uint_ge(cases, 300);
    free(text);
}
END_TEST

/* ---- what models write besides ---- */

/* Ids of a text in which <|name|> stands for the special token. */
static size_t ids_of(const struct nib_tokenizer *tok, const char *text, uint32_t *ids, size_t ids_max)
{
    size_t n = 0;
    while (*text) {
        const char *mark = strstr(text, "<|");
        size_t plain = mark ? (size_t)(mark - text) : strlen(text);
        n += fixture_encode(tok, text, plain, ids + n, ids_max - n);
        text += plain;
        for (uint32_t d = 0; mark && d < NIB_SPECIAL_SPAN; d++) {
            const char *name = nib_special_name(d);
            if (name && strncmp(text, name, strlen(name)) == 0) {
                ids[n++] = nib_tokenizer_special(tok, (enum nib_special)d);
                text += strlen(name);
                break;
            }
        }
    }
    return n;
}

/* The answer on one line: kind/channel(name):text, joined by "; ", and the finish reason. */
static void print_answer(const struct answer *a, char *out, size_t out_bytes)
{
    size_t len = 0;
    for (size_t i = 0; i < a->count; i++) {
        const struct message *m = &a->messages[i];
        len += (size_t)snprintf(out + len, out_bytes - len, "%s/%s(%.*s):%.*s; ", kinds[m->kind], channels[m->channel],
                                (int)m->name.len, m->name.ptr, (int)m->text.len, m->text.ptr);
        ck_assert_uint_lt(len, out_bytes);
    }
    snprintf(out + len, out_bytes - len, "%s", finishes[a->finish]);
}

#define A "<|channel|>analysis<|message|>"
#define F "<|channel|>final<|message|>"
#define C "<|channel|>commentary"
#define S "<|end|><|start|>assistant"

static const struct {
    const char *tokens;
    const char *answer;
} oddities[] = {
    /* whole turns */
    {A "think" S F "yes<|return|>", "reasoning/analysis():think; content/final():yes; stop"},
    {C "<|message|>I will look." S C " to=functions.f <|constrain|>json<|message|>{}<|call|>",
     "content/commentary():I will look.; call/commentary(f):{}; tool_calls"},
    {C " to=functions.f json<|message|>{}" S C " to=functions.g json<|message|>[1]<|call|>",
     "call/commentary(f):{}; call/commentary(g):[1]; tool_calls"},
    {C " to=functions.f json<|message|>{}<|end|>", "call/commentary(f):{}; length"},
    {A "to=python code" S "<|channel|>analysis to=python code<|message|>1+1<|call|>",
     "reasoning/analysis():to=python code; call/analysis(python):1+1; tool_calls"},
    {F "a<|endoftext|>", "content/final():a; stop"},
    {F "a<|call|>", "content/final():a; stop"},
    {F "a<|return|>" F "b", "content/final():a; stop"},
    {F "cut", "content/final():cut; length"},
    {"", "length"},
    {"<|return|>", "stop"},
    /* no channel, other channels */
    {"<|message|>plain<|return|>", "content/none():plain; stop"},
    {"<|channel|>––commentary to=functions.f<|message|>{}<|call|>", "call/commentary(f):{}; tool_calls"},
    {"<|channel|>thoughts<|message|>x<|return|>", "content/none():x; stop"},
    {"<|channel|> final<|message|>x<|return|>", "content/final():x; stop"},
    {"<|channel|><|message|>x<|return|>", "content/none():x; stop"},
    {"<|channel|>analysis<|channel|>final<|message|>x<|return|>", "content/final():x; stop"},
    /* recipients */
    {C " to=functions.<|message|>{}<|call|>", "call/commentary(functions.):{}; tool_calls"},
    {C " to=<|message|>x<|return|>", "content/commentary():x; stop"},
    {C " to=all<|message|>x<|return|>", "content/commentary():x; stop"},
    {C " to=browser.search code<|message|>{}<|call|>", "call/commentary(browser.search):{}; tool_calls"},
    {C " some words to=functions.f json<|message|>{}<|call|>", "call/commentary(f):{}; tool_calls"},
    {C " json<|message|>x<|return|>", "content/commentary():x; stop"},
    {"<|channel|>final <|constrain|>json<|message|>{}<|return|>", "content/final():{}; stop"},
    {"<|channel|>final<|constrain|> json<|message|>{}<|return|>", "content/final():{}; stop"},
    {C " to=functions.f<|constrain|><|message|>{}<|call|>", "call/commentary(f):{}; tool_calls"},
    /* <|message|> forgotten */
    {"I must refuse<|end|><|start|>assistant" F "Sorry.<|return|>",
     "content/none():I must refuse; content/final():Sorry.; stop"},
    {"<|channel|>analysis I must refuse<|return|>", "reasoning/analysis():I must refuse; stop"},
    {"Hello<|return|>", "content/none():Hello; stop"},
    {"Hello there, how are you", "content/none():Hello there, how are you; length"},
    {"<|channel|>final Hello<|return|>", "content/final():Hello; stop"},
    {C " to=functions.f {\"a\": 1}<|call|>", "call/commentary(f):{\"a\": 1}; tool_calls"},
    {C " to=functions.f json {\"a\": 1}<|call|>", "call/commentary(f):{\"a\": 1}; tool_calls"},
    {C " to=functions.f <|constrain|>json{}<|call|>", "call/commentary(f):; tool_calls"},
    {C " to=functions.f<|call|>", "call/commentary(f):; tool_calls"},
    {"<|channel|>analysis hm<|channel|>final<|message|>x<|return|>",
     "reasoning/analysis():hm; content/final():x; stop"},
    /* a header that was cut is not text */
    {"<|channel|>comment", "length"},
    {" to", "length"},
    {" to=functions.f", "length"},
    {C " js", "length"},
    {"Hel", "content/none():Hel; length"},
    /* <|end|> or <|start|> forgotten */
    {A "a<|start|>assistant" F "b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a" F "b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a<|end|>assistant" F "b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a<|end|>" F "b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a<|end|><|message|>b<|return|>", "reasoning/analysis():a; content/none():b; stop"},
    {"<|start|>assistant" F "b<|return|>", "content/final():b; stop"},
    {A "a<|end|><|start|>" F "b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a<|end|><|start|>assistantfinal<|message|>b<|return|>", "reasoning/analysis():a; content/none():b; stop"},
    {A "a<|end|><|start|>final<|message|>b<|return|>", "reasoning/analysis():a; content/final():b; stop"},
    {A "a<|end|><|start|>commentary to=functions.f<|message|>b<|call|>",
     "reasoning/analysis():a; call/commentary(f):b; tool_calls"},
    /* special tokens where they have no meaning */
    {F "a<|message|>b<|constrain|>c<|startoftext|>d<|return|>", "content/final():abcd; stop"},
    {F "a<|end|><|end|><|end|><|return|>", "content/final():a; stop"},
    /* words of another role end the turn */
    {C " to=functions.f json<|message|>{}<|end|><|start|>functions.f to=assistant" C "<|message|>42<|end|>",
     "call/commentary(f):{}; tool_calls"},
    {F "a<|end|><|start|>user<|message|>more<|end|>", "content/final():a; stop"},
    {F "a<|end|><|start|>user more words without an end<|end|>", "content/final():a; stop"},
};

START_TEST(oddities_of_models)
{
    static struct answer a;
    const struct nib_tokenizer *tok = fixture_o200k("20b", UINT32_MAX);
    for (size_t i = 0; i < sizeof oddities / sizeof oddities[0]; i++) {
        uint32_t ids[256];
        char got[1024];
        read_answer(&a, tok, ids, ids_of(tok, oddities[i].tokens, ids, 256), true);
        print_answer(&a, got, sizeof got);
        ck_assert_msg(strcmp(got, oddities[i].answer) == 0, "%s\n  gives %s\n  not   %s", oddities[i].tokens, got,
                      oddities[i].answer);
    }
    printf("oddities: %zu\n", sizeof oddities / sizeof oddities[0]);
}
END_TEST

/* ---- a small vocabulary whose tokens the tests choose ---- */

static const char *const pieces[] = {"assistant", "final",  "analysis", "commentary", " to=functions.f", " json",
                                     " to=",      "user",   "\xe2\x82", "\xac",       "hello",           " world",
                                     "\n",        "python", "–",        "\xf0\x9f",   " {\"a\": 1}",     "functions.f"};
#define PIECES (sizeof pieces / sizeof pieces[0])

/* 256 bytes, then the pieces; the specials of the smallest shape. */
static const struct nib_tokenizer *piece_tokenizer(void)
{
    static uint8_t bytes[256];
    static struct nib_vocab_token tokens[256 + PIECES];
    struct nib_msg msg = {""};
    size_t blob_bytes = 0;
    uint32_t n = 256;
    for (uint32_t i = 0; i < 256; i++) {
        bytes[i] = (uint8_t)i;
        tokens[i] = (struct nib_vocab_token){&bytes[i], 1};
    }
    for (size_t i = 0; i < PIECES; i++)
        if (strlen(pieces[i]) > 1)
            tokens[n++] = (struct nib_vocab_token){(const uint8_t *)pieces[i], (uint32_t)strlen(pieces[i])};
    struct nib_vocab_src src = {.tokens = tokens, .ordinary = n, .vocab = 512, .special_base = 400};
    uint8_t *blob = fixture_memory(nib_vocab_build_bytes(&src));
    ck_assert_msg(!nib_vocab_build(&src, blob, nib_vocab_build_bytes(&src), &blob_bytes, &msg), "%s", msg.text);
    return fixture_open(blob, blob_bytes);
}

static uint32_t piece_id(const struct nib_tokenizer *tok, const char *piece)
{
    for (uint32_t id = 0; id < 400; id++) {
        const uint8_t *bytes;
        size_t len = nib_tokenizer_decode(tok, id, &bytes);
        if (len == strlen(piece) && memcmp(bytes, piece, len) == 0)
            return id;
    }
    ck_abort_msg("no token %s", piece);
    return 0;
}

static bool ends_with(struct nib_span text, struct nib_span end)
{
    return text.len >= end.len && nib_span_eq(nib_span_of(text.ptr + text.len - end.len, end.len), end);
}

/* Every content between <|message|> and the next token that ends it, as the parser must give it: an independent, much
 * simpler reading of the tokens. Where the header may have had too many words, and so became text already, the content
 * is the end of that text. */
static void check_contents(const struct answer *a, const struct nib_tokenizer *tok, const uint32_t *ids, size_t n)
{
    static char want[TEXT_MAX];
    size_t m = 0, header_tokens = 0;
    bool started = false;
    for (size_t i = 0; i < n;) {
        enum nib_special s;
        bool special = nib_tokenizer_is_special(tok, ids[i++], &s);
        started |= special && s == NIB_TOK_START;
        header_tokens = special && s == NIB_TOK_START ? 0 : header_tokens + !special;
        if (special && (s == NIB_TOK_RETURN || s == NIB_TOK_CALL || s == NIB_TOK_ENDOFTEXT))
            return;
        if (!special || s != NIB_TOK_MESSAGE)
            continue;
        struct nib_utf8_stream utf8 = {{0}, 0};
        size_t len = 0;
        for (; i < n; i++) {
            const uint8_t *bytes;
            if (nib_tokenizer_is_special(tok, ids[i], &s)) {
                if (s != NIB_TOK_MESSAGE && s != NIB_TOK_CONSTRAIN && s != NIB_TOK_STARTOFTEXT)
                    break;
                continue;
            }
            size_t count = nib_tokenizer_decode(tok, ids[i], &bytes);
            len += nib_utf8_push(&utf8, bytes, count, want + len);
        }
        len += nib_utf8_flush(&utf8, want + len);
        struct nib_span w = nib_span_of(want, len);
        bool loose = header_tokens >= 2;
        header_tokens = 0;
        while (m < a->count && !(loose ? ends_with(a->messages[m].text, w) : nib_span_eq(a->messages[m].text, w)))
            m++;
        if (m == a->count) { /* only words for another role are not given, and end the turn */
            ck_assert(started);
            ck_assert_int_ne(a->finish, NIB_TURN_LENGTH);
            return;
        }
        m++;
    }
}

static void check_no_markup(const struct answer *a)
{
    must(memmem(a->text, a->len, "<|", 2) == NULL);
}

static const enum nib_special structure[] = {NIB_TOK_START,  NIB_TOK_END,  NIB_TOK_MESSAGE,   NIB_TOK_CHANNEL,
                                             NIB_TOK_RETURN, NIB_TOK_CALL, NIB_TOK_ENDOFTEXT, NIB_TOK_CONSTRAIN};
#define STRUCTURE (sizeof structure / sizeof structure[0])

static const char *const triples[][3] = {{"final", " to=functions.f", "hello"},
                                         {"assistant", "analysis", " json"},
                                         {"\xe2\x82", "\xac", " world"},
                                         {"user", " to=", "python"}};

/* All sequences of up to five tokens over the structure and three ordinary ones. */
START_TEST(every_short_sequence)
{
    static struct answer a;
    const struct nib_tokenizer *tok = piece_tokenizer();
    size_t tried = 0;
    for (size_t t = 0; t < sizeof triples / sizeof triples[0]; t++) {
        uint32_t alphabet[STRUCTURE + 3], ids[5];
        for (size_t i = 0; i < STRUCTURE; i++)
            alphabet[i] = nib_tokenizer_special(tok, structure[i]);
        for (size_t i = 0; i < 3; i++)
            alphabet[STRUCTURE + i] = piece_id(tok, triples[t][i]);
        for (size_t len = 0, all = 1; len <= 5; len++, all *= STRUCTURE + 3)
            for (size_t code = 0; code < all; code++, tried++) {
                for (size_t i = 0, rest = code; i < len; i++, rest /= STRUCTURE + 3)
                    ids[i] = alphabet[rest % (STRUCTURE + 3)];
                read_answer(&a, tok, ids, len, true);
                check_contents(&a, tok, ids, len);
                check_no_markup(&a);
            }
    }
    printf("short sequences: %zu\n", tried);
    ck_assert_uint_eq(tried, 4 * (1 + 11 + 121 + 1331 + 14641 + 161051));
}
END_TEST

/* A token of the kind found in answers, or any id at all. */
static uint32_t random_id(const struct nib_tokenizer *tok, uint64_t *state)
{
    static const uint32_t odd[] = {300, 399, 402, 403, 411, 511, 512, 100000, UINT32_MAX};
    uint64_t r = nib_test_rand(state);
    uint64_t kind = r % 100, pick = r >> 8;
    if (kind < 35) /* ends of turns are rare, so that sequences stay alive */
        return nib_tokenizer_special(tok, structure[pick % (kind < 1 ? STRUCTURE : 4)]);
    if (kind < 38)
        return nib_tokenizer_special(tok, NIB_TOK_CONSTRAIN);
    if (kind < 40)
        return odd[pick % (sizeof odd / sizeof odd[0])];
    return 256 + (uint32_t)(pick % (PIECES - 1)); /* one piece is a single byte */
}

/* The same bytes as one token a byte. */
static size_t to_bytes(const struct nib_tokenizer *tok, const uint32_t *ids, size_t n, uint32_t *out)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *bytes;
        size_t len = nib_tokenizer_decode(tok, ids[i], &bytes);
        for (size_t k = 0; k < len; k++)
            out[count++] = bytes[k];
        if (len == 0)
            out[count++] = ids[i];
    }
    return count;
}

static bool equal_answers(const struct answer *a, const struct answer *b)
{
    bool equal =
        a->count == b->count && a->finish == b->finish && a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
    for (size_t i = 0; equal && i < a->count; i++)
        equal = a->messages[i].kind == b->messages[i].kind && a->messages[i].channel == b->messages[i].channel &&
                a->messages[i].name.len == b->messages[i].name.len &&
                a->messages[i].text.len == b->messages[i].text.len;
    return equal;
}

START_TEST(many_long_sequences)
{
    static struct answer a, b;
    static uint32_t ids[200], bytes[200 * NIB_MAX_TOKEN_BYTES];
    const struct nib_tokenizer *tok = piece_tokenizer();
    const char *wanted = getenv("NIB_HARMONY_SEQUENCES");
    size_t sequences = wanted ? strtoull(wanted, NULL, 10) : 20000, messages = 0, calls = 0, tokens = 0;
    uint64_t state = nib_test_seed();
    for (size_t i = 0; i < sequences; i++) {
        size_t n = 20 + nib_test_rand(&state) % 181;
        bool cut = nib_test_rand(&state) % 2;
        for (size_t k = 0; k < n; k++)
            ids[k] = random_id(tok, &state);
        read_answer(&a, tok, ids, n, cut);
        if (cut)
            check_contents(&a, tok, ids, n);
        check_no_markup(&a);
        read_answer(&b, tok, bytes, to_bytes(tok, ids, n, bytes), cut);
        if (!equal_answers(&a, &b))
            ck_abort_msg("sequence %zu reads otherwise byte by byte", i);
        messages += a.count;
        calls += a.calls;
        tokens += n;
    }
    printf("long sequences: %zu, %zu tokens, %zu messages, %zu calls\n", sequences, tokens, messages, calls);
    ck_assert_uint_gt(messages, sequences);
    ck_assert_uint_gt(calls, sequences / 50);
}
END_TEST

START_TEST(long_headers_become_text)
{
    static struct answer a;
    static uint32_t ids[3000];
    const struct nib_tokenizer *tok = piece_tokenizer();
    for (size_t words = 1; words <= 40; words++)
        for (size_t len = 1; len < 1500; len += 97) {
            size_t n = 0;
            for (size_t i = 0; i < len; i++) /* words of len / words bytes */
                ids[n++] = i % (len / words + 1) == len / words ? ' ' : 'x';
            read_answer(&a, tok, ids, n, false);
            size_t spaces = ids[0] == ' ';
            ck_assert_uint_eq(a.count, spaces == n ? 0 : 1);
            if (a.count == 1)
                ck_assert_uint_eq(a.messages[0].text.len, n - spaces);
        }
    for (size_t i = 0; i < 600; i++) /* marks alone never fill a header up */
        ids[i] = nib_tokenizer_special(tok, i % 2 ? NIB_TOK_CHANNEL : NIB_TOK_CONSTRAIN);
    ids[600] = nib_tokenizer_special(tok, NIB_TOK_MESSAGE);
    ids[601] = 'y';
    read_answer(&a, tok, ids, 602, true);
    ck_assert_uint_eq(a.count, 1);
    ck_assert_uint_eq(a.messages[0].text.len, 1);
}
END_TEST

START_TEST(long_recipient_is_cut)
{
    static struct answer a;
    static uint32_t ids[600];
    const struct nib_tokenizer *tok = piece_tokenizer();
    size_t n = 0;
    ids[n++] = piece_id(tok, " to=");
    for (size_t i = 0; i < 90; i++) {
        ids[n++] = 0xc3; /* two bytes a character: the cut must not part them */
        ids[n++] = 0xa9;
    }
    ids[n++] = nib_tokenizer_special(tok, NIB_TOK_MESSAGE);
    read_answer(&a, tok, ids, n, false);
    ck_assert_uint_eq(a.calls, 1);
    ck_assert_uint_eq(a.messages[0].name.len, NIB_MAX_RECIPIENT_BYTES);
    ck_assert_int_eq(a.finish, NIB_TURN_TOOL_CALLS);
}
END_TEST

NIB_SUITE(harmony_parse, equal_to_openai_harmony, oddities_of_models, every_short_sequence, many_long_sequences,
          long_headers_become_text, long_recipient_is_cut)
