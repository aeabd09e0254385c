/* appliance/fields.c: owns the table of request parameters. Limits: those of the table. Front
 * thread. Fails with a refusal that names the field and its range. */
#include "appliance/fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT(field)     offsetof(struct nib_params, field)
#define BOTH          (NIB_API_CHAT | NIB_API_COMPLETIONS)
#define CHAT          NIB_API_CHAT
#define COMPL         NIB_API_COMPLETIONS
#define INT_MAX_EXACT 9007199254740991.0 /* 2^53 - 1: what every JSON reader keeps exact */

static const struct nib_field fields[] = {
    {"temperature", NIB_FIELD_REAL, BOTH, 0, 2, AT(temperature)},
    {"top_p", NIB_FIELD_REAL, BOTH, 0, 1, AT(top_p)},
    {"min_p", NIB_FIELD_REAL, BOTH, 0, 0.999, AT(min_p)},
    {"top_k", NIB_FIELD_INT, BOTH, 0, NIB_MAX_VOCAB, AT(top_k)},
    {"repetition_penalty", NIB_FIELD_REAL, BOTH, 0.01, 10, AT(repetition_penalty)},
    {"frequency_penalty", NIB_FIELD_REAL, BOTH, -2, 2, AT(frequency_penalty)},
    {"presence_penalty", NIB_FIELD_REAL, BOTH, -2, 2, AT(presence_penalty)},
    {"seed", NIB_FIELD_INT, BOTH, -INT_MAX_EXACT, INT_MAX_EXACT, AT(seed)},
    {"max_tokens", NIB_FIELD_INT, BOTH, 1, NIB_MAX_CTX_TOKENS, AT(max_tokens)},
    {"max_completion_tokens", NIB_FIELD_INT, CHAT, 1, NIB_MAX_CTX_TOKENS, AT(max_completion_tokens)},
    {"n", NIB_FIELD_INT, BOTH, 1, 1, AT(n)},
    {"best_of", NIB_FIELD_INT, COMPL, 1, 1, AT(best_of)},
    {"stream", NIB_FIELD_BOOL, BOTH, 0, 1, AT(stream)},
    {"logprobs", NIB_FIELD_BOOL, CHAT, 0, 1, AT(logprobs)},
    {"logprobs", NIB_FIELD_INT, COMPL, 0, NIB_MAX_TOP_LOGPROBS, AT(completion_logprobs)},
    {"top_logprobs", NIB_FIELD_INT, CHAT, 0, NIB_MAX_TOP_LOGPROBS, AT(top_logprobs)},
    {"echo", NIB_FIELD_BOOL, COMPL, 0, 0, AT(echo)},
    {"ignore_eos", NIB_FIELD_BOOL, COMPL, 0, 1, AT(ignore_eos)},
    {"stop", NIB_FIELD_CODE, BOTH, 0, 0, 0},
    {"logit_bias", NIB_FIELD_CODE, BOTH, 0, 0, 0},
    {"stream_options", NIB_FIELD_CODE, BOTH, 0, 0, 0},
    {"reasoning_effort", NIB_FIELD_CODE, CHAT, 0, 0, 0},
    {"response_format", NIB_FIELD_CODE, CHAT, 0, 0, 0},
    {"model", NIB_FIELD_CODE, BOTH, 0, 0, 0},
    {"messages", NIB_FIELD_CODE, CHAT, 0, 0, 0},
    {"tools", NIB_FIELD_CODE, CHAT, 0, 0, 0},
    {"tool_choice", NIB_FIELD_CODE, CHAT, 0, 0, 0},
    {"prompt", NIB_FIELD_CODE, COMPL, 0, 0, 0},
    {"user", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"metadata", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"store", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"service_tier", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"parallel_tool_calls", NIB_FIELD_IGNORED, CHAT, 0, 0, 0},
    {"safety_identifier", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"prompt_cache_key", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"prompt_cache_retention", NIB_FIELD_IGNORED, BOTH, 0, 0, 0},
    {"prediction", NIB_FIELD_IGNORED, CHAT, 0, 0, 0},
};

/* A client's own words may stand in a sentence, cut anywhere: only printable ASCII stays. */
static void printable(char *text)
{
    for (; *text; text++)
        if (*text < 0x20 || *text > 0x7e)
            *text = '?';
}

bool nib_refuse(struct nib_refusal *ret, int status, const char *code, const char *param, const char *fmt, ...)
{
    memset(ret, 0, sizeof *ret);
    ret->status = status;
    ret->code = code;
    if (param)
        (void)snprintf(ret->param, sizeof ret->param, "%s", param);
    printable(ret->param);
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(ret->msg.text, sizeof ret->msg.text, fmt, args);
    va_end(args);
    printable(ret->msg.text);
    return false;
}

