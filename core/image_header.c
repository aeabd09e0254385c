/* core/image_header.c: owns the one description of the header (walk_header) that counts, writes and
 * checks it, its hash and its signature. Works on caller memory. Any thread. Checking fails on the
 * first byte that differs from what the writer would have written; nothing is computed from a size
 * in the file but the two capped blobs. */
#include "core/image_header.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"

#define LENGTH_BYTES 8 /* little-endian count of the JSON bytes that follow */
#define SIGN_CONTEXT "nibbled image signature 1\n"

enum mode { COUNT, WRITE, MATCH };

/* The header's content apart from the table. */
struct fields {
    const struct nib_shape *shape;
    enum nib_dense dense;
    char shape_name[NIB_MAX_SHAPE_NAME];
    char source[NIB_MAX_SOURCE_BYTES];
    uint64_t tokenizer_bytes;
    uint64_t generation_bytes;
    uint8_t header_sha256[NIB_SHA256_BYTES];
    uint8_t key[NIB_ED25519_KEY_BYTES];
    uint8_t signature[NIB_ED25519_SIGNATURE_BYTES];
};

struct walk {
    enum mode mode;
    uint8_t *out;      /* WRITE */
    const uint8_t *in; /* MATCH */
    uint64_t bytes;    /* of in */
    uint64_t at;
    bool good;                               /* MATCH: no difference so far; at stays at the first one */
    uint64_t header_sha256_at, signature_at; /* where the digits begin */
};

static void put(struct walk *w, const char *text, size_t n)
{
    if (!w->good)
        return;
    if (w->mode == MATCH) {
        uint64_t room = nib_min_u64(n, w->bytes - w->at);
        w->good = room == n && memcmp(w->in + w->at, text, n) == 0;
        for (uint64_t i = 0; !w->good && i < room && w->in[w->at] == (uint8_t)text[i]; i++)
            w->at++;
    }
    if (w->mode == WRITE)
        memcpy(w->out + w->at, text, n);
    w->at += w->good ? n : 0;
}

static void put_text(struct walk *w, const char *text)
{
    put(w, text, strlen(text));
}

static void put_number(struct walk *w, uint64_t number)
{
    char text[24];
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    put(w, text, (size_t)n);
}

/* Hex digits of bytes[0..n); MATCH takes any digits and stores their value. */
static void walk_hex(struct walk *w, uint8_t *bytes, size_t n)
{
    char text[2 * NIB_ED25519_SIGNATURE_BYTES + 1];
    if (w->mode == MATCH) {
        w->good = w->good && w->bytes - w->at >= 2 * n && nib_hex_parse((const char *)w->in + w->at, n, bytes);
        w->at += w->good ? 2 * n : 0;
        return;
    }
    nib_hex_print(bytes, n, text);
    put(w, text, 2 * n);
}

/* The text up to the next quote; MATCH takes any allowed text that fits and stores it with a NUL.
 */
static void walk_string(struct walk *w, char *text, size_t cap)
{
    if (w->mode != MATCH) {
        put_text(w, text);
        return;
    }
    if (!w->good)
        return;
    uint64_t room = nib_min_u64(w->bytes - w->at, cap);
    const uint8_t *quote = memchr(w->in + w->at, '"', room);
    size_t n = quote ? (size_t)(quote - (w->in + w->at)) : 0;
    if (!quote || !nib_image_source_allowed((const char *)w->in + w->at, n)) {
        w->good = false;
        return;
    }
    memcpy(text, w->in + w->at, n);
    text[n] = 0;
    w->at += n;
}

/* A decimal number; MATCH takes 1..max without leading zeros and stores it. */
static void walk_size(struct walk *w, uint64_t *number, uint64_t max)
{
    if (w->mode != MATCH) {
        put_number(w, *number);
        return;
    }
    uint64_t value = 0;
    uint64_t at = w->at;
    for (; w->good && at < w->bytes && w->in[at] >= '0' && w->in[at] <= '9' && value <= max; at++)
        value = value * 10 + (uint64_t)(w->in[at] - '0');
    if (!w->good || value == 0 || value > max || w->in[w->at] == '0') {
        w->good = false;
        return;
    }
    *number = value;
    w->at = at;
}

/* bf16 matrices are not mentioned. MATCH stores which it is; anything else then differs from what follows. */
static void walk_dense(struct walk *w, enum nib_dense *dense)
{
    static const char mxfp8[] = "\",\"dense\":\"mxfp8";
    const size_t n = sizeof mxfp8 - 1;
    if (w->mode == MATCH && w->good)
        *dense = w->bytes - w->at >= n && memcmp(w->in + w->at, mxfp8, n) == 0 ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
    if (*dense == NIB_DENSE_MXFP8)
        put(w, mxfp8, n);
}

