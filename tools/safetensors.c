/* tools/safetensors.c: owns nothing but the header's bytes while it runs. Limits:
 * NIB_MAX_SRC_HEADER_BYTES, NIB_MAX_SRC_TENSORS. One thread. Fails with one sentence that names the
 * file. */
#include "tools/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "tools/jscan.h"

struct parse {
    struct nib_weights *w;
    uint32_t file;
    uint64_t data_offset; /* of the file: 8 + header */
    struct nib_jscan scan;
    struct nib_msg *msg;
};

static const char *label(const struct parse *p)
{
    return p->w->files[p->file].label;
}

static enum nib_err bad_json(const struct parse *p)
{
    return nib_fail(p->msg, NIB_E_FORMAT, "%s: the safetensors header is not well-formed JSON", label(p));
}

static enum nib_err bad_entry(const struct parse *p, const char *name)
{
    return nib_fail(p->msg, NIB_E_FORMAT,
                    "%s: tensor %s must have exactly a dtype, a shape of whole numbers and two "
                    "data_offsets",
                    label(p), name);
}

/* An array of whole numbers, at most max of them. */
static bool parse_numbers(struct nib_jscan *scan, uint64_t *numbers, uint32_t max, uint32_t *ret_n)
{
    if (nib_jscan_next(scan) != NIB_J_ARRAY)
        return false;
    uint32_t n = 0;
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_ARRAY_END)
            break;
        if (event != NIB_J_NUMBER || n == max || !nib_jscan_u64(scan, &numbers[n]))
            return false;
        n++;
    }
    *ret_n = n;
    return true;
}

static enum nib_err parse_type(struct parse *p, struct nib_weight *t)
{
    static const enum nib_weight_type allowed[] = {NIB_W_F32, NIB_W_F16, NIB_W_BF16, NIB_W_U8};
    if (nib_jscan_next(&p->scan) != NIB_J_STRING)
        return bad_entry(p, t->name);
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
        if (nib_jscan_is(&p->scan, nib_weight_type_name(allowed[i]))) {
            t->type = allowed[i];
            return NIB_OK;
        }
    }
    return nib_fail(p->msg, NIB_E_FORMAT, "%s: tensor %s has a type that is not one of F32, F16, BF16 and U8", label(p),
                    t->name);
}

/* The object after a tensor's name. */
static enum nib_err parse_entry(struct parse *p, struct nib_weight *t)
{
    enum { TYPE = 1, SHAPE = 2, OFFSETS = 4 };
    unsigned seen = 0;
    uint64_t offsets[2];
    uint32_t n;
    if (nib_jscan_next(&p->scan) != NIB_J_OBJECT)
        return bad_entry(p, t->name);
    for (;;) {
        enum nib_jevent event = nib_jscan_next(&p->scan);
        if (event == NIB_J_OBJECT_END)
            break;
        if (event != NIB_J_KEY)
            return bad_json(p);
        unsigned field = nib_jscan_is(&p->scan, "dtype")          ? TYPE
                         : nib_jscan_is(&p->scan, "shape")        ? SHAPE
                         : nib_jscan_is(&p->scan, "data_offsets") ? OFFSETS
                                                                  : 0;
        if (field == 0 || (seen & field))
            return bad_entry(p, t->name);
        seen |= field;
        enum nib_err err;
        if (field == TYPE && (err = parse_type(p, t)) != NIB_OK)
            return err;
        if (field == SHAPE && !parse_numbers(&p->scan, t->dims, NIB_MAX_TENSOR_DIMS, &t->dim_count))
            return bad_entry(p, t->name);
        if (field == OFFSETS && (!parse_numbers(&p->scan, offsets, 2, &n) || n != 2))
            return bad_entry(p, t->name);
    }
    if (seen != (TYPE | SHAPE | OFFSETS) || offsets[1] < offsets[0] ||
        !nib_add_u64(p->data_offset, offsets[0], &t->offset))
        return bad_entry(p, t->name);
    t->bytes = offsets[1] - offsets[0];
    return NIB_OK;
}

