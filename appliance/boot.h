/* appliance/boot.h: from the configuration to a proven engine. Runs once, on the stepper thread, while the front already
 * serves /health. */
#ifndef NIB_APPLIANCE_BOOT_H
#define NIB_APPLIANCE_BOOT_H

#include "appliance/front.h"
#include "appliance/machine.h"

struct nib_boot {
    const struct nib_config *config;
    struct nib_front *front;                     /* gets its memory */
    struct nib_machine machine;                  /* kept for the life of the process */
    bool self_test;                              /* false for nibbled --plan */
    const char *config_path;                     /* NULL: this program does not start again by itself */
    int passed_fd;                               /* systemd's listening socket, or -1 */
    struct nib_struck struck[NIB_MAX_ARCH_ROWS]; /* [struck_count] in this process' earlier life */
    uint32_t struck_count;
    /* no image but weights of a shape: as in struct nib_machine_options */
    const struct nib_shape *made_up;
    enum nib_dense made_up_dense;
    struct nib_gpu_source made_up_source;
    const uint8_t *made_up_vocab; /* [made_up_vocab_bytes] */
    size_t made_up_vocab_bytes;
};

/* The plan that boot would carry out, in boot->machine.plan; takes no memory. */
enum nib_err nib_boot_plan(struct nib_boot *boot, struct nib_stepper *stepper, struct nib_msg *msg) NIB_CHECKED;

/* nib_stepper.boot; arg is a struct nib_boot. Fails with the sentence for the journal. */
enum nib_err nib_boot_run(void *arg, struct nib_stepper *stepper, struct nib_msg *msg);

/* After the front. When a row's self-test has stopped the GPU, or never returned, begins anew without that row. Returns when
 * the configuration names the row, or no self-test is to blame. */
void nib_boot_again(struct nib_boot *boot);

/* The process's exit code (sysexits) after boot failed so. */
int nib_boot_exit_code(enum nib_err err);

#endif
