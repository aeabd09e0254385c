/* gpu/upload_jobs.c: owns the list of what is loaded where, every tensor of the image but its two blobs, and who reads what.
 * Largest first, so that readers end together. Limits: NIB_GPU_SHARERS readers of a job. The list is made by the boot thread;
 * readers take from it under the loader's lock. Cannot fail. */
#include <stdlib.h>

#include "core/arith.h"
#include "gpu/upload.h"

static const struct nib_tensor *tensor(const struct nib_gpu_loader *l, enum nib_tensor_id id, uint32_t layer)
{
    return nib_image_tensor(l->open->image, id, layer);
}

uint32_t nib_gpu_job_rows(uint64_t bytes)
{
    const uint64_t rows = NIB_GPU_SLOT_DATA / bytes / NIB_GPU_CHUNK_ROWS * NIB_GPU_CHUNK_ROWS;
    NIB_MUST(rows > 0);
    return (uint32_t)rows;
}

static uint32_t chunks_of(const struct nib_gpu_job *job)
{
    const struct nib_tensor *t = job->tensor;
    if (job->kind == NIB_GPU_JOB_PLAIN)
        return (uint32_t)nib_div_up(t->bytes, NIB_GPU_SLOT_DATA);
    if (job->kind == NIB_GPU_JOB_DENSE || job->kind == NIB_GPU_JOB_HEAD)
        return (uint32_t)nib_div_up(t->dims[0], nib_gpu_job_rows(t->dims[1] * 2));
    if (job->kind == NIB_GPU_JOB_MXFP8)
        return (uint32_t)nib_div_up(t->dims[0], nib_gpu_job_rows(NIB_GPU_MXFP8_ROW(t->dims[1])));
    return (uint32_t)(t->dims[0] * nib_div_up(t->dims[1], nib_gpu_job_rows(NIB_GPU_MX_ROW(t->dims[2] * NIB_MX_BLOCK))));
}

static struct nib_gpu_job *add(struct nib_gpu_loader *l, enum nib_gpu_job_kind kind, enum nib_tensor_id id,
                               uint32_t layer, nib_gpu_ptr to)
{
    NIB_MUST(l->jobs_count < NIB_GPU_MAX_JOBS);
    struct nib_gpu_job *job = &l->jobs[l->jobs_count++];
    *job = (struct nib_gpu_job){.kind = kind, .tensor = tensor(l, id, layer), .to = to};
    job->chunks = chunks_of(job);
    l->total_bytes += job->tensor->bytes;
    return job;
}

static void add_mx(struct nib_gpu_loader *l, enum nib_tensor_id blocks, enum nib_tensor_id scales, uint32_t layer,
                   nib_gpu_ptr to, enum nib_gpu_matrix matrix)
{
    struct nib_gpu_job *job = add(l, NIB_GPU_JOB_MX, blocks, layer, to);
    job->scales = tensor(l, scales, layer);
    job->matrix = matrix;
    job->stride = l->e->k->mx_bytes((uint32_t)job->tensor->dims[1], (uint32_t)job->tensor->dims[2] * NIB_MX_BLOCK);
    l->total_bytes += job->scales->bytes;
}

/* QKV, attention output or LM head, in the image's form; of bf16 the head has one of its own. */
static void add_dense(struct nib_gpu_loader *l, enum nib_tensor_id id, uint32_t layer, nib_gpu_ptr to,
                      enum nib_gpu_matrix matrix)
{
    const bool mxfp8 = l->open->image->dense == NIB_DENSE_MXFP8;
    const enum nib_gpu_job_kind bf16 = id == NIB_T_LM_HEAD ? NIB_GPU_JOB_HEAD : NIB_GPU_JOB_DENSE;
    struct nib_gpu_job *job = add(l, mxfp8 ? NIB_GPU_JOB_MXFP8 : bf16, id, layer, to);
    job->matrix = matrix;
    if (!mxfp8)
        return;
    job->scales = tensor(l, nib_image_scales_of(id), layer);
    l->total_bytes += job->scales->bytes;
}

