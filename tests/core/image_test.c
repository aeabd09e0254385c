/* tests/core/image_test.c: the image's layout, writer and reader agree, and the reader takes
 * nothing else: every cut of the header, every flipped bit, and seeded mutations of it are refused.
 */
#include "core/image.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/image_header.h"
#include "tests/harness.h"

#define HEADER_MUTATIONS 100000

static struct nib_image image;   /* large: not on the stack */
static struct nib_image damaged; /* what a refused parse must leave alone */
static enum nib_dense form;      /* of the headers that make_header makes */

/* A nano header with hashes that stand for content, signed with `secret` unless NULL. */
static uint8_t *make_header(const uint8_t *secret, struct nib_image *ret_image)
{
    const struct nib_shape *nano = nib_shape_find("nano");
    ck_assert_int_eq(nib_image_layout(nano, form, "a test", 1234, 77, ret_image, NULL), NIB_OK);
    for (uint32_t i = 0; i < ret_image->tensor_count; i++)
        nib_sha256(ret_image->tensors[i].name, strlen(ret_image->tensors[i].name), ret_image->tensors[i].sha256);
    uint8_t *head = malloc(ret_image->header_bytes);
    ck_assert_ptr_nonnull(head);
    nib_image_header_seal(ret_image, secret, head);
    return head;
}

START_TEST(every_shape_has_a_layout)
{
    size_t count;
    const struct nib_shape *shapes = nib_shapes(&count);
    for (size_t i = 0; i < count * NIB_DENSE_COUNT; i++) {
        const struct nib_shape *shape = &shapes[i / NIB_DENSE_COUNT];
        const bool mxfp8 = i % NIB_DENSE_COUNT == NIB_DENSE_MXFP8;
        ck_assert_int_eq(nib_image_layout(shape, i % NIB_DENSE_COUNT, "x", 1, 1, &image, NULL), NIB_OK);
        ck_assert_uint_eq(image.tensor_count, mxfp8 ? 6 + 17 * shape->layers : 5 + 15 * shape->layers);
        uint64_t at = image.header_bytes;
        for (uint32_t n = 0; n < image.tensor_count; n++) {
            const struct nib_tensor *t = &image.tensors[n];
            ck_assert_uint_eq(t->offset, at);
            ck_assert_uint_eq(t->offset % NIB_IMAGE_ALIGN, 0);
            ck_assert_ptr_eq(nib_image_tensor(&image, t->id, t->layer), t);
            at = nib_round_up(t->offset + t->bytes, NIB_IMAGE_ALIGN);
        }
        ck_assert_uint_eq(image.file_bytes, at);
    }
}
END_TEST

START_TEST(the_20b_has_the_published_sizes)
{
    ck_assert_int_eq(nib_image_layout(nib_shape_find("20b"), NIB_DENSE_BF16, "x", 1, 1, &image, NULL), NIB_OK);
    uint64_t experts = 0;
    for (uint32_t i = 0; i < image.tensor_count; i++)
        if (image.tensors[i].dtype == NIB_DTYPE_U8)
            experts += image.tensors[i].bytes;
    /* 24 layers x 32 experts x 3 x 2880 x 2880 elements at 4.25 bits, and the two blobs */
    ck_assert_uint_eq(experts, 24ull * 32 * 3 * 2880 * 2880 * 17 / 32 + 2);
    const struct nib_tensor *up = nib_image_tensor(&image, NIB_T_UP_BLOCKS, 23);
    ck_assert_str_eq(up->name, "layers.23.up.blocks");
    ck_assert_uint_eq(up->dims[0], 32);
    ck_assert_uint_eq(up->dims[1], 5760);
    ck_assert_uint_eq(up->dims[2], 90);
    ck_assert_uint_eq(up->dims[3], 16);
    ck_assert_uint_eq(nib_image_tensor(&image, NIB_T_QKV_WEIGHT, 0)->dims[0], 5120);
}
END_TEST

