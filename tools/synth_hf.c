/* tools/synth_hf.c: owns the Hugging Face form of a synthetic checkpoint: which rows of which image tensor each HF tensor
 * is, the shards, and their index. Memory stays at a few chunks. Main thread. Fails on the disk; a folder that a failure
 * leaves has no index. */
#include "tools/synth_hf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/arith.h"
#include "tools/synth_weights.h"

#define SHARD_BYTES_MAX 5000000000u /* the cap that Hugging Face's own tools write with */
#define SHARDS_MIN      2           /* so that small shapes are sharded too */
#define LAYER_HF_COUNT  19
#define HF_TENSORS_MAX  (3 + NIB_MAX_LAYERS * LAYER_HF_COUNT)
#define SHARD_NAME      48 /* bytes of "model-00001-of-00003.safetensors" with NUL */

enum part { ALL, Q_ROWS, K_ROWS, V_ROWS };

struct hf_row {
    const char *name;
    enum nib_tensor_id id;
    enum part part;
};

static const struct hf_row layer_rows[LAYER_HF_COUNT] = {
    {"input_layernorm.weight", NIB_T_ATTN_NORM, ALL},
    {"self_attn.q_proj.weight", NIB_T_QKV_WEIGHT, Q_ROWS},
    {"self_attn.q_proj.bias", NIB_T_QKV_BIAS, Q_ROWS},
    {"self_attn.k_proj.weight", NIB_T_QKV_WEIGHT, K_ROWS},
    {"self_attn.k_proj.bias", NIB_T_QKV_BIAS, K_ROWS},
    {"self_attn.v_proj.weight", NIB_T_QKV_WEIGHT, V_ROWS},
    {"self_attn.v_proj.bias", NIB_T_QKV_BIAS, V_ROWS},
    {"self_attn.sinks", NIB_T_SINKS, ALL},
    {"self_attn.o_proj.weight", NIB_T_OUT_WEIGHT, ALL},
    {"self_attn.o_proj.bias", NIB_T_OUT_BIAS, ALL},
    {"post_attention_layernorm.weight", NIB_T_MLP_NORM, ALL},
    {"mlp.router.weight", NIB_T_ROUTER_WEIGHT, ALL},
    {"mlp.router.bias", NIB_T_ROUTER_BIAS, ALL},
    {"mlp.experts.gate_up_proj_blocks", NIB_T_UP_BLOCKS, ALL},
    {"mlp.experts.gate_up_proj_scales", NIB_T_UP_SCALES, ALL},
    {"mlp.experts.gate_up_proj_bias", NIB_T_UP_BIAS, ALL},
    {"mlp.experts.down_proj_blocks", NIB_T_DOWN_BLOCKS, ALL},
    {"mlp.experts.down_proj_scales", NIB_T_DOWN_SCALES, ALL},
    {"mlp.experts.down_proj_bias", NIB_T_DOWN_BIAS, ALL},
};

struct hf_tensor {
    char name[NIB_MAX_TENSOR_NAME];
    enum nib_dtype dtype;
    uint32_t dim_count;
    uint64_t dims[NIB_MAX_TENSOR_DIMS];
    uint32_t shard;
};

struct checkpoint {
    const struct nib_synth *synth;
    struct nib_image image; /* the table of tensors these are slices of */
    uint32_t count;
    uint32_t shards;
    uint64_t total_bytes;
    struct hf_tensor tensors[HF_TENSORS_MAX];
    struct nib_synth_piece pieces[HF_TENSORS_MAX];
    struct nib_progress progress;
    FILE *file; /* shard being written, or NULL */
    uint32_t file_shard;
};

