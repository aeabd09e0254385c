/* appliance/serve.h: a daemon's life, from its boot to its exit code. `nibbled` and `nibble bench serve` share it. Main
 * thread, which becomes the front thread; once a process. */
#ifndef NIB_APPLIANCE_SERVE_H
#define NIB_APPLIANCE_SERVE_H

#include "appliance/boot.h"

/* Serves until SIGTERM has drained, or a failure; returns the exit code (sysexits). boot->config is set, config_path,
 * struck and made_up as they are wanted, the rest zero. Ends the process itself where something may never return. */
int nib_serve(struct nib_boot *boot);

/* Prints what boot would plan, from the configuration and the image's header alone; returns the exit code. */
int nib_serve_plan(struct nib_boot *boot);

/* Tells the journal and systemd; returns `code`. */
int nib_serve_fail(const struct nib_msg *msg, int code);

#endif
