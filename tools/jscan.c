/* tools/jscan.c: owns nothing; scans JSON in the caller's memory. Limits: NIB_MAX_JSON_DEPTH.
 * Any thread. Fails by giving NIB_J_BAD for ever. */
#include "tools/jscan.h"

#include <string.h>

/* what may come next */
enum {
    WANT_VALUE,        /* a value */
    WANT_VALUE_OR_END, /* a value or ], just after [ */
    WANT_KEY_OR_END,   /* a key or }, just after { */
    WANT_COMMA_OR_END, /* after a value inside an object or array */
    WANT_NOTHING,      /* after the outermost value */
    WANT_BAD,          /* an error was found */
};

void nib_jscan_init(struct nib_jscan *scan, const char *bytes, size_t count)
{
    *scan = (struct nib_jscan){.at = bytes, .end = bytes + count, .state = WANT_VALUE};
}

static enum nib_jevent bad(struct nib_jscan *scan)
{
    scan->state = WANT_BAD;
    scan->at = scan->end;
    return NIB_J_BAD;
}

static void skip_space(struct nib_jscan *scan)
{
    while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\t' || *scan->at == '\n' || *scan->at == '\r'))
        scan->at++;
}

static void value_ended(struct nib_jscan *scan)
{
    scan->state = scan->depth == 0 ? WANT_NOTHING : WANT_COMMA_OR_END;
}

/* At the opening quote. Leaves text on the raw bytes and at past the closing quote. */
static bool scan_string(struct nib_jscan *scan)
{
    const char *start = ++scan->at;
    for (; scan->at < scan->end; scan->at++) {
        unsigned char c = (unsigned char)*scan->at;
        if (c == '"') {
            scan->text = start;
            scan->text_bytes = (size_t)(scan->at - start);
            scan->at++;
            return true;
        }
        if (c < 0x20)
            return false;
        if (c == '\\' && ++scan->at == scan->end)
            return false;
    }
    return false;
}

static size_t digits(struct nib_jscan *scan)
{
    const char *start = scan->at;
    while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
        scan->at++;
    return (size_t)(scan->at - start);
}

static bool at_is(const struct nib_jscan *scan, char c)
{
    return scan->at < scan->end && *scan->at == c;
}

static bool scan_number(struct nib_jscan *scan)
{
    const char *start = scan->at;
    if (at_is(scan, '-'))
        scan->at++;
    bool zero = at_is(scan, '0');
    size_t whole = digits(scan);
    if (whole == 0 || (zero && whole > 1))
        return false;
    if (at_is(scan, '.')) {
        scan->at++;
        if (digits(scan) == 0)
            return false;
    }
    if (at_is(scan, 'e') || at_is(scan, 'E')) {
        scan->at++;
        if (at_is(scan, '+') || at_is(scan, '-'))
            scan->at++;
        if (digits(scan) == 0)
            return false;
    }
    scan->text = start;
    scan->text_bytes = (size_t)(scan->at - start);
    return true;
}

static enum nib_jevent scan_word(struct nib_jscan *scan, const char *word, enum nib_jevent event)
{
    size_t bytes = strlen(word);
    if ((size_t)(scan->end - scan->at) < bytes || memcmp(scan->at, word, bytes) != 0)
        return bad(scan);
    scan->at += bytes;
    value_ended(scan);
    return event;
}

static enum nib_jevent open_nest(struct nib_jscan *scan, bool is_object)
{
    if (scan->depth == NIB_MAX_JSON_DEPTH)
        return bad(scan);
    scan->at++;
    scan->is_object[scan->depth++] = is_object;
    scan->state = is_object ? WANT_KEY_OR_END : WANT_VALUE_OR_END;
    return is_object ? NIB_J_OBJECT : NIB_J_ARRAY;
}

static enum nib_jevent close_nest(struct nib_jscan *scan, bool is_object)
{
    if (scan->depth == 0 || scan->is_object[scan->depth - 1] != is_object)
        return bad(scan);
    scan->at++;
    scan->depth--;
    value_ended(scan);
    return is_object ? NIB_J_OBJECT_END : NIB_J_ARRAY_END;
}

static enum nib_jevent scan_value(struct nib_jscan *scan)
{
    switch (*scan->at) {
    case '{':
        return open_nest(scan, true);
    case '[':
        return open_nest(scan, false);
    case '"':
        if (!scan_string(scan))
            return bad(scan);
        value_ended(scan);
        return NIB_J_STRING;
    case 't':
        return scan_word(scan, "true", NIB_J_TRUE);
    case 'f':
        return scan_word(scan, "false", NIB_J_FALSE);
    case 'n':
        return scan_word(scan, "null", NIB_J_NULL);
    default:
        if (!scan_number(scan))
            return bad(scan);
        value_ended(scan);
        return NIB_J_NUMBER;
    }
}

static enum nib_jevent scan_key(struct nib_jscan *scan)
{
    if (!at_is(scan, '"') || !scan_string(scan))
        return bad(scan);
    skip_space(scan);
    if (!at_is(scan, ':'))
        return bad(scan);
    scan->at++;
    scan->state = WANT_VALUE;
    return NIB_J_KEY;
}