const struct nib_field *nib_fields(size_t *ret_count)
{
    *ret_count = sizeof fields / sizeof fields[0];
    return fields;
}

static bool read_number(const struct nib_field *f, const json_t *v, struct nib_params *p, struct nib_refusal *ret)
{
    uint8_t *at = (uint8_t *)p + f->offset;
    bool whole = f->type == NIB_FIELD_INT;
    if (whole ? !json_is_integer(v) : !json_is_number(v))
        return nib_refuse(ret, 400, "invalid_type", f->name, "'%s' must be %s from %.16g to %.16g", f->name,
                          whole ? "a whole number" : "a number", f->min, f->max);
    double d = json_number_value(v);
    if (!(d >= f->min && d <= f->max))
        return nib_refuse(ret, 400, "invalid_value", f->name, "'%s' is %.16g, and must be from %.16g to %.16g", f->name,
                          d, f->min, f->max);
    if (whole) {
        int64_t i = json_integer_value(v);
        memcpy(at, &i, sizeof i);
    } else {
        memcpy(at, &d, sizeof d);
    }
    return true;
}

static bool read_bool(const struct nib_field *f, const json_t *v, struct nib_params *p, struct nib_refusal *ret)
{
    if (!json_is_boolean(v))
        return nib_refuse(ret, 400, "invalid_type", f->name, "'%s' must be true or false", f->name);
    bool b = json_is_true(v);
    if (b && f->max < 1)
        return nib_refuse(ret, 400, "unsupported_value", f->name, "'%s' must be false", f->name);
    memcpy((uint8_t *)p + f->offset, &b, sizeof b);
    return true;
}

static bool read_stop(const json_t *v, struct nib_params *p, struct nib_refusal *ret)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > NIB_MAX_STOP_STRINGS)
        return nib_refuse(ret, 400, "invalid_value", "stop", "'stop' has %zu strings; at most %d are allowed", n,
                          NIB_MAX_STOP_STRINGS);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s) || !nib_stop_add(&p->stop, nib_span_of(json_string_value(s), json_string_length(s))))
            return nib_refuse(ret, 400, "invalid_value", "stop",
                              "'stop' must be a string of 1 to %d bytes, or up to %d of them", NIB_MAX_STOP_BYTES,
                              NIB_MAX_STOP_STRINGS);
    }
    return true;
}

/* A token id in decimal digits. */
static bool read_id(const char *text, uint32_t vocab, uint32_t *ret)
{
    size_t n = strlen(text);
    if (n == 0 || n > 9 || strspn(text, "0123456789") != n)
        return false;
    unsigned long id = strtoul(text, NULL, 10);
    if (id >= vocab)
        return false;
    *ret = (uint32_t)id;
    return true;
}

static bool read_bias(json_t *v, uint32_t vocab, struct nib_params *p, struct nib_refusal *ret)
{
    if (!json_is_object(v) || json_object_size(v) > NIB_MAX_LOGIT_BIAS)
        return nib_refuse(ret, 400, "invalid_value", "logit_bias",
                          "'logit_bias' must be an object of at most %d token ids", NIB_MAX_LOGIT_BIAS);
    for (void *it = json_object_iter(v); it; it = json_object_iter_next(v, it)) {
        const json_t *b = json_object_iter_value(it);
        double d = json_number_value(b);
        struct nib_bias *to = &p->bias[p->bias_count];
        if (!read_id(json_object_iter_key(it), vocab, &to->token) || !json_is_number(b) || !(d >= -100 && d <= 100))
            return nib_refuse(ret, 400, "invalid_value", "logit_bias",
                              "'logit_bias' maps token ids from 0 to %u to numbers from -100 to 100", vocab - 1);
        to->bias = (float)d;
        p->bias_count++;
    }
    return true;
}

static bool read_effort(const json_t *v, struct nib_params *p, struct nib_refusal *ret)
{
    static const char *const names[] = {"low", "medium", "high"};
    for (uint32_t i = 0; i < 3; i++)
        if (json_is_string(v) && !strcmp(json_string_value(v), names[i])) {
            p->effort = i;
            return true;
        }
    return nib_refuse(ret, 400, "invalid_value", "reasoning_effort",
                      "'reasoning_effort' must be \"low\", \"medium\" or \"high\"");
}

