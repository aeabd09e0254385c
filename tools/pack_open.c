/* tools/pack_open.c: owns a source while it is packed: tells folder from GGUF file, opens it, chooses the tokenizer, and
 * words the image's `source`. One thread; heap. Fails with one sentence that names the file. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/vocab.h"
#include "tools/pack.h"
#include "tools/synth.h"

enum nib_err nib_pack_read_file(const char *path, size_t max, char **ret_text, size_t *ret_bytes, struct nib_msg *msg)
{
    struct nib_weights *one = nib_weights_new();
    char *text = NULL;
    uint32_t file = 0;
    enum nib_err err = nib_weights_open(one, path, &file, msg);
    uint64_t bytes = err ? 0 : one->files[file].bytes;
    if (!err && bytes > max)
        err = nib_fail(msg, NIB_E_LIMIT, "%s has %" PRIu64 " bytes; at most %zu are allowed", path, bytes, max);
    if (!err) {
        text = malloc((size_t)bytes + 1);
        if (!text)
            err = nib_fail(msg, NIB_E_NOMEM, "no memory for %s", path);
        else
            err = nib_weights_read_file(one, file, 0, text, (size_t)bytes, msg);
    }
    nib_weights_free(one);
    if (err) {
        free(text);
        return err;
    }
    text[bytes] = '\0';
    *ret_text = text;
    *ret_bytes = (size_t)bytes;
    return NIB_OK;
}

enum nib_err nib_pack_match(struct nib_pack *p, const char *label, const struct nib_shape *d, struct nib_msg *msg)
{
    const struct nib_shape *found = nib_shape_match(d);
    if (found) {
        p->shape = found;
        return NIB_OK;
    }
    char names[160] = "";
    size_t count, used = 0;
    const struct nib_shape *shapes = nib_shapes(&count);
    for (size_t i = 0; i < count && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", shapes[i].name);
    return nib_fail(msg, NIB_E_FORMAT,
                    "%s: %u layers, %u experts (%u used), hidden %u, intermediate %u, heads %u/%u, vocabulary %u, "
                    "window %u and context %u are none of the shapes %s",
                    label, d->layers, d->experts, d->experts_used, d->hidden, d->intermediate, d->heads, d->kv_heads,
                    d->vocab, d->window, d->ctx_max, names);
}

/* The vocabulary in a .tiktoken file, in place of the source's own. */
static enum nib_err tiktoken_vocab(struct nib_pack *p, const char *path, struct nib_msg *msg)
{
    char *text = NULL;
    size_t bytes = 0;
    enum nib_err err = nib_pack_read_file(path, NIB_MAX_TOKENIZER_BYTES, &text, &bytes, msg);
    if (err)
        return err;
    size_t cap = NIB_VOCAB_HEADER_BYTES + bytes;
    uint8_t *blob = malloc(cap);
    if (!blob)
        err = nib_fail(msg, NIB_E_NOMEM, "no memory for a vocabulary of %zu bytes", cap);
    else
        err = nib_vocab_build_tiktoken(text, bytes, UINT32_MAX, p->shape->vocab, p->shape->special_base, blob, cap,
                                       &p->tokenizer_bytes, msg);
    free(text);
    if (err)
        free(blob);
    else
        p->tokenizer = blob;
    return err;
}

static enum nib_err open_tokenizer(struct nib_pack *p, const char *src, const char *vocab_path, struct nib_msg *msg)
{
    bool found = false;
    if (vocab_path)
        return tiktoken_vocab(p, vocab_path, msg);
    if (p->kind == NIB_PACK_GGUF)
        return nib_pack_gguf_tokenizer(p, msg);
    enum nib_err err = nib_pack_folder_tokenizer(p, src, &found, msg);
    if (err || found)
        return err;
    if (p->kind == NIB_PACK_HF)
        return nib_fail(msg, NIB_E_FORMAT, "the folder has no tokenizer.json; give a vocabulary with --vocab");
    /* OpenAI's layout has no tokenizer: it is the one that synth uses */
    struct nib_synth standard = {.shape = p->shape};
    return nib_synth_vocab(&standard, &p->tokenizer, &p->tokenizer_bytes, msg);
}

/* "Hugging Face folder, 3 files: 411 BF16, 48 U8" */
static void word_source(struct nib_pack *p)
{
    static const char *const kinds[] = {
        [NIB_PACK_HF] = "Hugging Face folder", [NIB_PACK_OPENAI] = "OpenAI folder", [NIB_PACK_GGUF] = "GGUF"};
    uint32_t counts[NIB_W_COUNT] = {0};
    for (uint32_t i = 0; i < p->weights->count; i++)
        counts[p->weights->list[i].type]++;
    size_t used = (size_t)snprintf(p->source, sizeof p->source, "%s, %" PRIu32 " file%s", kinds[p->kind],
                                   p->weights->file_count, p->weights->file_count == 1 ? "" : "s");
    bool converted = false;
    for (int type = 0, first = 1; type < NIB_W_COUNT; type++) {
        if (counts[type] == 0)
            continue;
        used += (size_t)snprintf(p->source + used, sizeof p->source - used, "%s%" PRIu32 " %s", first ? ": " : ", ",
                                 counts[type], nib_weight_type_name((enum nib_weight_type)type));
        first = 0;
        converted = converted || type == NIB_W_F32 || type == NIB_W_F16 || type == NIB_W_Q8_0;
    }
    if (converted)
        (void)snprintf(p->source + used, sizeof p->source - used, "; dense values converted to bf16");
}

static bool begins_with_gguf(const char *path)
{
    char magic[4] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, magic, sizeof magic);
    close(fd);
    return got == sizeof magic && memcmp(magic, "GGUF", sizeof magic) == 0;
}

enum nib_err nib_pack_open(struct nib_pack *p, const char *src, const char *vocab_path, struct nib_msg *msg)
{
    struct stat st;
    memset(p, 0, sizeof *p);
    p->weights = nib_weights_new();
    if (stat(src, &st) != 0)
        return nib_fail(msg, NIB_E_IO, "cannot open %s: %s", src, strerror(errno));
    enum nib_err err;
    if (S_ISDIR(st.st_mode))
        err = nib_pack_open_folder(p, src, msg);
    else if (S_ISREG(st.st_mode) && begins_with_gguf(src))
        err = nib_pack_open_gguf(p, src, msg);
    else
        err = nib_fail(msg, NIB_E_FORMAT, "%s is neither a checkpoint's folder nor a GGUF file", src);
    if (!err)
        err = open_tokenizer(p, src, vocab_path, msg);
    if (!err)
        word_source(p);
    return err;
}

void nib_pack_close(struct nib_pack *p)
{
    nib_weights_free(p->weights);
    if (p->gguf)
        nib_gguf_close(p->gguf);
    free(p->gguf);
    free(p->tokenizer);
    memset(p, 0, sizeof *p);
}
