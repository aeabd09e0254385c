/* tools/pack_gguf.c: opens a GGUF file and the rest of its split, and reads shape and tokenizer from
 * the metadata. Limits: gguf.h, NIB_MAX_SHARDS files. One thread. Fails with one sentence that names
 * the file or the key. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pack.h"
#include "tools/pack_bpe.h"

#define TOKEN_UNUSED 5 /* tokenizer.ggml.token_type of a padding entry */

static enum nib_err read_dim(const struct nib_pack *p, const char *name, uint32_t *ret, struct nib_msg *msg)
{
    uint64_t value;
    if (!nib_gguf_u64(p->gguf, name, &value) || value == 0 || value > INT32_MAX)
        return nib_fail(msg, NIB_E_FORMAT, "metadata key %s must be a whole number from 1", name);
    *ret = (uint32_t)value;
    return NIB_OK;
}

/* Figures that may be absent but else must be those of every gpt-oss model. */
static enum nib_err check_constants(const struct nib_pack *p, struct nib_msg *msg)
{
    static const struct {
        const char *name;
        double wanted;
    } figures[] = {
        {"gpt-oss.attention.key_length", NIB_HEAD_DIM},
        {"gpt-oss.attention.value_length", NIB_HEAD_DIM},
        {"gpt-oss.rope.dimension_count", NIB_HEAD_DIM},
        {"gpt-oss.attention.layer_norm_rms_epsilon", 1e-5},
        {"gpt-oss.rope.freq_base", NIB_ROPE_THETA},
        {"gpt-oss.rope.scaling.factor", NIB_ROPE_FACTOR},
        {"gpt-oss.rope.scaling.original_context_length", NIB_ROPE_ORIG_CTX},
        {"gpt-oss.rope.scaling.yarn_beta_fast", NIB_ROPE_BETA_FAST},
        {"gpt-oss.rope.scaling.yarn_beta_slow", NIB_ROPE_BETA_SLOW},
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        uint64_t whole = 0;
        double x = 0;
        if (!nib_gguf_find(p->gguf, figures[i].name))
            continue;
        bool ok = nib_gguf_real(p->gguf, figures[i].name, &x);
        if (!ok && nib_gguf_u64(p->gguf, figures[i].name, &whole)) {
            x = (double)whole;
            ok = true;
        }
        if (!ok || !(fabs(x - figures[i].wanted) <= 1e-6 * figures[i].wanted))
            return nib_fail(msg, NIB_E_FORMAT, "metadata key %s must be %g, as in every gpt-oss model", figures[i].name,
                            figures[i].wanted);
    }
    struct nib_span type;
    if (nib_gguf_string(p->gguf, "gpt-oss.rope.scaling.type", &type) && !nib_span_eq(type, NIB_SPAN("yarn")))
        return nib_fail(msg, NIB_E_FORMAT, "metadata key gpt-oss.rope.scaling.type must be yarn");
    return NIB_OK;
}

static enum nib_err read_shape(struct nib_pack *p, struct nib_msg *msg)
{
    struct nib_shape dims = {0};
    const struct {
        const char *name;
        uint32_t *ret;
    } keys[] = {
        {"gpt-oss.block_count", &dims.layers},
        {"gpt-oss.expert_count", &dims.experts},
        {"gpt-oss.expert_used_count", &dims.experts_used},
        {"gpt-oss.embedding_length", &dims.hidden},
        {"gpt-oss.expert_feed_forward_length", &dims.intermediate},
        {"gpt-oss.attention.head_count", &dims.heads},
        {"gpt-oss.attention.head_count_kv", &dims.kv_heads},
        {"gpt-oss.attention.sliding_window", &dims.window},
        {"gpt-oss.context_length", &dims.ctx_max},
    };
    struct nib_span arch;
    if (!nib_gguf_string(p->gguf, "general.architecture", &arch) || !nib_span_eq(arch, NIB_SPAN("gpt-oss")))
        return nib_fail(msg, NIB_E_FORMAT, "metadata key general.architecture must be gpt-oss");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        enum nib_err err = read_dim(p, keys[i].name, keys[i].ret, msg);
        if (err)
            return err;
    }
    const struct nib_weight *embed = nib_weights_find(p->weights, "token_embd.weight");
    if (!embed || embed->dims[0] > INT32_MAX)
        return nib_fail(msg, NIB_E_FORMAT, "tensor token_embd.weight is missing from the source");
    dims.vocab = (uint32_t)embed->dims[0];
    enum nib_err err = nib_pack_match(p, p->weights->files[0].label, &dims, msg);
    return err ? err : check_constants(p, msg);
}

