/* appliance/boot.h: from the configuration to a proven engine. Runs once, on the stepper thread,
 * while the front already serves /health. */
#ifndef NIB_APPLIANCE_BOOT_H
#define NIB_APPLIANCE_BOOT_H

#include "appliance/front.h"
#include "core/image.h"
#include "core/plan.h"
#include "core/profile.h"

struct nib_boot {
    const struct nib_config *config;
    struct nib_front *front; /* gets its memory */
    /* what boot keeps for the life of the process */
    struct nib_image_file file;
    struct nib_image image;
    struct nib_profile profile;
    struct nib_row_facts facts;
    struct nib_plan plan;
    struct nib_arena front_arena, sched_arena, tokenizer_arena;
    void *base[NIB_SPACE_COUNT];
};

/* nib_stepper.boot; arg is a struct nib_boot. Fails with the sentence for the journal. */
enum nib_err nib_boot_run(void *arg, struct nib_stepper *stepper, struct nib_msg *msg);

#endif
