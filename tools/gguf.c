/* tools/gguf.c: owns the head of a GGUF file while it is open. Limits: gguf.h. One thread. Fails
 * with one sentence that names the file. */
#include "tools/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"

#define MAX_ALIGNMENT     65536u
#define DEFAULT_ALIGNMENT 32u

static const uint8_t type_bytes[NIB_GGUF_TYPE_COUNT] = {
    [NIB_GGUF_U8] = 1,  [NIB_GGUF_I8] = 1,  [NIB_GGUF_U16] = 2,  [NIB_GGUF_I16] = 2,    [NIB_GGUF_U32] = 4,
    [NIB_GGUF_I32] = 4, [NIB_GGUF_F32] = 4, [NIB_GGUF_BOOL] = 1, [NIB_GGUF_STRING] = 8, /* its length, at least */
    [NIB_GGUF_U64] = 8, [NIB_GGUF_I64] = 8, [NIB_GGUF_F64] = 8,
};

struct cursor {
    const uint8_t *at, *end;
    const char *label;
    struct nib_msg *msg;
};

static size_t left(const struct cursor *c)
{
    return (size_t)(c->end - c->at);
}

static uint64_t load(const uint8_t *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

static bool take(struct cursor *c, size_t bytes, uint64_t *ret)
{
    if (left(c) < bytes)
        return false;
    *ret = load(c->at, bytes);
    c->at += bytes;
    return true;
}

static bool take_string(struct cursor *c, struct nib_span *ret)
{
    uint64_t bytes;
    if (!take(c, 8, &bytes) || bytes > left(c))
        return false;
    *ret = nib_span_of((const char *)c->at, (size_t)bytes);
    c->at += bytes;
    return true;
}

static enum nib_err too_short(const struct cursor *c, const char *what)
{
    return nib_fail(c->msg, NIB_E_FORMAT, "%s: the file ends, or its head passes %u bytes, inside %s", c->label,
                    NIB_MAX_SRC_HEADER_BYTES, what);
}

/* The bytes of `count` values of one type. */
static bool take_values(struct cursor *c, enum nib_gguf_type type, uint64_t count, struct nib_span *ret)
{
    const uint8_t *start = c->at;
    if (count > left(c) / type_bytes[type])
        return false;
    if (type != NIB_GGUF_STRING)
        c->at += count * type_bytes[type];
    else
        for (uint64_t i = 0; i < count; i++) {
            struct nib_span skipped;
            if (!take_string(c, &skipped))
                return false;
        }
    *ret = nib_span_of((const char *)start, (size_t)(c->at - start));
    return true;
}

static enum nib_err parse_key(struct cursor *c, struct nib_gguf_key *key)
{
    uint64_t type, count = 1;
    if (!take_string(c, &key->name) || !take(c, 4, &type))
        return too_short(c, "a metadata key");
    if (!nib_weights_name_ok(key->name.ptr, key->name.len))
        return nib_fail(c->msg, NIB_E_FORMAT, "%s: a metadata key is not 1 to %d printable ASCII characters", c->label,
                        NIB_MAX_TENSOR_NAME - 1);
    key->is_array = type == NIB_GGUF_ARRAY;
    if (key->is_array && (!take(c, 4, &type) || !take(c, 8, &count)))
        return too_short(c, "a metadata array");
    if (type >= NIB_GGUF_TYPE_COUNT || type == NIB_GGUF_ARRAY)
        return nib_fail(c->msg, NIB_E_FORMAT,
                        "%s: metadata key %.*s has type %" PRIu64 ", which is unknown or an array of arrays", c->label,
                        (int)key->name.len, key->name.ptr, type);
    key->type = (enum nib_gguf_type)type;
    key->count = count;
    if (!take_values(c, key->type, count, &key->value))
        return nib_fail(c->msg, NIB_E_FORMAT, "%s: metadata key %.*s claims more values than the file holds", c->label,
                        (int)key->name.len, key->name.ptr);
    return NIB_OK;
}

static enum nib_err parse_keys(struct cursor *c, uint64_t count, struct nib_gguf *g)
{
    if (count > NIB_MAX_SRC_KEYS)
        return nib_fail(c->msg, NIB_E_LIMIT, "%s claims %" PRIu64 " metadata keys; at most %d are allowed", c->label,
                        count, NIB_MAX_SRC_KEYS);
    for (g->key_count = 0; g->key_count < count; g->key_count++) {
        struct nib_gguf_key *key = &g->keys[g->key_count];
        enum nib_err err = parse_key(c, key);
        if (err)
            return err;
        for (uint32_t i = 0; i < g->key_count; i++)
            if (nib_span_eq(g->keys[i].name, key->name))
                return nib_fail(c->msg, NIB_E_FORMAT, "%s: metadata key %.*s comes twice", c->label, (int)key->name.len,
                                key->name.ptr);
    }
    return NIB_OK;
}

/* Type numbers of ggml. */
static bool weight_type(uint64_t number, enum nib_weight_type *ret)
{
    static const struct {
        uint8_t number;
        enum nib_weight_type type;
    } map[] = {{0, NIB_W_F32}, {1, NIB_W_F16}, {8, NIB_W_Q8_0}, {30, NIB_W_BF16}, {39, NIB_W_MXFP4}};
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++) {
        if (map[i].number == number) {
            *ret = map[i].type;
            return true;
        }
    }
    return false;
}

