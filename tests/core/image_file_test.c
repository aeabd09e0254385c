/* tests/core/image_file_test.c: images as files: what the writer leaves, what the reader refuses: damaged, cut, sparse,
 * changing and special files. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/image.h"
#include "tests/harness.h"

#define TOKENIZER_BYTES  1234
#define GENERATION_BYTES 77

static struct nib_image_writer writer; /* large: not on the stack */
static struct nib_image image;
static uint8_t chunk[65536];
static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void make_folder(void)
{
    (void)snprintf(folder, sizeof folder, "/tmp/nib_image_test.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

/* Content that differs in every tensor and never is zero. */
static void fill(const struct nib_tensor *t, uint64_t at, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(1 + (t->offset / NIB_IMAGE_ALIGN + (at + i) * 7) % 255);
}

static void begin(const char *path)
{
    struct nib_msg msg;
    ck_assert_msg(nib_image_write_begin(&writer, path, nib_shape_find("nano"), NIB_DENSE_BF16, "a test",
                                        TOKENIZER_BYTES, GENERATION_BYTES, &msg) == NIB_OK,
                  "%s", msg.text);
}

/* Writes tensors until `until` (by index), in pieces of at most `piece` bytes. */
static void write_tensors(uint32_t until, size_t piece)
{
    const struct nib_tensor *t;
    while ((t = nib_image_write_next(&writer)) && writer.index < until) {
        size_t n = (size_t)nib_min_u64(piece, t->bytes - writer.done_bytes);
        fill(t, writer.done_bytes, chunk, n);
        ck_assert_int_eq(nib_image_write(&writer, chunk, n, NULL), NIB_OK);
    }
}

static void make_image(const char *path, size_t piece)
{
    struct nib_msg msg;
    begin(path);
    write_tensors(UINT32_MAX, piece);
    ck_assert_msg(nib_image_write_end(&writer, &msg) == NIB_OK, "%s", msg.text);
}

/* Opens and checks everything; what `nibble verify` does. */
static enum nib_err verify(const char *path, struct nib_msg *msg)
{
    struct nib_image_file file;
    enum nib_err err = nib_image_open(path, &file, &image, msg);
    if (err)
        return err;
    for (uint32_t i = 0; i < image.tensor_count && !err; i++)
        err = nib_image_check_stored(&file, &image, i, chunk, sizeof chunk, NULL, NULL, msg);
    if (!err)
        err = nib_image_check_unchanged(&file, msg);
    nib_image_close(&file);
    return err;
}

static void expect_refused(const char *path, enum nib_err expected, const char *words)
{
    struct nib_msg msg = {""};
    enum nib_err err = verify(path, &msg);
    if (err != expected || !strstr(msg.text, words))
        ck_abort_msg("expected %s with \"%s\", got %s: %s", nib_err_name(expected), words, nib_err_name(err), msg.text);
}

static uint8_t *read_whole(const char *path, size_t *ret_bytes)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    ck_assert(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *bytes = malloc((size_t)st.st_size);
    ck_assert_int_eq(read(fd, bytes, (size_t)st.st_size), st.st_size);
    (void)close(fd);
    *ret_bytes = (size_t)st.st_size;
    return bytes;
}

static void write_whole(const char *path, const uint8_t *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert(fd >= 0);
    ck_assert_int_eq(write(fd, bytes, n), (ssize_t)n);
    ck_assert_int_eq(fsync(fd), 0);
    (void)close(fd);
}

START_TEST(a_written_image_reads_back)
{
    struct nib_image_file file;
    const uint8_t *base;
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 1000);
    ck_assert_int_eq(verify(path, NULL), NIB_OK);
    ck_assert_int_eq(nib_image_open(path, &file, &image, NULL), NIB_OK);
    ck_assert_str_eq(image.source, "a test");
    ck_assert_int_eq(nib_image_map(&file, &image, &base, NULL), NIB_OK);
    for (uint32_t i = 0; i < image.tensor_count; i++) {
        const struct nib_tensor *t = &image.tensors[i];
        uint8_t expected[64];
        size_t n = (size_t)nib_min_u64(sizeof expected, t->bytes);
        fill(t, t->bytes - n, expected, n);
        ck_assert_int_eq(memcmp(base + t->offset + t->bytes - n, expected, n), 0);
        ck_assert_int_eq(nib_image_check_tensor(t, base + t->offset, NULL), NIB_OK);
    }
    nib_image_unmap(&image, base);
    nib_image_close(&file);
    remove_folder();
}
END_TEST

START_TEST(an_image_is_reproducible_byte_for_byte)
{
    size_t n, m;
    make_folder();
    make_image(in_folder("a.nib"), 1);
    make_image(in_folder("b.nib"), 50000);
    uint8_t *a = read_whole(in_folder("a.nib"), &n);
    uint8_t *b = read_whole(in_folder("b.nib"), &m);
    ck_assert_uint_eq(n, m);
    ck_assert_int_eq(memcmp(a, b, n), 0);
    free(a);
    free(b);
    remove_folder();
}
END_TEST

START_TEST(the_writer_refuses_what_does_not_fit)
{
    struct nib_msg msg;
    make_folder();
    begin(in_folder("a.nib"));
    ck_assert_int_eq(nib_image_write(&writer, chunk, writer.image.tensors[0].bytes + 1, &msg), NIB_E_ARG);
    nib_image_write_abort(&writer);
    begin(in_folder("a.nib"));
    write_tensors(3, 1000);
    ck_assert_int_eq(nib_image_write_end(&writer, &msg), NIB_E_STATE);
    ck_assert_ptr_nonnull(strstr(msg.text, "incomplete"));
    begin(in_folder("a.nib"));
    write_tensors(UINT32_MAX, 65536);
    ck_assert_ptr_null(nib_image_write_next(&writer));
    ck_assert_int_eq(nib_image_write(&writer, chunk, 1, &msg), NIB_E_ARG);
    nib_image_write_abort(&writer);
    ck_assert_int_eq(nib_image_write_begin(&writer, "/no/such/folder/a.nib", nib_shape_find("nano"), NIB_DENSE_BF16,
                                           "x", 1, 1, &msg),
                     NIB_E_IO);
    ck_assert_int_eq(rmdir(folder), 0); /* nothing is left behind */
}
END_TEST

START_TEST(a_failed_write_leaves_the_old_image)
{
    make_folder();
    make_image(in_folder("a.nib"), 65536);
    begin(in_folder("a.nib"));
    write_tensors(5, 65536);
    nib_image_write_abort(&writer);
    ck_assert_int_eq(verify(in_folder("a.nib"), NULL), NIB_OK);
    remove_folder();
}
END_TEST

START_TEST(a_full_disk_is_known_at_the_beginning)
{
    struct nib_msg msg;
    const struct rlimit small = {100000, 100000};
    make_folder();
    (void)signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    ck_assert_int_eq(
        nib_image_write_begin(&writer, in_folder("a.nib"), nib_shape_find("nano"), NIB_DENSE_BF16, "x", 1, 1, &msg),
        NIB_E_IO);
    ck_assert_ptr_nonnull(strstr(msg.text, "needs"));
    ck_assert_int_eq(rmdir(folder), 0);
}
END_TEST

/* One bit at a few places of each tensor, and at each end of the padding. */
START_TEST(every_flipped_bit_of_the_content_is_refused)
{
    size_t n;
    uint64_t state = nib_test_seed();
    int flips = 0;
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 65536);
    uint8_t *bytes = read_whole(path, &n);
    ck_assert_int_eq(verify(path, NULL), NIB_OK);
    for (uint32_t i = 0; i < writer.image.tensor_count; i++) {
        const struct nib_tensor *t = &writer.image.tensors[i];
        uint64_t end = nib_round_up(t->offset + t->bytes, NIB_IMAGE_ALIGN);
        uint64_t at[8] = {t->offset, t->offset + t->bytes - 1, t->offset + t->bytes, end - 1};
        for (int k = 4; k < 8; k++)
            at[k] = t->offset + nib_test_rand(&state) % (end - t->offset);
        for (int k = 0; k < 8; k++) {
            if (at[k] >= end)
                continue; /* no padding */
            int fd = open(path, O_WRONLY);
            uint8_t bit = (uint8_t)(1u << nib_test_rand(&state) % 8);
            uint8_t damaged = bytes[at[k]] ^ bit;
            ck_assert_int_eq(pwrite(fd, &damaged, 1, (off_t)at[k]), 1);
            expect_refused(path, NIB_E_HASH, t->name);
            ck_assert_int_eq(pwrite(fd, &bytes[at[k]], 1, (off_t)at[k]), 1);
            (void)close(fd);
            flips++;
        }
    }
    ck_assert_int_eq(verify(path, NULL), NIB_OK);
    printf("content bit flips refused: %d of %d\n", flips, flips);
    free(bytes);
    remove_folder();
}
END_TEST