static void walk_fields(struct walk *w, struct fields *f)
{
    put_text(w, "{\"__metadata__\":{\"format\":\"" NIB_IMAGE_FORMAT "\",\"shape\":\"");
    walk_string(w, f->shape_name, sizeof f->shape_name);
    walk_dense(w, &f->dense);
    put_text(w, "\",\"source\":\"");
    walk_string(w, f->source, sizeof f->source);
    put_text(w, "\",\"tokenizer_bytes\":\"");
    walk_size(w, &f->tokenizer_bytes, NIB_MAX_TOKENIZER_BYTES);
    put_text(w, "\",\"generation_bytes\":\"");
    walk_size(w, &f->generation_bytes, NIB_MAX_GENERATION_BYTES);
    put_text(w, "\",\"header_sha256\":\"");
    w->header_sha256_at = w->at;
    walk_hex(w, f->header_sha256, sizeof f->header_sha256);
    put_text(w, "\",\"key\":\"");
    walk_hex(w, f->key, sizeof f->key);
    put_text(w, "\",\"signature\":\"");
    w->signature_at = w->at;
    walk_hex(w, f->signature, sizeof f->signature);
    put_text(w, "\"");
}

/* One tensor's entry: bytes [*offset, *offset + bytes) of the data. */
static void walk_entry(struct walk *w, const char *name, enum nib_dtype dtype, const uint64_t *dims, uint32_t dim_count,
                       uint64_t bytes, uint64_t *offset)
{
    put_text(w, ",\"");
    put_text(w, name);
    put_text(w, "\":{\"dtype\":\"");
    put_text(w, nib_dtype_name(dtype));
    put_text(w, "\",\"shape\":[");
    for (uint32_t i = 0; i < dim_count; i++) {
        if (i > 0)
            put_text(w, ",");
        put_number(w, dims[i]);
    }
    put_text(w, "],\"data_offsets\":[");
    put_number(w, *offset);
    put_text(w, ",");
    *offset += bytes;
    put_number(w, *offset);
    put_text(w, "]}");
}

/* The whole JSON, from byte 8. `image` gives and (MATCH) gets the tensors' hashes; NULL lets them
 * pass. Returns the bytes of the tensors' part of the file. */
static uint64_t walk_header(struct walk *w, struct fields *f, struct nib_image *image)
{
    walk_fields(w, f);
    if (w->good && w->mode == MATCH)
        f->shape = nib_shape_find(f->shape_name);
    if (!f->shape) {
        w->good = false;
        return 0;
    }
    uint32_t count = nib_image_tensor_count(f->shape, f->dense);
    struct nib_tensor t;
    for (uint32_t i = 0; i < count && w->good; i++) {
        nib_image_tensor_at(f->shape, f->dense, f->tokenizer_bytes, f->generation_bytes, i, &t);
        put_text(w, ",\"sha256.");
        put_text(w, t.name);
        put_text(w, "\":\"");
        walk_hex(w, image ? image->tensors[i].sha256 : t.sha256, NIB_SHA256_BYTES);
        put_text(w, "\"");
    }
    put_text(w, "}");
    uint64_t offset = 0;
    for (uint32_t i = 0; i < count && w->good; i++) {
        char pad_name[24];
        nib_image_tensor_at(f->shape, f->dense, f->tokenizer_bytes, f->generation_bytes, i, &t);
        walk_entry(w, t.name, t.dtype, t.dims, t.dim_count, t.bytes, &offset);
        uint64_t pad = nib_round_up(t.bytes, NIB_IMAGE_ALIGN) - t.bytes;
        (void)snprintf(pad_name, sizeof pad_name, "pad.%u", i);
        if (pad > 0)
            walk_entry(w, pad_name, NIB_DTYPE_U8, &pad, 1, pad, &offset);
    }
    put_text(w, "}");
    return offset;
}

uint64_t nib_image_header_print(const struct nib_image *image, uint8_t *out)
{
    struct walk w = {.mode = out ? WRITE : COUNT, .out = out, .at = LENGTH_BYTES, .good = true};
    struct fields f = {.shape = image->shape,
                       .dense = image->dense,
                       .tokenizer_bytes = nib_image_tensor(image, NIB_T_TOKENIZER, 0)->bytes,
                       .generation_bytes = nib_image_tensor(image, NIB_T_GENERATION, 0)->bytes};
    (void)snprintf(f.shape_name, sizeof f.shape_name, "%s", image->shape->name);
    memcpy(f.source, image->source, sizeof f.source);
    memcpy(f.header_sha256, image->header_sha256, sizeof f.header_sha256);
    memcpy(f.key, image->key, sizeof f.key);
    memcpy(f.signature, image->signature, sizeof f.signature);
    /* the walk stores hashes only in MATCH, so that the image stays as it is */
    (void)walk_header(&w, &f, (struct nib_image *)(uintptr_t)image);
    uint64_t header_bytes = nib_round_up(w.at, NIB_IMAGE_ALIGN);
    if (out) {
        memset(out + w.at, ' ', header_bytes - w.at);
        for (int i = 0; i < LENGTH_BYTES; i++)
            out[i] = (uint8_t)((header_bytes - LENGTH_BYTES) >> (8 * i));
    }
    return header_bytes;
}

