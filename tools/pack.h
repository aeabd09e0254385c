/* tools/pack.h: the parts of `nibble pack`, which turns a source checkpoint into an image.
 *
 *     open      find out what the source is, open its files, read shape, tokenizer, defaults
 *     resolve   find the source of every image tensor, check names, types and shapes; change nothing
 *     write     stream the tensors through the image writer
 *
 * Nothing is written before everything but the values has been checked. One thread; heap. */
#ifndef NIB_TOOLS_PACK_H
#define NIB_TOOLS_PACK_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/generation.h"
#include "core/image.h"
#include "core/model.h"
#include "tools/gguf.h"
#include "tools/weights.h"

#define NIB_PACK_PARTS_MAX 3

enum nib_pack_kind {
    NIB_PACK_HF,     /* Hugging Face folder */
    NIB_PACK_OPENAI, /* OpenAI's original folder */
    NIB_PACK_GGUF,   /* GGUF file, or the first of a split one */
    NIB_PACK_KIND_COUNT
};

/* How an image tensor is made from its source tensors. */
enum nib_pack_how {
    NIB_PACK_ROWS,        /* dense, one after the other, to bf16 or MXFP8 as the tensor is */
    NIB_PACK_BYTES,       /* u8 as it is */
    NIB_PACK_PAIR,        /* dense, elements of two interleaved, to bf16 */
    NIB_PACK_BLOCKS,      /* the codes of one MXFP4 tensor */
    NIB_PACK_PAIR_BLOCKS, /* the codes of two, rows interleaved */
    NIB_PACK_SCALES,      /* the scales that the tensor of codes before left behind */
};

/* Where one image tensor comes from. */
struct nib_pack_origin {
    enum nib_pack_how how;
    uint32_t count;
    const struct nib_weight *parts[NIB_PACK_PARTS_MAX];
};

struct nib_pack {
    enum nib_pack_kind kind;
    struct nib_weights *weights;
    struct nib_gguf *gguf; /* metadata of a GGUF source's first file; else NULL */
    const struct nib_shape *shape;
    enum nib_dense dense; /* of the image */
    uint8_t *tokenizer;   /* vocabulary blob */
    size_t tokenizer_bytes;
    char generation[NIB_GENERATION_TEXT_BYTES];
    size_t generation_bytes;
    uint32_t eos_added; /* stop ids that the source's defaults lacked */
    char source[NIB_MAX_SOURCE_BYTES];
    struct nib_pack_origin origins[NIB_MAX_TENSORS]; /* by image tensor, blobs left out */
    uint64_t values_converted, values_inexact;       /* dense values that were not bf16 */
    uint64_t mxfp8_values;                           /* dense weights encoded as MXFP8 */
    double mxfp8_error, mxfp8_norm;                  /* squares of what rounding took, and of the weights */
    const volatile sig_atomic_t *stop;               /* or NULL; write ends with an error once it is not 0 */
};

/* Opens SRC. vocab_path names a .tiktoken file to use in place of the source's own tokenizer, or is
 * NULL. *p is to be closed, also after a failure. */
enum nib_err nib_pack_open(struct nib_pack *p, const char *src, const char *vocab_path,
                           struct nib_msg *msg) NIB_CHECKED;
void nib_pack_close(struct nib_pack *p);

/* A whole file of at most max bytes as heap text with a NUL after it. */
enum nib_err nib_pack_read_file(const char *path, size_t max, char **ret_text, size_t *ret_bytes,
                                struct nib_msg *msg) NIB_CHECKED;

/* The row of the shape table with these dimensions, or one sentence with both. */
enum nib_err nib_pack_match(struct nib_pack *p, const char *label, const struct nib_shape *dims,
                            struct nib_msg *msg) NIB_CHECKED;

/* For a folder: opens the shards, tells the kind by the names, reads config.json (shape) and
 * generation_config.json. */
enum nib_err nib_pack_open_folder(struct nib_pack *p, const char *path, struct nib_msg *msg) NIB_CHECKED;
/* Its tokenizer.json, or *ret_found false when there is none. */
enum nib_err nib_pack_folder_tokenizer(struct nib_pack *p, const char *path, bool *ret_found,
                                       struct nib_msg *msg) NIB_CHECKED;
/* The shape in config.json of either layout. */
enum nib_err nib_pack_config(struct nib_pack *p, const char *text, size_t bytes, struct nib_msg *msg) NIB_CHECKED;

/* For a GGUF file: opens it and the rest of its split, reads the shape. Then its tokenizer. */
enum nib_err nib_pack_open_gguf(struct nib_pack *p, const char *path, struct nib_msg *msg) NIB_CHECKED;
enum nib_err nib_pack_gguf_tokenizer(struct nib_pack *p, struct nib_msg *msg) NIB_CHECKED;

/* Fills p->origins for image's tensors. Refuses a tensor that is missing, has the wrong type or
 * shape, or that no gpt-oss model has. */
enum nib_err nib_pack_resolve(struct nib_pack *p, const struct nib_image *image, struct nib_msg *msg) NIB_CHECKED;

/* Writes every tensor to w, which has begun. Refuses values that are not finite, NaN scales, and values too large for dense
 * weights in MXFP8.  * `progress` (or NULL) gets the image bytes just written. */
enum nib_err nib_pack_write(struct nib_pack *p, struct nib_image_writer *w, void (*progress)(void *arg, uint64_t bytes),
                            void *arg, struct nib_msg *msg) NIB_CHECKED;

#endif
