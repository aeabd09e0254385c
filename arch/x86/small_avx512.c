/* arch/x86/small_avx512.c: element-wise operations for AVX-512. Owns nothing; any thread; cannot fail. */
#include "arch/x86/rows.h"

#include "arch/x86/small_body.h"
