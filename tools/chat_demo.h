/* tools/chat_demo.h: a nibbled of one's own on the demo model, for `nibble chat --demo`. One thread. */
#ifndef NIB_TOOLS_CHAT_DEMO_H
#define NIB_TOOLS_CHAT_DEMO_H

#include <sys/types.h>

#include "core/err.h"
#include "core/limits.h"

struct nib_chat_demo {
    pid_t pid;                       /* of the daemon; 0: none */
    char folder[64];                 /* its own, removed at the end */
    char socket[NIB_MAX_PATH_BYTES]; /* in it */
};

/* Starts the daemon that lies beside this program on the demo's image, and waits until it is ready. On failure nothing
 * is left running. The log stays in the folder only while it runs. */
enum nib_err nib_chat_demo_start(struct nib_chat_demo *demo, struct nib_msg *msg) NIB_CHECKED;

/* Stops the daemon and removes the folder. */
void nib_chat_demo_stop(struct nib_chat_demo *demo);

#endif