enum nib_jevent nib_jscan_next(struct nib_jscan *scan)
{
    if (scan->state == WANT_BAD)
        return NIB_J_BAD;
    skip_space(scan);
    if (scan->at == scan->end)
        return scan->state == WANT_NOTHING ? NIB_J_DONE : bad(scan);
    switch (scan->state) {
    case WANT_NOTHING:
        return bad(scan);
    case WANT_KEY_OR_END:
        return *scan->at == '}' ? close_nest(scan, true) : scan_key(scan);
    case WANT_VALUE_OR_END:
        return *scan->at == ']' ? close_nest(scan, false) : scan_value(scan);
    case WANT_VALUE:
        return scan_value(scan);
    default:
        break;
    }
    bool in_object = scan->is_object[scan->depth - 1];
    if (*scan->at == (in_object ? '}' : ']'))
        return close_nest(scan, in_object);
    if (*scan->at != ',')
        return bad(scan);
    scan->at++;
    skip_space(scan);
    if (scan->at == scan->end)
        return bad(scan);
    return in_object ? scan_key(scan) : scan_value(scan);
}

bool nib_jscan_skip(struct nib_jscan *scan, enum nib_jevent event)
{
    if (event == NIB_J_BAD)
        return false;
    if (event != NIB_J_OBJECT && event != NIB_J_ARRAY)
        return true;
    unsigned outside = scan->depth - 1;
    while (scan->depth > outside)
        if (nib_jscan_next(scan) == NIB_J_BAD)
            return false;
    return true;
}

bool nib_jscan_is(const struct nib_jscan *scan, const char *text)
{
    return strlen(text) == scan->text_bytes && memcmp(text, scan->text, scan->text_bytes) == 0;
}

bool nib_jscan_u64(const struct nib_jscan *scan, uint64_t *ret)
{
    uint64_t value = 0;
    for (size_t i = 0; i < scan->text_bytes; i++) {
        char c = scan->text[i];
        if (c < '0' || c > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(c - '0'), &value))
            return false;
    }
    *ret = value;
    return scan->text_bytes > 0;
}

static bool hex4(const char *at, const char *end, uint32_t *ret)
{
    if (end - at < 4)
        return false;
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        uint32_t d;
        if (c >= '0' && c <= '9')
            d = (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            d = (uint32_t)((c | 32) - 'a') + 10;
        else
            return false;
        value = value << 4 | d;
    }
    *ret = value;
    return true;
}

/* Bytes of the UTF-8 sequence at `at`, or 0 when it is not one (Unicode 15, table 3-7). */
static size_t utf8_length(const unsigned char *at, const unsigned char *end)
{
    size_t left = (size_t)(end - at);
    if (at[0] < 0x80)
        return 1;
    size_t need = at[0] >= 0xC2 && at[0] < 0xE0   ? 2
                  : at[0] >= 0xE0 && at[0] < 0xF0 ? 3
                  : at[0] >= 0xF0 && at[0] < 0xF5 ? 4
                                                  : 0;
    if (need == 0 || left < need)
        return 0;
    for (size_t i = 1; i < need; i++)
        if ((at[i] & 0xC0) != 0x80)
            return 0;
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F) || (at[0] == 0xF0 && at[1] < 0x90) ||
        (at[0] == 0xF4 && at[1] > 0x8F))
        return 0;
    return need;
}

static size_t utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 63));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 63));
        out[2] = (char)(0x80 | (cp & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 63));
    out[2] = (char)(0x80 | (cp >> 6 & 63));
    out[3] = (char)(0x80 | (cp & 63));
    return 4;
}

/* At the byte after a backslash. Gives the code point and moves past the escape. */
static bool unescape(const char **at, const char *end, uint32_t *ret_cp)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *(*at)++;
    const char *hit = c ? strchr(from, c) : NULL;
    if (hit) {
        *ret_cp = (uint32_t)to[hit - from];
        return true;
    }
    uint32_t hi, lo;
    if (c != 'u' || !hex4(*at, end, &hi))
        return false;
    *at += 4;
    if (hi >= 0xDC00 && hi < 0xE000)
        return false;
    if (hi < 0xD800 || hi > 0xDBFF) {
        *ret_cp = hi;
        return true;
    }
    if (end - *at < 6 || (*at)[0] != '\\' || (*at)[1] != 'u' || !hex4(*at + 2, end, &lo) || lo < 0xDC00 || lo > 0xDFFF)
        return false;
    *at += 6;
    *ret_cp = 0x10000 + ((hi - 0xD800) << 10) + (lo - 0xDC00);
    return true;
}

bool nib_jscan_text(const struct nib_jscan *scan, char *buf, size_t cap, size_t *ret_bytes)
{
    const char *at = scan->text, *end = at + scan->text_bytes;
    size_t used = 0;
    while (at < end) {
        char piece[4];
        const char *src = at;
        size_t n;
        if (*at == '\\') {
            uint32_t cp;
            at++;
            if (at == end || !unescape(&at, end, &cp))
                return false;
            n = utf8_put(cp, piece);
            src = piece;
        } else {
            n = utf8_length((const unsigned char *)at, (const unsigned char *)end);
            if (n == 0)
                return false;
            at += n;
        }
        if (n + 1 > cap - used || used >= cap)
            return false;
        memcpy(buf + used, src, n);
        used += n;
    }
    if (used >= cap)
        return false;
    buf[used] = '\0';
    *ret_bytes = used;
    return true;
}
