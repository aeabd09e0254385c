/* tools/pack.c: owns `nibble pack`: options, the order of the steps, the image file, the closing summary. Main thread.
 * Fails on options, a source that is refused, or the disk; then OUT is as it was. */
#include "tools/pack.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/commands.h"
#include "tools/keys.h"
#include "tools/progress.h"
#include "tools/units.h"

struct job {
    const char *src;
    const char *out;
    const char *vocab_path; /* or NULL */
    enum nib_dense dense;
    bool sign;
    uint8_t secret[NIB_ED25519_KEY_BYTES];
    struct nib_pack pack;
    struct nib_image_writer writer;
    struct nib_image image; /* layout first, the finished image's header later */
    struct nib_progress progress;
    double seconds;
};

/* The signal that asks to end; a half-written image of many gigabytes must not stay on the disk. */
static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    stop_signal = number;
}

static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal};
    (void)sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        (void)sigaction(numbers[i], &action, NULL);
}

/* Renaming over a file of the source would lose it. */
static enum nib_err check_out(const struct job *j, struct nib_msg *msg)
{
    struct stat out;
    if (stat(j->out, &out) != 0)
        return NIB_OK;
    for (uint32_t i = 0; i < j->pack.weights->file_count; i++) {
        const struct stat *in = &j->pack.weights->files[i].at_open;
        if (in->st_dev == out.st_dev && in->st_ino == out.st_ino)
            return nib_fail(msg, NIB_E_ARG, "%s is a file of the source itself", j->out);
    }
    return NIB_OK;
}

/* The image at PATH, unsigned. */
static enum nib_err write_image(struct job *j, const char *path, struct nib_msg *msg)
{
    enum nib_err err = nib_image_write_begin(&j->writer, path, j->pack.shape, j->pack.dense, j->pack.source,
                                             j->pack.tokenizer_bytes, j->pack.generation_bytes, msg);
    if (err)
        return err;
    nib_progress_begin(&j->progress, "pack", j->image.file_bytes);
    err = nib_pack_write(&j->pack, &j->writer, nib_progress_add, &j->progress, msg);
    if (err)
        nib_image_write_abort(&j->writer);
    else
        err = nib_image_write_end(&j->writer, msg);
    j->seconds = nib_progress_end(&j->progress);
    return err;
}

/* A signed image appears under its name only once it is signed. */
static enum nib_err write_signed(struct job *j, struct nib_msg *msg)
{
    char path[NIB_MAX_PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s.unsigned.%ld", j->out, (long)getpid());
    if (n < 0 || n >= (int)sizeof path)
        return nib_fail(msg, NIB_E_LIMIT, "the path %.200s is too long", j->out);
    enum nib_err err = write_image(j, path, msg);
    if (err)
        return err;
    err = nib_image_sign(&j->writer, path, j->secret, msg);
    if (!err && rename(path, j->out) != 0)
        err = nib_fail(msg, NIB_E_IO, "cannot rename to %s: %s", j->out, strerror(errno));
    if (err)
        (void)unlink(path);
    return err;
}

static enum nib_err read_back(struct job *j, struct nib_msg *msg)
{
    struct nib_image_file file;
    enum nib_err err = nib_image_open(j->out, &file, &j->image, msg);
    if (!err)
        nib_image_close(&file);
    return err;
}

static void print_summary(const struct job *j)
{
    const struct nib_pack *p = &j->pack;
    char size[16], rate[16], digest[2 * NIB_SHA256_BYTES + 1], key[2 * NIB_ED25519_KEY_BYTES + 1];
    nib_bytes_text(j->image.file_bytes, size);
    nib_bytes_text(j->seconds > 0 ? (uint64_t)((double)j->image.file_bytes / j->seconds) : 0, rate);
    nib_hex_print(j->image.header_sha256, NIB_SHA256_BYTES, digest);
    nib_hex_print(j->image.key, NIB_ED25519_KEY_BYTES, key);
    (void)printf("image      %s\nshape      %s\nsource     %s\n", j->out, p->shape->name, p->source);
    (void)printf("size       %s (%" PRIu64 " bytes, %" PRIu32 " tensors)\n", size, j->image.file_bytes,
                 j->image.tensor_count);
    (void)printf("time       %.1f s, %s/s\n", j->seconds, rate);
    if (p->values_converted)
        (void)printf("values     %" PRIu64 " dense values converted to bf16, %" PRIu64 " of them rounded\n",
                     p->values_converted, p->values_inexact);
    if (p->mxfp8_values)
        (void)printf("dense      %" PRIu64 " weights rounded to MXFP8, relative error %.4f\n", p->mxfp8_values,
                     p->mxfp8_norm > 0 ? sqrt(p->mxfp8_error / p->mxfp8_norm) : 0.0);
    if (p->eos_added)
        (void)printf("stop ids   %" PRIu32
                     " that the source lacked added: return, endoftext and call all end an answer\n",
                     p->eos_added);
    (void)printf("identity   %s\nsigned by  %s\n", digest, j->image.is_signed ? key : "nobody");
}

static enum nib_err run(struct job *j, struct nib_msg *msg)
{
    enum nib_err err = nib_pack_open(&j->pack, j->src, j->vocab_path, msg);
    j->pack.dense = j->dense;
    if (!err)
        err = check_out(j, msg);
    if (!err)
        err = nib_image_layout(j->pack.shape, j->pack.dense, j->pack.source, j->pack.tokenizer_bytes,
                               j->pack.generation_bytes, &j->image, msg);
    if (!err)
        err = nib_pack_resolve(&j->pack, &j->image, msg);
    catch_signals();
    j->pack.stop = &stop_signal;
    if (!err)
        err = j->sign ? write_signed(j, msg) : write_image(j, j->out, msg);
    if (!err)
        err = read_back(j, msg);
    if (!err)
        print_summary(j);
    nib_pack_close(&j->pack);
    return err;
}

static bool parse_options(int argc, char **argv, struct job *j)
{
    static const struct option options[] = {{"key", required_argument, NULL, 'k'},
                                            {"vocab", required_argument, NULL, 'v'},
                                            {"dense", required_argument, NULL, 'd'},
                                            {0}};
    struct nib_msg msg;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'v') {
            j->vocab_path = optarg;
        } else if (c == 'd') {
            if (!nib_option_dense("nibble pack: --dense", optarg, &j->dense))
                return false;
        } else if (c == 'k') {
            j->sign = true;
            if (nib_key_read(optarg, j->secret, &msg) != NIB_OK) {
                (void)fprintf(stderr, "nibble pack: %s\n", msg.text);
                return false;
            }
        } else {
            return false;
        }
    }
    if (argc - optind != 2)
        return false;
    j->src = argv[optind];
    j->out = argv[optind + 1];
    return true;
}

int nib_cmd_pack(int argc, char **argv)
{
    struct job *j = calloc(1, sizeof *j);
    struct nib_msg msg = {""};
    NIB_MUST(j != NULL);
    int code = NIB_EXIT_USAGE;
    if (parse_options(argc, argv, j)) {
        enum nib_err err = run(j, &msg);
        code = err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
        if (err)
            (void)fprintf(stderr, "nibble pack: %s\n", msg.text);
    }
    explicit_bzero(j->secret, sizeof j->secret);
    free(j);
    return code;
}
