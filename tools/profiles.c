/* tools/profiles.c: owns the search for profile files. Limits: NIB_MAX_PROFILES, NIB_MAX_PROFILE_BYTES.
 * One thread. Fails with the path that could not be used. */
#include "tools/profiles.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum nib_err load_path(const char *path, struct nib_profile *ret_profile, struct nib_msg *msg)
{
    static char text[NIB_MAX_PROFILE_BYTES + 1];
    FILE *file = fopen(path, "re");
    if (!file)
        return nib_fail(msg, NIB_E_IO, "profile %s cannot be opened: %s", path, strerror(errno));
    size_t bytes = fread(text, 1, sizeof text, file);
    bool failed = ferror(file) != 0;
    (void)fclose(file);
    if (failed)
        return nib_fail(msg, NIB_E_IO, "profile %s cannot be read", path);
    return nib_profile_parse(text, bytes, ret_profile, msg);
}

/* The i-th folder that may hold profiles, or NULL after the last. */
static const char *folder(unsigned i, char buf[NIB_MAX_PATH_BYTES])
{
    const char *data = getenv("NIBBLE_DATA");
    switch (i) {
    case 0:
        (void)snprintf(buf, NIB_MAX_PATH_BYTES, "%s/profiles", data ? data : "etc");
        return buf;
    case 1:
        return NIB_DATADIR "/profiles";
    default:
        return NULL;
    }
}

enum nib_err nib_profile_load(const char *name, struct nib_profile *ret_profile, struct nib_msg *msg)
{
    char buf[NIB_MAX_PATH_BYTES];
    char path[NIB_MAX_PATH_BYTES];
    size_t length = strlen(name);
    if (strchr(name, '/') || (length > 5 && strcmp(name + length - 5, ".json") == 0))
        return load_path(name, ret_profile, msg);
    const char *dir;
    for (unsigned i = 0; (dir = folder(i, buf)); i++) {
        if ((size_t)snprintf(path, sizeof path, "%s/%s.json", dir, name) >= sizeof path)
            return nib_fail(msg, NIB_E_LIMIT, "the profile's path is longer than %d bytes", NIB_MAX_PATH_BYTES - 1);
        FILE *there = fopen(path, "re");
        if (there) {
            (void)fclose(there);
            return load_path(path, ret_profile, msg);
        }
    }
    return nib_fail(msg, NIB_E_ARG, "there is no machine profile '%s' in etc/profiles or %s/profiles", name,
                    NIB_DATADIR);
}

static int is_json(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0;
}

static enum nib_err load_entries(const char *dir, struct dirent **entries, int found, struct nib_profile *ret_profiles,
                                 size_t *ret_count, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    if (found > NIB_MAX_PROFILES)
        err = nib_fail(msg, NIB_E_LIMIT, "%s holds %d profiles, allowed are %d", dir, found, NIB_MAX_PROFILES);
    for (int i = 0; i < found && !err; i++) {
        char path[NIB_MAX_PATH_BYTES];
        if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, entries[i]->d_name) >= sizeof path)
            err = nib_fail(msg, NIB_E_LIMIT, "the profile's path is longer than %d bytes", NIB_MAX_PATH_BYTES - 1);
        else
            err = load_path(path, &ret_profiles[i], msg);
    }
    if (!err)
        *ret_count = (size_t)found;
    return err;
}

enum nib_err nib_profiles_list(struct nib_profile ret_profiles[NIB_MAX_PROFILES], size_t *ret_count,
                               struct nib_msg *msg)
{
    char buf[NIB_MAX_PATH_BYTES];
    const char *dir;
    for (unsigned i = 0; (dir = folder(i, buf)); i++) {
        struct dirent **entries;
        int found = scandir(dir, &entries, is_json, alphasort);
        if (found < 0)
            continue;
        enum nib_err err = load_entries(dir, entries, found, ret_profiles, ret_count, msg);
        for (int j = 0; j < found; j++)
            free(entries[j]);
        free(entries);
        return err;
    }
    return nib_fail(msg, NIB_E_IO, "there is no folder etc/profiles or %s/profiles", NIB_DATADIR);
}
