/* tools/load_http.h: the responses of one connection, in whatever pieces they arrive.
 *
 * Status, then the body line by line, as server-sent events have it: with a Content-Length or in chunks, as nibbled sends
 * them. Fixed buffers; one thread. */
#ifndef NIB_TOOLS_LOAD_HTTP_H
#define NIB_TOOLS_LOAD_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#define NIB_LOAD_LINE_BYTES 8192 /* the longest line; an event without log-probabilities has some 1,200 at most */

enum nib_load_place {
    NIB_LOAD_AT_STATUS,
    NIB_LOAD_AT_HEADER,
    NIB_LOAD_AT_LENGTH, /* in a body of known length */
    NIB_LOAD_AT_SIZE,   /* in the line before a chunk */
    NIB_LOAD_AT_CHUNK,
    NIB_LOAD_AT_CRLF,    /* after a chunk */
    NIB_LOAD_AT_TRAILER, /* after the last chunk */
    NIB_LOAD_AT_END
};

struct nib_load_http {
    enum nib_load_place place;
    uint32_t status;
    bool chunked, closes; /* the server closes the connection after this response */
    bool length_known;
    uint64_t left;                  /* bytes of the body, or of the chunk, to come */
    size_t used, held;              /* of `line` and `text` */
    char line[1024];                /* a line of the framing */
    char text[NIB_LOAD_LINE_BYTES]; /* a line of the body that is not whole yet */
};

/* Gets each line of the body, without its end; the last one also when no newline follows. */
typedef void nib_load_line(void *arg, const char *line, size_t bytes);

/* Before each response. */
void nib_load_http_begin(struct nib_load_http *http);

/* Takes the next bytes; at the end of the response place is NIB_LOAD_AT_END. NIB_E_FORMAT: these are no response of this
 * form, or bytes after its end. NIB_E_LIMIT: a line is too long. After an error the connection is of no more use. */
enum nib_err nib_load_http_take(struct nib_load_http *http, const char *data, size_t bytes, nib_load_line *sink,
                                void *arg, struct nib_msg *msg) NIB_CHECKED;

#endif
