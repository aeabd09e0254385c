/* gpu/upload_read.c: owns one reader: chunks of tensors from the source into slots of the ring, hashed in order on the way.
 * Limits: the ring. Reader threads, boot only; libcrypto takes heap for a hash. The first failure stops all readers. */
#include <string.h>

#include "core/arith.h"
#include "gpu/upload.h"

#define PIECE_BYTES (256u << 10) /* read, hashed and added up while the second-level cache still holds it */

struct reader {
    struct nib_gpu_loader *loader;
    struct nib_gpu_job *job;
    uint32_t chunk;
    bool turn;     /* the hash waits for this chunk */
    uint8_t *slot; /* where the sum of words begins; NULL: no sum is wanted */
    uint64_t sum;  /* of the words so far */
    struct nib_msg msg;
};

/* Bytes of one tensor in a chunk. */
struct part {
    const struct nib_tensor *tensor;
    struct nib_sha256 *hash;
    uint64_t at, bytes;
    uint8_t *to;
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

static void leave_slot(struct nib_gpu_loader *l, struct nib_gpu_slot *slot)
{
    pthread_mutex_lock(&l->lock);
    slot->state = NIB_GPU_SLOT_FREE;
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->lock);
}

/* Words of the slot added up as the device will. */
static void add_up(struct reader *r, const uint8_t *from, uint64_t bytes)
{
    if (!r->slot)
        return;
    const uint64_t *word = (const uint64_t *)(const void *)from;
    const uint64_t first = (uint64_t)(from - r->slot) / 8;
    for (uint64_t i = 0; i < bytes / 8; i++)
        r->sum += NIB_GPU_SUM_WORD(word[i], first + i);
}

/* Hands a slot that holds `bytes` bytes to the boot thread. */
static void pass_on(struct reader *r, struct nib_gpu_slot *slot, uint64_t bytes, const struct nib_gpu_repack *repack)
{
    struct nib_gpu_loader *l = r->loader;
    slot->job = r->job;
    slot->bytes = nib_round_up(bytes, 8);
    memset(slot->host + bytes, 0, slot->bytes - bytes);
    add_up(r, slot->host + bytes / 8 * 8, slot->bytes - bytes / 8 * 8);
    memset(slot->letter, 0, sizeof *slot->letter); /* padding too: it is compared */
    slot->letter->sum_wanted = r->sum;
    slot->letter->sent.repack = *repack;
    slot->letter->sent.repack.sum_bytes = slot->bytes;
    slot->letter->sent.repack.sum = l->e->machine.repack + offsetof(struct nib_gpu_note, sum);
    pthread_mutex_lock(&l->lock);
    slot->state = NIB_GPU_SLOT_FILLED;
    l->filled[l->filled_to++ % NIB_GPU_MAX_RING] = (uint32_t)(slot - l->ring);
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->lock);
}

/* True once all chunks before this one are hashed; false when loading stops. */
static bool await_turn(struct reader *r, bool wait)
{
    struct nib_gpu_loader *l = r->loader;
    pthread_mutex_lock(&l->lock);
    while (wait && r->job->hashed != r->chunk && !l->stop)
        pthread_cond_wait(&l->turned, &l->lock);
    r->turn = r->job->hashed == r->chunk;
    pthread_mutex_unlock(&l->lock);
    return r->turn;
}

static void pass_turn(struct reader *r)
{
    struct nib_gpu_loader *l = r->loader;
    pthread_mutex_lock(&l->lock);
    r->job->hashed++;
    if (r->job->readers > 1)
        pthread_cond_broadcast(&l->turned);
    pthread_mutex_unlock(&l->lock);
}

static enum nib_err check_hash(struct reader *r, struct nib_sha256 *hash, const struct nib_tensor *t)
{
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_end(hash, digest);
    return nib_image_check_digest(t, digest, &r->msg);
}

/* Reads a part; hashes it too when the turn has come already. */
static enum nib_err read_part(struct reader *r, const struct part *p)
{
    const struct nib_gpu_source *source = &r->loader->open->source;
    for (uint64_t done = 0; done < p->bytes;) {
        const uint64_t n = nib_min_u64(PIECE_BYTES, p->bytes - done);
        enum nib_err err = source->read(source->arg, p->tensor, p->at + done, p->to + done, n, &r->msg);
        if (err)
            return err;
        if (source->hashed && r->turn)
            nib_sha256_add(p->hash, p->to + done, n);
        add_up(r, p->to + done, n);
        done += n;
    }
    return NIB_OK;
}

/* The parts of a chunk, read and hashed; the tensor's hash is compared after its last. NIB_E_FULL: loading stops. */
static enum nib_err read_parts(struct reader *r, const struct part *parts, uint32_t count)
{
    const bool hashed = r->loader->open->source.hashed;
    (void)await_turn(r, false);
    const bool at_once = r->turn;
    for (uint32_t i = 0; i < count; i++) {
        enum nib_err err = read_part(r, &parts[i]);
        if (err)
            return err;
    }
    if (!hashed)
        return NIB_OK;
    if (!at_once && !await_turn(r, true))
        return NIB_E_FULL;
    for (uint32_t i = 0; i < count && !at_once; i++)
        nib_sha256_add(parts[i].hash, parts[i].to, parts[i].bytes);
    enum nib_err err = NIB_OK;
    for (uint32_t i = 0; i < count && !err && r->chunk + 1 == r->job->chunks; i++)
        err = check_hash(r, parts[i].hash, parts[i].tensor);
    pass_turn(r);
    return err;
}

