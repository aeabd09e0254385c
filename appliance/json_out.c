/* appliance/json_out.c: owns nothing. Any thread. Fails only by setting `full`. */
#include "appliance/json_out.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void nib_out_raw(struct nib_out *out, const char *ptr, size_t len)
{
    if (out->full || len > out->bytes - out->used) {
        out->full = true;
        return;
    }
    if (len)
        memcpy(out->ptr + out->used, ptr, len);
    out->used += len;
}

void nib_out_text(struct nib_out *out, const char *text)
{
    nib_out_raw(out, text, strlen(text));
}

void nib_out_fmt(struct nib_out *out, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        out->full = true;
    else
        nib_out_raw(out, text, (size_t)n);
}

/* The escape of one byte; 0 = the byte as it is. */
static size_t escape(unsigned char c, char ret[7])
{
    static const char letters[] = "btn?fr";
    if (c == '"' || c == '\\') {
        ret[0] = '\\';
        ret[1] = (char)c;
        return 2;
    }
    if (c >= 0x20)
        return 0;
    if (c >= 8 && c <= 13 && c != 11) {
        ret[0] = '\\';
        ret[1] = letters[c - 8];
        return 2;
    }
    (void)snprintf(ret, 7, "\\u%04x", c);
    return 6;
}

void nib_out_escaped(struct nib_out *out, struct nib_span text)
{
    size_t from = 0;
    for (size_t i = 0; i < text.len; i++) {
        char code[7];
        size_t n = escape((unsigned char)text.ptr[i], code);
        if (n == 0)
            continue;
        nib_out_raw(out, text.ptr + from, i - from);
        nib_out_raw(out, code, n);
        from = i + 1;
    }
    if (text.len > from)
        nib_out_raw(out, text.ptr + from, text.len - from);
}

void nib_out_string(struct nib_out *out, struct nib_span text)
{
    nib_out_raw(out, "\"", 1);
    nib_out_escaped(out, text);
    nib_out_raw(out, "\"", 1);
}

size_t nib_out_escaped_bytes(struct nib_span text)
{
    size_t bytes = 0;
    for (size_t i = 0; i < text.len; i++) {
        char code[7];
        size_t n = escape((unsigned char)text.ptr[i], code);
        bytes += n ? n : 1;
    }
    return bytes;
}
