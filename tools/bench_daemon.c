/* tools/bench_daemon.c: owns the child process, its folder and, in the child, its configuration. Limits: the daemon's own.
 * One thread before the child is made. Fails with a sentence; why a daemon did not start stands in its own lines. */
#include "tools/bench_daemon.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "appliance/config.h"
#include "appliance/log.h"
#include "appliance/notify.h"
#include "appliance/serve.h"
#include "tools/client.h"
#include "tools/load_conn.h"
#include "tools/synth.h"
#include "tools/synth_weights.h"

#define ANSWER_BYTES (256u << 10) /* buffer of one answer: a client of ours is never so far behind */
#define TURN_NS      20000000     /* between two looks at whether it is READY */

static struct nib_config config;
static struct nib_boot boot;

static enum nib_err configure(const struct nib_bench_daemon_options *o, const char *socket, struct nib_msg *msg)
{
    const struct nib_load longest = {.prompt_tokens = o->ctx_tokens};
    const size_t body_bytes = nib_load_request_max(&longest);
    nib_config_init(&config);
    if (o->image && strlen(o->image) >= sizeof config.image_path)
        return nib_fail(msg, NIB_E_LIMIT, "the image's path has %zu bytes, allowed are %zu", strlen(o->image),
                        sizeof config.image_path - 1);
    (void)snprintf(config.image_path, sizeof config.image_path, "%s", o->image ? o->image : "");
    (void)snprintf(config.socket_path, sizeof config.socket_path, "%s", socket);
    config.socket_mode = 0600;
    config.device = o->device;
    config.threads = o->threads;
    config.slots = o->slots;
    config.ctx_tokens = o->ctx_tokens;
    config.kv = o->kv;
    config.memory_mib = o->memory_bytes >> 20;
    config.connections = NIB_MAX_CONNS;
    config.queue = NIB_MAX_QUEUE;
    config.bodies = 64;
    if (config.body_bytes > body_bytes && body_bytes > NIB_SMALL_BODY_BYTES)
        config.body_bytes = body_bytes;
    config.answer_bytes = ANSWER_BYTES;
    config.drain_ms_max = 1000; /* nobody but us is there */
    config.log_requests = false;
    boot.config = &config;
    return NIB_OK;
}

static enum nib_err make_up(const struct nib_bench_daemon_options *o, uint8_t **ret_blob, struct nib_msg *msg)
{
    const struct nib_synth synth = {.shape = o->shape, .vocab_path = o->vocab_path};
    enum nib_err err = nib_synth_vocab(&synth, ret_blob, &boot.made_up_vocab_bytes, msg);
    boot.made_up = o->shape;
    boot.made_up_dense = o->dense;
    boot.made_up_source = nib_synth_source(o->shape);
    boot.made_up_vocab = *ret_blob;
    return err;
}

/* The child: does not return. */
static void live(pid_t parent)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(EXIT_FAILURE);
    (void)unsetenv("NOTIFY_SOCKET");
    nib_log_init();
    nib_notify_init();
    const int code = nib_serve(&boot);
    (void)fflush(NULL);
    _exit(code);
}

static enum nib_err wait_ready(struct nib_bench_daemon *d, const volatile sig_atomic_t *stop, struct nib_msg *msg)
{
    for (;;) {
        struct nib_msg why;
        json_t *health = NULL;
        int status;
        if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
            d->pid = 0;
            return nib_fail(msg, NIB_E_STATE, "the daemon ended before it was ready, %s %d; its lines say why",
                            WIFEXITED(status) ? "exit code" : "signal",
                            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        }
        const bool ready = nib_client_get(d->socket, "/health", &health, &why) == NIB_OK;
        json_decref(health);
        if (ready)
            return NIB_OK;
        if (stop && *stop)
            return nib_fail(msg, NIB_E_STATE, "stopped");
        const struct timespec turn = {.tv_nsec = TURN_NS};
        (void)nanosleep(&turn, NULL);
    }
}

enum nib_err nib_bench_daemon_start(const struct nib_bench_daemon_options *o, const volatile sig_atomic_t *stop,
                                    struct nib_bench_daemon *ret, struct nib_msg *msg)
{
    struct nib_bench_daemon d = {0};
    uint8_t *blob = NULL;
    const char *tmp = getenv("TMPDIR");
    if (!tmp || strlen(tmp) > 40)
        tmp = "/tmp";
    (void)snprintf(d.folder, sizeof d.folder, "%s/nibble-XXXXXX", tmp);
    if (!mkdtemp(d.folder))
        return nib_fail(msg, NIB_E_IO, "cannot make a folder %s: %s", d.folder, strerror(errno));
    (void)snprintf(d.socket, sizeof d.socket, "%s/n.sock", d.folder);
    enum nib_err err = configure(o, d.socket, msg);
    if (!err && o->shape)
        err = make_up(o, &blob, msg);
    if (!err) {
        const pid_t parent = getpid();
        (void)fflush(NULL);
        d.pid = fork();
        if (d.pid == 0)
            live(parent);
        if (d.pid < 0)
            err = nib_fail(msg, NIB_E_IO, "cannot start a process: %s", strerror(errno));
        else
            err = wait_ready(&d, stop, msg);
    }
    free(blob); /* the child has its own */
    boot = (struct nib_boot){0};
    if (err)
        nib_bench_daemon_stop(&d);
    else
        *ret = d;
    return err;
}

void nib_bench_daemon_stop(struct nib_bench_daemon *d)
{
    if (d->pid > 0) {
        (void)kill(d->pid, SIGTERM);
        (void)waitpid(d->pid, NULL, 0);
    }
    if (d->folder[0]) {
        (void)unlink(d->socket);
        (void)rmdir(d->folder);
    }
    *d = (struct nib_bench_daemon){0};
}