static bool read_stream_options(const json_t *v, struct nib_params *p, struct nib_refusal *ret)
{
    const json_t *usage = json_object_get(v, "include_usage"), *always = json_object_get(v, "continuous_usage_stats");
    if (!json_is_object(v) || (usage && !json_is_boolean(usage) && !json_is_null(usage)) ||
        (always && !json_is_boolean(always) && !json_is_null(always)))
        return nib_refuse(ret, 400, "invalid_type", "stream_options",
                          "'stream_options' must be an object; 'include_usage' and 'continuous_usage_stats' in it true "
                          "or false");
    p->include_usage = json_is_true(usage);
    p->continuous_usage = json_is_true(always);
    if (p->continuous_usage && !p->include_usage)
        return nib_refuse(ret, 400, "invalid_value", "stream_options",
                          "'continuous_usage_stats' is allowed only when 'include_usage' is true");
    return true;
}

static bool read_code(const struct nib_field *f, json_t *v, const struct nib_field_defaults *with, struct nib_params *p,
                      struct nib_refusal *ret)
{
    if (!strcmp(f->name, "stop"))
        return read_stop(v, p, ret);
    if (!strcmp(f->name, "logit_bias"))
        return read_bias(v, with->vocab, p, ret);
    if (!strcmp(f->name, "stream_options"))
        return read_stream_options(v, p, ret);
    if (!strcmp(f->name, "reasoning_effort"))
        return read_effort(v, p, ret);
    if (!strcmp(f->name, "response_format")) {
        const char *type = json_string_value(json_object_get(v, "type"));
        if (!type || strcmp(type, "text") != 0)
            return nib_refuse(ret, 400, "unsupported_value", "response_format",
                              "'response_format' must be {\"type\": \"text\"}; this server does not "
                              "enforce a JSON answer");
    }
    return true; /* messages, tools, prompt, model: their own readers */
}

static const struct nib_field *find(const char *name, enum nib_api api)
{
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if ((fields[i].apis & (int)api) && !strcmp(fields[i].name, name))
            return &fields[i];
    return NULL;
}

static bool read_field(const struct nib_field *f, json_t *v, const struct nib_field_defaults *with,
                       struct nib_params *p, struct nib_refusal *ret)
{
    if (json_is_null(v))
        return true; /* as if absent */
    switch (f->type) {
    case NIB_FIELD_BOOL:
        return read_bool(f, v, p, ret);
    case NIB_FIELD_INT:
    case NIB_FIELD_REAL:
        return read_number(f, v, p, ret);
    case NIB_FIELD_CODE:
        return read_code(f, v, with, p, ret);
    case NIB_FIELD_IGNORED:
        break;
    }
    return true;
}

static void set_defaults(const struct nib_field_defaults *with, struct nib_params *p)
{
    memset(p, 0, sizeof *p);
    nib_stop_init(&p->stop);
    p->temperature = with->temperature;
    p->top_p = with->top_p;
    p->effort = with->effort;
    p->repetition_penalty = 1;
    p->completion_logprobs = -1;
    p->n = p->best_of = 1;
}

bool nib_fields_decode(const json_t *root, enum nib_api api, const struct nib_field_defaults *with,
                       struct nib_params *ret_params, struct nib_refusal *ret_refusal)
{
    set_defaults(with, ret_params);
    if (!json_is_object(root))
        return nib_refuse(ret_refusal, 400, "invalid_type", NULL, "the body must be a JSON object");
    json_t *object = (json_t *)(uintptr_t)root; /* jansson's iterators want it not const */
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
        const char *name = json_object_iter_key(it);
        const struct nib_field *f = find(name, api);
        if (!f)
            return nib_refuse(ret_refusal, 400, "unknown_parameter", name,
                              "'%.63s' is not a parameter that this server knows", name);
        if (!read_field(f, json_object_iter_value(it), with, ret_params, ret_refusal))
            return false;
    }
    const json_t *seed = json_object_get(root, "seed");
    ret_params->seed_given = seed && !json_is_null(seed);
    if (ret_params->include_usage && !ret_params->stream)
        return nib_refuse(ret_refusal, 400, "invalid_value", "stream_options",
                          "'stream_options' is allowed only when 'stream' is true");
    if (ret_params->top_logprobs > 0 && !ret_params->logprobs)
        return nib_refuse(ret_refusal, 400, "invalid_value", "top_logprobs",
                          "'top_logprobs' is allowed only when 'logprobs' is true");
    return true;
}

void nib_fields_print(struct nib_out *out)
{
    static const char *const types[] = {"bool", "int", "real", "code", "ignored"};
    nib_out_text(out, "[\n");
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const struct nib_field *f = &fields[i];
        nib_out_fmt(out,
                    "%s  {\"name\": \"%s\", \"type\": \"%s\", \"chat\": %s, \"completions\": %s, "
                    "\"min\": %.16g, \"max\": %.16g}",
                    i ? ",\n" : "", f->name, types[f->type], f->apis & CHAT ? "true" : "false",
                    f->apis & COMPL ? "true" : "false", f->min, f->max);
    }
    nib_out_text(out, "\n]\n");
}
