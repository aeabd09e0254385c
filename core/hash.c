/* core/hash.c: owns the calls to libcrypto. One thread a context. libcrypto failing for want of
 * memory stops the process; nothing else can fail. */
#include "core/hash.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

void nib_sha256_begin(struct nib_sha256 *h)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    NIB_MUST(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1);
    h->ctx = ctx;
}

void nib_sha256_add(struct nib_sha256 *h, const void *bytes, size_t n)
{
    NIB_MUST(EVP_DigestUpdate(h->ctx, bytes, n) == 1);
}

void nib_sha256_end(struct nib_sha256 *h, uint8_t ret_digest[NIB_SHA256_BYTES])
{
    unsigned size = 0;
    NIB_MUST(EVP_DigestFinal_ex(h->ctx, ret_digest, &size) == 1 && size == NIB_SHA256_BYTES);
    nib_sha256_drop(h);
}

void nib_sha256_drop(struct nib_sha256 *h)
{
    EVP_MD_CTX_free(h->ctx);
    h->ctx = NULL;
}

void nib_sha256(const void *bytes, size_t n, uint8_t ret_digest[NIB_SHA256_BYTES])
{
    unsigned size = 0;
    NIB_MUST(EVP_Digest(bytes, n, ret_digest, &size, EVP_sha256(), NULL) == 1 && size == NIB_SHA256_BYTES);
}

void nib_ed25519_public(const uint8_t secret[NIB_ED25519_KEY_BYTES], uint8_t ret_key[NIB_ED25519_KEY_BYTES])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, NIB_ED25519_KEY_BYTES);
    size_t size = NIB_ED25519_KEY_BYTES;
    NIB_MUST(pkey && EVP_PKEY_get_raw_public_key(pkey, ret_key, &size) == 1 && size == NIB_ED25519_KEY_BYTES);
    EVP_PKEY_free(pkey);
}

void nib_ed25519_sign(const uint8_t secret[NIB_ED25519_KEY_BYTES], const void *bytes, size_t n,
                      uint8_t ret_signature[NIB_ED25519_SIGNATURE_BYTES])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, NIB_ED25519_KEY_BYTES);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t size = NIB_ED25519_SIGNATURE_BYTES;
    NIB_MUST(pkey && ctx && EVP_DigestSignInit(ctx, NULL, NULL, NULL, pkey) == 1);
    NIB_MUST(EVP_DigestSign(ctx, ret_signature, &size, bytes, n) == 1 && size == NIB_ED25519_SIGNATURE_BYTES);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(pkey);
}

bool nib_ed25519_verify(const uint8_t key[NIB_ED25519_KEY_BYTES], const void *bytes, size_t n,
                        const uint8_t signature[NIB_ED25519_SIGNATURE_BYTES])
{
    EVP_PKEY *pkey = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, NIB_ED25519_KEY_BYTES);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    NIB_MUST(pkey && ctx);
    bool good = EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, pkey) == 1 &&
                EVP_DigestVerify(ctx, signature, NIB_ED25519_SIGNATURE_BYTES, bytes, n) == 1;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(pkey);
    return good;
}

void nib_ed25519_generate(uint8_t ret_secret[NIB_ED25519_KEY_BYTES])
{
    NIB_MUST(RAND_priv_bytes(ret_secret, NIB_ED25519_KEY_BYTES) == 1);
}

void nib_hex_print(const uint8_t *bytes, size_t n, char *ret_text)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        ret_text[2 * i] = digits[bytes[i] >> 4];
        ret_text[2 * i + 1] = digits[bytes[i] & 15];
    }
    ret_text[2 * n] = 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool nib_hex_parse(const char *text, size_t n, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < 2 * n; i++)
        if (hex_digit(text[i]) < 0)
            return false;
    for (size_t i = 0; i < n; i++)
        ret_bytes[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
    return true;
}
