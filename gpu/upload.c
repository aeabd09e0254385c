/* gpu/upload.c: owns the ring between the readers and the device, and the boot thread's side of loading.
 *
 * For each filled slot: copy, sum, repack (not for vectors), an event; slots are reaped in the order they were sent.
 * Limits: the ring of NIB_R_READ_RING and NIB_R_STAGING; a copy that takes longer than a step may counts as a lost device.
 * Boot thread. Fails with the reader's sentence, or the call's. */
#include "gpu/upload.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/arith.h"

#define SPARE_CPU_FROM 4

/* What is on its way to the device, in the order it was sent. */
struct sender {
    struct nib_gpu_loader *l;
    uint32_t sent[NIB_GPU_MAX_RING];
    uint32_t from, to;
    uint64_t oldest_us; /* when the oldest became the oldest */
    uint64_t done_bytes;
};

static enum nib_err open_ring(struct nib_gpu_loader *l, struct nib_msg *msg)
{
    struct nib_gpu_engine *e = l->e;
    const struct nib_region *host = nib_plan_region(e->plan, NIB_R_READ_RING, -1);
    const struct nib_region *device = nib_plan_region(e->plan, NIB_R_STAGING, -1);
    NIB_MUST(host && device && host->space == NIB_SPACE_PINNED && device->space == NIB_SPACE_DEVICE);
    const uint64_t slots = nib_min_u64(host->bytes, device->bytes) / NIB_GPU_SLOT_BYTES;
    const uint32_t count = (uint32_t)nib_min_u64(slots, NIB_GPU_MAX_RING);
    NIB_MUST(count > 0);
    enum nib_err err = NIB_OK;
    for (uint32_t i = 0; i < count && !err; i++) {
        struct nib_gpu_slot *slot = &l->ring[i];
        slot->host = e->gpu->pinned + host->offset + (size_t)i * NIB_GPU_SLOT_BYTES;
        slot->device = e->gpu->base[NIB_SPACE_DEVICE] + device->offset + (uint64_t)i * NIB_GPU_SLOT_BYTES;
        slot->letter = (struct nib_gpu_letter *)(void *)(slot->host + NIB_GPU_SLOT_DATA);
        err = NIB_CU(e->cuda, msg, cuEventCreate, &slot->event, NIB_CU_EVENT_NO_TIMING);
        l->ring_count += !err;
    }
    return err;
}

static void close_ring(struct nib_gpu_loader *l)
{
    if (l->e->gpu->lost)
        return;
    for (uint32_t i = 0; i < l->ring_count; i++)
        (void)l->e->cuda->cuEventDestroy(l->ring[i].event);
}

static enum nib_err launch(struct nib_gpu_engine *e, enum nib_gpu_op op, struct nib_msg *msg)
{
    struct nib_gpu_geometry g = {0};
    e->k->geometry(op, &e->machine, 0, 0, 0, &g);
    return nib_gpu_launch(e->gpu, op, &g, (struct nib_gpu_target){e->stream, e->machine_at, 0}, msg);
}

static const enum nib_gpu_op repack_of[] = {[NIB_GPU_JOB_DENSE] = NIB_GPU_REPACK_DENSE,
                                            [NIB_GPU_JOB_HEAD] = NIB_GPU_REPACK_HEAD,
                                            [NIB_GPU_JOB_MX] = NIB_GPU_REPACK_MX,
                                            [NIB_GPU_JOB_MXFP8] = NIB_GPU_REPACK_MXFP8};

/* The data, to where it stays or to the staging; the note; the sum of what arrived; the matrix in its layout; the note
 * back, which tells what the kernels saw. */
static enum nib_err bring(struct nib_gpu_engine *e, const struct nib_gpu_slot *slot, struct nib_msg *msg)
{
    struct nib_gpu_letter *letter = slot->letter;
    const enum nib_gpu_job_kind kind = slot->job->kind;
    enum nib_err err =
        NIB_CU(e->cuda, msg, cuMemcpyHtoDAsync, letter->sent.repack.src, slot->host, slot->bytes, e->stream);
    if (!err)
        err = NIB_CU(e->cuda, msg, cuMemcpyHtoDAsync, e->machine.repack, &letter->sent, sizeof letter->sent, e->stream);
    if (!err)
        err = launch(e, NIB_GPU_SUM, msg);
    if (!err && kind != NIB_GPU_JOB_PLAIN)
        err = launch(e, repack_of[kind], msg);
    if (!err)
        err = NIB_CU(e->cuda, msg, cuMemcpyDtoHAsync, &letter->back, e->machine.repack, sizeof letter->back, e->stream);
    return err;
}

