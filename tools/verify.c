/* tools/verify.c: owns `nibble verify` and `nibble sign`: reads all of an image and checks it, then signs its header.
 * Holds one chunk. Main thread. Fails on the first thing that is wrong. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/image.h"
#include "tools/commands.h"
#include "tools/keys.h"
#include "tools/progress.h"

/* Every tensor, the padding, and that the file stayed as it was. */
static enum nib_err check_content(const struct nib_image_file *file, const struct nib_image *image, struct nib_msg *msg)
{
    struct nib_progress progress;
    void *buf = malloc(NIB_MAX_IO_CHUNK_BYTES);
    if (!buf)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a chunk of %u bytes", NIB_MAX_IO_CHUNK_BYTES);
    enum nib_err err = NIB_OK;
    nib_progress_begin(&progress, "verify", image->file_bytes);
    for (uint32_t i = 0; i < image->tensor_count && !err; i++)
        err = nib_image_check_stored(file, image, i, buf, NIB_MAX_IO_CHUNK_BYTES, nib_progress_add, &progress, msg);
    (void)nib_progress_end(&progress);
    free(buf);
    return err ? err : nib_image_check_unchanged(file, msg);
}

/* key: NULL, or the public key that must have signed. */
static enum nib_err verify(const char *path, const uint8_t *key, struct nib_image *image, struct nib_msg *msg)
{
    struct nib_image_file file;
    enum nib_err err = nib_image_open(path, &file, image, msg);
    if (err)
        return err;
    if (key)
        err = nib_image_check_signature(image, key, msg);
    if (!err)
        err = check_content(&file, image, msg);
    nib_image_close(&file);
    return err;
}

/* The image's path and --key; false on wrong usage. */
static bool parse_options(int argc, char **argv, const char **ret_path, const char **ret_key)
{
    static const struct option options[] = {{"key", required_argument, NULL, 'k'}, {0}};
    *ret_key = NULL;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c != 'k')
            return false;
        *ret_key = optarg;
    }
    if (argc - optind != 1)
        return false;
    *ret_path = argv[optind];
    return true;
}

static int finish(const char *command, enum nib_err err, const struct nib_msg *msg)
{
    if (err)
        (void)fprintf(stderr, "nibble %s: %s\n", command, msg->text);
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}

int nib_cmd_verify(int argc, char **argv)
{
    const char *path;
    const char *key_text;
    uint8_t key[NIB_ED25519_KEY_BYTES];
    struct nib_msg msg = {"no memory"};
    if (!parse_options(argc, argv, &path, &key_text))
        return NIB_EXIT_USAGE;
    struct nib_image *image = malloc(sizeof *image);
    enum nib_err err = image ? NIB_OK : NIB_E_NOMEM;
    if (!err && key_text)
        err = nib_key_read(key_text, key, &msg);
    if (!err)
        err = verify(path, key_text ? key : NULL, image, &msg);
    if (!err)
        (void)printf("%s: good, shape %s, %u tensors, %s\n", path, image->shape->name, image->tensor_count,
                     key_text           ? "signed by the given key"
                     : image->is_signed ? "signed, but no key was given to compare"
                                        : "not signed");
    free(image);
    return finish("verify", err, &msg);
}

int nib_cmd_sign(int argc, char **argv)
{
    const char *path;
    const char *key_text;
    uint8_t secret[NIB_ED25519_KEY_BYTES];
    struct nib_msg msg = {"no memory"};
    if (!parse_options(argc, argv, &path, &key_text) || !key_text)
        return NIB_EXIT_USAGE;
    struct nib_image_writer *w = malloc(sizeof *w);
    enum nib_err err = w ? NIB_OK : NIB_E_NOMEM;
    if (!err)
        err = nib_key_read(key_text, secret, &msg);
    if (!err)
        err = verify(path, NULL, &w->image, &msg);
    if (!err)
        err = nib_image_sign(w, path, secret, &msg);
    if (!err)
        (void)printf("%s: checked and signed\n", path);
    free(w);
    return finish("sign", err, &msg);
}
