/* tools/profiles.h: finding machine profiles on disk. Boot and tools only; one thread. */
#ifndef NIB_TOOLS_PROFILES_H
#define NIB_TOOLS_PROFILES_H

#include "core/err.h"
#include "core/profile.h"

#define NIB_MAX_PROFILES 64

/* Loads a profile: a path when it holds a '/' or ends in ".json", else a name looked up in the profile folders:
 * $NIBBLE_DATA/profiles, or etc/profiles without it; then the installed data folder. */
enum nib_err nib_profile_load(const char *name, struct nib_profile *ret_profile, struct nib_msg *msg) NIB_CHECKED;

/* Loads every profile of the first profile folder that exists, sorted by file name. */
enum nib_err nib_profiles_list(struct nib_profile ret_profiles[NIB_MAX_PROFILES], size_t *ret_count,
                               struct nib_msg *msg) NIB_CHECKED;

#endif
