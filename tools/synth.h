/* tools/synth.h: what the files of `nibble synth` share. */
#ifndef NIB_TOOLS_SYNTH_H
#define NIB_TOOLS_SYNTH_H

#include "core/image.h"
#include "tools/progress.h"

struct nib_synth {
    const struct nib_shape *shape;
    enum nib_dense dense; /* of the image form */
    uint64_t seed;
    const char *out;        /* file, or folder of the HF layout */
    const char *vocab_path; /* o200k ranks; NULL: find them */
};

/* The vocabulary blob: o200k for shapes with room for it, single bytes for the others. *ret_blob is heap. */
enum nib_err nib_synth_vocab(const struct nib_synth *synth, uint8_t **ret_blob, size_t *ret_bytes,
                             struct nib_msg *msg) NIB_CHECKED;

/* The model image at synth->out. */
enum nib_err nib_synth_image(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes,
                             struct nib_msg *msg) NIB_CHECKED;

/* The Hugging Face folder at synth->out: shards, index, config, generation_config, tokenizer. */
enum nib_err nib_synth_hf(const struct nib_synth *synth, const uint8_t *blob, size_t blob_bytes,
                          struct nib_msg *msg) NIB_CHECKED;

#endif
