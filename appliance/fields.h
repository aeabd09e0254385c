/* appliance/fields.h: the parameters of a request, in one table: name, type, range, default.
 *
 * The decoder, the error sentences, the documentation and the range tests are made from the table.
 * Front thread; allocates nothing. */
#ifndef NIB_APPLIANCE_FIELDS_H
#define NIB_APPLIANCE_FIELDS_H

#include <jansson.h>

#include "appliance/json_out.h"
#include "appliance/stop.h"
#include "core/engine.h"

enum nib_api { NIB_API_CHAT = 1, NIB_API_COMPLETIONS = 2 };

enum nib_field_type {
    NIB_FIELD_BOOL,
    NIB_FIELD_INT,
    NIB_FIELD_REAL,
    NIB_FIELD_CODE,   /* read by code of its own: text, lists, objects */
    NIB_FIELD_IGNORED /* clients send it; it changes nothing in the answer */
};

struct nib_field {
    const char *name;
    enum nib_field_type type;
    int apis;        /* enum nib_api bits: where it is allowed */
    double min, max; /* INT and REAL; exact below 2^53 */
    size_t offset;   /* in struct nib_params */
};

/* What a request asked for, decoded. Absent numbers are the defaults. */
struct nib_params {
    double temperature, top_p, min_p;
    double repetition_penalty, frequency_penalty, presence_penalty;
    int64_t top_k, top_logprobs, completion_logprobs, n, best_of;
    int64_t seed;
    int64_t max_tokens, max_completion_tokens; /* 0: not given */
    bool stream, logprobs, echo, seed_given, include_usage;
    bool continuous_usage; /* streamed: every event says the usage so far; only with include_usage */
    bool ignore_eos;       /* tokens that end a turn are taken like others: the answer has max_tokens, but for `stop` */
    uint32_t effort;       /* 0 low, 1 medium, 2 high */
    uint32_t bias_count;
    struct nib_bias bias[NIB_MAX_LOGIT_BIAS];
    struct nib_stop stop;
};

/* An error of a request, for OpenAI's error shape. Status 0: none. */
struct nib_refusal {
    int status;                     /* HTTP */
    const char *code;               /* "invalid_value", ... ; NULL: null */
    char param[NIB_MAX_NAME_BYTES]; /* "" : null */
    struct nib_msg msg;
    uint64_t retry_s; /* Retry-After; 0: none */
};

/* Fills *ret and returns false. `param` may be NULL. */
bool nib_refuse(struct nib_refusal *ret, int status, const char *code, const char *param, const char *fmt, ...)
    NIB_PRINTF(5, 6);

struct nib_field_defaults {
    double temperature, top_p;
    uint32_t effort;
    uint32_t vocab;
};

const struct nib_field *nib_fields(size_t *ret_count);

/* Reads every field of the request but those that the caller reads itself (messages, tools, prompt,
 * ...), and refuses names it does not know. false: *ret_refusal says why. */
bool nib_fields_decode(const json_t *root, enum nib_api api, const struct nib_field_defaults *with,
                       struct nib_params *ret_params, struct nib_refusal *ret_refusal) NIB_CHECKED;

/* The table as JSON, for tests and people. */
void nib_fields_print(struct nib_out *out);

#endif