/* SHA-256 of the header with the digits of its own hash and of the signature as zeros. */
static void header_digest(const struct walk *w, const uint8_t *head, uint64_t header_bytes,
                          uint8_t ret_digest[NIB_SHA256_BYTES])
{
    char zeros[2 * NIB_ED25519_SIGNATURE_BYTES];
    uint64_t hash_end = w->header_sha256_at + 2 * NIB_SHA256_BYTES;
    uint64_t signature_end = w->signature_at + 2 * NIB_ED25519_SIGNATURE_BYTES;
    struct nib_sha256 h;
    memset(zeros, '0', sizeof zeros);
    nib_sha256_begin(&h);
    nib_sha256_add(&h, head, w->header_sha256_at);
    nib_sha256_add(&h, zeros, 2 * NIB_SHA256_BYTES);
    nib_sha256_add(&h, head + hash_end, w->signature_at - hash_end);
    nib_sha256_add(&h, zeros, 2 * NIB_ED25519_SIGNATURE_BYTES);
    nib_sha256_add(&h, head + signature_end, header_bytes - signature_end);
    nib_sha256_end(&h, ret_digest);
}

/* What is signed: a context line, so that the key's signatures serve nothing else, and the header's
 * hash. */
static size_t signed_message(const uint8_t digest[NIB_SHA256_BYTES], uint8_t ret_message[64])
{
    size_t n = sizeof SIGN_CONTEXT - 1;
    memcpy(ret_message, SIGN_CONTEXT, n);
    memcpy(ret_message + n, digest, NIB_SHA256_BYTES);
    return n + NIB_SHA256_BYTES;
}

void nib_image_header_seal(struct nib_image *image, const uint8_t *secret, uint8_t *out)
{
    uint8_t message[64];
    memset(image->key, 0, sizeof image->key);
    memset(image->signature, 0, sizeof image->signature);
    memset(image->header_sha256, 0, sizeof image->header_sha256);
    if (secret)
        nib_ed25519_public(secret, image->key);
    image->is_signed = secret != NULL;
    uint64_t header_bytes = nib_image_header_print(image, out);
    nib_sha256(out, header_bytes, image->header_sha256);
    if (secret) {
        size_t n = signed_message(image->header_sha256, message);
        nib_ed25519_sign(secret, message, n, image->signature);
    }
    (void)nib_image_header_print(image, out);
}

static bool all_zero(const uint8_t *bytes, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= bytes[i];
    return any == 0;
}

static bool signature_good(const uint8_t *digest, const uint8_t *key, const uint8_t *signature)
{
    uint8_t message[64];
    size_t n = signed_message(digest, message);
    return nib_ed25519_verify(key, message, n, signature);
}

enum nib_err nib_image_header_bytes(const uint8_t first[8], uint64_t *ret_bytes, struct nib_msg *msg)
{
    uint64_t length = 0;
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)first[i] << (8 * i);
    if (length > NIB_MAX_HEADER_BYTES - LENGTH_BYTES || (length + LENGTH_BYTES) % NIB_IMAGE_ALIGN != 0 || length == 0)
        return nib_fail(msg, NIB_E_FORMAT,
                        "not a model image: it begins with a header length of %llu bytes, which no image has",
                        (unsigned long long)length);
    *ret_bytes = length + LENGTH_BYTES;
    return NIB_OK;
}

/* After the walk matched: what follows the JSON, the header's hash and the signature under its own
 * key. */
