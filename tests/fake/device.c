/* tests/fake/device.c: owns the facts of the device: a file of etc/profiles/.
 * Boot only. Read without jansson: the process under test has given that library its own memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fake/fake.h"

static char text[NIB_MAX_PROFILE_BYTES];

static const char *value_of(const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(text, quoted);
    at = at ? strchr(at + strlen(quoted), ':') : NULL;
    if (!at) {
        fprintf(stderr, "fake libcuda: the profile has no '%s'\n", key);
        abort();
    }
    return at + 1 + strspn(at + 1, " \t");
}

static double number(const char *key)
{
    return strtod(value_of(key), NULL);
}

bool fake_read_profile(struct nib_profile *ret_profile)
{
    const char *path = getenv("NIBBLED_FAKE_PROFILE");
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file) {
        fprintf(stderr, "fake libcuda: NIBBLED_FAKE_PROFILE must name a readable profile\n");
        return false;
    }
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    struct nib_profile p = {.gpu = true};
    snprintf(p.name, sizeof p.name, "%.*s", (int)strcspn(value_of("name") + 1, "\""), value_of("name") + 1);
    p.integrated = strncmp(value_of("integrated"), "true", 4) == 0;
    p.compute_capability = (uint32_t)number("compute_capability");
    p.sms = (uint32_t)number("sms");
    p.memory_bytes = (uint64_t)number("memory_bytes");
    p.reserved_bytes = (uint64_t)number("reserved_bytes");
    p.host_bytes = (uint64_t)number("host_bytes");
    p.shared_bytes = (uint64_t)number("shared_bytes");
    p.l2_bytes = (uint64_t)number("l2_bytes");
    p.read_bytes_s = number("read_bytes_s");
    *ret_profile = p;
    return true;
}