START_TEST(swapped_tensors_are_refused)
{
    size_t n;
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 65536);
    uint8_t *bytes = read_whole(path, &n);
    const struct nib_tensor *a = nib_image_tensor(&writer.image, NIB_T_UP_BLOCKS, 0);
    const struct nib_tensor *b = nib_image_tensor(&writer.image, NIB_T_UP_BLOCKS, 1);
    memcpy(chunk, bytes + a->offset, a->bytes);
    memcpy(bytes + a->offset, bytes + b->offset, a->bytes);
    memcpy(bytes + b->offset, chunk, a->bytes);
    write_whole(path, bytes, n);
    expect_refused(path, NIB_E_HASH, "layers.0.up.blocks");
    free(bytes);
    remove_folder();
}
END_TEST

START_TEST(cut_and_lengthened_files_are_refused)
{
    size_t n;
    uint64_t state = nib_test_seed();
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 65536);
    uint8_t *bytes = read_whole(path, &n);
    for (int i = 0; i < 200; i++) {
        size_t cut = i < 10 ? (size_t)i + 1 : i < 20 ? n - (size_t)(i - 9) : 1 + nib_test_rand(&state) % (n - 1);
        write_whole(path, bytes, cut);
        expect_refused(path, NIB_E_FORMAT, "image");
    }
    uint8_t *longer = calloc(1, n + 4096);
    memcpy(longer, bytes, n);
    longer[n] = 1;
    write_whole(path, longer, n + 1);
    expect_refused(path, NIB_E_FORMAT, "needs");
    write_whole(path, longer, n + 4096);
    expect_refused(path, NIB_E_FORMAT, "needs");
    write_whole(path, bytes, 0);
    expect_refused(path, NIB_E_FORMAT, "empty");
    free(longer);
    free(bytes);
    remove_folder();
}
END_TEST

