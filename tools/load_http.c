/* tools/load_http.c: owns nothing beyond the caller's struct. Limits: NIB_LOAD_LINE_BYTES for a line of the body, 1,023
 * bytes for one of the framing. One thread. Fails with a sentence about the first byte that does not fit. */
#include "tools/load_http.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void nib_load_http_begin(struct nib_load_http *h)
{
    h->place = NIB_LOAD_AT_STATUS;
    h->status = 0;
    h->chunked = h->closes = h->length_known = false;
    h->left = 0;
    h->used = h->held = 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static enum nib_err status_line(struct nib_load_http *h, struct nib_msg *msg)
{
    const char *l = h->line;
    if (strncmp(l, "HTTP/1.", 7) != 0 || !is_digit(l[7]) || l[8] != ' ' || !is_digit(l[9]) || !is_digit(l[10]) ||
        !is_digit(l[11]))
        return nib_fail(msg, NIB_E_FORMAT, "the answer does not begin with an HTTP status line");
    h->closes = l[7] == '0';
    h->status = (uint32_t)strtoul(l + 9, NULL, 10);
    h->place = NIB_LOAD_AT_HEADER;
    return NIB_OK;
}

/* The value of a header when the line is that header, else NULL. */
static const char *value_of(const char *line, const char *name)
{
    const size_t n = strlen(name);
    if (strncasecmp(line, name, n) != 0 || line[n] != ':')
        return NULL;
    return line + n + 1 + strspn(line + n + 1, " \t");
}

static enum nib_err header_line(struct nib_load_http *h, struct nib_msg *msg)
{
    const char *value;
    if (h->line[0] == '\0') {
        if (!h->chunked && !h->length_known)
            return nib_fail(msg, NIB_E_FORMAT, "the answer has neither a length nor chunks");
        h->place = h->chunked ? NIB_LOAD_AT_SIZE : h->left ? NIB_LOAD_AT_LENGTH : NIB_LOAD_AT_END;
        return NIB_OK;
    }
    if ((value = value_of(h->line, "Transfer-Encoding")) != NULL) {
        h->chunked = strcasecmp(value, "chunked") == 0;
    } else if ((value = value_of(h->line, "Connection")) != NULL) {
        h->closes = strcasecmp(value, "close") == 0;
    } else if ((value = value_of(h->line, "Content-Length")) != NULL) {
        const size_t n = strlen(value);
        if (n == 0 || n > 15 || strspn(value, "0123456789") != n)
            return nib_fail(msg, NIB_E_FORMAT, "the answer's Content-Length is no number");
        h->left = strtoull(value, NULL, 10);
        h->length_known = true;
    }
    return NIB_OK;
}

static enum nib_err size_line(struct nib_load_http *h, struct nib_msg *msg)
{
    const size_t n = strspn(h->line, "0123456789abcdefABCDEF");
    if (n == 0 || n > 12 || (h->line[n] != '\0' && h->line[n] != ';'))
        return nib_fail(msg, NIB_E_FORMAT, "a chunk of the answer has no size");
    h->left = strtoull(h->line, NULL, 16);
    h->place = h->left ? NIB_LOAD_AT_CHUNK : NIB_LOAD_AT_TRAILER;
    return NIB_OK;
}

static void end_body(struct nib_load_http *h, nib_load_line *sink, void *arg)
{
    if (h->held)
        sink(arg, h->text, h->held);
    h->held = 0;
    h->place = NIB_LOAD_AT_END;
}

/* A whole line of the framing stands in h->line. */
static enum nib_err take_framing(struct nib_load_http *h, nib_load_line *sink, void *arg, struct nib_msg *msg)
{
    switch (h->place) {
    case NIB_LOAD_AT_STATUS:
        return status_line(h, msg);
    case NIB_LOAD_AT_HEADER:
        return header_line(h, msg);
    case NIB_LOAD_AT_SIZE:
        return size_line(h, msg);
    case NIB_LOAD_AT_CRLF:
        h->place = NIB_LOAD_AT_SIZE;
        return h->line[0] ? nib_fail(msg, NIB_E_FORMAT, "a chunk of the answer is longer than its size") : NIB_OK;
    default:
        if (h->line[0] == '\0')
            end_body(h, sink, arg);
        return NIB_OK;
    }
}

/* Moves bytes to h->line up to the end of the line; sets *ret_whole there. Returns the bytes taken, 0: no room. */
static size_t fill_line(struct nib_load_http *h, const char *data, size_t bytes, bool *ret_whole)
{
    const char *newline = memchr(data, '\n', bytes);
    const size_t n = newline ? (size_t)(newline - data) + 1 : bytes;
    if (n > sizeof h->line - 1 - h->used)
        return 0;
    memcpy(h->line + h->used, data, n);
    h->used += n;
    *ret_whole = newline != NULL;
    if (newline) {
        h->used--;
        if (h->used && h->line[h->used - 1] == '\r')
            h->used--;
        h->line[h->used] = '\0';
        h->used = 0;
    }
    return n;
}

static enum nib_err take_text(struct nib_load_http *h, const char *data, size_t bytes, nib_load_line *sink, void *arg,
                              struct nib_msg *msg)
{
    while (bytes) {
        const char *newline = memchr(data, '\n', bytes);
        const size_t n = newline ? (size_t)(newline - data) : bytes;
        if (n > sizeof h->text - h->held)
            return nib_fail(msg, NIB_E_LIMIT, "a line of the answer has more than %d bytes", NIB_LOAD_LINE_BYTES);
        if (newline && h->held == 0) {
            sink(arg, data, n && data[n - 1] == '\r' ? n - 1 : n);
        } else {
            memcpy(h->text + h->held, data, n);
            h->held += n;
            if (newline) {
                sink(arg, h->text, h->held && h->text[h->held - 1] == '\r' ? h->held - 1 : h->held);
                h->held = 0;
            }
        }
        data += n + (newline != NULL);
        bytes -= n + (newline != NULL);
    }
    return NIB_OK;
}

enum nib_err nib_load_http_take(struct nib_load_http *h, const char *data, size_t bytes, nib_load_line *sink, void *arg,
                                struct nib_msg *msg)
{
    while (bytes) {
        size_t n;
        enum nib_err err = NIB_OK;
        if (h->place == NIB_LOAD_AT_END)
            return nib_fail(msg, NIB_E_FORMAT, "%zu bytes follow the end of the answer", bytes);
        if (h->place == NIB_LOAD_AT_LENGTH || h->place == NIB_LOAD_AT_CHUNK) {
            n = h->left < bytes ? (size_t)h->left : bytes;
            err = take_text(h, data, n, sink, arg, msg);
            h->left -= n;
            if (!err && h->left == 0 && h->place == NIB_LOAD_AT_LENGTH)
                end_body(h, sink, arg);
            else if (h->left == 0)
                h->place = NIB_LOAD_AT_CRLF;
        } else {
            bool whole = false;
            n = fill_line(h, data, bytes, &whole);
            if (n == 0)
                return nib_fail(msg, NIB_E_LIMIT, "a line of the answer's framing is too long");
            if (whole)
                err = take_framing(h, sink, arg, msg);
        }
        if (err)
            return err;
        data += n;
        bytes -= n;
    }
    return NIB_OK;
}
