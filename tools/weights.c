/* tools/weights.c: owns the open files and the tensor list of a source checkpoint. Limits:
 * NIB_MAX_SHARDS files, NIB_MAX_SRC_TENSORS tensors. One thread. Fails with one sentence that names
 * the file or the tensor. */
#include "tools/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/arith.h"

static const struct {
    const char *name;
    uint32_t elements;
    uint32_t bytes;
} types[NIB_W_COUNT] = {
    [NIB_W_F32] = {"F32", 1, 4}, [NIB_W_F16] = {"F16", 1, 2},     [NIB_W_BF16] = {"BF16", 1, 2},
    [NIB_W_U8] = {"U8", 1, 1},   [NIB_W_Q8_0] = {"Q8_0", 32, 34}, [NIB_W_MXFP4] = {"MXFP4", 32, 17},
};

struct nib_weights *nib_weights_new(void)
{
    struct nib_weights *w = calloc(1, sizeof *w);
    NIB_MUST(w != NULL);
    return w;
}

void nib_weights_free(struct nib_weights *w)
{
    if (!w)
        return;
    for (uint32_t i = 0; i < w->file_count; i++) {
        close(w->files[i].fd);
        free(w->files[i].label);
    }
    free(w);
}

const char *nib_weight_type_name(enum nib_weight_type type)
{
    return types[type].name;
}

uint32_t nib_weight_block(enum nib_weight_type type)
{
    return types[type].elements;
}

uint32_t nib_weight_block_bytes(enum nib_weight_type type)
{
    return types[type].bytes;
}

enum nib_err nib_weights_open(struct nib_weights *w, const char *path, uint32_t *ret_file, struct nib_msg *msg)
{
    if (w->file_count == NIB_MAX_SHARDS)
        return nib_fail(msg, NIB_E_LIMIT, "a checkpoint may have at most %d files", NIB_MAX_SHARDS);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot open %s: %s", path, strerror(errno));
    struct nib_weight_file file = {.fd = fd};
    if (fstat(fd, &file.at_open) != 0 || !S_ISREG(file.at_open.st_mode) || file.at_open.st_size <= 0) {
        close(fd);
        return nib_fail(msg, NIB_E_FORMAT, "%s is not a regular file with content", path);
    }
    const char *slash = strrchr(path, '/');
    file.label = strdup(slash ? slash + 1 : path);
    NIB_MUST(file.label != NULL);
    file.bytes = (uint64_t)file.at_open.st_size;
    *ret_file = w->file_count;
    w->files[w->file_count++] = file;
    return NIB_OK;
}

bool nib_weights_name_ok(const char *text, size_t bytes)
{
    if (bytes == 0 || bytes >= NIB_MAX_TENSOR_NAME)
        return false;
    for (size_t i = 0; i < bytes; i++)
        if (text[i] <= ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\')
            return false;
    return true;
}

/* Bytes of the tensor from its type and shape. */
static enum nib_err sized(const struct nib_weights *w, const struct nib_weight *t, uint64_t *ret_bytes,
                          struct nib_msg *msg)
{
    const char *label = w->files[t->file].label;
    if (t->dim_count == 0 || t->dim_count > NIB_MAX_TENSOR_DIMS)
        return nib_fail(msg, NIB_E_FORMAT, "%s: tensor %s has %" PRIu32 " dimensions, 1 to %d are allowed", label,
                        t->name, t->dim_count, NIB_MAX_TENSOR_DIMS);
    uint64_t last = t->dims[t->dim_count - 1];
    if (last % types[t->type].elements != 0)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s: rows of tensor %s are %" PRIu64 " elements, not whole blocks of %" PRIu32, label, t->name,
                        last, types[t->type].elements);
    uint64_t bytes = types[t->type].bytes;
    for (uint32_t i = 0; i < t->dim_count; i++) {
        uint64_t n = i + 1 == t->dim_count ? last / types[t->type].elements : t->dims[i];
        if (n == 0 || !nib_mul_u64(bytes, n, &bytes))
            return nib_fail(msg, NIB_E_FORMAT, "%s: tensor %s has a zero or impossible dimension", label, t->name);
    }
    *ret_bytes = bytes;
    return NIB_OK;
}

