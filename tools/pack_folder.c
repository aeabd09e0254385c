/* tools/pack_folder.c: opens a folder of safetensors shards, of Hugging Face or of OpenAI. Limits:
 * NIB_MAX_SHARDS files, NIB_MAX_SRC_CONFIG_BYTES and NIB_MAX_SRC_JSON_BYTES for the JSON beside
 * them. One thread. Fails with one sentence that names the file. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/hf_tokenizer.h"
#include "tools/pack.h"
#include "tools/safetensors.h"

#define INDEX_NAME  "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"

static enum nib_err join(const char *folder, const char *name, char out[NIB_MAX_PATH_BYTES], struct nib_msg *msg)
{
    int n = snprintf(out, NIB_MAX_PATH_BYTES, "%s/%s", folder, name);
    if (n < 0 || n >= NIB_MAX_PATH_BYTES)
        return nib_fail(msg, NIB_E_LIMIT, "the path of %s has more than %d bytes", name, NIB_MAX_PATH_BYTES - 1);
    return NIB_OK;
}

/* A file of the folder as text; *ret_text NULL when it is not there and need not be. */
static enum nib_err read_beside(const char *folder, const char *name, size_t max, bool needed, char **ret_text,
                                size_t *ret_bytes, struct nib_msg *msg)
{
    char path[NIB_MAX_PATH_BYTES];
    enum nib_err err = join(folder, name, path, msg);
    if (err)
        return err;
    if (!needed && access(path, F_OK) != 0 && errno == ENOENT) {
        *ret_text = NULL;
        *ret_bytes = 0;
        return NIB_OK;
    }
    return nib_pack_read_file(path, max, ret_text, ret_bytes, msg);
}

/* A shard's name may not lead out of the folder. */
static bool shard_name_ok(const char *name)
{
    static const char ending[] = ".safetensors";
    size_t n = strlen(name);
    if (n <= sizeof ending - 1 || n > 255 || name[0] == '.' || strcmp(name + n - (sizeof ending - 1), ending) != 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] <= ' ' || name[i] > '~' || name[i] == '/' || name[i] == '\\' || name[i] == '"')
            return false;
    return true;
}

/* Opens the shard unless it is open. */
static enum nib_err open_shard(struct nib_pack *p, const char *folder, const char *name, struct nib_msg *msg)
{
    for (uint32_t i = 0; i < p->weights->file_count; i++)
        if (strcmp(p->weights->files[i].label, name) == 0)
            return NIB_OK;
    char path[NIB_MAX_PATH_BYTES];
    uint32_t file;
    enum nib_err err = join(folder, name, path, msg);
    return err ? err : nib_safetensors_open(p->weights, path, &file, msg);
}

/* Every tensor of the map must be in the file it names, and the files hold no others. */
static enum nib_err compare_map(const struct nib_pack *p, json_t *map, struct nib_msg *msg)
{
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file)
    {
        const struct nib_weight *t = nib_weights_find(p->weights, name);
        if (!t || strcmp(p->weights->files[t->file].label, json_string_value(file)) != 0)
            return nib_fail(msg, NIB_E_FORMAT, INDEX_NAME ": tensor %.95s is not in %.95s", name,
                            json_string_value(file));
    }
    if (json_object_size(map) != p->weights->count)
        return nib_fail(msg, NIB_E_FORMAT, INDEX_NAME " lists %zu tensors, but the shards hold %" PRIu32,
                        json_object_size(map), p->weights->count);
    return NIB_OK;
}