static enum nib_err send(struct sender *s, struct nib_gpu_slot *slot, struct nib_msg *msg)
{
    struct nib_gpu_engine *e = s->l->e;
    enum nib_err err = bring(e, slot, msg);
    if (!err)
        err = NIB_CU(e->cuda, msg, cuEventRecord, slot->event, e->stream);
    if (err)
        return err;
    slot->state = NIB_GPU_SLOT_SENT; /* only this thread looks at it now */
    if (s->from == s->to)
        s->oldest_us = nib_gpu_now_us();
    s->sent[s->to++ % NIB_GPU_MAX_RING] = (uint32_t)(slot - s->l->ring);
    return NIB_OK;
}

static void give_back(struct sender *s, struct nib_gpu_slot *slot)
{
    struct nib_gpu_loader *l = s->l;
    s->done_bytes += slot->counts;
    pthread_mutex_lock(&l->lock);
    slot->state = NIB_GPU_SLOT_FREE;
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->lock);
    if (l->open->progress)
        l->open->progress(l->open->progress_arg, s->done_bytes + atomic_load(&l->in_place_bytes), l->total_bytes);
}

/* Padding is compared too: it was zeroed. */
static bool came_whole(const struct nib_gpu_letter *letter)
{
    const void *sent = &letter->sent.repack, *back = &letter->back.repack;
    return letter->back.sum == letter->sum_wanted && memcmp(sent, back, sizeof letter->sent.repack) == 0;
}

/* Gives back every slot whose copy is done. */
static enum nib_err reap(struct sender *s, struct nib_msg *msg)
{
    const struct nib_cuda *cuda = s->l->e->cuda;
    while (s->from != s->to) {
        struct nib_gpu_slot *slot = &s->l->ring[s->sent[s->from % NIB_GPU_MAX_RING]];
        const int result = cuda->cuEventQuery(slot->event);
        const uint64_t now = nib_gpu_now_us();
        if (result == NIB_CU_NOT_READY && now - s->oldest_us > s->l->e->step_us_max)
            return nib_fail(msg, NIB_E_DEVICE, "the GPU did not take %u MiB of weights in %llu ms",
                            NIB_GPU_SLOT_BYTES >> 20, (unsigned long long)(s->l->e->step_us_max / 1000));
        if (result == NIB_CU_NOT_READY)
            return NIB_OK;
        enum nib_err err = nib_cuda_result(cuda, "cuEventQuery", result, msg);
        if (err)
            return err;
        if (!came_whole(slot->letter))
            return nib_fail(msg, NIB_E_DEVICE, "bytes of %s changed on their way to the GPU", slot->job->tensor->name);
        s->from++;
        s->oldest_us = now;
        give_back(s, slot);
    }
    return NIB_OK;
}

/* The next filled slot, waiting a moment when there is none; NULL then. *ret_over: nothing will come any more. */
static struct nib_gpu_slot *next_filled(struct nib_gpu_loader *l, long wait_ns, bool *ret_over)
{
    struct nib_gpu_slot *slot = NULL;
    pthread_mutex_lock(&l->lock);
    if (l->filled_from == l->filled_to && l->running) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += wait_ns;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        (void)pthread_cond_timedwait(&l->came, &l->lock, &until);
    }
    if (l->filled_from != l->filled_to && !l->stop)
        slot = &l->ring[l->filled[l->filled_from++ % NIB_GPU_MAX_RING]];
    *ret_over = !slot && l->running == 0;
    pthread_mutex_unlock(&l->lock);
    return slot;
}

