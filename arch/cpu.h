/* arch/cpu.h: the CPU engine: runs the model with any kernel table of arch/kernels.h, on a fixed
 * pool of threads.
 *
 * Implements core/engine.h with steps_ahead 1: submit runs the step, collect returns its result.
 * All memory comes from the plan; open repacks the weights into it, checks them against the image's
 * hashes on the way, and starts the threads. Nothing is allocated after open. */
#ifndef NIB_ARCH_CPU_H
#define NIB_ARCH_CPU_H

#include "arch/kernels.h"
#include "core/engine.h"
#include "core/err.h"
#include "core/image.h"
#include "core/plan.h"

struct nib_cpu_open {
    const struct nib_plan *plan;       /* of a CPU row; its threads are the engine's. Must outlive the engine */
    void *base[NIB_SPACE_COUNT];       /* the carved arenas; only NIB_SPACE_HOST is used */
    const struct nib_kernels *kernels; /* the table the plan's row facts came from */
    const struct nib_image *image;     /* of the plan's shape; not used after open */
    const uint8_t *image_base;         /* the mapped file (nib_image_map); not used after open */
    const uint32_t *banned;            /* bitmap as in core/sample.h, copied; NULL bans nothing */
    void (*progress)(void *arg, uint64_t done_bytes,
                     uint64_t total_bytes); /* weights loaded; on this thread; or NULL */
    void *progress_arg;
};

/* NIB_E_HASH names the tensor that differs from its hash. NIB_E_ARG: image and plan are of
 * different shapes or forms, or the plan is not one of the kernels' row. NIB_E_NOMEM: threads. On failure no
 * thread is left. Boot thread. */
enum nib_err nib_cpu_engine_open(const struct nib_cpu_open *open, struct nib_engine **ret_engine,
                                 struct nib_msg *msg) NIB_CHECKED;

#endif