START_TEST(special_files_are_refused)
{
    make_folder();
    expect_refused(in_folder("none.nib"), NIB_E_IO, "No such file");
    expect_refused(folder, NIB_E_IO, "a folder");
    ck_assert_int_eq(mkfifo(in_folder("fifo"), 0600), 0);
    expect_refused(in_folder("fifo"), NIB_E_IO, "a pipe");
    expect_refused("/dev/zero", NIB_E_IO, "not a regular file");
    make_image(in_folder("a.nib"), 65536);
    ck_assert_int_eq(symlink("a.nib", in_folder("link.nib")), 0);
    ck_assert_int_eq(verify(in_folder("link.nib"), NULL), NIB_OK);
    remove_folder();
}
END_TEST

START_TEST(a_file_with_a_hole_is_refused)
{
    size_t n;
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 65536);
    uint8_t *bytes = read_whole(path, &n);
    int fd = open(path, O_WRONLY | O_TRUNC);
    ck_assert_int_eq(write(fd, bytes, 65536), 65536);
    ck_assert_int_eq(ftruncate(fd, (off_t)n), 0);
    (void)close(fd);
    fd = open(path, O_RDONLY);
    bool holes_are_seen = lseek(fd, 0, SEEK_HOLE) < (off_t)n; /* not every file system tells */
    (void)close(fd);
    expect_refused(path, holes_are_seen ? NIB_E_FORMAT : NIB_E_HASH, holes_are_seen ? "hole" : "hash");
    free(bytes);
    remove_folder();
}
END_TEST

