/* core/harmony_out.c: owns the bounded text writer and the JSON printer of the prompt.
 *
 * Limits: the caller's buffer; JSON nesting NIB_MAX_JSON_DEPTH. Any thread. Only nesting can fail. */
#include "core/harmony_out.h"

#include <stdio.h>

void nib_out_put(struct nib_out *out, struct nib_span text)
{
    if (out->len < out->cap && text.len > 0) {
        size_t room = out->cap - out->len;
        memcpy(out->ptr + out->len, text.ptr, text.len < room ? text.len : room);
    }
    out->len += text.len;
}

void nib_out_spaces(struct nib_out *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        nib_out_lit(out, " ");
}

bool nib_out_contains(const struct nib_out *out, size_t from, struct nib_span text)
{
    size_t end = out->len < out->cap ? out->len : out->cap;
    return from < end && memmem(out->ptr + from, end - from, text.ptr, text.len) != NULL;
}

void nib_out_lines(struct nib_out *out, struct nib_span prefix, struct nib_span text)
{
    size_t at = 0;
    while (at < text.len) {
        const char *line = text.ptr + at;
        const char *lf = memchr(line, '\n', text.len - at);
        size_t len = lf ? (size_t)(lf - line) : text.len - at;
        at += len + 1;
        if (lf && len > 0 && line[len - 1] == '\r')
            len--;
        nib_out_put(out, prefix);
        nib_out_put(out, nib_span_of(line, len));
        nib_out_lit(out, "\n");
    }
}

static void put_string(struct nib_out *out, struct nib_span text)
{
    static const char short_form[] = "btn?fr"; /* of U+0008 to U+000D */
    nib_out_lit(out, "\"");
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        char esc[8];
        if (c == '"' || c == '\\') {
            snprintf(esc, sizeof esc, "\\%c", c);
        } else if (c >= 8 && c <= 13 && c != 11) {
            snprintf(esc, sizeof esc, "\\%c", short_form[c - 8]);
        } else if (c < 0x20) {
            snprintf(esc, sizeof esc, "\\u%04x", c);
        } else {
            nib_out_put(out, nib_span_of(text.ptr + i, 1));
            continue;
        }
        nib_out_put(out, nib_span_of(esc, strlen(esc)));
    }
    nib_out_lit(out, "\"");
}

/* Shortest decimal digits that read back as `value`; *ret_exp is the power of ten of the first digit. */
static size_t shortest_digits(double value, char digits[20], int *ret_exp)
{
    char text[40];
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, value);
        if (strtod(text, NULL) == value)
            break;
    }
    size_t n = 0;
    const char *p = text;
    for (; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
    *ret_exp = atoi(p + 1);
    while (n > 1 && digits[n - 1] == '0')
        n--;
    return n;
}

/* A real as ryu's pretty form: plain between 1e-5 and 1e16, always with a point or an exponent. */
static void put_real(struct nib_out *out, double value)
{
    char digits[20], text[64];
    int exp = 0;
    if (value < 0 || (value == 0 && 1 / value < 0)) {
        nib_out_lit(out, "-");
        value = -value;
    }
    size_t n = shortest_digits(value, digits, &exp);
    size_t len = 0;
    if (exp >= -5 && exp < 0) {
        len = (size_t)snprintf(text, sizeof text, "0.%.*s%.*s", -exp - 1, "0000", (int)n, digits);
    } else if (exp >= 0 && exp < 16) {
        size_t whole = (size_t)exp + 1;
        for (size_t i = 0; i < whole; i++)
            text[len++] = i < n ? digits[i] : '0';
        text[len++] = '.';
        if (n <= whole)
            text[len++] = '0';
        for (size_t i = whole; i < n; i++)
            text[len++] = digits[i];
    } else {
        len = (size_t)snprintf(text, sizeof text, "%c%s%.*se%d", digits[0], n > 1 ? "." : "", (int)(n - 1), digits + 1,
                               exp);
    }
    nib_out_put(out, nib_span_of(text, len));
}

static void put_scalar(struct nib_out *out, const json_t *value)
{
    char text[32];
    switch (json_typeof(value)) {
    case JSON_STRING:
        put_string(out, nib_json_text(value));
        break;
    case JSON_INTEGER:
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
        nib_out_put(out, nib_span_of(text, strlen(text)));
        break;
    case JSON_REAL:
        put_real(out, json_real_value(value));
        break;
    case JSON_TRUE:
        nib_out_lit(out, "true");
        break;
    case JSON_FALSE:
        nib_out_lit(out, "false");
        break;
    default:
        nib_out_lit(out, "null");
        break;
    }
}

/* An array or object that is being printed. */
struct open_node {
    const json_t *node;
    void *iter;   /* object: next member */
    size_t index; /* array: next element; object: members printed */
};

/* The next child of `top`, after its comma and key; NULL at the end. */
static const json_t *next_child(struct nib_out *out, struct open_node *top)
{
    const json_t *child;
    if (json_is_array(top->node)) {
        child = json_array_get(top->node, top->index);
        if (child && top->index > 0)
            nib_out_lit(out, ",");
    } else {
        if (!top->iter)
            return NULL;
        if (top->index > 0)
            nib_out_lit(out, ",");
        put_string(out, nib_json_key(top->iter));
        nib_out_lit(out, ":");
        child = json_object_iter_value(top->iter);
        top->iter = nib_json_next(top->node, top->iter);
    }
    top->index++;
    return child;
}

enum nib_err nib_out_json(struct nib_out *out, const json_t *value, struct nib_msg *msg)
{
    struct open_node open[NIB_MAX_JSON_DEPTH];
    size_t depth = 0;
    const json_t *child = value;
    for (;;) {
        if (!child) {
            nib_out_put(out, json_is_array(open[depth - 1].node) ? NIB_SPAN("]") : NIB_SPAN("}"));
            depth--;
        } else if (json_is_array(child) || json_is_object(child)) {
            if (depth == NIB_MAX_JSON_DEPTH)
                return nib_fail(msg, NIB_E_LIMIT,
                                "a JSON value in a tool or response format nests deeper than the "
                                "%d levels allowed",
                                NIB_MAX_JSON_DEPTH);
            nib_out_put(out, json_is_array(child) ? NIB_SPAN("[") : NIB_SPAN("{"));
            open[depth++] =
                (struct open_node){.node = child, .iter = json_is_object(child) ? nib_json_first(child) : NULL};
        } else {
            put_scalar(out, child);
        }
        if (depth == 0)
            return NIB_OK;
        child = next_child(out, &open[depth - 1]);
    }
}
