/* tools/here.h: what this machine has to run a model on. Tools only; one thread. */
#ifndef NIB_TOOLS_HERE_H
#define NIB_TOOLS_HERE_H

#include <stdbool.h>

#include "core/err.h"
#include "core/profile.h"

/* "auto", "cpu" or "gpu"; otherwise false, and a sentence is printed for `command`. */
bool nib_here_device(const char *command, const char *device);

/* The facts of this machine's GPU, or of its CPU when that is asked for or, with "auto", when there is no GPU: then *ret_note
 * says why and is "" otherwise. *ret_host is the CPU always. A GPU that is there and fails is an error. */
enum nib_err nib_here_probe(const char *device, struct nib_profile *ret_profile, struct nib_profile *ret_host,
                            struct nib_msg *ret_note, struct nib_msg *msg) NIB_CHECKED;

#endif
