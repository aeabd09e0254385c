/* The readers of untrusted shards: safetensors and GGUF headers with seeded damage, and counts that lie. The bytes lie
 * against the end of their heap block, so that the sanitizer sees one byte too far. */
#include "tools/gguf.h"
#include "tools/safetensors.h"

#include <fcntl.h>

#include "tests/harness.h"

#define MUTATIONS 20000

/* A list with one file of `bytes` bytes that is never read. */
static struct nib_weights *list_of(uint64_t bytes)
{
    struct nib_weights *w = nib_weights_new();
    w->file_count = 1;
    w->files[0] = (struct nib_weight_file){.label = strdup("shard"), .fd = open("/dev/null", O_RDONLY), .bytes = bytes};
    return w;
}

static void forget(struct nib_weights *w)
{
    memset(w->list, 0, w->count * sizeof w->list[0]);
    w->count = 0;
}

/* What every accepted list must be. */
static void check_list(const struct nib_weights *w)
{
    for (uint32_t i = 0; i < w->count; i++) {
        const struct nib_weight *t = &w->list[i];
        ck_assert_uint_lt(strlen(t->name), NIB_MAX_TENSOR_NAME);
        ck_assert_uint_gt(t->bytes, 0);
        ck_assert_uint_le(t->bytes, w->files[0].bytes);
        ck_assert_uint_le(t->offset, w->files[0].bytes - t->bytes);
        ck_assert_ptr_eq(nib_weights_find(w, t->name), t);
    }
}

/* ---- safetensors ---- */

static const char st_header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[32],\"data_offsets\":[0,64]},"
                                "\"a.blocks\":{\"dtype\":\"U8\",\"shape\":[2,4,1,16],\"data_offsets\":[64,192]},"
                                "\"b\":{\"shape\":[3,4],\"data_offsets\":[192,240],\"dtype\":\"F32\"},"
                                "\"c\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[240,256]}}   ";
#define ST_BYTES (sizeof st_header - 1)
#define ST_DATA  256u

static enum nib_err parse_st(struct nib_weights *w, const char *text, size_t bytes, struct nib_msg *msg)
{
    char *copy = malloc(bytes ? bytes : 1);
    memcpy(copy, text, bytes);
    forget(w);
    enum nib_err err = nib_safetensors_parse(w, 0, copy, bytes, msg);
    if (!err)
        err = nib_weights_seal(w, msg);
    free(copy);
    return err;
}