/* The header of a bf16 image as builds before MXFP8 wrote it: its hash is theirs. */
START_TEST(older_images_stay_valid)
{
    char digest[2 * NIB_SHA256_BYTES + 1];
    form = NIB_DENSE_BF16;
    free(make_header(NULL, &image));
    nib_hex_print(image.header_sha256, NIB_SHA256_BYTES, digest);
    ck_assert_str_eq(digest, "70f469d8e82fd367cb14a1226ac2699b28ccb359e8f0c07d6a4cdab39cf582bd");
}
END_TEST

START_TEST(mxfp8_matrices_have_their_scales_behind_them)
{
    const struct nib_shape *shape = nib_shape_find("20b");
    static struct nib_image bf16;
    ck_assert_int_eq(nib_image_layout(shape, NIB_DENSE_BF16, "x", 1, 1, &bf16, NULL), NIB_OK);
    ck_assert_int_eq(nib_image_layout(shape, NIB_DENSE_MXFP8, "x", 1, 1, &image, NULL), NIB_OK);
    uint64_t saved = 0;
    for (uint32_t i = 0; i < bf16.tensor_count; i++) {
        const struct nib_tensor *was = &bf16.tensors[i], *t = nib_image_tensor(&image, was->id, was->layer);
        const enum nib_tensor_id scales_id = nib_image_scales_of(t->id);
        ck_assert_str_eq(t->name, was->name);
        if (scales_id == NIB_T_COUNT) {
            ck_assert_int_eq(t->dtype, was->dtype);
            ck_assert_uint_eq(t->bytes, was->bytes);
            continue;
        }
        const struct nib_tensor *scales = nib_image_tensor(&image, scales_id, was->layer);
        ck_assert_ptr_eq(scales, t + 1);
        ck_assert_str_eq(nib_dtype_name(t->dtype), "F8_E4M3");
        ck_assert_uint_eq(t->bytes, was->bytes / 2);
        ck_assert_int_eq(scales->dtype, NIB_DTYPE_U8);
        ck_assert_uint_eq(scales->dims[0], t->dims[0]);
        ck_assert_uint_eq(scales->dims[1], t->dims[1] / 32);
        saved += was->bytes - t->bytes - scales->bytes;
    }
    /* 24 layers of QKV and output, and the head: 33 bytes for 64 */
    ck_assert_uint_eq(saved, (24ull * (5120 * 2880 + 2880 * 4096) + 201088ull * 2880) * 31 / 32);
    ck_assert_str_eq(nib_image_tensor(&image, NIB_T_OUT_SCALES, 7)->name, "layers.7.out.scales");
    ck_assert_str_eq(nib_image_tensor(&image, NIB_T_LM_HEAD_SCALES, 0)->name, "lm_head.scales");
}
END_TEST

START_TEST(layout_refuses_what_a_header_cannot_hold)
{
    const struct nib_shape *nano = nib_shape_find("nano");
    struct nib_msg msg;
    char longer[NIB_MAX_SOURCE_BYTES + 1];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "say \"hi\"", 1, 1, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "back\\slash", 1, 1, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "new\nline", 1, 1, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "\xc3\xa9", 1, 1, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, longer, 1, 1, &image, &msg), NIB_E_ARG);
    longer[NIB_MAX_SOURCE_BYTES - 1] = 0;
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, longer, 1, 1, &image, &msg), NIB_OK);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "x", 0, 1, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "x", NIB_MAX_TOKENIZER_BYTES + 1, 1, &image, &msg),
                     NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "x", 1, 0, &image, &msg), NIB_E_ARG);
    ck_assert_int_eq(nib_image_layout(nano, NIB_DENSE_BF16, "x", 1, NIB_MAX_GENERATION_BYTES + 1, &image, &msg),
                     NIB_E_ARG);
}
END_TEST

