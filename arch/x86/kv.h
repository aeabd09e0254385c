/* arch/x86/kv.h: how keys and values lie in a KV page, for all x86 rows.
 *
 * A page of one layer has, for each KV head, 8 KiB of keys, then 8 KiB of values, all bf16 rounded to nearest even:
 *   keys:   line p of 32 is the pair of dims (2p, 2p+1) of token t in dword t;
 *   values: line p of 32 is the pair of tokens (2p, 2p+1) of dim d in dword d.
 * In FP8 (NIB_KV_FP8) a head's piece is 4 KiB of codes of keys and 4 KiB of values, in the same lines with a byte for each
 * half of a dword, so that pairs of codes are words; then the scale codes of keys, [half of the dims][token], and of values.
 *
 * A token is 32 dwords of each head's keys and 64 halves of dwords of its values; storing one touches no other
 * token's bytes, so different tokens may be stored by different threads. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_KV_H
#define NIB_ARCH_X86_KV_H

#include <stdint.h>

#include "core/limits.h"
#include "core/model.h"

#define NIB_KV_LINE_BYTES 256u  /* 64 pairs */
#define NIB_KV_HALF_BYTES 8192u /* keys or values of one head: 32 lines */

#define NIB_KV8_LINE_BYTES   128u
#define NIB_KV8_HALF_BYTES   4096u
#define NIB_KV8_SCALES_AT    (2 * NIB_KV8_HALF_BYTES) /* in a head's piece */
#define NIB_KV8_SCALES_BYTES 128u                     /* of keys, and of values */
#define NIB_KV8_HEAD_BYTES   (NIB_KV8_SCALES_AT + 2 * NIB_KV8_SCALES_BYTES)

_Static_assert(NIB_HEAD_DIM == 64 && NIB_KV_PAGE_TOKENS == 64, "keys and values of a page are 64 x 64");

uint64_t nib_x86_kv_page_bytes(uint32_t kv_heads);
void nib_x86_kv_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v);
uint64_t nib_x86_kv8_page_bytes(uint32_t kv_heads);
void nib_x86_kv8_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v);

#endif
