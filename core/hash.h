/* core/hash.h: SHA-256 and Ed25519 by libcrypto.
 *
 * libcrypto takes heap for a context, so these are for boot and tools. A context is used by one
 * thread at a time. A failure of libcrypto itself (no memory) is a broken invariant and stops the
 * process. */
#ifndef NIB_CORE_HASH_H
#define NIB_CORE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#define NIB_SHA256_BYTES            32
#define NIB_ED25519_KEY_BYTES       32 /* public key, and secret seed (RFC 8032) */
#define NIB_ED25519_SIGNATURE_BYTES 64

/* Streaming: begin, add any number of times, then end or drop. */
struct nib_sha256 {
    void *ctx; /* NULL when not begun */
};
void nib_sha256_begin(struct nib_sha256 *h);
void nib_sha256_add(struct nib_sha256 *h, const void *bytes, size_t n);
void nib_sha256_end(struct nib_sha256 *h, uint8_t ret_digest[NIB_SHA256_BYTES]);
void nib_sha256_drop(struct nib_sha256 *h); /* legal when not begun */

/* In one call. */
void nib_sha256(const void *bytes, size_t n, uint8_t ret_digest[NIB_SHA256_BYTES]);

/* Ed25519 (RFC 8032) over n bytes. */
void nib_ed25519_public(const uint8_t secret[NIB_ED25519_KEY_BYTES], uint8_t ret_key[NIB_ED25519_KEY_BYTES]);
void nib_ed25519_sign(const uint8_t secret[NIB_ED25519_KEY_BYTES], const void *bytes, size_t n,
                      uint8_t ret_signature[NIB_ED25519_SIGNATURE_BYTES]);
bool nib_ed25519_verify(const uint8_t key[NIB_ED25519_KEY_BYTES], const void *bytes, size_t n,
                        const uint8_t signature[NIB_ED25519_SIGNATURE_BYTES]);

/* A fresh secret from libcrypto's generator. */
void nib_ed25519_generate(uint8_t ret_secret[NIB_ED25519_KEY_BYTES]);

/* Lower-case hex. print writes 2n digits and a NUL; parse accepts exactly 2n lower-case digits. */
void nib_hex_print(const uint8_t *bytes, size_t n, char *ret_text);
bool nib_hex_parse(const char *text, size_t n, uint8_t *ret_bytes);

#endif
