/* tools/pack_config.c: owns nothing; reads config.json of both safetensors layouts with jansson.
 * The dimensions choose a row of core/model.h; every other figure that is there must be the one all
 * gpt-oss models share. Limits: NIB_MAX_SRC_CONFIG_BYTES. One thread. Fails with one sentence that
 * names the member. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "tools/pack.h"

struct read {
    const json_t *object;
    struct nib_msg *msg;
};

/* A dimension under one of two names. */
static enum nib_err read_dim(const struct read *r, const char *name, const char *other, uint32_t *ret)
{
    const json_t *value = json_object_get(r->object, name);
    if (!value && other)
        value = json_object_get(r->object, other);
    json_int_t n = json_is_integer(value) ? json_integer_value(value) : -1;
    if (n < 1 || n > INT32_MAX)
        return nib_fail(r->msg, NIB_E_FORMAT, "config.json: %s must be a whole number from 1", name);
    *ret = (uint32_t)n;
    return NIB_OK;
}

/* A figure that may be absent but else must be `wanted`. */
static enum nib_err must_be(const struct read *r, const json_t *object, const char *name, double wanted)
{
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value))
        return NIB_OK;
    double x = json_is_boolean(value) ? (double)json_is_true(value) : json_number_value(value);
    if ((json_is_number(value) || json_is_boolean(value)) && fabs(x - wanted) <= 1e-9 * fabs(wanted))
        return NIB_OK;
    return nib_fail(r->msg, NIB_E_FORMAT, "config.json: %s must be %g, as in every gpt-oss model", name, wanted);
}

static enum nib_err must_be_text(const struct read *r, const json_t *object, const char *name, const char *wanted)
{
    const json_t *value = json_object_get(object, name);
    if (!value || (json_is_string(value) && strcmp(json_string_value(value), wanted) == 0))
        return NIB_OK;
    return nib_fail(r->msg, NIB_E_FORMAT, "config.json: %s must be %s, as in every gpt-oss model", name, wanted);
}

/* layer_types must alternate as nib_layer_windowed says. */
static enum nib_err check_layer_types(const struct read *r, uint32_t layers)
{
    const json_t *types = json_object_get(r->object, "layer_types");
    if (!types || json_is_null(types))
        return NIB_OK;
    bool ok = json_is_array(types) && json_array_size(types) == layers;
    for (uint32_t i = 0; ok && i < layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        ok = type && strcmp(type, nib_layer_windowed(i) ? "sliding_attention" : "full_attention") == 0;
    }
    if (ok)
        return NIB_OK;
    return nib_fail(r->msg, NIB_E_FORMAT,
                    "config.json: layer_types must alternate sliding_attention and full_attention "
                    "over the layers");
}

/* Hugging Face: rope_scaling, or rope_parameters in newer versions. */
static enum nib_err check_rope(const struct read *r)
{
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *rope = json_object_get(r->object, names[i]);
        if (!rope || json_is_null(rope))
            continue;
        if (!json_is_object(rope))
            return nib_fail(r->msg, NIB_E_FORMAT, "config.json: %s must be an object", names[i]);
        enum nib_err err = must_be_text(r, rope, "rope_type", "yarn");
        if (!err)
            err = must_be(r, rope, "factor", NIB_ROPE_FACTOR);
        if (!err)
            err = must_be(r, rope, "original_max_position_embeddings", NIB_ROPE_ORIG_CTX);
        if (!err)
            err = must_be(r, rope, "beta_fast", NIB_ROPE_BETA_FAST);
        if (!err)
            err = must_be(r, rope, "beta_slow", NIB_ROPE_BETA_SLOW);
        if (!err)
            err = must_be(r, rope, "rope_theta", NIB_ROPE_THETA);
        if (!err)
            err = must_be(r, rope, "truncate", 0);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err check_constants(const struct read *r, uint32_t layers)
{
    static const struct {
        const char *name;
        double wanted;
    } figures[] = {
        {"head_dim", NIB_HEAD_DIM},
        {"rope_theta", NIB_ROPE_THETA},
        {"rms_norm_eps", 1e-5},
        {"swiglu_limit", (double)NIB_SWIGLU_LIMIT},
        {"attention_bias", 1},
        {"tie_word_embeddings", 0},
        /* OpenAI's own names */
        {"initial_context_length", NIB_ROPE_ORIG_CTX},
        {"rope_scaling_factor", NIB_ROPE_FACTOR},
        {"rope_ntk_alpha", NIB_ROPE_BETA_SLOW},
        {"rope_ntk_beta", NIB_ROPE_BETA_FAST},
    };
    enum nib_err err = must_be_text(r, r->object, "model_type", "gpt_oss");
    for (size_t i = 0; !err && i < sizeof figures / sizeof figures[0]; i++)
        err = must_be(r, r->object, figures[i].name, figures[i].wanted);
    if (!err)
        err = check_rope(r);
    return err ? err : check_layer_types(r, layers);
}

static enum nib_err read_dims(const struct read *r, struct nib_shape *dims)
{
    const struct {
        const char *name, *other;
        uint32_t *ret;
    } members[] = {
        {"num_hidden_layers", NULL, &dims->layers},
        {"num_local_experts", "num_experts", &dims->experts},
        {"num_experts_per_tok", "experts_per_token", &dims->experts_used},
        {"hidden_size", NULL, &dims->hidden},
        {"intermediate_size", NULL, &dims->intermediate},
        {"num_attention_heads", NULL, &dims->heads},
        {"num_key_value_heads", NULL, &dims->kv_heads},
        {"vocab_size", NULL, &dims->vocab},
        {"sliding_window", NULL, &dims->window},
    };
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        enum nib_err err = read_dim(r, members[i].name, members[i].other, members[i].ret);
        if (err)
            return err;
    }
    /* OpenAI's layout states it as 4,096 x 32, which check_constants verifies */
    dims->ctx_max = NIB_MAX_CTX_TOKENS;
    if (json_object_get(r->object, "max_position_embeddings"))
        return read_dim(r, "max_position_embeddings", NULL, &dims->ctx_max);
    return NIB_OK;
}

enum nib_err nib_pack_config(struct nib_pack *p, const char *text, size_t bytes, struct nib_msg *msg)
{
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    struct read r = {object, msg};
    struct nib_shape dims = {0};
    enum nib_err err = NIB_OK;
    if (!json_is_object(object))
        err = nib_fail(msg, NIB_E_FORMAT, "config.json is not a JSON object");
    if (!err)
        err = read_dims(&r, &dims);
    if (!err)
        err = nib_pack_match(p, "config.json", &dims, msg);
    if (!err)
        err = check_constants(&r, dims.layers);
    json_decref(object);
    return err;
}
