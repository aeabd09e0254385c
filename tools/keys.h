/* tools/keys.h: Ed25519 keys as files of one line of 64 hex digits. */
#ifndef NIB_TOOLS_KEYS_H
#define NIB_TOOLS_KEYS_H

#include "core/hash.h"

/* `text` is the 64 digits themselves, or the path of a file that holds them. */
enum nib_err nib_key_read(const char *text, uint8_t ret_key[NIB_ED25519_KEY_BYTES], struct nib_msg *msg) NIB_CHECKED;

/* Writes a new file with that mode; an existing one is refused, not overwritten. */
enum nib_err nib_key_write(const char *path, const uint8_t key[NIB_ED25519_KEY_BYTES], unsigned mode,
                           struct nib_msg *msg) NIB_CHECKED;

#endif
