/* appliance/boot.h: from the configuration to a proven engine. Runs once, on the stepper thread, while the front already
 * serves /health. */
#ifndef NIB_APPLIANCE_BOOT_H
#define NIB_APPLIANCE_BOOT_H

#include "appliance/front.h"
#include "appliance/machine.h"

struct nib_boot {
    const struct nib_config *config;
    struct nib_front *front;    /* gets its memory */
    struct nib_machine machine; /* kept for the life of the process */
};

/* The plan that boot would carry out, in boot->machine.plan; takes no memory. */
enum nib_err nib_boot_plan(struct nib_boot *boot, struct nib_stepper *stepper, struct nib_msg *msg) NIB_CHECKED;

/* nib_stepper.boot; arg is a struct nib_boot. Fails with the sentence for the journal. */
enum nib_err nib_boot_run(void *arg, struct nib_stepper *stepper, struct nib_msg *msg);

/* The process's exit code (sysexits) after boot failed so. */
int nib_boot_exit_code(enum nib_err err);

#endif
