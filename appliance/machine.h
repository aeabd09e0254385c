/* appliance/machine.h: boot in four calls: plan, map, load, close. The daemon and `nibble bench` share it.
 *
 *     image header -> probe -> row, self-test -> plan -> carve -> tokenizer -> engine
 *
 * Boot thread. Every failure is one sentence; after a failure call close. */
#ifndef NIB_APPLIANCE_MACHINE_H
#define NIB_APPLIANCE_MACHINE_H

#include "arch/table.h"
#include "core/arena.h"
#include "core/engine.h"
#include "core/generation.h"
#include "core/image.h"
#include "core/plan.h"
#include "core/tokenizer.h"
#include "gpu/gpu.h"

/* What may run the model. */
enum nib_device {
    NIB_DEVICE_AUTO, /* the GPU when there is a driver, a device and a row for it; else the CPU, and device_note says why */
    NIB_DEVICE_CPU,
    NIB_DEVICE_GPU /* nothing else: its absence is an error */
};

/* A row that failed its self-test, and with which kernel. */
struct nib_struck {
    const char *row;
    struct nib_msg why;
};

struct nib_machine_options {
    const char *image; /* path; NULL with made_up */
    enum nib_device device;
    const uint8_t *key; /* public key the image must be signed with, or NULL */
    const char *row;    /* row of the capability table to run, by name; NULL: the best */
    const char *mask;   /* rows to pass over, "amx,avx512"; NULL: none */
    /* Kernels are tested before the plan is made. A row that fails is struck, and the next is tried, unless `row` names it */
    bool self_test;
    const struct nib_struck *struck; /* [struck_count] rows that failed in this process' earlier life: passed over */
    uint32_t struck_count;
    struct nib_plan_request ask; /* kv, ctx_tokens, slots, step_rows_max, threads, memory_limit_bytes, queue_max,
                                    prefill_rows_max; 0 = automatic (threads: one a CPU). The rest is filled in */
    /* GPU only: no image at all but weights of this shape from a source, for measurements */
    const struct nib_shape *made_up;
    enum nib_dense made_up_dense;
    struct nib_gpu_source made_up_source;
    const uint8_t *made_up_vocab; /* [made_up_vocab_bytes] a vocabulary blob, kept until map; NULL: no tokenizer */
    size_t made_up_vocab_bytes;
    uint32_t step_ms_max; /* GPU: a step that takes longer is a lost device; 0 = NIB_MAX_STEP_MS */
    /* what the front thread needs besides, given the dimensions; NULL: nothing */
    uint64_t (*front_bytes)(void *arg, const struct nib_engine_dims *dims);
    void *front_arg;
};

struct nib_machine {
    struct nib_image_file file;
    struct nib_image image;
    const uint8_t *image_base; /* the mapped image; NULL after load */
    struct nib_profile profile;
    const struct nib_arch_row *row;
    struct nib_row_facts facts;
    struct nib_generation generation; /* defaults the image carries */
    struct nib_plan plan;
    void *base[NIB_SPACE_COUNT];
    const struct nib_tokenizer *tokenizer; /* NULL for made-up weights without a vocabulary */
    const uint8_t *vocab;                  /* [vocab_bytes] its blob, until map */
    size_t vocab_bytes;
    struct nib_engine *engine;
    struct nib_gpu gpu; /* when the row is one */
    uint32_t step_ms_max;
    bool gpu_open;
    bool file_open;
    struct nib_gpu_source source; /* of made-up weights */
    /* how long boot's parts took; the engine's are of a GPU */
    uint64_t image_us, device_us, memory_us;
    struct nib_gpu_times times;
    uint64_t growth_bytes;                       /* device memory that the driver took beyond the plan */
    struct nib_struck struck[NIB_MAX_ARCH_ROWS]; /* [struck_count] rows that failed their self-test */
    uint32_t struck_count;
    bool stopped;                                 /* by the test of the row struck last: the GPU is lost */
    _Atomic(const struct nib_arch_row *) testing; /* the row under test now */
    uint64_t test_us;                             /* that the test of `row` took */
    struct nib_msg device_note; /* why the CPU was taken although a GPU was wanted if there is one; else "" */
};

/* Opens the image, takes a device and a row, tests the row's kernels, and makes the plan; takes no memory yet beyond *m
 * (large: keep it off small stacks), and the test's own, which is given back. *m is all zeros. On failure m->struck tells
 * which rows were struck, and m->stopped whether the last of them stopped the device. */
enum nib_err nib_machine_plan(struct nib_machine *m, const struct nib_machine_options *options,
                              struct nib_msg *msg) NIB_CHECKED;

/* The device that runs the model, for people: "NVIDIA H200 at 0000:18:00.0, compute capability 9.0" or "this CPU". */
void nib_machine_device(const struct nib_machine *m, char *ret_text, size_t bytes);

/* Takes the arenas of the plan, all pages present (NIB_E_NOMEM names the bytes), and opens the tokenizer. */
enum nib_err nib_machine_map(struct nib_machine *m, struct nib_msg *msg) NIB_CHECKED;

/* Loads the weights, checking every tensor's hash, and starts the engine; then lets go of the image file. */
enum nib_err nib_machine_load(struct nib_machine *m, void (*progress)(void *arg, uint64_t done, uint64_t total),
                              void *arg, struct nib_msg *msg) NIB_CHECKED;

/* Undoes what was done so far, and leaves *m all zeros. A GPU that was lost is left as it is, and the process had better end
 * without the driver's own clean-up: nib_machine_lost tells, before close. */
bool nib_machine_lost(const struct nib_machine *m);
void nib_machine_close(struct nib_machine *m);

#endif