static enum nib_err open_map(struct nib_pack *p, const char *folder, json_t *map, struct nib_msg *msg)
{
    const char *name;
    json_t *file;
    if (!json_is_object(map))
        return nib_fail(msg, NIB_E_FORMAT, INDEX_NAME " has no weight_map object");
    json_object_foreach(map, name, file)
    {
        if (!nib_weights_name_ok(name, strlen(name)))
            return nib_fail(msg, NIB_E_FORMAT, INDEX_NAME ": a tensor's name is not 1 to %d printable ASCII characters",
                            NIB_MAX_TENSOR_NAME - 1);
        if (!json_is_string(file) || !shard_name_ok(json_string_value(file)))
            return nib_fail(msg, NIB_E_FORMAT,
                            INDEX_NAME ": the file of tensor %s must be a plain name that ends in "
                                       ".safetensors",
                            name);
        enum nib_err err = open_shard(p, folder, json_string_value(file), msg);
        if (err)
            return err;
    }
    enum nib_err err = nib_weights_seal(p->weights, msg);
    return err ? err : compare_map(p, map, msg);
}

static enum nib_err open_shards(struct nib_pack *p, const char *folder, struct nib_msg *msg)
{
    char *text = NULL;
    size_t bytes;
    enum nib_err err = read_beside(folder, INDEX_NAME, NIB_MAX_SRC_CONFIG_BYTES, false, &text, &bytes, msg);
    if (err)
        return err;
    if (!text) {
        err = open_shard(p, folder, SINGLE_NAME, msg);
        return err ? err : nib_weights_seal(p->weights, msg);
    }
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    if (!json_is_object(index))
        err = nib_fail(msg, NIB_E_FORMAT, INDEX_NAME " is not a JSON object without double keys");
    else
        err = open_map(p, folder, json_object_get(index, "weight_map"), msg);
    json_decref(index);
    return err;
}

static enum nib_err tell_kind(struct nib_pack *p, struct nib_msg *msg)
{
    bool hf = nib_weights_find(p->weights, "model.embed_tokens.weight") != NULL;
    bool openai = nib_weights_find(p->weights, "embedding.weight") != NULL;
    if (hf == openai)
        return nib_fail(msg, NIB_E_FORMAT,
                        "the folder has neither Hugging Face's model.embed_tokens.weight nor "
                        "OpenAI's embedding.weight alone");
    p->kind = hf ? NIB_PACK_HF : NIB_PACK_OPENAI;
    return NIB_OK;
}

static enum nib_err read_generation(struct nib_pack *p, const char *folder, struct nib_msg *msg)
{
    static const char name[] = "generation_config.json";
    struct nib_generation generation;
    char *text = NULL;
    size_t bytes;
    enum nib_err err = read_beside(folder, name, NIB_MAX_SRC_CONFIG_BYTES, false, &text, &bytes, msg);
    if (err)
        return err;
    nib_generation_default(p->shape, &generation);
    if (text)
        err = nib_generation_parse(text, bytes, name, p->shape, &generation, &p->eos_added, msg);
    free(text);
    if (!err)
        p->generation_bytes = nib_generation_print(&generation, p->generation);
    return err;
}

enum nib_err nib_pack_open_folder(struct nib_pack *p, const char *path, struct nib_msg *msg)
{
    char *text = NULL;
    size_t bytes;
    enum nib_err err = read_beside(path, "config.json", NIB_MAX_SRC_CONFIG_BYTES, true, &text, &bytes, msg);
    if (!err)
        err = nib_pack_config(p, text, bytes, msg);
    free(text);
    if (!err)
        err = open_shards(p, path, msg);
    if (!err)
        err = tell_kind(p, msg);
    return err ? err : read_generation(p, path, msg);
}

enum nib_err nib_pack_folder_tokenizer(struct nib_pack *p, const char *path, bool *ret_found, struct nib_msg *msg)
{
    static const char name[] = "tokenizer.json";
    char *text = NULL;
    size_t bytes;
    enum nib_err err = read_beside(path, name, NIB_MAX_SRC_JSON_BYTES, false, &text, &bytes, msg);
    if (!err && text)
        err = nib_hf_tokenizer_blob(text, bytes, name, p->shape, &p->tokenizer, &p->tokenizer_bytes, msg);
    if (!err)
        *ret_found = text != NULL;
    free(text);
    return err;
}
