/* appliance/device.h: which device and which row of the capability table run the model, and whether its kernels are right.
 * Part of appliance/machine.c's boot; boot thread. */
#ifndef NIB_APPLIANCE_DEVICE_H
#define NIB_APPLIANCE_DEVICE_H

#include "appliance/machine.h"

/* Sets profile, row, gpu, struck and device_note of *m, whose image is known. */
enum nib_err nib_device_choose(struct nib_machine *m, const struct nib_machine_options *o,
                               struct nib_msg *msg) NIB_CHECKED;

#endif