/* The path of file `number` (from 1) of a split: NAME-00001-of-0000N.gguf. */
static bool split_path(const char *first, uint64_t number, uint64_t count, char out[NIB_MAX_PATH_BYTES])
{
    char ending[40], wanted[40];
    size_t length = strlen(first);
    int n = snprintf(ending, sizeof ending, "-00001-of-%05" PRIu64 ".gguf", count);
    if (n < 0 || length < (size_t)n || length >= NIB_MAX_PATH_BYTES || strcmp(first + length - (size_t)n, ending) != 0)
        return false;
    snprintf(wanted, sizeof wanted, "-%05" PRIu64 "-of-%05" PRIu64 ".gguf", number, count);
    memcpy(out, first, length - (size_t)n);
    memcpy(out + length - (size_t)n, wanted, (size_t)n + 1);
    return true;
}

/* One more file of the split. Only its tensors are wanted. */
static enum nib_err open_next(struct nib_pack *p, const char *path, uint64_t number, uint64_t count,
                              struct nib_msg *msg)
{
    struct nib_gguf *next = calloc(1, sizeof *next);
    NIB_MUST(next != NULL);
    uint64_t no = UINT64_MAX, its_count = 0;
    enum nib_err err = nib_gguf_open(p->weights, path, next, msg);
    if (!err && (!nib_gguf_u64(next, "split.no", &no) || !nib_gguf_u64(next, "split.count", &its_count) ||
                 no != number - 1 || its_count != count))
        err =
            nib_fail(msg, NIB_E_FORMAT, "%s is not part %" PRIu64 " of %" PRIu64 " of the split", path, number, count);
    nib_gguf_close(next);
    free(next);
    return err;
}

