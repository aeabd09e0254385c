/* core/profile.c: owns nothing; reads a machine profile from JSON text.
 * Limits: NIB_MAX_PROFILE_BYTES. Any thread, boot only (jansson allocates). Fails with the key and what is allowed. */
#include "core/profile.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum field_type { FIELD_NAME, FIELD_BOOL, FIELD_U32, FIELD_U64, FIELD_RATE };

struct field {
    const char *key;
    enum field_type type;
    size_t offset;
    double min, max;
};

#define FIELD(key, type, member, min, max)                                                                             \
    {                                                                                                                  \
        key, type, offsetof(struct nib_profile, member), min, max                                                      \
    }

static const struct field fields[] = {
    FIELD("name", FIELD_NAME, name, 1, NIB_MAX_PROFILE_NAME - 1),
    FIELD("gpu", FIELD_BOOL, gpu, 0, 1),
    FIELD("integrated", FIELD_BOOL, integrated, 0, 1),
    FIELD("compute_capability", FIELD_U32, compute_capability, 0, 999),
    FIELD("sms", FIELD_U32, sms, 1, 4096),
    FIELD("memory_bytes", FIELD_U64, memory_bytes, 1u << 20, 1e15),
    FIELD("reserved_bytes", FIELD_U64, reserved_bytes, 0, 1e15),
    FIELD("host_bytes", FIELD_U64, host_bytes, 0, 1e15),
    FIELD("shared_bytes", FIELD_U64, shared_bytes, 0, 1u << 30),
    FIELD("l2_bytes", FIELD_U64, l2_bytes, 0, 1e12),
    FIELD("read_bytes_s", FIELD_RATE, read_bytes_s, 0, 1e15),
    FIELD("link_bytes_s", FIELD_RATE, link_bytes_s, 0, 1e15),
    FIELD("flops_bf16_s", FIELD_RATE, flops_bf16_s, 0, 1e18),
};
enum { FIELD_COUNT = sizeof fields / sizeof fields[0] };

static enum nib_err read_number(const struct field *f, const json_t *value, void *dst, struct nib_msg *msg)
{
    if (!json_is_number(value))
        return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' must be a number", f->key);
    double number = json_number_value(value);
    if (!(number >= f->min && number <= f->max))
        return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' is %.17g, allowed is %.17g to %.17g", f->key, number,
                        f->min, f->max);
    if (f->type == FIELD_RATE) {
        memcpy(dst, &number, sizeof number);
        return NIB_OK;
    }
    if (!json_is_integer(value))
        return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' must be a whole number", f->key);
    uint64_t whole = (uint64_t)json_integer_value(value);
    uint32_t narrow = (uint32_t)whole;
    if (f->type == FIELD_U32)
        memcpy(dst, &narrow, sizeof narrow);
    else
        memcpy(dst, &whole, sizeof whole);
    return NIB_OK;
}

static enum nib_err read_field(const struct field *f, const json_t *value, struct nib_profile *p, struct nib_msg *msg)
{
    void *dst = (char *)p + f->offset;
    if (f->type == FIELD_BOOL) {
        if (!json_is_boolean(value))
            return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' must be true or false", f->key);
        *(bool *)dst = json_is_true(value);
        return NIB_OK;
    }
    if (f->type == FIELD_NAME) {
        size_t n = json_string_length(value);
        if (!json_is_string(value) || n == 0 || n >= NIB_MAX_PROFILE_NAME)
            return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' must be a text of 1 to %d bytes", f->key,
                            NIB_MAX_PROFILE_NAME - 1);
        memcpy(dst, json_string_value(value), n + 1);
        return NIB_OK;
    }
    return read_number(f, value, dst, msg);
}

static enum nib_err read_fields(const json_t *root, struct nib_profile *p, struct nib_msg *msg)
{
    if (!json_is_object(root))
        return nib_fail(msg, NIB_E_FORMAT, "a profile must be a JSON object");
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        const json_t *value = json_object_get(root, fields[i].key);
        if (!value)
            return nib_fail(msg, NIB_E_FORMAT, "profile key '%s' is missing", fields[i].key);
        enum nib_err err = read_field(&fields[i], value, p, msg);
        if (err)
            return err;
    }
    if (json_object_size(root) != FIELD_COUNT)
        return nib_fail(msg, NIB_E_FORMAT, "a profile has %zu keys, this one has %zu: one is unknown",
                        (size_t)FIELD_COUNT, json_object_size(root));
    if (p->reserved_bytes >= p->memory_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "profile key 'reserved_bytes' must be below memory_bytes");
    return NIB_OK;
}

enum nib_err nib_profile_parse(const char *json, size_t bytes, struct nib_profile *ret_profile, struct nib_msg *msg)
{
    if (bytes > NIB_MAX_PROFILE_BYTES)
        return nib_fail(msg, NIB_E_LIMIT, "a profile may have %u bytes, this one has %zu", NIB_MAX_PROFILE_BYTES,
                        bytes);
    json_error_t why;
    json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return nib_fail(msg, NIB_E_FORMAT, "profile line %d: %s", why.line, why.text);
    struct nib_profile p = {0};
    enum nib_err err = read_fields(root, &p, msg);
    json_decref(root);
    if (!err)
        *ret_profile = p;
    return err;
}
