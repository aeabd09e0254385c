/* arch/x86/attn_avx2.c: attention for AVX2 and FMA. Owns nothing; any thread; cannot fail. */
#include "arch/x86/rows.h"

#include "arch/x86/attn_body.h"