static enum nib_err open_split(struct nib_pack *p, const char *path, struct nib_msg *msg)
{
    uint64_t no = 0, count = 1, tensors;
    if (!nib_gguf_find(p->gguf, "split.count"))
        return NIB_OK;
    if (!nib_gguf_u64(p->gguf, "split.count", &count) || count > NIB_MAX_SHARDS ||
        !nib_gguf_u64(p->gguf, "split.no", &no) || no != 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s is not the first file of a split into at most %d", path, NIB_MAX_SHARDS);
    for (uint64_t number = 2; number <= count; number++) {
        char next[NIB_MAX_PATH_BYTES];
        if (!split_path(path, number, count, next))
            return nib_fail(msg, NIB_E_FORMAT,
                            "the first file of a split into %" PRIu64
                            " must have a name that ends in -00001-of-%05" PRIu64 ".gguf",
                            count, count);
        enum nib_err err = open_next(p, next, number, count, msg);
        if (err)
            return err;
    }
    if (nib_gguf_u64(p->gguf, "split.tensors.count", &tensors) && tensors != p->weights->count)
        return nib_fail(msg, NIB_E_FORMAT, "the split should have %" PRIu64 " tensors, but has %" PRIu32, tensors,
                        p->weights->count);
    return NIB_OK;
}

enum nib_err nib_pack_open_gguf(struct nib_pack *p, const char *path, struct nib_msg *msg)
{
    p->kind = NIB_PACK_GGUF;
    p->gguf = calloc(1, sizeof *p->gguf);
    NIB_MUST(p->gguf != NULL);
    enum nib_err err = nib_gguf_open(p->weights, path, p->gguf, msg);
    if (!err)
        err = open_split(p, path, msg);
    if (!err)
        err = nib_weights_seal(p->weights, msg);
    if (!err)
        err = read_shape(p, msg);
    if (!err) {
        struct nib_generation generation; /* GGUF names one end of answer only: use the model's */
        nib_generation_default(p->shape, &generation);
        p->generation_bytes = nib_generation_print(&generation, p->generation);
    }
    return err;
}

static enum nib_err add_tokens(struct nib_pack *p, struct nib_bpe *bpe, struct nib_msg *msg)
{
    const struct nib_gguf_key *tokens = nib_gguf_find(p->gguf, "tokenizer.ggml.tokens");
    const struct nib_gguf_key *types = nib_gguf_find(p->gguf, "tokenizer.ggml.token_type");
    if (!tokens || !tokens->is_array || tokens->type != NIB_GGUF_STRING || tokens->count != p->shape->vocab)
        return nib_fail(msg, NIB_E_FORMAT, "metadata key tokenizer.ggml.tokens must be an array of %" PRIu32 " strings",
                        p->shape->vocab);
    if (!types || !types->is_array || types->type != NIB_GGUF_I32 || types->count != tokens->count)
        return nib_fail(msg, NIB_E_FORMAT,
                        "metadata key tokenizer.ggml.token_type must be an array of %" PRIu32 " 32-bit numbers",
                        p->shape->vocab);
    size_t at = 0;
    for (uint32_t id = 0; id < p->shape->vocab; id++) {
        struct nib_span token = nib_gguf_next_string(tokens, &at);
        if (nib_gguf_element(types, id) == TOKEN_UNUSED)
            continue;
        enum nib_err err = nib_bpe_add(bpe, token.ptr, token.len, id, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err add_merges(struct nib_pack *p, struct nib_bpe *bpe, struct nib_msg *msg)
{
    const struct nib_gguf_key *merges = nib_gguf_find(p->gguf, "tokenizer.ggml.merges");
    if (!merges)
        return NIB_OK; /* the count of merges is checked at the end: 0 may be right */
    if (!merges->is_array || merges->type != NIB_GGUF_STRING)
        return nib_fail(msg, NIB_E_FORMAT, "metadata key tokenizer.ggml.merges must be an array of strings");
    size_t at = 0;
    for (uint64_t i = 0; i < merges->count; i++) {
        struct nib_span merge = nib_gguf_next_string(merges, &at);
        const char *space = memchr(merge.ptr, ' ', merge.len);
        if (!space)
            return nib_fail(msg, NIB_E_FORMAT,
                            "tokenizer.ggml.merges: merge %" PRIu64 " is not two tokens with a space", i);
        size_t left = (size_t)(space - merge.ptr);
        enum nib_err err = nib_bpe_merge(bpe, merge.ptr, left, space + 1, merge.len - left - 1, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

enum nib_err nib_pack_gguf_tokenizer(struct nib_pack *p, struct nib_msg *msg)
{
    struct nib_span model;
    if (!nib_gguf_string(p->gguf, "tokenizer.ggml.model", &model) || !nib_span_eq(model, NIB_SPAN("gpt2")))
        return nib_fail(msg, NIB_E_FORMAT, "metadata key tokenizer.ggml.model must be gpt2");
    struct nib_span pre;
    if (nib_gguf_string(p->gguf, "tokenizer.ggml.pre", &pre) && !nib_span_eq(pre, NIB_SPAN("gpt-4o")))
        return nib_fail(msg, NIB_E_FORMAT, "metadata key tokenizer.ggml.pre must be gpt-4o");
    const struct nib_gguf_key *tokens = nib_gguf_find(p->gguf, "tokenizer.ggml.tokens");
    struct nib_bpe bpe;
    nib_bpe_init(&bpe, p->shape, p->weights->files[0].label, tokens ? tokens->value.len + 1 : 1);
    enum nib_err err = add_tokens(p, &bpe, msg);
    if (!err)
        err = add_merges(p, &bpe, msg);
    if (!err)
        err = nib_bpe_blob(&bpe, &p->tokenizer, &p->tokenizer_bytes, msg);
    nib_bpe_done(&bpe);
    return err;
}