static enum nib_err check_rest(const struct walk *w, const struct fields *f, const uint8_t *head, uint64_t header_bytes,
                               struct nib_msg *msg)
{
    uint8_t digest[NIB_SHA256_BYTES];
    if (nib_round_up(w->at, NIB_IMAGE_ALIGN) != header_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "the image's header is %llu bytes long; its content needs %llu",
                        (unsigned long long)header_bytes, (unsigned long long)nib_round_up(w->at, NIB_IMAGE_ALIGN));
    for (uint64_t i = w->at; i < header_bytes; i++)
        if (head[i] != ' ')
            return nib_fail(msg, NIB_E_FORMAT, "the image's header ends at byte %llu, but byte %llu is not a space",
                            (unsigned long long)w->at, (unsigned long long)i);
    header_digest(w, head, header_bytes, digest);
    if (memcmp(digest, f->header_sha256, sizeof digest) != 0)
        return nib_fail(msg, NIB_E_HASH, "the image's header differs from its own hash: it was damaged or changed");
    bool has_key = !all_zero(f->key, sizeof f->key);
    bool has_signature = !all_zero(f->signature, sizeof f->signature);
    if (has_key != has_signature)
        return nib_fail(msg, NIB_E_SIGNATURE, "the image has a %s without a %s", has_key ? "key" : "signature",
                        has_key ? "signature" : "key");
    if (has_key && !signature_good(digest, f->key, f->signature))
        return nib_fail(msg, NIB_E_SIGNATURE, "the image's signature was not made by the key it names");
    return NIB_OK;
}

static void fill_image(const struct fields *f, const uint8_t *head, uint64_t header_bytes, struct nib_image *ret_image)
{
    struct walk w = {.mode = MATCH, .in = head, .bytes = header_bytes, .at = LENGTH_BYTES, .good = true};
    struct fields again = {0};
    NIB_MUST(nib_image_layout(f->shape, f->dense, f->source, f->tokenizer_bytes, f->generation_bytes, ret_image,
                              NULL) == NIB_OK);
    memcpy(ret_image->header_sha256, f->header_sha256, sizeof f->header_sha256);
    memcpy(ret_image->key, f->key, sizeof f->key);
    memcpy(ret_image->signature, f->signature, sizeof f->signature);
    ret_image->is_signed = !all_zero(f->key, sizeof f->key);
    (void)walk_header(&w, &again, ret_image);
    NIB_MUST(w.good && ret_image->header_bytes == header_bytes);
}

enum nib_err nib_image_parse(const uint8_t *head, size_t head_bytes, uint64_t file_bytes, struct nib_image *ret_image,
                             struct nib_msg *msg)
{
    uint64_t header_bytes;
    if (head_bytes < LENGTH_BYTES)
        return nib_fail(msg, NIB_E_FORMAT, "not a model image: it has %zu bytes, too few for a header", head_bytes);
    enum nib_err err = nib_image_header_bytes(head, &header_bytes, msg);
    if (err)
        return err;
    if (head_bytes < header_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "the image is cut: its header needs %llu bytes and %zu are there",
                        (unsigned long long)header_bytes, head_bytes);
    struct walk w = {.mode = MATCH, .in = head, .bytes = header_bytes, .at = LENGTH_BYTES, .good = true};
    struct fields f = {0};
    uint64_t data_bytes = walk_header(&w, &f, NULL);
    if (!w.good && w.at > LENGTH_BYTES && f.shape_name[0] && !f.shape)
        return nib_fail(msg, NIB_E_FORMAT,
                        "the image's shape \"%s\" is not one this build knows, or its header is "
                        "damaged near byte %llu",
                        f.shape_name, (unsigned long long)w.at);
    if (!w.good)
        return nib_fail(msg, NIB_E_FORMAT,
                        "the image's header differs at byte %llu from what a %s image must have there",
                        (unsigned long long)w.at, f.shape ? f.shape->name : "model");
    err = check_rest(&w, &f, head, header_bytes, msg);
    if (err)
        return err;
    if (file_bytes != header_bytes + data_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "the image has %llu bytes; shape %s with these blobs needs %llu",
                        (unsigned long long)file_bytes, f.shape->name, (unsigned long long)(header_bytes + data_bytes));
    fill_image(&f, head, header_bytes, ret_image);
    return NIB_OK;
}

enum nib_err nib_image_check_signature(const struct nib_image *image, const uint8_t key[NIB_ED25519_KEY_BYTES],
                                       struct nib_msg *msg)
{
    if (!image->is_signed)
        return nib_fail(msg, NIB_E_SIGNATURE, "the image is not signed; a signature by the given key is required");
    if (memcmp(image->key, key, NIB_ED25519_KEY_BYTES) != 0) {
        char theirs[17];
        char ours[17];
        nib_hex_print(image->key, 8, theirs);
        nib_hex_print(key, 8, ours);
        return nib_fail(msg, NIB_E_SIGNATURE, "the image is signed by key %s...; required is %s...", theirs, ours);
    }
    if (!signature_good(image->header_sha256, key, image->signature))
        return nib_fail(msg, NIB_E_SIGNATURE, "the image's signature does not verify");
    return NIB_OK;
}
