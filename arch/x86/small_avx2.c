/* arch/x86/small_avx2.c: element-wise operations for AVX2 and FMA. Owns nothing; any thread; cannot fail. */
#include "arch/x86/rows.h"

#include "arch/x86/small_body.h"