static enum nib_err send_all(struct nib_gpu_loader *l, struct nib_msg *msg)
{
    enum { BUSY_NS = 50000, IDLE_NS = 100000000 }; /* copies under way are looked at often */
    struct sender s = {.l = l};
    enum nib_err err = NIB_OK;
    for (bool over = false; !err && !over;) {
        struct nib_gpu_slot *slot = next_filled(l, s.from != s.to ? BUSY_NS : IDLE_NS, &over);
        if (slot)
            err = send(&s, slot, msg);
        if (!err)
            err = reap(&s, msg);
    }
    if (err == NIB_E_DEVICE)
        return err;
    /* also after another failure: the ring must not be in use when its events go */
    struct nib_msg why;
    enum nib_err idle = nib_gpu_idle(l->e, l->e->step_us_max, &why);
    if (!err && idle)
        return nib_fail(msg, idle, "%s", why.text);
    return err ? err : reap(&s, msg);
}

static void stop_readers(struct nib_gpu_loader *l)
{
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->freed);
    pthread_cond_broadcast(&l->turned);
    pthread_mutex_unlock(&l->lock);
}

/* One a CPU, but where there are several the boot thread has its own: it must never wait for one to send what is filled. */
static uint32_t readers_wanted(const struct nib_gpu_loader *l)
{
    long cpus = l->open->readers ? (long)l->open->readers : sysconf(_SC_NPROCESSORS_ONLN);
    if (!l->open->readers && cpus > SPARE_CPU_FROM)
        cpus--;
    if (cpus < 1)
        cpus = 1;
    return cpus < NIB_MAX_READERS ? (uint32_t)cpus : NIB_MAX_READERS;
}

static enum nib_err run(struct nib_gpu_loader *l, uint32_t wanted, struct nib_msg *msg)
{
    pthread_t threads[NIB_MAX_READERS];
    uint32_t started = 0;
    enum nib_err err = NIB_OK;
    for (; started < wanted && !err; started += !err) {
        pthread_mutex_lock(&l->lock);
        l->running++;
        pthread_mutex_unlock(&l->lock);
        int rc = pthread_create(&threads[started], NULL, nib_gpu_reader, l);
        if (rc != 0) {
            pthread_mutex_lock(&l->lock);
            l->running--;
            pthread_mutex_unlock(&l->lock);
            err = nib_fail(msg, NIB_E_NOMEM, "reader thread %u cannot be started: %s", started, strerror(rc));
        }
    }
    if (!err)
        err = send_all(l, msg);
    stop_readers(l);
    for (uint32_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    if (!err && l->err)
        err = nib_fail(msg, l->err, "%s", l->msg.text);
    return err;
}

/* The boot ops run with what the driver grants every function. */
static enum nib_err allow_repack(struct nib_gpu_engine *e, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    for (int op = 0; op < NIB_GPU_BEGIN && !err; op++) {
        struct nib_gpu_geometry g = {0};
        e->k->geometry((enum nib_gpu_op)op, &e->machine, 0, 0, 0, &g);
        NIB_MUST(g.grid[0] > 0);
        err = nib_gpu_module_allow(e->gpu, (enum nib_gpu_op)op, g.block, g.shared_bytes, msg);
    }
    return err;
}

enum nib_err nib_gpu_upload(struct nib_gpu_engine *e, const struct nib_gpu_engine_open *open, struct nib_msg *msg)
{
    static struct nib_gpu_loader loader; /* one load at a time in a process */
    loader = (struct nib_gpu_loader){.e = e, .open = open};
    loader.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    loader.freed = loader.turned = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pthread_condattr_t attr;
    int rc = pthread_condattr_init(&attr);
    NIB_MUST(rc == 0 && pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    NIB_MUST(pthread_cond_init(&loader.came, &attr) == 0);
    (void)pthread_condattr_destroy(&attr);
    const uint32_t readers = readers_wanted(&loader);
    nib_gpu_jobs_list(&loader, readers);
    enum nib_err err = allow_repack(e, msg);
    if (!err)
        err = open_ring(&loader, msg);
    if (!err)
        err = run(&loader, readers, msg);
    nib_gpu_jobs_drop(&loader);
    if (err == NIB_E_DEVICE)
        e->gpu->lost = true;
    close_ring(&loader);
    if (!err && open->progress)
        open->progress(open->progress_arg, loader.total_bytes, loader.total_bytes);
    if (open->times)
        open->times->weights_bytes = loader.total_bytes;
    return err;
}
