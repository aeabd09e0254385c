/* core/harmony_header.c: owns the reading of one message header.
 *
 * One pass over at most NIB_HARMONY_HEADER_BYTES. Any thread. Cannot fail. */
#include "core/harmony_header.h"

#include "core/utf8.h"

/* A recipient and a content type; more words before any "to=" are a text. */
#define HEADER_WORDS_MAX 2u

/* A piece of the header: a word, or a channel name. */
struct word {
    struct nib_span text;
    bool channel;     /* the value of a <|channel|> */
    bool constrained; /* stood right after <|constrain|> */
};

static bool ascii_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r';
}

static bool is_mark(char c)
{
    return c == NIB_MARK_CHANNEL || c == NIB_MARK_CONSTRAIN;
}

/* Bytes of the Unicode White_Space character at p, 0 if there is none. */
static size_t space_bytes(const char *p, const char *end)
{
    if (is_mark(*p))
        return 0;
    size_t len;
    uint32_t c = nib_utf8_decode((const uint8_t *)p, &len);
    bool space = (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
                 (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
                 c == 0x3000;
    return space && len <= (size_t)(end - p) ? len : 0;
}

/* A channel name ends at any white space, at '<' and at a mark; another word at ASCII white space or a mark. */
static const char *word_end(const char *p, const char *end, bool channel)
{
    while (p < end && !is_mark(*p)) {
        if (channel ? *p == '<' || space_bytes(p, end) > 0 : ascii_space(*p))
            break;
        p += nib_utf8_len((uint8_t)*p);
    }
    return p;
}

/* The next word from *at on; false when there is none. */
static bool next_word(const char **at, const char *end, struct word *ret)
{
    const char *p = *at;
    *ret = (struct word){0};
    while (p < end && (is_mark(*p) || space_bytes(p, end) > 0)) {
        if (is_mark(*p)) {
            ret->channel = *p == NIB_MARK_CHANNEL;
            ret->constrained = *p == NIB_MARK_CONSTRAIN;
        }
        p += is_mark(*p) ? 1 : space_bytes(p, end);
    }
    if (p == end)
        return false;
    if (*p == '<' || nib_span_starts(nib_span_of(p, (size_t)(end - p)), NIB_SPAN("to=")))
        ret->channel = false;
    *at = word_end(p, end, ret->channel);
    ret->text = nib_span_of(p, (size_t)(*at - p));
    return true;
}

/* Length without white space at the end. */
static size_t trimmed(const char *bytes, size_t len)
{
    size_t last = 0;
    for (size_t at = 0; at < len;) {
        size_t space = space_bytes(bytes + at, bytes + len);
        at += space > 0 ? space : is_mark(bytes[at]) ? 1 : nib_utf8_len((uint8_t)bytes[at]);
        if (space == 0)
            last = at;
    }
    return last;
}

/* The words of a header that are not its channel, as far as the rules look at them. */
struct words {
    struct word first; /* only until the role is known */
    struct word prev;
    struct word last;
    struct nib_span to; /* last one with "to=", without that */
    size_t to_end;      /* offset past it */
    struct word type;   /* last one without "to=" */
    struct word after;  /* the one that follows `to` */
    size_t after_end;   /* offset past it; 0: there is none */
    size_t count;
    size_t lead; /* of them before the first "to=" or constrained one */
};

static bool has_to(struct nib_span word)
{
    return nib_span_starts(word, NIB_SPAN("to="));
}

static bool is_channel(struct nib_span word)
{
    return nib_span_eq(word, NIB_SPAN("analysis")) || nib_span_eq(word, NIB_SPAN("commentary")) ||
           nib_span_eq(word, NIB_SPAN("final"));
}

/* Takes the word for the role if it is one. False: it belongs to the rest of the header. */
static bool take_role(struct nib_span word, bool role_given, struct nib_harmony_header *ret)
{
    static const struct nib_span others[] = {NIB_SPAN_INIT("user"), NIB_SPAN_INIT("system"), NIB_SPAN_INIT("developer"),
                                             NIB_SPAN_INIT("tool")};
    if (role_given)
        return nib_span_eq(word, NIB_SPAN("assistant"));
    if (has_to(word))
        return false;
    if (nib_span_starts(word, NIB_SPAN("assistant")))
        return true;
    if (is_channel(word)) {
        ret->channel = word;
        return true;
    }
    ret->role_unknown = true;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (nib_span_eq(word, others[i])) {
            ret->foreign = true;
            ret->role_unknown = false;
        }
    return true;
}

static void add_word(struct words *w, const struct word *word, size_t end)
{
    w->prev = w->last;
    w->last = *word;
    if (!w->to.ptr && !has_to(word->text) && !word->constrained && w->lead == w->count)
        w->lead++;
    if (!has_to(word->text)) {
        if (w->to.ptr && w->after_end == 0) {
            w->after = *word;
            w->after_end = end;
        }
        w->type = *word;
    } else if (!w->to.ptr) {
        w->to = nib_span_of(word->text.ptr + 3, word->text.len - 3);
        w->to_end = end;
    }
    w->count++;
}

/* A word without "to=" is a recipient only when it names a tool that a prompt can offer. */
static bool names_tool(struct nib_span word)
{
    return nib_span_starts(word, NIB_SPAN("functions.")) || nib_span_starts(word, NIB_SPAN("browser.")) ||
           nib_span_eq(word, NIB_SPAN("python"));
}

static bool names_type(const struct word *word)
{
    return word->constrained || nib_span_eq(word->text, NIB_SPAN("json")) || nib_span_eq(word->text, NIB_SPAN("code"));
}

static void take_words(const struct words *w, struct nib_harmony_header *ret)
{
    const struct word *bare = w->count == 1 ? &w->last : &w->prev;
    if (w->to.ptr) {
        ret->recipient = w->to;
        ret->content_type = w->type.text;
        ret->text_at = w->after_end > 0 && names_type(&w->after) ? w->after_end : w->to_end;
    } else if (w->count > 0) {
        bool tool = !bare->constrained && names_tool(bare->text);
        if (tool)
            ret->recipient = bare->text;
        if (w->count > 1 || !tool)
            ret->content_type = w->last.text;
    }
}

void nib_harmony_header_parse(const char *bytes, size_t len, bool role_given, struct nib_harmony_header *ret)
{
    const char *at = bytes, *end = bytes + trimmed(bytes, len);
    struct words w = {0};
    struct word word;
    bool first = true;
    *ret = (struct nib_harmony_header){0};
    while (next_word(&at, end, &word)) {
        if (word.channel) {
            ret->channel = word.text;
        } else if (first && take_role(word.text, role_given, ret)) {
            ret->text_at = (size_t)(at - bytes);
            first = false;
        } else {
            add_word(&w, &word, (size_t)(at - bytes));
            first = false;
        }
    }
    ret->words = w.count;
    ret->constrain = memchr(bytes, NIB_MARK_CONSTRAIN, len) != NULL;
    ret->foreign |= ret->role_unknown && w.count > 0;
    bool last_whole = w.lead < w.count || at < bytes + len;
    ret->is_text = w.lead > (last_whole ? HEADER_WORDS_MAX : HEADER_WORDS_MAX + 1);
    if (!ret->is_text)
        take_words(&w, ret);
}

size_t nib_harmony_header_text(const char *bytes, size_t from, size_t len, char *out)
{
    const char *p = bytes + from, *end = bytes + len;
    size_t n = 0;
    while (p < end) {
        struct word word;
        const char *after = p;
        if (is_mark(*p) && next_word(&after, end, &word) && (word.channel || word.constrained)) {
            p = after;
        } else {
            if (!is_mark(*p) && !(n == 0 && ascii_space(*p)))
                out[n++] = *p;
            p++;
        }
    }
    return n;
}

static bool contains(struct nib_span text, struct nib_span part)
{
    return text.len >= part.len && memmem(text.ptr, text.len, part.ptr, part.len) != NULL;
}

enum nib_harmony_channel nib_harmony_channel_of(struct nib_span name)
{
    if (contains(name, NIB_SPAN("analysis")))
        return NIB_CHANNEL_ANALYSIS;
    if (contains(name, NIB_SPAN("commentary")))
        return NIB_CHANNEL_COMMENTARY;
    return contains(name, NIB_SPAN("final")) ? NIB_CHANNEL_FINAL : NIB_CHANNEL_NONE;
}
