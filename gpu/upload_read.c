/* gpu/upload_read.c: owns one reader: tensors from the source into slots of the ring, hashed in order on the way.
 * Limits: the ring. Reader threads, boot only; libcrypto takes heap for a hash. The first failure stops all readers. */
#include <string.h>

#include "core/arith.h"
#include "gpu/upload.h"

struct reader {
    struct nib_gpu_loader *loader;
    struct nib_sha256 hash, hash_scales;
    struct nib_msg msg;
};

/* A free slot, or NULL when loading stops. */
static struct nib_gpu_slot *take_slot(struct nib_gpu_loader *l)
{
    struct nib_gpu_slot *slot = NULL;
    pthread_mutex_lock(&l->lock);
    while (!slot && !l->stop) {
        for (uint32_t i = 0; i < l->ring_count && !slot; i++)
            if (l->ring[i].state == NIB_GPU_SLOT_FREE)
                slot = &l->ring[i];
        if (!slot)
            pthread_cond_wait(&l->freed, &l->lock);
    }
    if (l->stop)
        slot = NULL;
    if (slot)
        slot->state = NIB_GPU_SLOT_FILLING;
    pthread_mutex_unlock(&l->lock);
    return slot;
}

/* Words of the slot added up as the device will. */
static uint64_t sum_of(const struct nib_gpu_slot *slot)
{
    const uint64_t *word = (const uint64_t *)(const void *)slot->host;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < slot->bytes / 8; i++)
        sum += NIB_GPU_SUM_WORD(word[i], i);
    return sum;
}

/* Hands a slot that holds `bytes` bytes for `job` to the boot thread. */
static void pass_on(struct nib_gpu_loader *l, struct nib_gpu_slot *slot, const struct nib_gpu_job *job, uint64_t bytes,
                    const struct nib_gpu_repack *repack)
{
    slot->job = job;
    slot->bytes = nib_round_up(bytes, 8);
    memset(slot->host + bytes, 0, slot->bytes - bytes);
    memset(slot->letter, 0, sizeof *slot->letter); /* padding too: it is compared */
    slot->letter->sum_wanted = sum_of(slot);
    slot->letter->sent.repack = *repack;
    slot->letter->sent.repack.sum_bytes = slot->bytes;
    slot->letter->sent.repack.sum = l->e->machine.repack + offsetof(struct nib_gpu_note, sum);
    pthread_mutex_lock(&l->lock);
    slot->state = NIB_GPU_SLOT_FILLED;
    l->filled[l->filled_to++ % NIB_GPU_MAX_RING] = (uint32_t)(slot - l->ring);
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->lock);
}

static enum nib_err fetch(struct reader *r, struct nib_sha256 *hash, const struct nib_tensor *t, uint64_t at, void *to,
                          uint64_t n)
{
    const struct nib_gpu_source *source = &r->loader->open->source;
    enum nib_err err = source->read(source->arg, t, at, to, n, &r->msg);
    if (!err && source->hashed)
        nib_sha256_add(hash, to, n);
    return err;
}

static enum nib_err finish(struct reader *r, struct nib_sha256 *hash, const struct nib_tensor *t)
{
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_end(hash, digest);
    return r->loader->open->source.hashed ? nib_image_check_digest(t, digest, &r->msg) : NIB_OK;
}

/* Into pinned memory where it stays. */
static enum nib_err read_in_place(struct reader *r, const struct nib_gpu_job *job)
{
    const struct nib_tensor *t = job->tensor;
    enum nib_err err = NIB_OK;
    nib_sha256_begin(&r->hash);
    for (uint64_t at = 0; at < t->bytes && !err; at += NIB_GPU_SLOT_DATA) {
        const uint64_t n = nib_min_u64(NIB_GPU_SLOT_DATA, t->bytes - at);
        err = fetch(r, &r->hash, t, at, job->host_to + at, n);
        atomic_fetch_add(&r->loader->in_place_bytes, n);
    }
    return err ? err : finish(r, &r->hash, t);
}

/* NIB_E_FULL: loading stops. */
static enum nib_err read_plain(struct reader *r, const struct nib_gpu_job *job)
{
    const struct nib_tensor *t = job->tensor;
    nib_sha256_begin(&r->hash);
    for (uint64_t at = 0; at < t->bytes; at += NIB_GPU_SLOT_DATA) {
        struct nib_gpu_slot *slot = take_slot(r->loader);
        if (!slot)
            return NIB_E_FULL;
        const uint64_t n = nib_min_u64(NIB_GPU_SLOT_DATA, t->bytes - at);
        enum nib_err err = fetch(r, &r->hash, t, at, slot->host, n);
        if (err)
            return err;
        slot->counts = n;
        pass_on(r->loader, slot, job, n, &(struct nib_gpu_repack){.dst = job->to + at, .src = job->to + at});
    }
    return finish(r, &r->hash, t);
}

/* Rows of a chunk whose rows have `bytes` bytes each. */
static uint32_t chunk_rows(uint64_t bytes)
{
    const uint64_t rows = NIB_GPU_SLOT_DATA / bytes / NIB_GPU_CHUNK_ROWS * NIB_GPU_CHUNK_ROWS;
    NIB_MUST(rows > 0);
    return (uint32_t)rows;
}

