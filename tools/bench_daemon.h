/* tools/bench_daemon.h: a daemon of one's own, for a measurement: nibbled's life (appliance/serve.h) in a child process, on
 * a socket in a new folder that nobody else may enter. One thread. */
#ifndef NIB_TOOLS_BENCH_DAEMON_H
#define NIB_TOOLS_BENCH_DAEMON_H

#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/err.h"
#include "core/model.h"

struct nib_bench_daemon_options {
    const char *image;                   /* NULL with a shape */
    const struct nib_shape *shape;       /* GPU only: weights of `nibble synth`, seed 1, made as they are loaded */
    enum nib_dense dense;                /* with a shape: form of its dense matrices */
    enum nib_kv_form kv;                 /* of its KV pages */
    const char *vocab_path;              /* with a shape: o200k ranks; NULL: find them */
    uint32_t device;                     /* enum nib_device of appliance/machine.h */
    uint32_t threads, slots, ctx_tokens; /* 0: automatic */
    uint64_t memory_bytes;               /* plan as if the memory were this small; 0: what there is */
};

struct nib_bench_daemon {
    pid_t pid; /* 0: none runs */
    char folder[64], socket[80];
};

/* Starts it and waits until it is READY; it logs to stderr. NIB_E_STATE: it ended before that, or *stop became nonzero.
 * NIB_E_IO, NIB_E_NOMEM, NIB_E_LIMIT: it was not started. */
enum nib_err nib_bench_daemon_start(const struct nib_bench_daemon_options *options, const volatile sig_atomic_t *stop,
                                    struct nib_bench_daemon *ret_daemon, struct nib_msg *msg) NIB_CHECKED;

/* Ends it, and removes its folder. May be called when none runs. */
void nib_bench_daemon_stop(struct nib_bench_daemon *daemon);

#endif