static void add_layer(struct nib_gpu_loader *l, uint32_t i)
{
    const struct nib_gpu_layer *to = &l->e->machine.layer[i];
    add_mx(l, NIB_T_UP_BLOCKS, NIB_T_UP_SCALES, i, to->up, NIB_GPU_M_UP);
    add_mx(l, NIB_T_DOWN_BLOCKS, NIB_T_DOWN_SCALES, i, to->down, NIB_GPU_M_PLAIN);
    add_dense(l, NIB_T_QKV_WEIGHT, i, to->qkv, NIB_GPU_M_QKV);
    add_dense(l, NIB_T_OUT_WEIGHT, i, to->out, NIB_GPU_M_PLAIN);
    add(l, NIB_GPU_JOB_DENSE, NIB_T_ROUTER_WEIGHT, i, to->router);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_ATTN_NORM, i, to->attn_norm);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_QKV_BIAS, i, to->qkv_bias);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_SINKS, i, to->sinks);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_OUT_BIAS, i, to->out_bias);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_MLP_NORM, i, to->mlp_norm);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_ROUTER_BIAS, i, to->router_bias);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_UP_BIAS, i, to->up_bias);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_DOWN_BIAS, i, to->down_bias);
}

static int larger_first(const void *a, const void *b)
{
    const struct nib_gpu_job *x = a, *y = b;
    if (x->tensor->bytes != y->tensor->bytes)
        return x->tensor->bytes < y->tensor->bytes ? 1 : -1;
    return x->tensor->offset < y->tensor->offset ? -1 : 1; /* then in the file's order */
}

void nib_gpu_jobs_list(struct nib_gpu_loader *l, uint32_t readers)
{
    const struct nib_gpu_engine *e = l->e;
    const struct nib_gpu_machine *m = &e->machine;
    struct nib_gpu_job *embed = add(l, NIB_GPU_JOB_PLAIN, NIB_T_EMBED, 0, m->embed);
    if (e->plan->embed_spilled)
        embed->host_to = e->gpu->pinned + (m->embed - e->gpu->base[NIB_SPACE_PINNED]);
    add_dense(l, NIB_T_LM_HEAD, 0, m->lm_head, NIB_GPU_M_PLAIN);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_FINAL_NORM, 0, m->final_norm);
    for (uint32_t i = 0; i < e->base.shape->layers; i++)
        add_layer(l, i);
    qsort(l->jobs, l->jobs_count, sizeof l->jobs[0], larger_first);
    l->share_bytes = l->total_bytes / readers / 2; /* alone, its reader would be among the last */
    if (l->open->source.hashed)
        for (uint32_t i = 0; i < l->jobs_count; i++) {
            nib_sha256_begin(&l->jobs[i].hash);
            nib_sha256_begin(&l->jobs[i].hash_scales);
        }
}

void nib_gpu_jobs_drop(struct nib_gpu_loader *l)
{
    for (uint32_t i = 0; i < l->jobs_count; i++) {
        nib_sha256_drop(&l->jobs[i].hash);
        nib_sha256_drop(&l->jobs[i].hash_scales);
    }
}

/* A job that can use one more reader, the largest first. `wanted`: readers it may have by now. */
static struct nib_gpu_job *find(struct nib_gpu_loader *l, bool help)
{
    for (uint32_t i = 0; i < l->jobs_count; i++) {
        struct nib_gpu_job *job = &l->jobs[i];
        const bool share = l->open->source.hashed && (help || job->tensor->bytes > l->share_bytes);
        if (job->chunks > job->next + job->readers && job->readers < (share ? NIB_GPU_SHARERS : 1))
            return job;
    }
    return NULL;
}

struct nib_gpu_job *nib_gpu_job_take(struct nib_gpu_loader *l)
{
    pthread_mutex_lock(&l->lock);
    struct nib_gpu_job *job = l->stop ? NULL : find(l, false);
    if (!job && !l->stop)
        job = find(l, true); /* every tensor has its reader: help with the largest */
    if (job)
        job->readers++;
    pthread_mutex_unlock(&l->lock);
    return job;
}

bool nib_gpu_job_chunk(struct nib_gpu_loader *l, struct nib_gpu_job *job, uint32_t *ret_chunk)
{
    pthread_mutex_lock(&l->lock);
    const bool left = job->next < job->chunks && !l->stop;
    if (left)
        *ret_chunk = job->next++;
    else
        job->readers--;
    pthread_mutex_unlock(&l->lock);
    return left;
}