/* Appends the rows of image tensor (id, layer) that `part` names. */
static void add_tensor(struct checkpoint *c, const char *name, enum nib_tensor_id id, uint32_t layer, enum part part)
{
    const struct nib_shape *s = c->synth->shape;
    const struct nib_tensor *t = nib_image_tensor(&c->image, id, layer);
    struct hf_tensor *hf = &c->tensors[c->count];
    struct nib_synth_piece *piece = &c->pieces[c->count++];
    uint64_t row0 = part == K_ROWS ? nib_q_dim(s) : part == V_ROWS ? nib_q_dim(s) + nib_kv_dim(s) : 0;
    uint64_t rows = part == ALL ? t->dims[0] : part == Q_ROWS ? nib_q_dim(s) : nib_kv_dim(s);
    uint64_t row_bytes = t->bytes / t->dims[0];
    (void)snprintf(hf->name, sizeof hf->name, "%s", name);
    hf->dtype = t->dtype;
    hf->dim_count = t->dim_count;
    memcpy(hf->dims, t->dims, sizeof hf->dims);
    hf->dims[0] = rows;
    *piece =
        (struct nib_synth_piece){.id = id, .layer = layer, .begin_byte = row0 * row_bytes, .bytes = rows * row_bytes};
    c->total_bytes += piece->bytes;
}

/* The tensors in order, then cut into shards of nearly equal bytes. */
static void plan_checkpoint(struct checkpoint *c)
{
    char name[NIB_MAX_TENSOR_NAME];
    add_tensor(c, "model.embed_tokens.weight", NIB_T_EMBED, 0, ALL);
    for (uint32_t layer = 0; layer < c->synth->shape->layers; layer++)
        for (uint32_t i = 0; i < LAYER_HF_COUNT; i++) {
            (void)snprintf(name, sizeof name, "model.layers.%u.%s", layer, layer_rows[i].name);
            add_tensor(c, name, layer_rows[i].id, layer, layer_rows[i].part);
        }
    add_tensor(c, "model.norm.weight", NIB_T_FINAL_NORM, 0, ALL);
    add_tensor(c, "lm_head.weight", NIB_T_LM_HEAD, 0, ALL);
    uint64_t wanted = nib_div_up(c->total_bytes, SHARD_BYTES_MAX);
    c->shards = (uint32_t)(wanted < SHARDS_MIN ? SHARDS_MIN : wanted);
    uint64_t before = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        c->tensors[i].shard = (uint32_t)(before * c->shards / c->total_bytes);
        before += c->pieces[i].bytes;
    }
}

static void shard_name(const struct checkpoint *c, uint32_t shard, char out[SHARD_NAME])
{
    (void)snprintf(out, SHARD_NAME, "model-%05u-of-%05u.safetensors", shard + 1, c->shards);
}

enum nib_err nib_synth_create(const char *folder, const char *name, FILE **ret_file, struct nib_msg *msg)
{
    char path[NIB_MAX_PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return nib_fail(msg, NIB_E_LIMIT, "the folder's path is longer than %d bytes", NIB_MAX_PATH_BYTES - 64);
    FILE *file = fopen(path, "wb");
    if (!file)
        return nib_fail(msg, NIB_E_IO, "cannot create %s: %s", path, strerror(errno));
    *ret_file = file;
    return NIB_OK;
}

enum nib_err nib_synth_finish(FILE *file, const char *folder, const char *name, struct nib_msg *msg)
{
    bool good = fflush(file) == 0 && !ferror(file);
    int error = errno;
    good = fclose(file) == 0 && good;
    return good ? NIB_OK : nib_fail(msg, NIB_E_IO, "cannot write %s/%s: %s", folder, name, strerror(error));
}

static void print_entry(FILE *out, const struct hf_tensor *hf, uint64_t begin, uint64_t end)
{
    (void)fprintf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", hf->name, nib_dtype_name(hf->dtype));
    for (uint32_t i = 0; i < hf->dim_count; i++)
        (void)fprintf(out, i ? ",%llu" : "%llu", (unsigned long long)hf->dims[i]);
    (void)fprintf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin, (unsigned long long)end);
}