/* One member of the outermost object: the key has just been read. */
static enum nib_err parse_member(struct parse *p, bool *metadata_seen, uint64_t *covered)
{
    if (nib_jscan_is(&p->scan, "__metadata__")) {
        enum nib_jevent event = nib_jscan_next(&p->scan);
        if (*metadata_seen || event != NIB_J_OBJECT || !nib_jscan_skip(&p->scan, event))
            return nib_fail(p->msg, NIB_E_FORMAT, "%s: __metadata__ must be one object", label(p));
        *metadata_seen = true;
        return NIB_OK;
    }
    struct nib_weight t = {.file = p->file};
    if (!nib_weights_name_ok(p->scan.text, p->scan.text_bytes))
        return nib_fail(p->msg, NIB_E_FORMAT, "%s: a tensor's name is not 1 to %d printable ASCII characters", label(p),
                        NIB_MAX_TENSOR_NAME - 1);
    memcpy(t.name, p->scan.text, p->scan.text_bytes);
    enum nib_err err = parse_entry(p, &t);
    if (err)
        return err;
    uint64_t claimed = t.bytes;
    err = nib_weights_add(p->w, &t, p->msg);
    if (err)
        return err;
    uint64_t bytes = p->w->list[p->w->count - 1].bytes;
    if (bytes != claimed)
        return nib_fail(p->msg, NIB_E_FORMAT,
                        "%s: tensor %s needs %" PRIu64 " bytes for its shape, but its offsets span %" PRIu64, label(p),
                        t.name, bytes, claimed);
    if (!nib_add_u64(*covered, bytes, covered))
        return bad_entry(p, t.name);
    return NIB_OK;
}

enum nib_err nib_safetensors_parse(struct nib_weights *w, uint32_t file, const char *header, size_t bytes,
                                   struct nib_msg *msg)
{
    struct parse p = {.w = w, .file = file, .data_offset = 8 + (uint64_t)bytes, .msg = msg};
    bool metadata_seen = false;
    uint64_t covered = 0;
    nib_jscan_init(&p.scan, header, bytes);
    if (bytes == 0 || header[0] != '{' || nib_jscan_next(&p.scan) != NIB_J_OBJECT)
        return bad_json(&p);
    for (;;) {
        enum nib_jevent event = nib_jscan_next(&p.scan);
        if (event == NIB_J_OBJECT_END)
            break;
        if (event != NIB_J_KEY)
            return bad_json(&p);
        enum nib_err err = parse_member(&p, &metadata_seen, &covered);
        if (err)
            return err;
    }
    if (nib_jscan_next(&p.scan) != NIB_J_DONE)
        return bad_json(&p);
    uint64_t data = w->files[file].bytes - p.data_offset;
    if (covered != data)
        return nib_fail(msg, NIB_E_FORMAT, "%s: its tensors cover %" PRIu64 " bytes of data, but it holds %" PRIu64,
                        label(&p), covered, data);
    return NIB_OK;
}

enum nib_err nib_safetensors_open(struct nib_weights *w, const char *path, uint32_t *ret_file, struct nib_msg *msg)
{
    uint32_t file;
    enum nib_err err = nib_weights_open(w, path, &file, msg);
    if (err)
        return err;
    uint64_t file_bytes = w->files[file].bytes;
    const char *name = w->files[file].label;
    uint8_t raw[8];
    uint64_t length = 0;
    if (file_bytes < 8 + 2)
        return nib_fail(msg, NIB_E_FORMAT, "%s is too short to be a safetensors file", name);
    err = nib_weights_read_file(w, file, 0, raw, sizeof raw, msg);
    if (err)
        return err;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | raw[i];
    if (length < 2 || length > NIB_MAX_SRC_HEADER_BYTES || length > file_bytes - 8)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s claims a safetensors header of %" PRIu64
                        " bytes; allowed are 2 to %u, and the file has %" PRIu64,
                        name, length, NIB_MAX_SRC_HEADER_BYTES, file_bytes);
    char *header = malloc(length);
    if (!header)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for the header of %s", name);
    err = nib_weights_read_file(w, file, 8, header, length, msg);
    if (!err)
        err = nib_safetensors_parse(w, file, header, length, msg);
    free(header);
    if (!err)
        *ret_file = file;
    return err;
}
