/* arch/cpu_load.c: owns the way of the weights from the mapped image into the plan's regions.
 *
 * One task a matrix or group of vectors; workers take tasks. A tensor is hashed and repacked in the
 * same walk, chunk by chunk, so that its bytes are read once. Boot. libcrypto takes heap for a
 * hash. Fails with NIB_E_HASH naming the first tensor (in file order of the tasks) that differs. */
#include <stdatomic.h>
#include <string.h>

#include "arch/cpu_state.h"
#include "core/hash.h"

#define CHUNK_BYTES (1u << 20) /* hashed, then repacked while still in cache */

enum task_kind {
    TASK_EMBED,
    TASK_LM_HEAD,
    TASK_FINAL_NORM,
    TASK_VECTORS,
    TASK_QKV,
    TASK_OUT,
    TASK_ROUTER,
    TASK_UP,
    TASK_DOWN
};
enum { TASKS_ONCE = 3, TASKS_LAYER = 6 };

struct loader {
    struct nib_cpu *cpu;
    const struct nib_cpu_open *open;
    uint64_t total_bytes;
    atomic_ullong done_bytes;
    atomic_uint failed; /* lowest task number that failed, or UINT32_MAX */
    struct nib_msg *msg;
    pthread_mutex_t lock; /* of failed and msg */
    enum nib_err err;
};

/* One worker's view: progress is reported by worker 0 only, which is the opener's thread. */
struct walk {
    struct loader *loader;
    uint32_t worker;
    struct nib_msg msg;
};

static const struct nib_tensor *tensor(const struct loader *l, enum nib_tensor_id id, uint32_t layer)
{
    return nib_image_tensor(l->open->image, id, layer);
}

static const uint8_t *bytes_of(const struct loader *l, const struct nib_tensor *t)
{
    return l->open->image_base + t->offset;
}

static void advance(struct walk *w, uint64_t bytes)
{
    struct loader *l = w->loader;
    unsigned long long done = atomic_fetch_add(&l->done_bytes, bytes) + bytes;
    if (w->worker == 0 && l->open->progress)
        l->open->progress(l->open->progress_arg, done, l->total_bytes);
}

/* A whole tensor, checked and copied as it is. */
static enum nib_err load_plain(struct walk *w, enum nib_tensor_id id, uint32_t layer, void *to)
{
    const struct nib_tensor *t = tensor(w->loader, id, layer);
    const uint8_t *from = bytes_of(w->loader, t);
    struct nib_sha256 hash = {0};
    nib_sha256_begin(&hash);
    for (uint64_t at = 0; at < t->bytes; at += CHUNK_BYTES) {
        uint64_t n = nib_min_u64(CHUNK_BYTES, t->bytes - at);
        nib_sha256_add(&hash, from + at, n);
        memcpy((uint8_t *)to + at, from + at, n);
        advance(w, n);
    }
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_end(&hash, digest);
    return nib_image_check_digest(t, digest, &w->msg);
}

/* Rows of a chunk: about CHUNK_BYTES, a multiple of tile_n. */
static uint32_t chunk_rows(const struct nib_cpu *cpu, uint64_t row_bytes)
{
    uint64_t rows = CHUNK_BYTES / row_bytes;
    return (uint32_t)nib_round_up(rows ? rows : 1, cpu->k->tile_n);
}

static enum nib_err load_dense(struct walk *w, enum nib_tensor_id id, uint32_t layer, void *to)
{
    const struct nib_cpu *cpu = w->loader->cpu;
    const struct nib_tensor *t = tensor(w->loader, id, layer);
    const struct nib_tensor *ts = t->dtype == NIB_DTYPE_E4M3 ? tensor(w->loader, nib_image_scales_of(id), layer) : NULL;
    const uint8_t *from = bytes_of(w->loader, t), *scales = ts ? bytes_of(w->loader, ts) : NULL;
    const uint32_t n = (uint32_t)t->dims[0], k = (uint32_t)t->dims[1];
    const uint64_t row_bytes = k * nib_dtype_bytes(t->dtype), row_scales = ts ? k / NIB_MX_BLOCK : 0;
    const uint32_t step = chunk_rows(cpu, row_bytes);
    enum nib_err err = ts ? nib_image_check_tensor(ts, scales, &w->msg) : NIB_OK;
    if (err)
        return err;
    struct nib_sha256 hash = {0};
    nib_sha256_begin(&hash);
    for (uint32_t n0 = 0; n0 < n; n0 += step) {
        uint32_t n1 = (uint32_t)nib_min_u64(n, (uint64_t)n0 + step);
        nib_sha256_add(&hash, from + n0 * row_bytes, (n1 - n0) * row_bytes);
        if (ts)
            cpu->k->mxfp8_repack(to, from, scales, n, k, n0, n1);
        else
            cpu->k->dense_repack(to, (const uint16_t *)(const void *)from, n, k, n0, n1);
        advance(w, (n1 - n0) * (row_bytes + row_scales));
    }
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_end(&hash, digest);
    return nib_image_check_digest(t, digest, &w->msg);
}

