/* tools/units.c: owns nothing. One thread. Fails by saying on stderr what is allowed. */
#include "tools/units.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "appliance/machine.h"

static bool parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char suffixes[] = "KMGT";
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    double value = strtod(text, &end);
    if (end != text + strspn(text, "0123456789."))
        return false; /* hexadecimal, exponent */
    if (*end) {
        const char *suffix = strchr(suffixes, *end);
        if (!suffix || end[1])
            return false;
        for (const char *s = suffixes; s <= suffix; s++)
            value *= 1024;
    }
    if (!(value >= 1 && value <= 0x1p60))
        return false;
    *ret_bytes = (uint64_t)value;
    return true;
}

static bool parse_count(const char *text, uint32_t max, uint32_t *ret_value)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || *end || value == 0 || value > max)
        return false;
    *ret_value = (uint32_t)value;
    return true;
}

bool nib_option_count(const char *what, const char *text, uint32_t max, uint32_t *ret_value)
{
    if (parse_count(text, max, ret_value))
        return true;
    (void)fprintf(stderr, "%s is \"%s\"; allowed are 1 to %u\n", what, text, max);
    return false;
}

bool nib_option_size(const char *what, const char *text, uint64_t *ret_bytes)
{
    if (parse_size(text, ret_bytes))
        return true;
    (void)fprintf(stderr, "%s is \"%s\"; allowed are bytes, or a number with K, M, G or T\n", what, text);
    return false;
}

bool nib_option_choice(const char *what, const char *text, const char *const names[], uint32_t *ret_index)
{
    for (uint32_t i = 0; names[i]; i++) {
        if (strcmp(text, names[i]) == 0) {
            *ret_index = i;
            return true;
        }
    }
    (void)fprintf(stderr, "%s is \"%s\"; allowed are", what, text);
    for (uint32_t i = 0; names[i]; i++)
        (void)fprintf(stderr, "%s %s", i == 0 ? "" : names[i + 1] ? "," : " and", names[i]);
    (void)fputc('\n', stderr);
    return false;
}

bool nib_option_dense(const char *what, const char *text, enum nib_dense *ret_dense)
{
    const char *names[NIB_DENSE_COUNT + 1] = {NULL};
    uint32_t index;
    for (unsigned i = 0; i < NIB_DENSE_COUNT; i++)
        names[i] = nib_dense_name((enum nib_dense)i);
    if (!nib_option_choice(what, text, names, &index))
        return false;
    *ret_dense = (enum nib_dense)index;
    return true;
}

bool nib_option_kv(const char *what, const char *text, enum nib_kv_form *ret_kv)
{
    const char *names[NIB_KV_FORMS + 1] = {NULL};
    uint32_t index;
    for (unsigned i = 0; i < NIB_KV_FORMS; i++)
        names[i] = nib_kv_form_name((enum nib_kv_form)i);
    if (!nib_option_choice(what, text, names, &index))
        return false;
    *ret_kv = (enum nib_kv_form)index;
    return true;
}

bool nib_option_shape(const char *what, const char *text, const struct nib_shape **ret_shape)
{
    const struct nib_shape *shape = nib_shape_find(text);
    if (!shape) {
        (void)fprintf(stderr, "%s: '%s' is no model shape; `nibble --help` names them\n", what, text);
        return false;
    }
    *ret_shape = shape;
    return true;
}

bool nib_option_device(const char *what, const char *text, uint32_t *ret_device)
{
    static const char *const devices[] = {
        [NIB_DEVICE_AUTO] = "auto", [NIB_DEVICE_CPU] = "cpu", [NIB_DEVICE_GPU] = "gpu", NULL};
    return nib_option_choice(what, text, devices, ret_device);
}
