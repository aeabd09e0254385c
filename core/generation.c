/* core/generation.c: owns nothing. Limits: NIB_MAX_STOP_TOKENS ids, NIB_MAX_SRC_CONFIG_BYTES of
 * text. Boot and tools; one thread. Fails with one sentence that names the file and the member. */
#include "core/generation.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const enum nib_special needed[] = {NIB_TOK_RETURN, NIB_TOK_ENDOFTEXT, NIB_TOK_CALL};
#define NEEDED (sizeof needed / sizeof needed[0])

void nib_generation_default(const struct nib_shape *shape, struct nib_generation *ret)
{
    *ret = (struct nib_generation){.eos_count = NEEDED,
                                   .bos = shape->special_base + NIB_TOK_STARTOFTEXT,
                                   .pad = shape->special_base + NIB_TOK_ENDOFTEXT,
                                   .do_sample = true,
                                   .temperature = 1.0,
                                   .top_p = 1.0};
    for (size_t i = 0; i < NEEDED; i++)
        ret->eos[i] = shape->special_base + (uint32_t)needed[i];
}

struct read {
    const json_t *object;
    const char *label;
    const struct nib_shape *shape;
    struct nib_msg *msg;
};

static enum nib_err wrong(const struct read *r, const char *member, const char *allowed)
{
    return nib_fail(r->msg, NIB_E_FORMAT, "%s: %s must be %s", r->label, member, allowed);
}

static bool id_of(const struct read *r, const json_t *value, uint32_t *ret)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id >= (json_int_t)r->shape->vocab)
        return false;
    *ret = (uint32_t)id;
    return true;
}

static enum nib_err read_id(const struct read *r, const char *member, uint32_t *ret)
{
    const json_t *value = json_object_get(r->object, member);
    if (!value || json_is_null(value) || id_of(r, value, ret))
        return NIB_OK;
    return wrong(r, member, "a token id of the model");
}

static enum nib_err read_real(const struct read *r, const char *member, double low, double high, double *ret)
{
    const json_t *value = json_object_get(r->object, member);
    if (!value || json_is_null(value))
        return NIB_OK;
    double x = json_number_value(value);
    if (!json_is_number(value) || !(x >= low && x <= high)) {
        char allowed[64];
        snprintf(allowed, sizeof allowed, "a number from %g to %g", low, high);
        return wrong(r, member, allowed);
    }
    *ret = x;
    return NIB_OK;
}

static bool has_eos(const struct nib_generation *g, uint32_t id)
{
    for (uint32_t i = 0; i < g->eos_count; i++)
        if (g->eos[i] == id)
            return true;
    return false;
}

/* eos_token_id: one id or an array. g holds the needed ones; others are added behind them. */
static enum nib_err read_eos(const struct read *r, struct nib_generation *g, uint32_t *added)
{
    static const char allowed[] = "a token id of the model or an array of at most 8 of them";
    _Static_assert(NIB_MAX_STOP_TOKENS == 8, "the sentence says 8");
    const json_t *value = json_object_get(r->object, "eos_token_id");
    if (!value || json_is_null(value))
        return NIB_OK;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    bool found[NEEDED] = {false};
    for (size_t i = 0; i < count; i++) {
        uint32_t id;
        if (!id_of(r, json_is_array(value) ? json_array_get(value, i) : value, &id))
            return wrong(r, "eos_token_id", allowed);
        for (size_t n = 0; n < NEEDED; n++)
            found[n] = found[n] || id == g->eos[n];
        if (has_eos(g, id))
            continue;
        if (g->eos_count == NIB_MAX_STOP_TOKENS)
            return wrong(r, "eos_token_id", allowed);
        g->eos[g->eos_count++] = id;
    }
    *added = 0;
    for (size_t n = 0; n < NEEDED; n++)
        *added += !found[n];
    return NIB_OK;
}

static enum nib_err read_members(const struct read *r, struct nib_generation *g, uint32_t *added)
{
    const json_t *sample = json_object_get(r->object, "do_sample");
    if (sample && !json_is_null(sample)) {
        if (!json_is_boolean(sample))
            return wrong(r, "do_sample", "true or false");
        g->do_sample = json_is_true(sample);
    }
    enum nib_err err = read_eos(r, g, added);
    if (!err)
        err = read_id(r, "bos_token_id", &g->bos);
    if (!err)
        err = read_id(r, "pad_token_id", &g->pad);
    if (!err)
        err = read_real(r, "temperature", 0.0, 2.0, &g->temperature);
    if (!err)
        err = read_real(r, "top_p", 1e-6, 1.0, &g->top_p);
    return err;
}

enum nib_err nib_generation_parse(const char *text, size_t bytes, const char *label, const struct nib_shape *shape,
                                  struct nib_generation *ret, uint32_t *ret_added, struct nib_msg *msg)
{
    if (bytes > NIB_MAX_SRC_CONFIG_BYTES)
        return nib_fail(msg, NIB_E_LIMIT, "%s has %zu bytes; at most %u are allowed", label, bytes,
                        NIB_MAX_SRC_CONFIG_BYTES);
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    struct read r = {object, label, shape, msg};
    struct nib_generation g;
    uint32_t added = 0;
    nib_generation_default(shape, &g);
    enum nib_err err = json_is_object(object) ? read_members(&r, &g, &added)
                                              : nib_fail(msg, NIB_E_FORMAT, "%s is not a JSON object", label);
    json_decref(object);
    if (err)
        return err;
    *ret = g;
    if (ret_added)
        *ret_added = added;
    return NIB_OK;
}

size_t nib_generation_print(const struct nib_generation *g, char out[NIB_GENERATION_TEXT_BYTES])
{
    char eos[NIB_MAX_STOP_TOKENS * 12] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < g->eos_count; i++)
        used += (size_t)snprintf(eos + used, sizeof eos - used, "%s%u", i ? "," : "", g->eos[i]);
    return (size_t)snprintf(out, NIB_GENERATION_TEXT_BYTES,
                            "{\"bos_token_id\":%u,\"do_sample\":%s,\"eos_token_id\":[%s],"
                            "\"pad_token_id\":%u,\"temperature\":%.6g,\"top_p\":%.6g}",
                            g->bos, g->do_sample ? "true" : "false", eos, g->pad, g->temperature, g->top_p);
}