/* One of the two matrices of all experts of a layer; expert e goes to `to` + e * stride. */
static enum nib_err load_experts(struct walk *w, enum nib_tensor_id blocks_id, enum nib_tensor_id scales_id,
                                 uint32_t layer, uint8_t *to)
{
    const struct nib_cpu *cpu = w->loader->cpu;
    const struct nib_tensor *t = tensor(w->loader, blocks_id, layer), *ts = tensor(w->loader, scales_id, layer);
    const uint8_t *blocks = bytes_of(w->loader, t), *scales = bytes_of(w->loader, ts);
    const uint32_t experts = (uint32_t)t->dims[0], n = (uint32_t)t->dims[1];
    const uint32_t k = (uint32_t)t->dims[2] * NIB_MX_BLOCK;
    const uint64_t row_bytes = k / 2, row_scales = k / NIB_MX_BLOCK;
    const uint32_t step = chunk_rows(cpu, row_bytes);
    enum nib_err err = nib_image_check_tensor(ts, scales, &w->msg);
    if (err)
        return err;
    struct nib_sha256 hash = {0};
    nib_sha256_begin(&hash);
    for (uint32_t e = 0; e < experts; e++) {
        for (uint32_t n0 = 0; n0 < n; n0 += step) {
            uint32_t n1 = (uint32_t)nib_min_u64(n, (uint64_t)n0 + step);
            nib_sha256_add(&hash, blocks + n0 * row_bytes, (n1 - n0) * row_bytes);
            cpu->k->mx_repack(to, blocks, scales, n, k, n0, n1);
            advance(w, (n1 - n0) * (row_bytes + row_scales));
        }
        blocks += n * row_bytes;
        scales += n * row_scales;
        to += cpu->up_bytes + cpu->down_bytes;
    }
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_end(&hash, digest);
    return nib_image_check_digest(t, digest, &w->msg);
}

static enum nib_err load_vectors(struct walk *w, uint32_t layer)
{
    const struct nib_cpu_layer *to = &w->loader->cpu->layer[layer];
    const struct {
        enum nib_tensor_id id;
        uint16_t *to;
    } vectors[] = {
        {NIB_T_ATTN_NORM, to->attn_norm}, {NIB_T_QKV_BIAS, to->qkv_bias},   {NIB_T_SINKS, to->sinks},
        {NIB_T_OUT_BIAS, to->out_bias},   {NIB_T_MLP_NORM, to->mlp_norm},   {NIB_T_ROUTER_BIAS, to->router_bias},
        {NIB_T_UP_BIAS, to->up_bias},     {NIB_T_DOWN_BIAS, to->down_bias},
    };
    enum nib_err err = NIB_OK;
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0] && !err; i++)
        err = load_plain(w, vectors[i].id, layer, vectors[i].to);
    return err;
}

static enum nib_err run_task(struct walk *w, uint32_t task)
{
    struct nib_cpu *cpu = w->loader->cpu;
    const uint32_t l = task < TASKS_ONCE ? 0 : (task - TASKS_ONCE) / TASKS_LAYER;
    const struct nib_cpu_layer *to = &cpu->layer[l];
    enum task_kind kind = task < TASKS_ONCE ? task : TASKS_ONCE + (task - TASKS_ONCE) % TASKS_LAYER;
    switch (kind) {
    case TASK_EMBED:
        return load_plain(w, NIB_T_EMBED, 0, cpu->embed);
    case TASK_LM_HEAD:
        return load_dense(w, NIB_T_LM_HEAD, 0, cpu->lm_head);
    case TASK_FINAL_NORM:
        return load_plain(w, NIB_T_FINAL_NORM, 0, cpu->final_norm);
    case TASK_VECTORS:
        return load_vectors(w, l);
    case TASK_QKV:
        return load_dense(w, NIB_T_QKV_WEIGHT, l, to->qkv);
    case TASK_OUT:
        return load_dense(w, NIB_T_OUT_WEIGHT, l, to->out);
    case TASK_ROUTER:
        return load_dense(w, NIB_T_ROUTER_WEIGHT, l, to->router);
    case TASK_UP:
        return load_experts(w, NIB_T_UP_BLOCKS, NIB_T_UP_SCALES, l, to->experts);
    default: /* TASK_DOWN */
        return load_experts(w, NIB_T_DOWN_BLOCKS, NIB_T_DOWN_SCALES, l, to->experts + cpu->up_bytes);
    }
}

static void record(struct loader *l, uint32_t task, enum nib_err err, const struct nib_msg *msg)
{
    pthread_mutex_lock(&l->lock);
    if (task < atomic_load(&l->failed)) {
        atomic_store(&l->failed, task);
        l->err = err;
        if (l->msg)
            *l->msg = *msg;
    }
    pthread_mutex_unlock(&l->lock);
}

static void load_all(void *arg, uint32_t worker)
{
    struct loader *l = arg;
    struct walk w = {.loader = l, .worker = worker};
    const uint32_t tasks = TASKS_ONCE + l->cpu->base.shape->layers * TASKS_LAYER;
    uint32_t task;
    while ((task = nib_pool_take(&l->cpu->pool)) < tasks && task < atomic_load(&l->failed)) {
        enum nib_err err = run_task(&w, task);
        if (err)
            record(l, task, err, &w.msg);
    }
}

/* Bytes that tasks will walk: all tensors but the two blobs. */
static uint64_t weight_bytes(const struct nib_image *image)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < image->tensor_count; i++)
        if (image->tensors[i].id != NIB_T_TOKENIZER && image->tensors[i].id != NIB_T_GENERATION)
            sum += image->tensors[i].bytes;
    return sum;
}

enum nib_err nib_cpu_load(struct nib_cpu *cpu, const struct nib_cpu_open *open, struct nib_msg *msg)
{
    struct loader loader = {.cpu = cpu, .open = open, .total_bytes = weight_bytes(open->image), .msg = msg};
    loader.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    atomic_store(&loader.failed, UINT32_MAX);
    nib_pool_run(&cpu->pool, load_all, &loader);
    if (loader.err)
        return loader.err;
    NIB_MUST(atomic_load(&loader.done_bytes) == loader.total_bytes);
    if (open->progress)
        open->progress(open->progress_arg, loader.total_bytes, loader.total_bytes);
    return NIB_OK;
}