/* One tensor; *offset is still relative to the data. */
static enum nib_err parse_tensor(struct cursor *c, struct nib_weight *t)
{
    struct nib_span name;
    uint64_t dim_count, type;
    if (!take_string(c, &name) || !take(c, 4, &dim_count))
        return too_short(c, "the list of tensors");
    if (!nib_weights_name_ok(name.ptr, name.len))
        return nib_fail(c->msg, NIB_E_FORMAT, "%s: a tensor's name is not 1 to %d printable ASCII characters", c->label,
                        NIB_MAX_TENSOR_NAME - 1);
    memcpy(t->name, name.ptr, name.len);
    if (dim_count == 0 || dim_count > NIB_MAX_TENSOR_DIMS)
        return nib_fail(c->msg, NIB_E_FORMAT, "%s: tensor %s has %" PRIu64 " dimensions, 1 to %d are allowed", c->label,
                        t->name, dim_count, NIB_MAX_TENSOR_DIMS);
    t->dim_count = (uint32_t)dim_count;
    for (uint32_t i = 0; i < t->dim_count; i++) /* stored innermost first */
        if (!take(c, 8, &t->dims[t->dim_count - 1 - i]))
            return too_short(c, "the list of tensors");
    if (!take(c, 4, &type) || !take(c, 8, &t->offset))
        return too_short(c, "the list of tensors");
    if (!weight_type(type, &t->type))
        return nib_fail(c->msg, NIB_E_FORMAT,
                        "%s: tensor %s has ggml type %" PRIu64
                        "; allowed are F32 (0), F16 (1), Q8_0 (8), BF16 (30) and MXFP4 (39)",
                        c->label, t->name, type);
    return NIB_OK;
}

/* Where the data begin, from the head's end and general.alignment. */
static enum nib_err place_data(struct nib_gguf *g, const struct cursor *c, uint64_t head_bytes)
{
    uint64_t alignment = DEFAULT_ALIGNMENT;
    if (nib_gguf_find(g, "general.alignment") && (!nib_gguf_u64(g, "general.alignment", &alignment) || alignment < 8 ||
                                                  alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0))
        return nib_fail(c->msg, NIB_E_FORMAT, "%s: general.alignment must be a power of two from 8 to %u", c->label,
                        MAX_ALIGNMENT);
    g->alignment = (uint32_t)alignment;
    g->data_offset = nib_round_up(head_bytes, alignment);
    return NIB_OK;
}

static enum nib_err parse_head(struct cursor *c, struct nib_gguf *g, uint64_t *ret_keys)
{
    uint64_t magic, version;
    if (!take(c, 4, &magic) || magic != 0x46554747u)
        return nib_fail(c->msg, NIB_E_FORMAT, "%s does not begin with GGUF", c->label);
    if (!take(c, 4, &version) || (version != 2 && version != 3))
        return nib_fail(c->msg, NIB_E_FORMAT, "%s is not a little-endian GGUF file of version 2 or 3", c->label);
    g->version = (uint32_t)version;
    if (!take(c, 8, &g->tensor_count) || !take(c, 8, ret_keys))
        return too_short(c, "its first 24 bytes");
    if (g->tensor_count > NIB_MAX_SRC_TENSORS)
        return nib_fail(c->msg, NIB_E_LIMIT, "%s claims %" PRIu64 " tensors; at most %d are allowed", c->label,
                        g->tensor_count, NIB_MAX_SRC_TENSORS);
    return NIB_OK;
}