START_TEST(safetensors_header_is_read)
{
    struct nib_weights *w = list_of(8 + ST_BYTES + ST_DATA);
    struct nib_msg msg = {""};
    ck_assert_msg(parse_st(w, st_header, ST_BYTES, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_uint_eq(w->count, 4);
    check_list(w);
    const struct nib_weight *b = nib_weights_find(w, "b");
    ck_assert_ptr_nonnull(b);
    ck_assert_int_eq(b->type, NIB_W_F32);
    ck_assert_uint_eq(b->dim_count, 2);
    ck_assert_uint_eq(b->dims[0], 3);
    ck_assert_uint_eq(b->dims[1], 4);
    ck_assert_uint_eq(b->dims[2], 1);
    ck_assert_uint_eq(b->offset, 8 + ST_BYTES + 192);
    ck_assert_ptr_null(nib_weights_find(w, "bb"));
    nib_weights_free(w);
}
END_TEST

START_TEST(safetensors_cut_anywhere_is_refused)
{
    struct nib_msg msg;
    for (size_t n = 0; n < ST_BYTES - 3; n++) { /* the last three are spaces */
        struct nib_weights *w = list_of(8 + n + ST_DATA);
        ck_assert_int_eq(parse_st(w, st_header, n, &msg), NIB_E_FORMAT);
        nib_weights_free(w);
    }
    for (uint64_t data = 0; data < ST_DATA + 20; data++) {
        struct nib_weights *w = list_of(8 + ST_BYTES + data);
        ck_assert((parse_st(w, st_header, ST_BYTES, &msg) == NIB_OK) == (data == ST_DATA));
        nib_weights_free(w);
    }
}
END_TEST

START_TEST(safetensors_bit_flips_and_mutations)
{
    struct nib_weights *w = list_of(8 + ST_BYTES + ST_DATA);
    uint64_t seed = nib_test_seed();
    unsigned accepted = 0;
    for (unsigned round = 0; round < MUTATIONS + 8 * ST_BYTES; round++) {
        char text[sizeof st_header];
        struct nib_msg msg = {""};
        memcpy(text, st_header, sizeof text);
        if (round < 8 * ST_BYTES) {
            text[round / 8] = (char)(text[round / 8] ^ 1 << round % 8);
        } else {
            for (uint64_t edits = 1 + nib_test_rand(&seed) % 4; edits > 0; edits--) {
                static const char likely[] = "0123456789[]{},:\"\\ -e.u";
                uint64_t r = nib_test_rand(&seed);
                text[r % ST_BYTES] = r >> 63 ? likely[(r >> 32) % (sizeof likely - 1)] : (char)(r >> 32);
            }
        }
        if (parse_st(w, text, ST_BYTES, &msg) == NIB_OK) {
            accepted++;
            check_list(w);
        } else {
            ck_assert_uint_gt(strlen(msg.text), 0);
            ck_assert_ptr_null(strchr(msg.text, '\x1b'));
        }
    }
    printf("%u of %u damaged safetensors headers still read (names and metadata)\n", accepted,
           (unsigned)(MUTATIONS + 8 * ST_BYTES));
    nib_weights_free(w);
}
END_TEST

START_TEST(too_many_tensors_are_refused)
{
    size_t cap = 128 * (NIB_MAX_SRC_TENSORS + 1), used = 1;
    char *text = malloc(cap);
    struct nib_msg msg;
    text[0] = '{';
    for (unsigned i = 0; i <= NIB_MAX_SRC_TENSORS; i++)
        used += (size_t)snprintf(text + used, cap - used,
                                 "%s\"t%u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%u,%u]}", i ? "," : "", i,
                                 i, i + 1);
    text[used++] = '}';
    struct nib_weights *w = list_of(8 + used + NIB_MAX_SRC_TENSORS + 1);
    ck_assert_int_eq(parse_st(w, text, used, &msg), NIB_E_LIMIT);
    nib_weights_free(w);
    free(text);
}
END_TEST

/* ---- GGUF ---- */

struct bytes {
    uint8_t at[2048];
    size_t used;
};

static void put(struct bytes *b, uint64_t value, size_t n)
{
    for (size_t i = 0; i < n; i++)
        b->at[b->used++] = (uint8_t)(value >> 8 * i);
}

static void put_text(struct bytes *b, const char *text)
{
    put(b, strlen(text), 8);
    memcpy(b->at + b->used, text, strlen(text));
    b->used += strlen(text);
}

static void put_key(struct bytes *b, const char *name, enum nib_gguf_type type)
{
    put_text(b, name);
    put(b, (uint64_t)type, 4);
}

static void put_tensor(struct bytes *b, const char *name, unsigned type, uint64_t inner, uint64_t outer,
                       uint64_t offset)
{
    put_text(b, name);
    put(b, 2, 4);
    put(b, inner, 8);
    put(b, outer, 8);
    put(b, type, 4);
    put(b, offset, 8);
}

#define GGUF_DATA 512u /* bytes of tensor data */

/* A head with every kind of key; the data are padding. */
static struct bytes gguf_file(void)
{
    struct bytes b = {.used = 0};
    put(&b, 0x46554747, 4);
    put(&b, 3, 4);
    put(&b, 3, 8);
    put(&b, 8, 8);
    put_key(&b, "general.architecture", NIB_GGUF_STRING);
    put_text(&b, "gpt-oss");
    put_key(&b, "general.alignment", NIB_GGUF_U32);
    put(&b, 64, 4);
    put_key(&b, "small", NIB_GGUF_I8);
    put(&b, 0xFF, 1);
    put_key(&b, "real", NIB_GGUF_F32);
    put(&b, 0x3FC00000, 4); /* 1.5 */
    put_key(&b, "double", NIB_GGUF_F64);
    put(&b, 0x4004000000000000, 8); /* 2.5 */
    put_key(&b, "tokens", NIB_GGUF_ARRAY);
    put(&b, NIB_GGUF_STRING, 4);
    put(&b, 3, 8);
    put_text(&b, "one");
    put_text(&b, "");
    put_text(&b, "three");
    put_key(&b, "types", NIB_GGUF_ARRAY);
    put(&b, NIB_GGUF_I32, 4);
    put(&b, 3, 8);
    put(&b, 1, 4);
    put(&b, 0xFFFFFFFF, 4);
    put(&b, 7, 4);
    put_key(&b, "flag", NIB_GGUF_BOOL);
    put(&b, 1, 1);
    put_tensor(&b, "a.weight", 39, 64, 3, 0);   /* MXFP4: 102 bytes */
    put_tensor(&b, "b.weight", 8, 32, 2, 128);  /* Q8_0: 68 bytes */
    put_tensor(&b, "c.weight", 30, 10, 4, 256); /* BF16: 80 bytes */
    return b;
}

static uint64_t gguf_file_bytes(size_t head)
{
    return (head + 63) / 64 * 64 + GGUF_DATA;
}

static enum nib_err parse_gguf(struct nib_weights *w, const uint8_t *bytes, size_t n, struct nib_gguf *g,
                               uint8_t **ret_copy, struct nib_msg *msg)
{
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    forget(w);
    enum nib_err err = nib_gguf_parse(w, 0, copy, n, g, msg);
    if (!err)
        err = nib_weights_seal(w, msg);
    if (err) {
        free(copy);
        copy = NULL;
    }
    *ret_copy = copy;
    return err;
}

/* Touches every value through the public calls. */
static void walk_keys(const struct nib_gguf *g)
{
    for (uint32_t i = 0; i < g->key_count; i++) {
        const struct nib_gguf_key *key = &g->keys[i];
        char name[NIB_MAX_TENSOR_NAME];
        uint64_t whole;
        double real;
        struct nib_span text;
        size_t at = 0;
        memcpy(name, key->name.ptr, key->name.len);
        name[key->name.len] = '\0';
        ck_assert_ptr_eq(nib_gguf_find(g, name), key);
        (void)nib_gguf_u64(g, name, &whole);
        (void)nib_gguf_real(g, name, &real);
        (void)nib_gguf_string(g, name, &text);
        for (uint64_t n = 0; key->type == NIB_GGUF_STRING && n < key->count; n++) {
            text = nib_gguf_next_string(key, &at);
            ck_assert_uint_le((size_t)(text.ptr + text.len - key->value.ptr), key->value.len);
        }
    }
}

START_TEST(gguf_head_is_read)
{
    struct bytes b = gguf_file();
    struct nib_weights *w = list_of(gguf_file_bytes(b.used));
    struct nib_gguf g = {0};
    struct nib_msg msg = {""};
    uint8_t *copy;
    ck_assert_msg(parse_gguf(w, b.at, b.used, &g, &copy, &msg) == NIB_OK, "%s", msg.text);
    check_list(w);
    walk_keys(&g);
    uint64_t whole = 9;
    double real = 0;
    struct nib_span text = {NULL, 0};
    ck_assert(nib_gguf_string(&g, "general.architecture", &text) && nib_span_eq(text, NIB_SPAN("gpt-oss")));
    ck_assert(nib_gguf_u64(&g, "general.alignment", &whole) && whole == 64);
    ck_assert(!nib_gguf_u64(&g, "small", &whole)); /* negative */
    ck_assert(!nib_gguf_u64(&g, "flag", &whole) && !nib_gguf_u64(&g, "types", &whole) &&
              !nib_gguf_u64(&g, "no", &whole));
    ck_assert(nib_gguf_real(&g, "real", &real) && real == 1.5);
    ck_assert(nib_gguf_real(&g, "double", &real) && real == 2.5);
    const struct nib_gguf_key *types = nib_gguf_find(&g, "types");
    ck_assert_uint_eq(nib_gguf_element(types, 0), 1);
    ck_assert_uint_eq(nib_gguf_element(types, 1), UINT64_MAX);
    ck_assert_uint_eq(nib_gguf_element(types, 2), 7);
    const struct nib_weight *a = nib_weights_find(w, "a.weight");
    ck_assert_uint_eq(a->dims[0], 3);
    ck_assert_uint_eq(a->dims[1], 64);
    ck_assert_uint_eq(a->bytes, 3 * 2 * 17);
    ck_assert_uint_eq(a->offset % 64, 0);
    free(copy);
    nib_weights_free(w);
}
END_TEST

START_TEST(gguf_cut_anywhere_is_refused)
{
    struct bytes b = gguf_file();
    struct nib_weights *w = list_of(gguf_file_bytes(b.used));
    for (size_t n = 0; n < b.used; n++) {
        struct nib_gguf g = {0};
        struct nib_msg msg;
        uint8_t *copy;
        ck_assert_int_eq(parse_gguf(w, b.at, n, &g, &copy, &msg), NIB_E_FORMAT);
    }
    nib_weights_free(w);
    for (uint64_t data = 0; data < 256 + 80; data += 5) { /* the last tensor ends at 336 */
        struct nib_gguf g = {0};
        struct nib_msg msg;
        uint8_t *copy;
        w = list_of(gguf_file_bytes(b.used) - GGUF_DATA + data);
        ck_assert_int_eq(parse_gguf(w, b.at, b.used, &g, &copy, &msg), NIB_E_FORMAT);
        nib_weights_free(w);
    }
}
END_TEST

START_TEST(gguf_bit_flips_and_mutations)
{
    struct bytes good = gguf_file();
    struct nib_weights *w = list_of(gguf_file_bytes(good.used));
    uint64_t seed = nib_test_seed();
    unsigned accepted = 0;
    unsigned rounds = MUTATIONS + 8 * (unsigned)good.used;
    for (unsigned round = 0; round < rounds; round++) {
        struct bytes b = good;
        struct nib_gguf g = {0};
        struct nib_msg msg = {""};
        uint8_t *copy;
        if (round < 8 * good.used) {
            b.at[round / 8] = (uint8_t)(b.at[round / 8] ^ 1u << round % 8);
        } else {
            for (uint64_t edits = 1 + nib_test_rand(&seed) % 4; edits > 0; edits--) {
                static const uint8_t likely[] = {0, 1, 2, 8, 9, 0x1b, 0x7f, 0x80, 0xff};
                uint64_t r = nib_test_rand(&seed);
                b.at[r % b.used] = r >> 63 ? likely[(r >> 32) % sizeof likely] : (uint8_t)(r >> 32);
            }
        }
        if (parse_gguf(w, b.at, b.used, &g, &copy, &msg) == NIB_OK) {
            accepted++;
            check_list(w);
            walk_keys(&g);
        } else {
            ck_assert_uint_gt(strlen(msg.text), 0);
            ck_assert_ptr_null(strchr(msg.text, '\x1b'));
        }
        free(copy);
    }
    printf("%u of %u damaged GGUF heads still read (names and values)\n", accepted, rounds);
    nib_weights_free(w);
}
END_TEST

/* Every 8-byte field of the head in turn says 2^63, 2^64 - 1, and one more than it should. */
START_TEST(gguf_lying_counts_are_refused_or_harmless)
{
    struct bytes good = gguf_file();
    struct nib_weights *w = list_of(gguf_file_bytes(good.used));
    static const uint64_t lies[] = {1ull << 63, UINT64_MAX, 1ull << 32, INT64_MAX, UINT64_MAX / 17 + 1};
    for (size_t at = 0; at + 8 <= good.used; at++)
        for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
            struct bytes b = good;
            struct nib_gguf g = {0};
            struct nib_msg msg = {""};
            uint8_t *copy;
            b.used = at;
            put(&b, lies[i], 8);
            b.used = good.used;
            if (parse_gguf(w, b.at, b.used, &g, &copy, &msg) == NIB_OK) {
                check_list(w);
                walk_keys(&g);
            }
            free(copy);
        }
    nib_weights_free(w);
}
END_TEST

NIB_SUITE(pack_reader, safetensors_header_is_read, safetensors_cut_anywhere_is_refused,
          safetensors_bit_flips_and_mutations, too_many_tensors_are_refused, gguf_head_is_read,
          gguf_cut_anywhere_is_refused, gguf_bit_flips_and_mutations, gguf_lying_counts_are_refused_or_harmless)
