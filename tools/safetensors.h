/* tools/safetensors.h: reads the header of a safetensors file that nobody has checked.
 *
 * Strict: the header is at most NIB_MAX_SRC_HEADER_BYTES, is JSON without double keys, gives each
 * tensor exactly dtype, shape and data_offsets, and the tensors cover the data without gap or
 * overlap to the last byte of the file, as the format's description demands. Types F32, F16, BF16
 * and U8 only. Takes heap; one thread. */
#ifndef NIB_TOOLS_SAFETENSORS_H
#define NIB_TOOLS_SAFETENSORS_H

#include "core/err.h"
#include "tools/weights.h"

/* Opens PATH and adds its tensors to w, which is to be sealed after the last file. *ret_file is
 * its index in w. After a failure w may only be freed. */
enum nib_err nib_safetensors_open(struct nib_weights *w, const char *path, uint32_t *ret_file,
                                  struct nib_msg *msg) NIB_CHECKED;

/* The same for the JSON header[0..bytes) of a file already in w; the data begin at 8 + bytes. */
enum nib_err nib_safetensors_parse(struct nib_weights *w, uint32_t file, const char *header, size_t bytes,
                                   struct nib_msg *msg) NIB_CHECKED;

#endif
