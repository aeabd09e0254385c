/* appliance/stop.c: owns nothing. Limits: NIB_MAX_STOP_STRINGS of NIB_MAX_STOP_BYTES. Any thread.
 * Cannot fail. */
#include "appliance/stop.h"

#include <string.h>

void nib_stop_init(struct nib_stop *stop)
{
    memset(stop, 0, sizeof *stop);
}

bool nib_stop_add(struct nib_stop *stop, struct nib_span string)
{
    if (stop->count == NIB_MAX_STOP_STRINGS || string.len == 0 || string.len > NIB_MAX_STOP_BYTES)
        return false;
    memcpy(stop->strings[stop->count], string.ptr, string.len);
    stop->lens[stop->count++] = string.len;
    if (string.len > stop->longest)
        stop->longest = string.len;
    return true;
}

/* Byte i of the held text followed by the new piece. */
static char byte_at(const struct nib_stop *stop, struct nib_span text, size_t i)
{
    return i < stop->held_len ? stop->held[i] : text.ptr[i - stop->held_len];
}

enum match { NO, BEGINS, WHOLE };

/* Whether a stop string is at `at`, or the text ends inside one that is. */
static enum match match_at(const struct nib_stop *stop, struct nib_span text, size_t at)
{
    size_t total = stop->held_len + text.len;
    enum match best = NO;
    for (size_t s = 0; s < stop->count; s++) {
        size_t n = 0;
        while (n < stop->lens[s] && at + n < total && byte_at(stop, text, at + n) == stop->strings[s][n])
            n++;
        if (n == stop->lens[s])
            return WHOLE;
        if (at + n == total)
            best = BEGINS;
    }
    return best;
}

/* Passes on bytes [0, end) of the held text followed by the new piece. */
static void pass(const struct nib_stop *stop, struct nib_span text, size_t end, nib_stop_sink *sink, void *arg)
{
    size_t from_held = end < stop->held_len ? end : stop->held_len;
    if (from_held)
        sink(arg, nib_span_of(stop->held, from_held));
    if (end > from_held)
        sink(arg, nib_span_of(text.ptr, end - from_held));
}

/* First place in the text where a stop string stands or may begin; `total` if none. */
static size_t find(const struct nib_stop *stop, struct nib_span text, enum match *ret_match)
{
    size_t total = stop->held_len + text.len;
    for (size_t at = 0; at < total; at++)
        if ((*ret_match = match_at(stop, text, at)) != NO)
            return at;
    *ret_match = NO;
    return total;
}

void nib_stop_feed(struct nib_stop *stop, struct nib_span text, nib_stop_sink *sink, void *arg)
{
    if (stop->hit || text.len == 0)
        return;
    enum match match;
    size_t at = find(stop, text, &match);
    if (match == BEGINS) {
        /* an earlier, longer candidate may hide a shorter string that is already whole */
        size_t total = stop->held_len + text.len;
        for (size_t i = at + 1; i < total; i++)
            if (match_at(stop, text, i) == WHOLE) {
                at = i;
                match = WHOLE;
                break;
            }
    }
    pass(stop, text, at, sink, arg);
    if (match == WHOLE) {
        stop->hit = true;
        stop->held_len = 0;
        return;
    }
    char keep[NIB_MAX_STOP_BYTES];
    size_t keep_len = stop->held_len + text.len - at; /* < longest */
    for (size_t i = 0; i < keep_len; i++)
        keep[i] = byte_at(stop, text, at + i);
    memcpy(stop->held, keep, keep_len);
    stop->held_len = keep_len;
}

void nib_stop_flush(struct nib_stop *stop, nib_stop_sink *sink, void *arg)
{
    if (!stop->hit && stop->held_len)
        sink(arg, nib_span_of(stop->held, stop->held_len));
    stop->held_len = 0;
}
