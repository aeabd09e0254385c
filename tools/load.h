/* tools/load.h: one load on a running daemon: many streamed completions at once over its socket, and how long they took.
 *
 * Closed loop: so many clients, each of which asks again when its answer has ended. Open loop: requests arrive as a Poisson
 * process, whatever the daemon does; one that finds no free connection waits, and its times count from its arrival. Prompts
 * are made-up token ids, a new prompt a request; answers have exactly the length asked for (ignore_eos). Each client keeps
 * its connection. The same seed gives the same requests and arrivals. One thread; heap, given back at the end. */
#ifndef NIB_TOOLS_LOAD_H
#define NIB_TOOLS_LOAD_H

#include <signal.h>
#include <stdint.h>

#include "core/err.h"

#define NIB_LOAD_MAX_CONNS    256
#define NIB_LOAD_MAX_REQUESTS 65536
#define NIB_LOAD_MAX_TOKENS   (16u << 20) /* answers' tokens of one load: one time is kept for each */
#define NIB_LOAD_MAX_BESIDE   4096        /* requests of the client beside whose times are kept */
#define NIB_LOAD_STALL_S      600.0       /* a load that has heard nothing for this long is given up */

struct nib_load {
    const char *socket;
    uint32_t text_ids;                     /* prompts use ids below this */
    uint32_t prompt_tokens, answer_tokens; /* 1.. */
    double temperature;
    uint64_t seed;
    uint32_t clients;  /* closed loop: 1..NIB_LOAD_MAX_CONNS; 0: open loop */
    double rate_s;     /* open loop: requests a second */
    uint32_t requests; /* 1..NIB_LOAD_MAX_REQUESTS; requests * answer_tokens <= NIB_LOAD_MAX_TOKENS */
    uint32_t
        beside_tokens; /* one more client sends prompts of this length all the while, for one token each; 0: none */
    double stall_s;    /* NIB_LOAD_STALL_S; less in tests */
};

/* How a request may go wrong. */
enum nib_load_error {
    NIB_LOAD_REFUSED, /* answered with a status that is not 200 */
    NIB_LOAD_FAILED,  /* an error in the middle of the stream */
    NIB_LOAD_BROKEN,  /* the connection ended, or what came is no such answer */
    NIB_LOAD_SHORT,   /* an answer of another length than asked for */
    NIB_LOAD_LATE,    /* no byte of it for stall_s, or the load was stopped */
    NIB_LOAD_ERROR_COUNT
};

/* Seconds; all 0 when count is 0. */
struct nib_load_spread {
    uint32_t count;
    double p50, p90, p99, max;
};

struct nib_load_result {
    double seconds; /* from the first arrival to the last end */
    uint32_t sent, finished;
    uint32_t errors[NIB_LOAD_ERROR_COUNT]; /* sent == finished + the sum of errors */
    uint32_t waited;                       /* open loop: found no free connection when they arrived */
    uint64_t tokens_in, tokens_out;        /* of finished requests, as the daemon counts them */
    uint64_t tokens_cached;                /* of tokens_in: computed for a prompt before */
    struct nib_load_spread first;          /* to the first text */
    struct nib_load_spread gap;            /* between two events with text, of all requests */
    struct nib_load_spread token_gap;      /* these by their tokens, of which some give no text */
    struct nib_load_spread token;          /* a token after the first, mean of a request */
    struct nib_load_spread whole;          /* to the end */
    struct nib_load_spread beside;         /* the client beside: to the end of each; in no other figure */
    uint32_t beside_errors;                /* of them */
    struct nib_msg why;                    /* of the first error; else "" */
};

/* "refused", "failed", ... */
const char *nib_load_error_name(enum nib_load_error error);

/* *ret_result is filled in every case. NIB_E_IO: no daemon answers, or it is gone: what was not sent is not counted.
 * NIB_E_STATE: *stop became nonzero, or nothing came for stall_s. NIB_E_NOMEM. */
enum nib_err nib_load_run(const struct nib_load *load, const volatile sig_atomic_t *stop,
                          struct nib_load_result *ret_result, struct nib_msg *msg) NIB_CHECKED;

/* Sorts the times and takes their percentiles: the smallest of them that so many percent do not exceed. */
struct nib_load_spread nib_load_spread_of(float *times, uint32_t count);

#endif
