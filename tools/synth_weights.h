/* tools/synth_weights.h: random weights that depend on (seed, tensor, place) alone, so that any part of any tensor can
 * be made at any time, and every layout of a checkpoint gets the same values.
 *
 * The scales keep activations near 1 through any number of layers: matrices have deviation 1 / sqrt(inputs), norms lie
 * around 1, biases and sinks are small but not zero, logits have deviation 3. Integer arithmetic and single fp32
 * operations only: the same bytes on every machine. */
#ifndef NIB_TOOLS_SYNTH_WEIGHTS_H
#define NIB_TOOLS_SYNTH_WEIGHTS_H

#include <stdint.h>

#include "core/image.h"
#include "gpu/gpu.h"

/* A run of bytes of one tensor. */
struct nib_synth_piece {
    enum nib_tensor_id id; /* not TOKENIZER or GENERATION */
    uint32_t layer;
    enum nib_dense dense; /* of the image; a dense matrix in MXFP8 has the same values, rounded */
    uint64_t begin_byte;  /* even for bf16; multiple of 8 for u8, of 32 for E4M3 */
    uint64_t bytes;
};

/* Fills out[0..piece->bytes). */
void nib_synth_fill(const struct nib_shape *shape, uint64_t seed, const struct nib_synth_piece *piece, uint8_t *out);

/* The weights of `nibble synth` with seed 1, made as they are asked for, on any thread. */
struct nib_gpu_source nib_synth_source(const struct nib_shape *shape);

/* Makes the pieces in order, in chunks, one chunk ahead on a second thread; `sink` gets the chunks of piece `index`
 * one after another. Stops at its first error. NIB_E_NOMEM: no buffers. */
enum nib_err
nib_synth_stream(const struct nib_shape *shape, uint64_t seed, const struct nib_synth_piece *pieces, uint32_t count,
                 enum nib_err (*sink)(void *arg, uint32_t index, const uint8_t *bytes, size_t n, struct nib_msg *msg),
                 void *arg, struct nib_msg *msg) NIB_CHECKED;

#endif
