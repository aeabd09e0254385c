/* core/image_header.h: what the image's own files share; others include core/image.h. */
#ifndef NIB_CORE_IMAGE_HEADER_H
#define NIB_CORE_IMAGE_HEADER_H

#include "core/image.h"

/* Tensor `index` of the table for that shape, with name, id, layer, type, dims and bytes; offset
 * and hash zero. */
void nib_image_tensor_at(const struct nib_shape *shape, enum nib_dense dense, uint64_t tokenizer_bytes,
                         uint64_t generation_bytes, uint32_t index, struct nib_tensor *ret_tensor);

/* Printable ASCII without " and \, and short enough. */
bool nib_image_source_allowed(const char *source, size_t n);

/* Writes the header of `image` (shape, dense, source, blob sizes, hashes, key, signature, header_sha256 as
 * they stand) to out[0..header_bytes), or only counts when out is NULL. Returns header_bytes. */
uint64_t nib_image_header_print(const struct nib_image *image, uint8_t *out);

/* Completes `image` whose other fields stand: signs with `secret`, or leaves it unsigned when NULL;
 * sets header_sha256 and writes the header to out[0..header_bytes). */
void nib_image_header_seal(struct nib_image *image, const uint8_t *secret, uint8_t *out);

#endif
