/* tools/synth_hf_config.c: owns the small JSON files of the HF form. Main thread. Fails on the disk. */
#include "tools/synth_hf.h"

static void print_layer_types(FILE *file, const struct nib_shape *s)
{
    (void)fputs("  \"layer_types\": [", file);
    for (uint32_t i = 0; i < s->layers; i++)
        (void)fprintf(file, "%s\n    \"%s\"", i ? "," : "",
                      nib_layer_windowed(i) ? "sliding_attention" : "full_attention");
    (void)fputs("\n  ],\n", file);
}

static void print_config(FILE *file, const struct nib_shape *s)
{
    (void)fprintf(file,
                  "{\n  \"architectures\": [\n    \"GptOssForCausalLM\"\n  ],\n  \"attention_bias\": true,\n"
                  "  \"attention_dropout\": 0.0,\n  \"dtype\": \"bfloat16\",\n  \"eos_token_id\": %u,\n"
                  "  \"experts_per_token\": %u,\n  \"head_dim\": %d,\n  \"hidden_act\": \"silu\",\n"
                  "  \"hidden_size\": %u,\n  \"initial_context_length\": %.0f,\n  \"initializer_range\": 0.02,\n"
                  "  \"intermediate_size\": %u,\n",
                  s->special_base + NIB_TOK_RETURN, s->experts_used, NIB_HEAD_DIM, s->hidden, NIB_ROPE_ORIG_CTX,
                  s->intermediate);
    print_layer_types(file, s);
    (void)fprintf(file,
                  "  \"max_position_embeddings\": %u,\n  \"model_type\": \"gpt_oss\",\n"
                  "  \"num_attention_heads\": %u,\n  \"num_experts_per_tok\": %u,\n  \"num_hidden_layers\": %u,\n"
                  "  \"num_key_value_heads\": %u,\n  \"num_local_experts\": %u,\n  \"output_router_logits\": false,\n"
                  "  \"pad_token_id\": %u,\n",
                  s->ctx_max, s->heads, s->experts_used, s->layers, s->kv_heads, s->experts,
                  s->special_base + NIB_TOK_ENDOFTEXT);
    (void)fputs("  \"quantization_config\": {\n    \"modules_to_not_convert\": [\n"
                "      \"model.layers.*.self_attn\",\n      \"model.layers.*.mlp.router\",\n"
                "      \"model.embed_tokens\",\n      \"lm_head\"\n    ],\n    \"quant_method\": \"mxfp4\"\n  },\n",
                file);
    (void)fprintf(file,
                  "  \"rms_norm_eps\": 1e-05,\n  \"rope_scaling\": {\n    \"beta_fast\": %.1f,\n"
                  "    \"beta_slow\": %.1f,\n    \"factor\": %.1f,\n    \"original_max_position_embeddings\": %.0f,\n"
                  "    \"rope_type\": \"yarn\",\n    \"truncate\": false\n  },\n  \"rope_theta\": %.0f,\n"
                  "  \"router_aux_loss_coef\": 0.9,\n  \"sliding_window\": %u,\n  \"swiglu_limit\": %.1f,\n"
                  "  \"tie_word_embeddings\": false,\n  \"use_cache\": true,\n  \"vocab_size\": %u\n}\n",
                  NIB_ROPE_BETA_FAST, NIB_ROPE_BETA_SLOW, NIB_ROPE_FACTOR, NIB_ROPE_ORIG_CTX, NIB_ROPE_THETA, s->window,
                  (double)NIB_SWIGLU_LIMIT, s->vocab);
}

static void print_generation(FILE *file, const struct nib_shape *s)
{
    (void)fprintf(
        file,
        "{\n  \"bos_token_id\": %u,\n  \"do_sample\": true,\n  \"eos_token_id\": [\n    %u,\n    %u,\n    %u\n"
        "  ],\n  \"pad_token_id\": %u\n}\n",
        s->special_base + NIB_TOK_STARTOFTEXT, s->special_base + NIB_TOK_RETURN, s->special_base + NIB_TOK_ENDOFTEXT,
        s->special_base + NIB_TOK_CALL, s->special_base + NIB_TOK_ENDOFTEXT);
}

static void print_tokenizer_config(FILE *file, const struct nib_shape *s)
{
    (void)fprintf(file,
                  "{\n  \"bos_token\": \"<|startoftext|>\",\n  \"clean_up_tokenization_spaces\": false,\n"
                  "  \"eos_token\": \"<|return|>\",\n  \"model_input_names\": [\n    \"input_ids\",\n"
                  "    \"attention_mask\"\n  ],\n  \"model_max_length\": %u,\n  \"pad_token\": \"<|endoftext|>\",\n"
                  "  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n",
                  s->ctx_max);
}

enum nib_err nib_synth_hf_configs(const struct nib_synth *synth, struct nib_msg *msg)
{
    static const struct {
        const char *name;
        void (*print)(FILE *file, const struct nib_shape *s);
    } files[] = {{"config.json", print_config},
                 {"generation_config.json", print_generation},
                 {"tokenizer_config.json", print_tokenizer_config}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        FILE *file = NULL;
        enum nib_err err = nib_synth_create(synth->out, files[i].name, &file, msg);
        if (err)
            return err;
        files[i].print(file, synth->shape);
        err = nib_synth_finish(file, synth->out, files[i].name, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}