static enum nib_err read_dense(struct reader *r, const struct nib_gpu_job *job)
{
    const struct nib_tensor *t = job->tensor;
    const uint32_t n = (uint32_t)t->dims[0], k = (uint32_t)t->dims[1];
    const uint64_t row_bytes = (uint64_t)k * 2;
    const uint32_t step = chunk_rows(row_bytes);
    nib_sha256_begin(&r->hash);
    for (uint32_t n0 = 0; n0 < n; n0 += step) {
        struct nib_gpu_slot *slot = take_slot(r->loader);
        if (!slot)
            return NIB_E_FULL;
        const uint32_t n1 = (uint32_t)nib_min_u64(n, (uint64_t)n0 + step);
        enum nib_err err = fetch(r, &r->hash, t, n0 * row_bytes, slot->host, (n1 - n0) * row_bytes);
        if (err)
            return err;
        slot->counts = (n1 - n0) * row_bytes;
        const struct nib_gpu_repack repack = {
            .dst = job->to, .src = slot->device, .n = n, .k = k, .n0 = n0, .n1 = n1, .matrix = job->matrix};
        pass_on(r->loader, slot, job, slot->counts, &repack);
    }
    return finish(r, &r->hash, t);
}

/* Blocks of rows n0.. of an expert, then their scales, into one slot. */
static enum nib_err read_mx_chunk(struct reader *r, const struct nib_gpu_job *job, uint32_t expert, uint32_t n0,
                                  uint32_t n1)
{
    const struct nib_tensor *t = job->tensor, *ts = job->scales;
    const uint32_t n = (uint32_t)t->dims[1], k = (uint32_t)t->dims[2] * NIB_MX_BLOCK;
    const uint64_t row_bytes = k / 2, row_scales = k / NIB_MX_BLOCK;
    const uint64_t row = (uint64_t)expert * n + n0, rows = n1 - n0;
    const uint64_t scales_at = nib_round_up(rows * row_bytes, NIB_GPU_PIECE_ALIGN);
    struct nib_gpu_slot *slot = take_slot(r->loader);
    if (!slot)
        return NIB_E_FULL;
    enum nib_err err = fetch(r, &r->hash, t, row * row_bytes, slot->host, rows * row_bytes);
    if (!err)
        err = fetch(r, &r->hash_scales, ts, row * row_scales, slot->host + scales_at, rows * row_scales);
    if (err)
        return err;
    memset(slot->host + rows * row_bytes, 0, scales_at - rows * row_bytes);
    slot->counts = rows * (row_bytes + row_scales);
    const struct nib_gpu_repack repack = {.dst = job->to + expert * job->stride,
                                          .src = slot->device,
                                          .scales = slot->device + scales_at,
                                          .n = n,
                                          .k = k,
                                          .n0 = n0,
                                          .n1 = n1,
                                          .matrix = job->matrix};
    pass_on(r->loader, slot, job, scales_at + rows * row_scales, &repack);
    return NIB_OK;
}

static enum nib_err read_mx(struct reader *r, const struct nib_gpu_job *job)
{
    const uint32_t experts = (uint32_t)job->tensor->dims[0], n = (uint32_t)job->tensor->dims[1];
    const uint64_t k = job->tensor->dims[2] * NIB_MX_BLOCK;
    const uint32_t step = chunk_rows(k / 2 + k / NIB_MX_BLOCK + 1); /* and what the scales' alignment costs */
    enum nib_err err = NIB_OK;
    nib_sha256_begin(&r->hash);
    nib_sha256_begin(&r->hash_scales);
    for (uint32_t expert = 0; expert < experts && !err; expert++)
        for (uint32_t n0 = 0; n0 < n && !err; n0 += step)
            err = read_mx_chunk(r, job, expert, n0, (uint32_t)nib_min_u64(n, (uint64_t)n0 + step));
    if (!err)
        err = finish(r, &r->hash, job->tensor);
    return err ? err : finish(r, &r->hash_scales, job->scales);
}

static enum nib_err run_job(struct reader *r, const struct nib_gpu_job *job)
{
    switch (job->kind) {
    case NIB_GPU_JOB_PLAIN:
        return job->host_to ? read_in_place(r, job) : read_plain(r, job);
    case NIB_GPU_JOB_DENSE:
        return read_dense(r, job);
    default:
        return read_mx(r, job);
    }
}

static const struct nib_gpu_job *take_job(struct nib_gpu_loader *l)
{
    pthread_mutex_lock(&l->lock);
    const struct nib_gpu_job *job = !l->stop && l->next_job < l->jobs_count ? &l->jobs[l->next_job++] : NULL;
    pthread_mutex_unlock(&l->lock);
    return job;
}

static void end(struct reader *r, enum nib_err err)
{
    struct nib_gpu_loader *l = r->loader;
    pthread_mutex_lock(&l->lock);
    if (err && err != NIB_E_FULL && !l->err) {
        l->err = err;
        l->msg = r->msg;
    }
    if (err)
        l->stop = true;
    l->running--;
    pthread_cond_broadcast(&l->freed);
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->lock);
}

void *nib_gpu_reader(void *arg)
{
    struct reader r = {.loader = arg};
    enum nib_err err = NIB_OK;
    for (const struct nib_gpu_job *job; !err && (job = take_job(r.loader)) != NULL;)
        err = run_job(&r, job);
    nib_sha256_drop(&r.hash);
    nib_sha256_drop(&r.hash_scales);
    end(&r, err);
    return NULL;
}
