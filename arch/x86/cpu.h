/* arch/x86/cpu.h: which instruction sets this process may use. */
#ifndef NIB_ARCH_X86_CPU_H
#define NIB_ARCH_X86_CPU_H

#include <stdint.h>

/* Bits of enum nib_cpu_feature: what the processor has, the operating system saves on a context switch (XCR0) and, for
 * AMX, the kernel has granted to this process. Asking is what grants AMX: call it before the threads that will use it
 * start, and never again is needed. Boot only; cannot fail (a refused AMX is a bit not set). */
uint32_t nib_x86_features(void);

#endif
