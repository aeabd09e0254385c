/* tools/synth.c: owns `nibble synth`: options, the vocabulary, and the image form. Memory stays at a few chunks whatever
 * the shape. Main thread. Fails on options, a missing vocabulary file, or the disk. */
#include "tools/synth.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/generation.h"
#include "core/vocab.h"
#include "tools/commands.h"
#include "tools/synth_weights.h"
#include "tools/units.h"

#define VOCAB_FILE        "o200k_base.tiktoken"
#define FULL_SPECIAL_BASE 199998 /* of shapes that have the whole vocabulary */

/* The given path, or the installed file, or the one in the source tree. */
static FILE *open_vocab(const char *given, struct nib_msg *msg)
{
    static const char *const places[] = {NIB_DATADIR "/" VOCAB_FILE, "etc/o200k/" VOCAB_FILE};
    FILE *file = NULL;
    if (given) {
        file = fopen(given, "rb");
        if (!file)
            (void)nib_fail(msg, NIB_E_IO, "cannot open %s: %s", given, strerror(errno));
        return file;
    }
    for (size_t i = 0; !file && i < sizeof places / sizeof places[0]; i++)
        file = fopen(places[i], "rb");
    if (!file)
        (void)nib_fail(msg, NIB_E_IO, "no vocabulary at %s or %s: give it with --vocab", places[0], places[1]);
    return file;
}

static enum nib_err o200k_blob(const struct nib_synth *synth, uint8_t *blob, size_t *ret_bytes, struct nib_msg *msg)
{
    const struct nib_shape *s = synth->shape;
    char *text = malloc(NIB_MAX_TOKENIZER_BYTES);
    if (!text)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a vocabulary of %u bytes", NIB_MAX_TOKENIZER_BYTES);
    enum nib_err err = NIB_OK;
    FILE *file = open_vocab(synth->vocab_path, msg);
    size_t n = 0;
    if (!file) {
        err = NIB_E_IO;
    } else {
        n = fread(text, 1, NIB_MAX_TOKENIZER_BYTES, file);
        if (ferror(file) || n == NIB_MAX_TOKENIZER_BYTES)
            err = nib_fail(msg, NIB_E_IO, "the vocabulary file cannot be read, or has more than %u bytes",
                           NIB_MAX_TOKENIZER_BYTES - 1);
        (void)fclose(file);
    }
    if (!err)
        err = nib_vocab_build_tiktoken(text, n, UINT32_MAX, s->vocab, s->special_base, blob, NIB_MAX_TOKENIZER_BYTES,
                                       ret_bytes, msg);
    free(text);
    return err;
}

enum nib_err nib_synth_vocab(const struct nib_synth *synth, uint8_t **ret_blob, size_t *ret_bytes, struct nib_msg *msg)
{
    const struct nib_shape *s = synth->shape;
    uint8_t *blob = malloc(NIB_MAX_TOKENIZER_BYTES);
    size_t bytes = 0;
    enum nib_err err;
    if (!blob)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a vocabulary of %u bytes", NIB_MAX_TOKENIZER_BYTES);
    if (s->special_base == FULL_SPECIAL_BASE)
        err = o200k_blob(synth, blob, &bytes, msg);
    else
        err = nib_vocab_build_bytelevel(s->vocab, s->special_base, blob, NIB_MAX_TOKENIZER_BYTES, &bytes, msg);
    if (err) {
        free(blob);
        return err;
    }
    *ret_blob = blob;
    *ret_bytes = bytes;
    return NIB_OK;
}

struct image_sink {
    struct nib_image_writer writer;
    struct nib_progress progress;
};

static enum nib_err write_chunk(void *arg, uint32_t index, const uint8_t *bytes, size_t n, struct nib_msg *msg)
{
    struct image_sink *sink = arg;
    (void)index; /* the pieces are the tensors, in order */
    nib_progress_add(&sink->progress, n);
    return nib_image_write(&sink->writer, bytes, n, msg);
}

/* All tensors but the two blobs, which are last. */
static uint32_t weight_pieces(const struct nib_image *image, struct nib_synth_piece *pieces)
{
    uint32_t count = image->tensor_count - 2;
    for (uint32_t i = 0; i < count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        pieces[i] = (struct nib_synth_piece){.id = t->id, .layer = t->layer, .dense = image->dense, .bytes = t->bytes};
    }
    return count;
}

