/* appliance/front.c: the front thread's loop: what woke it, and what follows. Owns the epoll set and
 * the signals. Limits: one turn at least every NIB_TURN_MS while clients are connected. Fails only
 * before it serves; later failures end in an exit code. */
#include "appliance/front.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "appliance/boot.h"
#include "appliance/json_in.h"
#include "appliance/log.h"
#include "appliance/notify.h"

#define NIB_DEADLINE_MS  5    /* between two looks at all connections: a turn of a stream is much shorter */
#define NIB_TURN_MS      100  /* deadlines are looked at this often while clients are connected */
#define NIB_IDLE_TURN_MS 500  /* and this often otherwise */
#define NIB_CUT_MS       2000 /* for cancelled requests to end */
#define NIB_EXIT_MS      5000 /* for the threads and the process to end */
#define NIB_STATUS_MS    1000 /* between two STATUS lines while loading */
#define NIB_FRESH_MS     200  /* a client that has connected sends its request within this time */

/* What an epoll event is about; larger marks are connections. */
enum { MARK_MHD = 0xffffff00u, MARK_STEPPER, MARK_SIGNAL };

static bool watch(struct nib_front *front, int fd, uint32_t mark)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = mark};
    return epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0;
}

static enum nib_err open_loop(struct nib_front *front, struct nib_msg *msg)
{
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    front->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    front->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (front->signal_fd < 0 || front->epoll_fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot open an epoll set: %s", strerror(errno));
    enum nib_err err = nib_conn_start(front, msg);
    if (err)
        return err;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(front->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info || !watch(front, info->epoll_fd, MARK_MHD) || !watch(front, front->stepper->wake_front, MARK_STEPPER) ||
        !watch(front, front->signal_fd, MARK_SIGNAL))
        return nib_fail(msg, NIB_E_IO, "cannot watch a descriptor: %s", strerror(errno));
    return NIB_OK;
}

/* Requests that waited for the model go on, or are refused by now. */
static void resume_waiting(struct nib_front *front)
{
    for (uint32_t i = 0; i < NIB_MAX_CONNS; i++)
        if (front->conns[i].used && front->conns[i].job < 0)
            nib_conn_resume(front, &front->conns[i]);
}

/* The stepper has booted: its memory is the front's to use. */
static void attach(struct nib_front *front)
{
    const struct nib_front_mem *m = &front->mem;
    front->attached = true;
    front->env = (struct nib_prompt_env){.tokenizer = m->tokenizer,
                                         .encode_scratch = m->encode_scratch,
                                         .encode_scratch_bytes = m->encode_scratch_bytes,
                                         .scratch = {.text = m->render_scratch,
                                                     .text_bytes = m->render_scratch_bytes,
                                                     .bpe = m->encode_scratch,
                                                     .bpe_bytes = m->encode_scratch_bytes},
                                         .date = front->config->date};
    nib_json_pool_init(m->json_pool, front->config->json_bytes);
    resume_waiting(front);
    nib_notify_status(false, "serving %s on %s, context %u tokens, %u slots", m->model, front->stepper->engine->row,
                      m->ctx_tokens, m->slots);
    nib_notify_ready();
    nib_log(NIB_LOG_NOTICE, "ready: %s on %s, context %u tokens, %u slots", m->model, front->stepper->engine->row,
            m->ctx_tokens, m->slots);
}

/* Who connects to systemd's socket from now on waits there for the next daemon. */
static void stop_accepting(struct nib_front *front)
{
    if (front->passed)
        (void)MHD_quiesce_daemon(front->mhd);
}

static void begin_drain(struct nib_front *front)
{
    if (front->draining) {
        front->drain_until_ms = nib_now_ms();
        nib_log(NIB_LOG_NOTICE, "asked again to stop: running requests end now");
        return;
    }
    front->draining = true;
    front->drain_until_ms = nib_now_ms() + front->config->drain_ms_max;
    stop_accepting(front);
    resume_waiting(front);
    nib_notify_stopping(front->config->drain_ms_max + NIB_CUT_MS + NIB_EXIT_MS);
    nib_notify_status(false, "draining: %u requests run on", front->jobs_active);
    nib_log(NIB_LOG_NOTICE, "draining: %u requests run on, for at most %llu ms", front->jobs_active,
            (unsigned long long)front->config->drain_ms_max);
}

static void read_signals(struct nib_front *front)
{
    struct signalfd_siginfo info;
    while (read(front->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGHUP)
            nib_log(NIB_LOG_WARN, "SIGHUP: the configuration is read at boot only; restart to change it");
        else
            begin_drain(front);
    }
}

static void read_stepper(struct nib_front *front)
{
    uint64_t count;
    ssize_t n = read(front->stepper->wake_front, &count, sizeof count);
    (void)n;
    if (front->stuck)
        return; /* its jobs were ended without it */
    int state = atomic_load(&front->stepper->state);
    if (state == NIB_STATE_READY && !front->attached && !front->draining)
        attach(front);
    if (!front->attached)
        return;
    struct nib_job_event event;
    while (nib_ring_pop(&front->stepper->events, &event))
        nib_generate_event(front, &event);
}

static void check_failure(struct nib_front *front)
{
    const struct nib_stepper *s = front->stepper;
    if (front->failed || (!front->stuck && atomic_load(&s->state) != NIB_STATE_FAILED))
        return;
    /* a stuck stepper may yet come back and write its own */
    const struct nib_msg *why = front->stuck ? &front->stuck_why : &s->failure;
    front->failed = true;
    stop_accepting(front);
    resume_waiting(front);
    front->exit_code = EX_SOFTWARE;
    if (!front->attached)
        front->exit_code = nib_boot_exit_code(front->stuck ? NIB_E_DEVICE : s->failure_err);
    nib_log(NIB_LOG_ERR, "%s", why->text);
    nib_notify_status(false, "failed: %s", why->text);
    front->drain_until_ms = nib_now_ms() + 1000; /* for the last answers to go out */
}

static void watch_stepper(struct nib_front *front, uint64_t now)
{
    uint64_t alive = atomic_load(&front->stepper->alive);
    if (alive != front->moved_alive || front->jobs_active == 0)
        front->moved_ms = now;
    front->moved_alive = alive;
}

/* The requests of a stepper that is stuck get their error from here. */
static void end_jobs(struct nib_front *front)
{
    for (uint32_t i = 0; front->attached && i < front->mem.jobs_count; i++)
        if (front->mem.jobs[i].used && !front->mem.jobs[i].ended)
            nib_generate_event(front, &(struct nib_job_event){.job = i, .end = NIB_END_FAILED});
}

/* Steps have their own deadline. What nothing bounds is a call of the GPU's driver that does not return: then the stepper
 * moves no more, and is given up together with the process. */
static void check_stuck(struct nib_front *front, uint64_t now)
{
    const struct nib_stepper *s = front->stepper;
    const bool loading = atomic_load(&s->state) == NIB_STATE_LOADING;
    const uint64_t ms_max = loading ? front->config->load_ms_max : s->stall_ms_max;
    const uint64_t alive = atomic_load(&s->alive), done = atomic_load(&s->boot_done);
    const bool moved = alive != front->still_alive || done != front->still_done || front->still_ms == 0;
    if (front->failed || moved || ms_max == 0) {
        front->still_ms = now;
        front->still_alive = alive;
        front->still_done = done;
        return;
    }
    if (now - front->still_ms < ms_max)
        return;
    front->stuck = true;
    (void)nib_fail(&front->stuck_why, NIB_E_DEVICE, "%s has not moved for %llu ms: the GPU's driver does not return",
                   loading ? "loading" : "the engine", (unsigned long long)(now - front->still_ms));
    end_jobs(front);
}

/* The watchdog is fed only when the stepper moved since the last time. */
static void feed_watchdog(struct nib_front *front, uint64_t now)
{
    if (front->watchdog_ms == 0 || now < front->watchdog_last_ms + front->watchdog_ms)
        return;
    uint64_t alive = atomic_load(&front->stepper->alive);
    bool loading = atomic_load(&front->stepper->state) == NIB_STATE_LOADING;
    if (alive == front->watchdog_alive && !loading)
        return;
    front->watchdog_alive = alive;
    front->watchdog_last_ms = now;
    nib_notify_watchdog();
}

static void show_progress(struct nib_front *front, uint64_t now)
{
    if (front->attached || front->failed || now < front->status_last_ms + NIB_STATUS_MS)
        return;
    uint64_t done = atomic_load(&front->stepper->boot_done);
    uint64_t total = atomic_load(&front->stepper->boot_total);
    front->status_last_ms = now;
    bool moved = done != front->status_done;
    front->status_done = done;
    nib_notify_status(moved, "loading %.1f of %.1f MB", (double)done / 1e6, (double)total / 1e6);
    nib_log_progress((double)done / 1e6, (double)total / 1e6);
}

static void cut_jobs(struct nib_front *front)
{
    for (uint32_t i = 0; i < front->mem.jobs_count; i++) {
        struct nib_front_job *job = &front->mem.jobs[i];
        if (job->used && !job->ended && !job->cancelled) {
            job->cancelled = true;
            nib_stepper_command(front->stepper, NIB_CMD_CANCEL, i);
        }
    }
}

/* Connections with a request that is not yet answered to the last byte. On systemd's socket also those that came just
 * before the end: they are served, since whoever came a moment later is served by the next daemon. */
static uint32_t busy_conns(const struct nib_front *front, uint64_t now)
{
    uint32_t busy = 0;
    for (uint32_t i = 0; i < NIB_MAX_CONNS; i++) {
        const struct nib_conn *conn = &front->conns[i];
        bool fresh = front->passed && conn->requests == 0 && now < conn->since_ms + NIB_FRESH_MS;
        busy += conn->used && (fresh || conn->phase > NIB_HTTP_HEAD);
    }
    return busy;
}

/* True when the loop is to end. */
static bool over(struct nib_front *front, uint64_t now)
{
    if (!front->draining && !front->failed)
        return false;
    if (front->jobs_active == 0 && busy_conns(front, now) == 0)
        return true;
    if (now < front->drain_until_ms)
        return false;
    if (front->cut)
        return now >= front->drain_until_ms + NIB_CUT_MS;
    front->cut = true;
    cut_jobs(front);
    return false;
}

static void wait(struct nib_front *front)
{
    int ms = front->metrics.connections ? NIB_TURN_MS : NIB_IDLE_TURN_MS;
    if (front->watchdog_ms != 0 && (front->watchdog_ms + 1) / 2 < (unsigned)ms)
        ms = (int)((front->watchdog_ms + 1) / 2);
    MHD_UNSIGNED_LONG_LONG mhd_ms;
    if (MHD_get_timeout(front->mhd, &mhd_ms) == MHD_YES && mhd_ms < (unsigned)ms)
        ms = (int)mhd_ms;
    struct epoll_event events[64];
    int n = epoll_wait(front->epoll_fd, events, 64, ms);
    for (int i = 0; i < n; i++) {
        uint64_t mark = events[i].data.u64;
        if (mark == MARK_SIGNAL)
            read_signals(front);
        else if (mark != MARK_MHD && mark != MARK_STEPPER)
            nib_conn_hangup(front, mark, (events[i].events & (EPOLLHUP | EPOLLERR)) != 0);
    }
}

static void serve(struct nib_front *front)
{
    for (;;) {
        wait(front);
        read_stepper(front);
        check_stuck(front, nib_now_ms());
        check_failure(front);
        (void)MHD_run(front->mhd);
        uint64_t now = nib_now_ms();
        if (now >= front->deadlines_ms + NIB_DEADLINE_MS) {
            front->deadlines_ms = now;
            nib_conn_deadlines(front, now);
        }
        watch_stepper(front, now);
        nib_notify_retry();
        feed_watchdog(front, now);
        show_progress(front, now);
        if (over(front, now))
            return;
    }
}

/* received == finished + refused + cancelled + failed, once nothing is open. */
static void check_ledger(const struct nib_front *front)
{
    const struct nib_metrics *m = &front->metrics;
    uint64_t known = m->finished + m->refused + m->cancelled + m->failed + m->active;
    if (m->received != known)
        nib_log(NIB_LOG_ERR, "the ledger is off: %llu received, %llu accounted for", (unsigned long long)m->received,
                (unsigned long long)known);
    nib_log(NIB_LOG_NOTICE,
            "stopped: %llu requests, %llu finished, %llu refused, %llu cancelled, "
            "%llu failed",
            (unsigned long long)m->received, (unsigned long long)m->finished, (unsigned long long)m->refused,
            (unsigned long long)m->cancelled, (unsigned long long)m->failed);
}

/* libmicrohttpd must not be stopped while a connection is suspended. */
static void release_all(struct nib_front *front)
{
    for (uint32_t i = 0; i < NIB_MAX_CONNS; i++) {
        struct nib_conn *conn = &front->conns[i];
        if (!conn->used)
            continue;
        nib_generate_detach(front, conn);
        nib_conn_resume(front, conn);
        nib_conn_kill(conn);
    }
    (void)MHD_run(front->mhd);
}

int nib_front_run(struct nib_front *front)
{
    struct nib_msg msg;
    if (getrandom(&front->next_id, sizeof front->next_id, 0) != (ssize_t)sizeof front->next_id)
        front->next_id = nib_now_us();
    front->started_s = (uint64_t)time(NULL);
    front->watchdog_ms = nib_notify_watchdog_ms();
    enum nib_err err = open_loop(front, &msg);
    if (err) {
        nib_log(NIB_LOG_ERR, "%s", msg.text);
        return EX_OSERR;
    }
    serve(front);
    release_all(front);
    MHD_stop_daemon(front->mhd);
    check_ledger(front);
    return front->exit_code;
}
