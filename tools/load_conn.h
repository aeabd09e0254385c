/* tools/load_conn.h: one client of a load: its connection, its request, and what has come of the answer. Between load.c,
 * which knows when, and load_http.c, which knows bytes. One thread. */
#ifndef NIB_TOOLS_LOAD_CONN_H
#define NIB_TOOLS_LOAD_CONN_H

#include "tools/load.h"
#include "tools/load_http.h"

enum nib_load_state {
    NIB_LOAD_IDLE,
    NIB_LOAD_CALLING, /* not connected yet: the daemon's queue of connections is full */
    NIB_LOAD_SENDING,
    NIB_LOAD_READING
};

struct nib_load_conn {
    const struct nib_load *load;
    int fd; /* -1: not connected */
    enum nib_load_state state;
    bool reused;   /* the connection has had an answer before */
    char *request; /* [request_max] */
    size_t request_max, request_bytes, sent;
    struct nib_load_http http;

    /* of the answer */
    double due_s, first_s, last_s, end_s; /* first and last text; 0: none */
    uint32_t prompt_tokens, cached_tokens, answer_tokens;
    uint32_t text_tokens;             /* answer_tokens when the last text came */
    bool finish, usage, done, failed; /* what has been seen; failed: an error event, or no JSON */
    struct nib_msg why;               /* of what is wrong */
    double now_s;                     /* when the bytes that are being read came */
    float *gaps, *token_gaps;         /* [gaps_max] all clients'; *gaps_count are filled */
    uint32_t gaps_max, *gaps_count;
};

enum nib_load_step {
    NIB_LOAD_GOES_ON,
    NIB_LOAD_ENDED, /* the answer is whole; nib_load_conn_error says what is wrong with it */
    NIB_LOAD_BROKE, /* the connection is of no use any more, conn->why says why */
    NIB_LOAD_GONE   /* nobody listens on the socket */
};

/* The clock of all times here, seconds. */
double nib_load_now_s(void);

/* Bytes that a request of this load may have. */
size_t nib_load_request_max(const struct nib_load *load);

/* Makes request `index` and begins to send it. */
enum nib_load_step nib_load_conn_begin(struct nib_load_conn *conn, uint32_t index, double due_s);

/* Goes on where the socket (or, calling, the daemon) may be ready. */
enum nib_load_step nib_load_conn_go_on(struct nib_load_conn *conn);

/* After NIB_LOAD_ENDED: NIB_LOAD_ERROR_COUNT when nothing is wrong, else what, and conn->why. */
enum nib_load_error nib_load_conn_error(struct nib_load_conn *conn);

/* Closes the connection. */
void nib_load_conn_drop(struct nib_load_conn *conn);

#endif
