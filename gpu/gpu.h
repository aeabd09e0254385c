/* gpu/gpu.h: one GPU: probing it, taking its memory, and the engine that runs the model on it.
 *
 *     nib_gpu_open -> nib_gpu_probe -> (row, gpu/selftest.h) -> (plan) -> nib_gpu_take -> nib_gpu_engine_open -> steps
 *                  -> close -> nib_gpu_close
 *
 * All of it on one thread, the one that steps later (a CUDA context is current in a thread). No call waits without a
 * deadline, but those the driver itself blocks in. After a failure of the device the engine is lost: every call says
 * NIB_E_DEVICE, nothing is given back to the driver, and the process must end. */
#ifndef NIB_GPU_GPU_H
#define NIB_GPU_GPU_H

#include "arch/gpu_abi.h"
#include "core/engine.h"
#include "core/image.h"
#include "core/plan.h"
#include "core/profile.h"
#include "gpu/driver.h"

#define NIB_GPU_GROWTH_BYTES (192ull << 20) /* kept free at the probe for modules, graphs and the driver's own growth */

struct nib_gpu {
    struct nib_cuda cuda;
    int device;
    bool context; /* retained, and current in the thread that opened */
    bool lost;    /* the device failed: leave it alone */
    char name[NIB_MAX_PROFILE_NAME];
    char bus[16];        /* PCI address */
    uint64_t free_bytes; /* of the device, at the probe */
    /* the arenas of a plan: device address in every space; host address of the pinned one */
    nib_gpu_ptr base[NIB_SPACE_COUNT];
    uint8_t *pinned;
    /* the loaded row */
    const struct nib_gpu_kernels *kernels;
    struct CUmod_st *module;
    struct CUfunc_st *function[NIB_GPU_OP_COUNT];
    uint64_t shared_bytes; /* a block may use */
};

/* Opens the driver and the first device it lists (CUDA_VISIBLE_DEVICES decides which that is).
 * NIB_E_UNSUPPORTED: there is none, or its driver is too old. */
enum nib_err nib_gpu_open(struct nib_gpu *ret_gpu, struct nib_msg *msg) NIB_CHECKED;

/* The facts of the device. memory_bytes is all of it, reserved_bytes what others and the context hold now and what
 * modules and graphs will need. host_bytes is the machine's memory, host_reserved of it not ours. */
enum nib_err nib_gpu_probe(struct nib_gpu *gpu, const struct nib_profile *host, struct nib_profile *ret_profile,
                           struct nib_msg *msg) NIB_CHECKED;

/* Loads a row's image and finds its kernels, in place of the row that was loaded; nothing when it is that row already.
 * NIB_E_UNSUPPORTED: the device refuses them. */
enum nib_err nib_gpu_load(struct nib_gpu *gpu, const struct nib_gpu_kernels *kernels, const struct nib_profile *profile,
                          struct nib_msg *msg) NIB_CHECKED;

/* Takes the plan's device and pinned arenas, one allocation each. NIB_E_NOMEM names the bytes. */
enum nib_err nib_gpu_take(struct nib_gpu *gpu, const struct nib_plan *plan, struct nib_msg *msg) NIB_CHECKED;

/* Device memory that went since the probe, beyond the plan's arena: what the driver took for modules, graphs and itself.
 * Others on the same device count too. */
enum nib_err nib_gpu_growth(const struct nib_gpu *gpu, const struct nib_plan *plan, uint64_t *ret_bytes,
                            struct nib_msg *msg) NIB_CHECKED;

/* Gives everything back, unless the device is lost. */
void nib_gpu_close(struct nib_gpu *gpu);

/* Where the weights come from. `read` fills buf with n bytes of a tensor from byte `at` on; several threads call it at
 * once; what is not hashed is read front to back, each tensor on one thread. */
struct nib_gpu_source {
    enum nib_err (*read)(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n, struct nib_msg *msg);
    void *arg;
    bool hashed; /* the image's hashes are those of what read gives; false for made-up weights */
};

/* How long the parts of opening took, and what was loaded. */
struct nib_gpu_times {
    uint64_t kernels_us, weights_us, graphs_us;
    uint64_t weights_bytes;
};

struct nib_gpu_engine_open {
    struct nib_gpu *gpu;                   /* holds the plan's arenas. Must outlive the engine */
    const struct nib_plan *plan;           /* of a GPU row. Must outlive the engine */
    void *host;                            /* the arena of NIB_SPACE_HOST */
    const struct nib_gpu_kernels *kernels; /* the table the plan's row facts came from */
    const struct nib_profile *profile;     /* of the device */
    const struct nib_image *image;         /* of the plan's shape; not used after open */
    struct nib_gpu_source source;          /* not used after open */
    const uint32_t *banned;                /* bitmap as in core/sample.h, copied; NULL bans nothing */
    uint32_t readers;                      /* threads that read the image: 1..NIB_MAX_READERS, 0 = about one a CPU */
    uint32_t step_ms_max;                  /* a step that takes longer is lost; 0 = NIB_MAX_STEP_MS */
    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes); /* weights on the device; or NULL */
    void *progress_arg;
    struct nib_gpu_times *times; /* filled; or NULL */
};

/* Loads the row's kernels unless they are loaded, the weights (checking every hash), and makes a graph a bucket. NIB_E_HASH names the tensor that
 * differs. NIB_E_ARG: image, plan and kernels do not belong together. NIB_E_UNSUPPORTED: the device refuses the kernels. */
enum nib_err nib_gpu_engine_open(const struct nib_gpu_engine_open *open, struct nib_engine **ret_engine,
                                 struct nib_msg *msg) NIB_CHECKED;

#endif
