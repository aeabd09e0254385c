/* appliance/stop.h: stop strings in a stream of text.
 *
 * A stop string may span any number of pieces. What could still become one is held back; what
 * cannot is passed on at once. Fixed size; one thread at a time. */
#ifndef NIB_APPLIANCE_STOP_H
#define NIB_APPLIANCE_STOP_H

#include <stdbool.h>

#include "core/limits.h"
#include "core/span.h"

struct nib_stop {
    size_t count;
    size_t longest; /* bytes of the longest string */
    size_t lens[NIB_MAX_STOP_STRINGS];
    char strings[NIB_MAX_STOP_STRINGS][NIB_MAX_STOP_BYTES];
    size_t held_len;
    char held[NIB_MAX_STOP_BYTES]; /* text that may be the beginning of a stop string */
    bool hit;
};

/* Gets the text that is safe to pass on, in pieces, in order. */
typedef void nib_stop_sink(void *arg, struct nib_span text);

void nib_stop_init(struct nib_stop *stop);

/* false: no room, or the string is empty or longer than NIB_MAX_STOP_BYTES. */
bool nib_stop_add(struct nib_stop *stop, struct nib_span string);

/* Takes the next piece. Once a stop string is complete, everything from its first byte on is
 * dropped and `hit` is set for good. */
void nib_stop_feed(struct nib_stop *stop, struct nib_span text, nib_stop_sink *sink, void *arg);

/* The text ended: passes on what is held. */
void nib_stop_flush(struct nib_stop *stop, nib_stop_sink *sink, void *arg);

#endif
