/* tools/client.h: asks a running nibbled over its UNIX socket, with libcurl. One thread. */
#ifndef NIB_TOOLS_CLIENT_H
#define NIB_TOOLS_CLIENT_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

#define NIB_DEFAULT_SOCKET "/run/nibbled/nibbled.sock"

/* Deltas of a streamed answer, as they arrive: valid UTF-8 that may hold any character, NUL too. */
struct nib_client_sink {
    void (*reasoning)(void *arg, const char *text, size_t bytes);
    void (*content)(void *arg, const char *text, size_t bytes);
    void (*call)(void *arg, const char *name, size_t bytes); /* a tool call begins */
    void (*arguments)(void *arg, const char *text, size_t bytes);
    void *arg;
};

struct nib_client_stats {
    double first_s;         /* from the request to the first delta; 0: none came */
    double total_s;         /* from the request to the end */
    uint32_t prompt_tokens; /* 0: not known */
    uint32_t completion_tokens;
    char finish[16]; /* "stop", "length", "tool_calls"; "" when the answer was cut */
};

/* POSTs `request` (stream and usage are set here) to /v1/chat/completions and feeds the sink until the answer ends or
 * *stop becomes nonzero (NIB_E_STATE; *ret_stats is filled as far as known then, too). NIB_E_IO: the daemon cannot be
 * reached, or the answer broke off. NIB_E_ARG: it refused or gave up; the sentence is its own. NIB_E_FORMAT: what came
 * is no answer. */
enum nib_err nib_client_chat(const char *socket, json_t *request, const struct nib_client_sink *sink,
                             const volatile sig_atomic_t *stop, struct nib_client_stats *ret_stats,
                             struct nib_msg *msg) NIB_CHECKED;

/* GETs a path; *ret_json is the caller's. */
enum nib_err nib_client_get(const char *socket, const char *path, json_t **ret_json, struct nib_msg *msg) NIB_CHECKED;

#endif