enum nib_err nib_weights_add(struct nib_weights *w, const struct nib_weight *tensor, struct nib_msg *msg)
{
    const struct nib_weight_file *file = &w->files[tensor->file];
    if (w->count == NIB_MAX_SRC_TENSORS)
        return nib_fail(msg, NIB_E_LIMIT, "%s: a checkpoint may have at most %d tensors", file->label,
                        NIB_MAX_SRC_TENSORS);
    struct nib_weight t = *tensor;
    enum nib_err err = sized(w, &t, &t.bytes, msg);
    if (err)
        return err;
    for (uint32_t i = t.dim_count; i < NIB_MAX_TENSOR_DIMS; i++)
        t.dims[i] = 1;
    uint64_t end;
    if (!nib_add_u64(t.offset, t.bytes, &end) || end > file->bytes)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s: tensor %s takes %" PRIu64 " bytes at offset %" PRIu64 ", but the file ends at %" PRIu64,
                        file->label, t.name, t.bytes, t.offset, file->bytes);
    w->list[w->count++] = t;
    return NIB_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct nib_weight *)a)->name, ((const struct nib_weight *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct nib_weight *x = *(const struct nib_weight *const *)a;
    const struct nib_weight *y = *(const struct nib_weight *const *)b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

enum nib_err nib_weights_seal(struct nib_weights *w, struct nib_msg *msg)
{
    qsort(w->list, w->count, sizeof w->list[0], by_name);
    for (uint32_t i = 1; i < w->count; i++)
        if (strcmp(w->list[i - 1].name, w->list[i].name) == 0)
            return nib_fail(msg, NIB_E_FORMAT, "tensor %s comes twice, in %s and in %s", w->list[i].name,
                            w->files[w->list[i - 1].file].label, w->files[w->list[i].file].label);
    const struct nib_weight *place[NIB_MAX_SRC_TENSORS];
    for (uint32_t i = 0; i < w->count; i++)
        place[i] = &w->list[i];
    qsort(place, w->count, sizeof place[0], by_place);
    for (uint32_t i = 1; i < w->count; i++)
        if (place[i - 1]->file == place[i]->file && place[i - 1]->offset + place[i - 1]->bytes > place[i]->offset)
            return nib_fail(msg, NIB_E_FORMAT, "%s: tensors %s and %s share bytes", w->files[place[i]->file].label,
                            place[i - 1]->name, place[i]->name);
    return NIB_OK;
}

const struct nib_weight *nib_weights_find(const struct nib_weights *w, const char *name)
{
    uint32_t low = 0, high = w->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        int order = strcmp(name, w->list[mid].name);
        if (order == 0)
            return &w->list[mid];
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

enum nib_err nib_weights_read_file(const struct nib_weights *w, uint32_t file, uint64_t offset, void *buf, size_t n,
                                   struct nib_msg *msg)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(w->files[file].fd, (char *)buf + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nib_fail(msg, NIB_E_IO, "cannot read %s: %s", w->files[file].label, strerror(errno));
        if (got == 0)
            return nib_fail(msg, NIB_E_IO, "%s ends at byte %" PRIu64 ", while it was being read", w->files[file].label,
                            offset + done);
        done += (size_t)got;
    }
    return NIB_OK;
}

enum nib_err nib_weights_read(const struct nib_weights *w, const struct nib_weight *tensor, uint64_t at, void *buf,
                              size_t n, struct nib_msg *msg)
{
    NIB_MUST(at <= tensor->bytes && n <= tensor->bytes - at);
    return nib_weights_read_file(w, tensor->file, tensor->offset + at, buf, n, msg);
}

enum nib_err nib_weights_check_unchanged(const struct nib_weights *w, struct nib_msg *msg)
{
    for (uint32_t i = 0; i < w->file_count; i++) {
        const struct nib_weight_file *f = &w->files[i];
        struct stat now;
        if (fstat(f->fd, &now) != 0 || now.st_size != f->at_open.st_size ||
            now.st_mtim.tv_sec != f->at_open.st_mtim.tv_sec || now.st_mtim.tv_nsec != f->at_open.st_mtim.tv_nsec)
            return nib_fail(msg, NIB_E_IO, "%s changed while it was being read", f->label);
    }
    return NIB_OK;
}
