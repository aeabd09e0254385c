/* arch/x86/attn_avx512.c: attention for AVX-512. Owns nothing; any thread; cannot fail. */
#include "arch/x86/rows.h"

#include "arch/x86/attn_body.h"