static enum nib_err fill_image(const struct nib_synth *synth, struct image_sink *sink, const uint8_t *blob,
                               size_t blob_bytes, const char *generation, size_t generation_bytes, struct nib_msg *msg)
{
    static struct nib_synth_piece pieces[NIB_MAX_TENSORS];
    uint32_t count = weight_pieces(&sink->writer.image, pieces);
    enum nib_err err = nib_synth_stream(synth->shape, synth->seed, pieces, count, write_chunk, sink, msg);
    if (!err)
        err = nib_image_write(&sink->writer, blob, blob_bytes, msg);
    if (!err)
        err = nib_image_write(&sink->writer, generation, generation_bytes, msg);
    return err;
}

enum nib_err nib_synth_image(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes, struct nib_msg *msg)
{
    char source[64];
    char generation[NIB_GENERATION_TEXT_BYTES];
    struct nib_generation defaults;
    nib_generation_default(synth->shape, &defaults);
    size_t generation_bytes = nib_generation_print(&defaults, generation);
    (void)snprintf(source, sizeof source, "synthetic, seed %llu", (unsigned long long)synth->seed);
    struct image_sink *sink = malloc(sizeof *sink);
    if (!sink)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for an image's description");
    enum nib_err err = nib_image_write_begin(&sink->writer, synth->out, synth->shape, synth->dense, source, blob_bytes,
                                             generation_bytes, msg);
    if (!err) {
        nib_progress_begin(&sink->progress, "synth", sink->writer.image.file_bytes);
        err = fill_image(synth, sink, blob, blob_bytes, generation, generation_bytes, msg);
        if (err)
            nib_image_write_abort(&sink->writer);
        else
            err = nib_image_write_end(&sink->writer, msg);
        (void)nib_progress_end(&sink->progress);
    }
    free(sink);
    return err;
}

/* The positional arguments and options; false after saying what is wrong. */
static bool parse_options(int argc, char **argv, struct nib_synth *synth, bool *ret_hf)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"format", required_argument, NULL, 'f'},
                                            {"vocab", required_argument, NULL, 'v'},
                                            {"dense", required_argument, NULL, 'd'},
                                            {0}};
    bool hf = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = optarg;
        switch (c) {
        case 's':
            errno = 0;
            synth->seed = strtoull(optarg, &end, 10);
            if (errno || *end || optarg[0] < '0' || optarg[0] > '9') {
                (void)fprintf(stderr, "nibble synth: --seed is \"%s\"; allowed are 0 to 2^64 - 1\n", optarg);
                return false;
            }
            break;
        case 'f':
            hf = strcmp(optarg, "hf") == 0;
            if (!hf && strcmp(optarg, "image") != 0) {
                (void)fprintf(stderr, "nibble synth: --format is \"%s\"; allowed are image and hf\n", optarg);
                return false;
            }
            break;
        case 'd':
            if (!nib_option_dense("nibble synth: --dense", optarg, &synth->dense))
                return false;
            break;
        case 'v':
            synth->vocab_path = optarg;
            break;
        default:
            return false;
        }
    }
    if (argc - optind != 2)
        return false;
    if (hf && synth->dense != NIB_DENSE_BF16) {
        (void)fprintf(stderr, "nibble synth: --dense %s is for images; a checkpoint in --format hf has bf16\n",
                      nib_dense_name(synth->dense));
        return false;
    }
    synth->shape = nib_shape_find(argv[optind]);
    synth->out = argv[optind + 1];
    if (!synth->shape)
        (void)fprintf(stderr, "nibble synth: no shape \"%s\"; nibble --help lists them\n", argv[optind]);
    *ret_hf = hf;
    return synth->shape != NULL;
}

int nib_cmd_synth(int argc, char **argv)
{
    struct nib_synth synth = {.seed = 1};
    struct nib_msg msg = {""};
    uint8_t *blob = NULL;
    size_t blob_bytes = 0;
    bool hf = false;
    if (!parse_options(argc, argv, &synth, &hf))
        return NIB_EXIT_USAGE;
    enum nib_err err = nib_synth_vocab(&synth, &blob, &blob_bytes, &msg);
    if (!err)
        err = (hf ? nib_synth_hf : nib_synth_image)(&synth, blob, blob_bytes, &msg);
    free(blob);
    if (err) {
        (void)fprintf(stderr, "nibble synth: %s\n", msg.text);
        return NIB_EXIT_FAILED;
    }
    (void)printf("%s: shape %s, seed %llu\n", synth.out, synth.shape->name, (unsigned long long)synth.seed);
    return NIB_EXIT_OK;
}
