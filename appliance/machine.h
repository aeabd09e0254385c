/* appliance/machine.h: boot in four calls: plan, map, load, close. The daemon and `nibble bench` share it.
 *
 *     image header -> probe -> row -> plan -> carve -> tokenizer -> engine
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

struct nib_machine_options {
    const char *image;           /* path */
    const uint8_t *key;          /* public key the image must be signed with, or NULL */
    const char *row;             /* row of the capability table to run, by name; NULL: the best */
    const char *mask;            /* rows to pass over, "amx,avx512"; NULL: none */
    struct nib_plan_request ask; /* ctx_tokens, slots, step_rows_max, threads, memory_limit_bytes, queue_max,
                                    prefill_rows_max; 0 = automatic (threads: one a CPU). The rest is filled in */
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
    const struct nib_tokenizer *tokenizer;
    struct nib_engine *engine;
    bool file_open;
};

/* Opens the image and makes the plan; takes no memory yet beyond *m (large: keep it off small stacks). *m is all zeros. */
enum nib_err nib_machine_plan(struct nib_machine *m, const struct nib_machine_options *options,
                              struct nib_msg *msg) NIB_CHECKED;

/* Takes the arenas of the plan, all pages present (NIB_E_NOMEM names the bytes), and opens the tokenizer. */
enum nib_err nib_machine_map(struct nib_machine *m, struct nib_msg *msg) NIB_CHECKED;

/* Loads the weights, checking every tensor's hash, and starts the engine; then lets go of the image file. */
enum nib_err nib_machine_load(struct nib_machine *m, void (*progress)(void *arg, uint64_t done, uint64_t total),
                              void *arg, struct nib_msg *msg) NIB_CHECKED;

/* Undoes what was done so far, and leaves *m all zeros. */
void nib_machine_close(struct nib_machine *m);

#endif