/* Length and JSON of a shard's header, padded to 8 bytes. */
static enum nib_err write_shard_header(const struct checkpoint *c, uint32_t shard, FILE *file, struct nib_msg *msg)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a shard's header");
    (void)fputs("{\"__metadata__\":{\"format\":\"pt\"}", out);
    uint64_t at = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        if (c->tensors[i].shard != shard)
            continue;
        print_entry(out, &c->tensors[i], at, at + c->pieces[i].bytes);
        at += c->pieces[i].bytes;
    }
    (void)fputc('}', out);
    while (ftell(out) % 8 != 0)
        (void)fputc(' ', out);
    if (fclose(out) != 0) {
        free(text);
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a shard's header");
    }
    for (int i = 0; i < 8; i++)
        (void)fputc((int)((uint64_t)bytes >> (8 * i) & 255), file);
    (void)fwrite(text, 1, bytes, file); /* an error stays in the stream and is seen when it is finished */
    free(text);
    return NIB_OK;
}

static enum nib_err end_shard(struct checkpoint *c, struct nib_msg *msg)
{
    char name[SHARD_NAME];
    FILE *file = c->file;
    if (!file)
        return NIB_OK;
    c->file = NULL;
    shard_name(c, c->file_shard, name);
    return nib_synth_finish(file, c->synth->out, name, msg);
}

static enum nib_err write_chunk(void *arg, uint32_t index, const uint8_t *bytes, size_t n, struct nib_msg *msg)
{
    struct checkpoint *c = arg;
    uint32_t shard = c->tensors[index].shard;
    if (!c->file || c->file_shard != shard) {
        char name[SHARD_NAME];
        enum nib_err err = end_shard(c, msg);
        shard_name(c, shard, name);
        if (!err)
            err = nib_synth_create(c->synth->out, name, &c->file, msg);
        c->file_shard = shard;
        if (!err)
            err = write_shard_header(c, shard, c->file, msg);
        if (err)
            return err;
    }
    nib_progress_add(&c->progress, n);
    if (fwrite(bytes, 1, n, c->file) != n)
        return nib_fail(msg, NIB_E_IO, "writing a shard in %s failed: %s", c->synth->out, strerror(errno));
    return NIB_OK;
}

static enum nib_err write_index(const struct checkpoint *c, struct nib_msg *msg)
{
    static const char name[] = "model.safetensors.index.json";
    FILE *file = NULL;
    enum nib_err err = nib_synth_create(c->synth->out, name, &file, msg);
    if (err)
        return err;
    (void)fprintf(file, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
                  (unsigned long long)c->total_bytes);
    for (uint32_t i = 0; i < c->count; i++) {
        char shard[SHARD_NAME];
        shard_name(c, c->tensors[i].shard, shard);
        (void)fprintf(file, "%s\n    \"%s\": \"%s\"", i ? "," : "", c->tensors[i].name, shard);
    }
    (void)fputs("\n  }\n}\n", file);
    return nib_synth_finish(file, c->synth->out, name, msg);
}

static enum nib_err write_weights(struct checkpoint *c, struct nib_msg *msg)
{
    nib_progress_begin(&c->progress, "synth", c->total_bytes);
    enum nib_err err = nib_synth_stream(c->synth->shape, c->synth->seed, c->pieces, c->count, write_chunk, c, msg);
    (void)nib_progress_end(&c->progress);
    enum nib_err end_err = end_shard(c, err ? NULL : msg);
    if (!err)
        err = end_err;
    return err ? err : write_index(c, msg);
}

enum nib_err nib_synth_hf(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes, struct nib_msg *msg)
{
    if (mkdir(synth->out, 0755) != 0 && errno != EEXIST)
        return nib_fail(msg, NIB_E_IO, "cannot create the folder %s: %s", synth->out, strerror(errno));
    struct checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a checkpoint's description");
    c->synth = synth;
    enum nib_err err = nib_image_layout(synth->shape, NIB_DENSE_BF16, "", 1, 1, &c->image, msg);
    if (!err) {
        plan_checkpoint(c);
        err = nib_synth_hf_configs(synth, msg);
    }
    if (!err)
        err = nib_synth_hf_tokenizer(synth, blob, blob_bytes, msg);
    if (!err)
        err = write_weights(c, msg);
    free(c);
    return err;
}
