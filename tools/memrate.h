/* tools/memrate.h: how fast this machine reads memory, the roof that decode is compared with. */
#ifndef NIB_TOOLS_MEMRATE_H
#define NIB_TOOLS_MEMRATE_H

#include <stdint.h>

#include "core/err.h"

/* Bytes a second that `threads` threads (1..NIB_MAX_THREADS) read from [base, base + bytes) together, each its own
 * contiguous share: the best of `passes` passes. NIB_E_NOMEM: a thread could not be started. */
enum nib_err nib_memrate(const void *base, uint64_t bytes, uint32_t threads, uint32_t passes, double *ret_bytes_s,
                         struct nib_msg *msg) NIB_CHECKED;

#endif
