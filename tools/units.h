/* tools/units.h: options' values as people write them. One thread. */
#ifndef NIB_TOOLS_UNITS_H
#define NIB_TOOLS_UNITS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model.h"

/* Each reads `text`, the value of the option that `what` names ("nibble plan: --context"), or says on stderr what is
 * allowed and returns false. */

/* A whole number from 1 to max. */
bool nib_option_count(const char *what, const char *text, uint32_t max, uint32_t *ret_value);

/* "4096", "512K", "1.5G", "2T" (powers of 1024): 1 to 2^60 bytes. */
bool nib_option_size(const char *what, const char *text, uint64_t *ret_bytes);

/* One of `names`, NULL at the end; *ret_index is its place. */
bool nib_option_choice(const char *what, const char *text, const char *const names[], uint32_t *ret_index);

/* A form of dense matrices: "bf16", "mxfp8". */
bool nib_option_dense(const char *what, const char *text, enum nib_dense *ret_dense);

/* A form of KV pages: "bf16", "fp8". */
bool nib_option_kv(const char *what, const char *text, enum nib_kv_form *ret_kv);

/* A model's shape by its name. */
bool nib_option_shape(const char *what, const char *text, const struct nib_shape **ret_shape);

/* "auto", "cpu", "gpu": enum nib_device. */
bool nib_option_device(const char *what, const char *text, uint32_t *ret_device);

#endif