START_TEST(a_file_that_changes_while_it_is_read_is_refused)
{
    struct nib_image_file file;
    struct nib_msg msg;
    make_folder();
    const char *path = in_folder("a.nib");
    make_image(path, 65536);
    ck_assert_int_eq(nib_image_open(path, &file, &image, &msg), NIB_OK);
    ck_assert_int_eq(nib_image_check_unchanged(&file, &msg), NIB_OK);
    ck_assert_int_eq(truncate(path, (off_t)image.file_bytes + 10), 0); /* grows */
    ck_assert_int_eq(nib_image_check_unchanged(&file, &msg), NIB_E_IO);
    ck_assert_ptr_nonnull(strstr(msg.text, "bytes while it was read"));
    ck_assert_int_eq(truncate(path, (off_t)image.file_bytes - 4096), 0); /* shrinks */
    ck_assert_int_eq(nib_image_check_unchanged(&file, &msg), NIB_E_IO);
    ck_assert_int_eq(nib_image_read(&file, image.file_bytes - 4096, chunk, 4096, &msg), NIB_E_IO);
    ck_assert_ptr_nonnull(strstr(msg.text, "shrank"));
    ck_assert_int_eq(
        nib_image_check_stored(&file, &image, image.tensor_count - 1, chunk, sizeof chunk, NULL, NULL, &msg), NIB_E_IO);
    ck_assert_int_eq(truncate(path, (off_t)image.file_bytes), 0); /* the size again, but not the time */
    ck_assert_int_eq(nib_image_check_unchanged(&file, &msg), NIB_E_IO);
    ck_assert_ptr_nonnull(strstr(msg.text, "written to"));
    nib_image_close(&file);
    remove_folder();
}
END_TEST

START_TEST(an_image_signed_by_another_is_refused)
{
    static const uint8_t ours[NIB_ED25519_KEY_BYTES] = {1};
    static const uint8_t other[NIB_ED25519_KEY_BYTES] = {2};
    uint8_t our_key[NIB_ED25519_KEY_BYTES];
    struct nib_msg msg;
    size_t n, m;
    nib_ed25519_public(ours, our_key);
    make_folder();
    make_image(in_folder("ours.nib"), 65536);
    make_image(in_folder("other.nib"), 65536);
    ck_assert_int_eq(verify(in_folder("ours.nib"), NULL), NIB_OK);
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, &msg), NIB_E_SIGNATURE); /* not signed */
    ck_assert_int_eq(nib_image_sign(&writer, in_folder("ours.nib"), ours, &msg), NIB_OK);
    ck_assert_int_eq(nib_image_sign(&writer, in_folder("other.nib"), other, &msg), NIB_OK);
    ck_assert_int_eq(verify(in_folder("other.nib"), NULL), NIB_OK);
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, &msg), NIB_E_SIGNATURE);
    ck_assert_int_eq(verify(in_folder("ours.nib"), NULL), NIB_OK);
    ck_assert_int_eq(nib_image_check_signature(&image, our_key, &msg), NIB_OK);
    /* signing again, the same key: the same bytes; Ed25519 has no randomness */
    uint8_t *once = read_whole(in_folder("ours.nib"), &n);
    ck_assert_int_eq(nib_image_sign(&writer, in_folder("ours.nib"), ours, &msg), NIB_OK);
    uint8_t *twice = read_whole(in_folder("ours.nib"), &m);
    ck_assert(n == m && memcmp(once, twice, n) == 0);
    /* our signed header in front of other content */
    once[image.tensors[3].offset] ^= 1;
    write_whole(in_folder("ours.nib"), once, n);
    expect_refused(in_folder("ours.nib"), NIB_E_HASH, image.tensors[3].name);
    free(once);
    free(twice);
    remove_folder();
}
END_TEST

NIB_SUITE(image_file, a_written_image_reads_back, an_image_is_reproducible_byte_for_byte,
          the_writer_refuses_what_does_not_fit, a_failed_write_leaves_the_old_image,
          a_full_disk_is_known_at_the_beginning, every_flipped_bit_of_the_content_is_refused,
          swapped_tensors_are_refused, cut_and_lengthened_files_are_refused, special_files_are_refused,
          a_file_with_a_hole_is_refused, a_file_that_changes_while_it_is_read_is_refused,
          an_image_signed_by_another_is_refused)