enum nib_err nib_gguf_parse(struct nib_weights *w, uint32_t file, const uint8_t *bytes, size_t count,
                            struct nib_gguf *ret, struct nib_msg *msg)
{
    struct cursor c = {bytes, bytes + count, w->files[file].label, msg};
    uint64_t keys = 0;
    enum nib_err err = parse_head(&c, ret, &keys);
    if (!err)
        err = parse_keys(&c, keys, ret);
    uint32_t first = w->count;
    for (uint64_t i = 0; !err && i < ret->tensor_count; i++) {
        struct nib_weight t = {.file = file};
        err = parse_tensor(&c, &t);
        if (!err)
            err = nib_weights_add(w, &t, msg);
    }
    if (!err)
        err = place_data(ret, &c, (uint64_t)(c.at - bytes));
    /* the offsets become absolute only now: the data begin where the head ends */
    for (uint32_t i = first; !err && i < w->count; i++) {
        struct nib_weight *t = &w->list[i];
        uint64_t end;
        if (t->offset % ret->alignment != 0)
            err = nib_fail(msg, NIB_E_FORMAT, "%s: tensor %s is not aligned to %" PRIu32 " bytes", c.label, t->name,
                           ret->alignment);
        else if (!nib_add_u64(t->offset, ret->data_offset, &t->offset) || !nib_add_u64(t->offset, t->bytes, &end) ||
                 end > w->files[file].bytes)
            err = nib_fail(msg, NIB_E_FORMAT, "%s: tensor %s passes the end of the file at byte %" PRIu64, c.label,
                           t->name, w->files[file].bytes);
    }
    return err;
}

enum nib_err nib_gguf_open(struct nib_weights *w, const char *path, struct nib_gguf *ret, struct nib_msg *msg)
{
    uint32_t file;
    enum nib_err err = nib_weights_open(w, path, &file, msg);
    if (err)
        return err;
    size_t count = (size_t)nib_min_u64(w->files[file].bytes, NIB_MAX_SRC_HEADER_BYTES);
    struct nib_gguf *g = calloc(1, sizeof *g);
    uint8_t *head = malloc(count);
    NIB_MUST(g != NULL);
    if (!head)
        err = nib_fail(msg, NIB_E_NOMEM, "no memory for the head of %s", w->files[file].label);
    if (!err)
        err = nib_weights_read_file(w, file, 0, head, count, msg);
    if (!err)
        err = nib_gguf_parse(w, file, head, count, g, msg);
    if (!err) {
        *ret = *g;
        ret->head = head;
        head = NULL;
    }
    free(head);
    free(g);
    return err;
}

void nib_gguf_close(struct nib_gguf *gguf)
{
    free(gguf->head);
    gguf->head = NULL;
}

const struct nib_gguf_key *nib_gguf_find(const struct nib_gguf *gguf, const char *name)
{
    struct nib_span wanted = nib_span_of(name, strlen(name));
    for (uint32_t i = 0; i < gguf->key_count; i++)
        if (nib_span_eq(gguf->keys[i].name, wanted))
            return &gguf->keys[i];
    return NULL;
}

static bool integer_type(enum nib_gguf_type type)
{
    return type != NIB_GGUF_F32 && type != NIB_GGUF_F64 && type != NIB_GGUF_STRING && type != NIB_GGUF_BOOL;
}

uint64_t nib_gguf_element(const struct nib_gguf_key *key, uint64_t i)
{
    NIB_MUST(integer_type(key->type) && i < key->count);
    size_t bytes = type_bytes[key->type];
    uint64_t value = load((const uint8_t *)key->value.ptr + i * bytes, bytes);
    bool is_signed =
        key->type == NIB_GGUF_I8 || key->type == NIB_GGUF_I16 || key->type == NIB_GGUF_I32 || key->type == NIB_GGUF_I64;
    return is_signed && (value >> (8 * bytes - 1)) ? UINT64_MAX : value;
}

bool nib_gguf_u64(const struct nib_gguf *gguf, const char *name, uint64_t *ret)
{
    const struct nib_gguf_key *key = nib_gguf_find(gguf, name);
    if (!key || key->is_array || !integer_type(key->type))
        return false;
    uint64_t value = nib_gguf_element(key, 0);
    if (value == UINT64_MAX)
        return false;
    *ret = value;
    return true;
}

bool nib_gguf_real(const struct nib_gguf *gguf, const char *name, double *ret)
{
    const struct nib_gguf_key *key = nib_gguf_find(gguf, name);
    if (!key || key->is_array)
        return false;
    if (key->type == NIB_GGUF_F32) {
        float value;
        memcpy(&value, key->value.ptr, sizeof value);
        *ret = (double)value;
        return true;
    }
    if (key->type != NIB_GGUF_F64)
        return false;
    memcpy(ret, key->value.ptr, sizeof *ret);
    return true;
}

bool nib_gguf_string(const struct nib_gguf *gguf, const char *name, struct nib_span *ret)
{
    const struct nib_gguf_key *key = nib_gguf_find(gguf, name);
    if (!key || key->is_array || key->type != NIB_GGUF_STRING)
        return false;
    size_t at = 0;
    *ret = nib_gguf_next_string(key, &at);
    return true;
}

struct nib_span nib_gguf_next_string(const struct nib_gguf_key *key, size_t *at)
{
    NIB_MUST(key->type == NIB_GGUF_STRING && *at < key->value.len);
    const char *start = key->value.ptr + *at;
    size_t bytes = (size_t)load((const uint8_t *)start, 8);
    *at += 8 + bytes;
    return nib_span_of(start + 8, bytes);
}