START_TEST(a_header_reads_back)
{
    uint8_t secret[NIB_ED25519_KEY_BYTES] = {1, 2, 3};
    for (int i = 0; i < 2 * NIB_DENSE_COUNT; i++) {
        static struct nib_image made;
        const bool with_key = i % 2;
        form = (enum nib_dense)(i / 2);
        uint8_t *head = make_header(with_key ? secret : NULL, &made);
        ck_assert_int_eq(nib_image_parse(head, made.header_bytes, made.file_bytes, &image, NULL), NIB_OK);
        ck_assert_int_eq(memcmp(&image, &made, sizeof image), 0);
        ck_assert_int_eq(image.is_signed, with_key);
        ck_assert_int_eq(image.dense, form);
        free(head);
    }
}
END_TEST

/* Parses a copy that ends with the heap block, so that the sanitizer sees an over-read; counts
 * refusals. */
static void expect_refused(const uint8_t *head, size_t n, uint64_t file_bytes, const char *what, uint64_t where)
{
    uint8_t *copy = malloc(n ? n : 1);
    struct nib_msg msg = {""};
    memcpy(copy, head, n);
    enum nib_err err = nib_image_parse(copy, n, file_bytes, &damaged, &msg);
    free(copy);
    if (err == NIB_OK || msg.text[0] == 0)
        ck_abort_msg("%s at %llu was accepted or has no sentence", what, (unsigned long long)where);
    ck_assert_ptr_null(damaged.shape);
}

START_TEST(every_cut_of_the_header_is_refused)
{
    for (form = 0; form < NIB_DENSE_COUNT; form++) {
        uint8_t *head = make_header(NULL, &image);
        for (size_t n = 0; n < image.header_bytes; n++) {
            expect_refused(head, n, image.file_bytes, "a cut", n);
            expect_refused(head, n, n, "a cut", n);
        }
        printf("%s header cuts refused: %llu of %llu bytes\n", nib_dense_name(form),
               (unsigned long long)image.header_bytes, (unsigned long long)image.header_bytes);
        free(head);
    }
}
END_TEST

