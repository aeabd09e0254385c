/* appliance/prompt.c: owns nothing. Limits: the longest context in tokens. Front thread. Fails with
 * a refusal that names the field and both numbers. */
#include "appliance/prompt.h"

#include <string.h>

#include "appliance/chat_in.h"

static bool too_long(struct nib_refusal *ret, const char *param, size_t ids_max)
{
    return nib_refuse(ret, 400, "context_length_exceeded", param,
                      "the prompt has more tokens than the longest context, %zu", ids_max);
}

bool nib_prompt_chat(const struct nib_prompt_env *env, const json_t *root, const struct nib_params *params,
                     uint32_t *ids, size_t ids_max, size_t *ret_n, struct nib_refusal *ret_refusal)
{
    static const enum nib_harmony_effort efforts[] = {NIB_EFFORT_LOW, NIB_EFFORT_MEDIUM, NIB_EFFORT_HIGH};
    struct nib_chat chat;
    if (!nib_chat_decode(root, &chat, ret_refusal))
        return false;
    struct nib_harmony_system system;
    nib_harmony_system_init(&system);
    system.effort = efforts[params->effort];
    if (env->date[0] != '\0')
        system.date = nib_span_of(env->date, strlen(env->date));
    struct nib_harmony_conversation conv = {.system = &system,
                                            .developer = chat.has_developer ? &chat.developer : NULL,
                                            .messages = chat.messages,
                                            .messages_count = chat.messages_count,
                                            .tail = NIB_TAIL_COMPLETION};
    struct nib_msg why;
    enum nib_err err = nib_harmony_render(env->tokenizer, env->scratch, &conv, ids, ids_max, ret_n, &why);
    if (err == NIB_OK)
        return true;
    return nib_refuse(ret_refusal, 400, err == NIB_E_LIMIT ? "context_length_exceeded" : "invalid_value", "messages",
                      "%s", why.text);
}

bool nib_prompt_text(const struct nib_prompt_env *env, struct nib_span text, const char *param, uint32_t *ids,
                     size_t ids_max, size_t *ret_n, struct nib_refusal *ret_refusal)
{
    struct nib_msg why;
    enum nib_err err = nib_tokenizer_encode(env->tokenizer, env->encode_scratch, env->encode_scratch_bytes, text.ptr,
                                            text.len, ids, ids_max, ret_n, &why);
    if (err == NIB_OK)
        return true;
    if (err == NIB_E_LIMIT)
        return too_long(ret_refusal, param, ids_max);
    return nib_refuse(ret_refusal, 400, "invalid_value", param, "%s", why.text);
}

static bool read_ids(const struct nib_prompt_env *env, const json_t *list, uint32_t *ids, size_t ids_max, size_t *ret_n,
                     struct nib_refusal *ret)
{
    size_t n = json_array_size(list);
    if (n > ids_max)
        return nib_refuse(ret, 400, "context_length_exceeded", "prompt",
                          "the prompt has %zu tokens; the longest context is %zu", n, ids_max);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > UINT32_MAX ||
            !nib_tokenizer_id_generable(env->tokenizer, (uint32_t)id))
            return nib_refuse(ret, 400, "invalid_value", "prompt",
                              "'prompt' holds something that is not a token id of this model "
                              "(whole numbers below %u, reserved ones excluded)",
                              nib_tokenizer_vocab(env->tokenizer));
        ids[i] = (uint32_t)id;
    }
    *ret_n = n;
    return true;
}

bool nib_prompt_completion(const struct nib_prompt_env *env, const json_t *root, uint32_t *ids, size_t ids_max,
                           size_t *ret_n, struct nib_refusal *ret_refusal)
{
    const json_t *prompt = json_object_get(root, "prompt");
    size_t n = 0;
    const json_t *first = json_array_get(prompt, 0);
    if (json_is_array(prompt) && !json_is_integer(first)) {
        if (json_array_size(prompt) != 1)
            return nib_refuse(ret_refusal, 400, "unsupported_value", "prompt",
                              "'prompt' holds %zu prompts; send one a request", json_array_size(prompt));
        prompt = first;
    }
    if (json_is_array(prompt)) {
        if (!read_ids(env, prompt, ids, ids_max, &n, ret_refusal))
            return false;
    } else if (json_is_string(prompt)) {
        struct nib_span text = nib_span_of(json_string_value(prompt), json_string_length(prompt));
        if (!nib_prompt_text(env, text, "prompt", ids, ids_max, &n, ret_refusal))
            return false;
    } else {
        return nib_refuse(ret_refusal, 400, "invalid_type", "prompt",
                          "'prompt' must be a string or a list of token ids");
    }
    if (n == 0)
        return nib_refuse(ret_refusal, 400, "invalid_value", "prompt", "'prompt' must hold at least one token");
    *ret_n = n;
    return true;
}