/* A slice of the tensor as it is, to where it stays: by way of a slot, or read in place into pinned memory. */
static enum nib_err read_plain(struct reader *r, struct nib_gpu_slot *slot)
{
    const struct nib_gpu_job *job = r->job;
    const uint64_t at = (uint64_t)r->chunk * NIB_GPU_SLOT_DATA;
    const uint64_t n = nib_min_u64(NIB_GPU_SLOT_DATA, job->tensor->bytes - at);
    const struct part part = {job->tensor, &r->job->hash, at, n, slot ? slot->host : job->host_to + at};
    enum nib_err err = read_parts(r, &part, 1);
    if (err)
        return err;
    if (!slot) {
        atomic_fetch_add(&r->loader->in_place_bytes, n);
        return NIB_OK;
    }
    slot->counts = n;
    pass_on(r, slot, n, &(struct nib_gpu_repack){.dst = job->to + at, .src = job->to + at});
    return NIB_OK;
}

static enum nib_err read_dense(struct reader *r, struct nib_gpu_slot *slot)
{
    const struct nib_gpu_job *job = r->job;
    const struct nib_tensor *t = job->tensor;
    const uint32_t n = (uint32_t)t->dims[0], k = (uint32_t)t->dims[1];
    const uint64_t row_bytes = (uint64_t)k * 2;
    const uint32_t step = nib_gpu_job_rows(row_bytes), n0 = r->chunk * step;
    const uint32_t n1 = (uint32_t)nib_min_u64(n, (uint64_t)n0 + step);
    const struct part part = {t, &r->job->hash, n0 * row_bytes, (n1 - n0) * row_bytes, slot->host};
    enum nib_err err = read_parts(r, &part, 1);
    if (err)
        return err;
    slot->counts = part.bytes;
    const struct nib_gpu_repack repack = {
        .dst = job->to, .src = slot->device, .n = n, .k = k, .n0 = n0, .n1 = n1, .matrix = job->matrix};
    pass_on(r, slot, slot->counts, &repack);
    return NIB_OK;
}

/* Codes of some rows of an expert, or of a dense matrix in MXFP8, then their scales. */
static enum nib_err read_mx(struct reader *r, struct nib_gpu_slot *slot)
{
    const struct nib_gpu_job *job = r->job;
    const struct nib_tensor *t = job->tensor;
    const bool dense = job->kind == NIB_GPU_JOB_MXFP8;
    const uint32_t n = (uint32_t)t->dims[dense ? 0 : 1];
    const uint32_t k = (uint32_t)(dense ? t->dims[1] : t->dims[2] * NIB_MX_BLOCK);
    const uint64_t row_bytes = dense ? k : k / 2, row_scales = k / NIB_MX_BLOCK;
    const uint32_t step = nib_gpu_job_rows(dense ? NIB_GPU_MXFP8_ROW(k) : NIB_GPU_MX_ROW(k));
    const uint32_t in_expert = (uint32_t)nib_div_up(n, step), expert = r->chunk / in_expert;
    const uint32_t n0 = r->chunk % in_expert * step, n1 = (uint32_t)nib_min_u64(n, (uint64_t)n0 + step);
    const uint64_t row = (uint64_t)expert * n + n0, rows = n1 - n0, blocks = rows * row_bytes;
    const uint64_t scales_at = nib_round_up(blocks, NIB_GPU_PIECE_ALIGN);
    const struct part parts[] = {
        {t, &r->job->hash, row * row_bytes, blocks, slot->host},
        {job->scales, &r->job->hash_scales, row * row_scales, rows * row_scales, slot->host + scales_at}};
    memset(slot->host + blocks, 0, scales_at - blocks);
    enum nib_err err = read_parts(r, parts, 2);
    if (err)
        return err;
    slot->counts = rows * (row_bytes + row_scales);
    const struct nib_gpu_repack repack = {.dst = job->to + expert * job->stride,
                                          .src = slot->device,
                                          .scales = slot->device + scales_at,
                                          .n = n,
                                          .k = k,
                                          .n0 = n0,
                                          .n1 = n1,
                                          .matrix = job->matrix};
    pass_on(r, slot, scales_at + rows * row_scales, &repack);
    return NIB_OK;
}

static enum nib_err read_chunk(struct reader *r, struct nib_gpu_slot *slot)
{
    r->slot = slot ? slot->host : NULL;
    r->sum = 0;
    switch (r->job->kind) {
    case NIB_GPU_JOB_PLAIN:
        return read_plain(r, slot);
    case NIB_GPU_JOB_DENSE:
    case NIB_GPU_JOB_HEAD:
        return read_dense(r, slot);
    default:
        return read_mx(r, slot);
    }
}

/* Chunks of the job until none is left. The slot comes first: who holds the chunk that others wait for never waits for one. */
static enum nib_err run_job(struct reader *r)
{
    struct nib_gpu_loader *l = r->loader;
    for (;;) {
        struct nib_gpu_slot *slot = r->job->host_to ? NULL : take_slot(l);
        if (!slot && !r->job->host_to)
            return NIB_E_FULL;
        if (!nib_gpu_job_chunk(l, r->job, &r->chunk)) {
            if (slot)
                leave_slot(l, slot);
            return NIB_OK;
        }
        enum nib_err err = read_chunk(r, slot);
        if (err)
            return err;
    }
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
    pthread_cond_broadcast(&l->turned);
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->lock);
}

void *nib_gpu_reader(void *arg)
{
    struct reader r = {.loader = arg};
    enum nib_err err = NIB_OK;
    while (!err && (r.job = nib_gpu_job_take(r.loader)) != NULL)
        err = run_job(&r);
    end(&r, err);
    return NULL;
}