START_TEST(every_bit_of_the_header_counts)
{
    uint8_t secret[NIB_ED25519_KEY_BYTES] = {9};
    for (int i = 0; i < 3; i++) {
        const bool with_key = i == 1;
        form = i == 2 ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
        uint8_t *head = make_header(with_key ? secret : NULL, &image);
        for (uint64_t bit = 0; bit < image.header_bytes * 8; bit++) {
            head[bit / 8] ^= (uint8_t)(1 << bit % 8);
            expect_refused(head, image.header_bytes, image.file_bytes, "a flipped bit", bit);
            head[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        printf("%s header bit flips refused (%s): %llu of %llu\n", nib_dense_name(form),
               with_key ? "signed" : "unsigned", (unsigned long long)image.header_bytes * 8,
               (unsigned long long)image.header_bytes * 8);
        free(head);
    }
}
END_TEST

/* One random change: a byte, a run copied elsewhere (reordered or renamed entries), digits, or a
 * swap of entries. */
static void mutate(uint8_t *head, uint64_t n, uint64_t *state)
{
    uint64_t a = nib_test_rand(state) % n;
    uint64_t b = nib_test_rand(state) % n;
    uint64_t run = 1 + nib_test_rand(state) % 64;
    run = nib_min_u64(run, nib_min_u64(n - a, n - b));
    switch (nib_test_rand(state) % 4) {
    case 0:
        head[a] = (uint8_t)nib_test_rand(state);
        break;
    case 1:
        memmove(head + a, head + b, run);
        break;
    case 2:
        for (uint64_t i = a; i < n && i < a + 512; i++)
            if (head[i] >= '0' && head[i] <= '9' && nib_test_rand(state) % 4 == 0)
                head[i] = (uint8_t)('0' + nib_test_rand(state) % 10);
        break;
    default:
        for (uint64_t i = 0; i < run; i++) {
            uint8_t byte = head[a + i];
            head[a + i] = head[b + i];
            head[b + i] = byte;
        }
    }
}

START_TEST(mutated_headers_are_refused)
{
    uint64_t state = nib_test_seed();
    form = NIB_DENSE_MXFP8; /* the longer header */
    uint8_t *good = make_header(NULL, &image);
    uint8_t *head = malloc(image.header_bytes);
    uint64_t refused = 0;
    uint64_t same = 0;
    for (int i = 0; i < HEADER_MUTATIONS; i++) {
        memcpy(head, good, image.header_bytes);
        uint64_t changes = 1 + nib_test_rand(&state) % 8;
        for (uint64_t c = 0; c < changes; c++)
            mutate(head, image.header_bytes, &state);
        if (memcmp(head, good, image.header_bytes) == 0) {
            same++;
            continue;
        }
        expect_refused(head, image.header_bytes, image.file_bytes, "mutation", (uint64_t)i);
        refused++;
    }
    printf("header mutations: %llu refused, %llu left the header as it was, 0 accepted\n", (unsigned long long)refused,
           (unsigned long long)same);
    ck_assert_uint_eq(refused + same, HEADER_MUTATIONS);
    ck_assert_uint_gt(refused, HEADER_MUTATIONS / 2);
    free(head);
    free(good);
}
END_TEST

/* A header that is whole and hashed, but names another form than its tensors have: nothing but the walk can see it. */
START_TEST(a_form_that_the_tensors_do_not_have_is_refused)
{
    static const char good[] = "\"dense\":\"mxfp8\"";
    static const char *const bad[] = {"\"dense\":\"mxfp4\"", "\"dense\":\"MXFP8\"", "\"dense\":\"bf16\" ",
                                      "\"danse\":\"mxfp8\""};
    form = NIB_DENSE_MXFP8;
    uint8_t *head = make_header(NULL, &image);
    uint8_t *at = memmem(head, image.header_bytes, good, sizeof good - 1);
    ck_assert_ptr_nonnull(at);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy(at, bad[i], sizeof good - 1);
        expect_refused(head, image.header_bytes, image.file_bytes, "form", i);
    }
    free(head);
}
END_TEST

START_TEST(a_file_of_another_size_is_refused)
{
    uint8_t *head = make_header(NULL, &image);
    static const int64_t off[] = {-4096, -1, 1, 4096};
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++)
        expect_refused(head, image.header_bytes, image.file_bytes + (uint64_t)off[i], "size", i);
    expect_refused(head, image.header_bytes, UINT64_MAX, "size", 0);
    free(head);
}
END_TEST

START_TEST(signatures_bind_the_header_to_a_key)
{
    uint8_t ours[NIB_ED25519_KEY_BYTES] = {1};
    uint8_t other[NIB_ED25519_KEY_BYTES] = {2};
    uint8_t our_key[NIB_ED25519_KEY_BYTES];
    uint8_t other_key[NIB_ED25519_KEY_BYTES];
    nib_ed25519_public(ours, our_key);
    nib_ed25519_public(other, other_key);
    free(make_header(NULL, &image));
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, NULL), NIB_E_SIGNATURE);
    free(make_header(ours, &image));
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, NULL), NIB_OK);
    ck_assert_int_eq(nib_image_check_signature(&image, other_key, NULL), NIB_E_SIGNATURE);
    image.signature[5] ^= 1;
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, NULL), NIB_E_SIGNATURE);
}
END_TEST

NIB_SUITE(image, every_shape_has_a_layout, the_20b_has_the_published_sizes, older_images_stay_valid,
          mxfp8_matrices_have_their_scales_behind_them, a_form_that_the_tensors_do_not_have_is_refused,
          layout_refuses_what_a_header_cannot_hold, a_header_reads_back, every_cut_of_the_header_is_refused,
          every_bit_of_the_header_counts, mutated_headers_are_refused, a_file_of_another_size_is_refused,
          signatures_bind_the_header_to_a_key)
