/* gpu/upload_jobs.c: owns the list of what is loaded where: every tensor of the image but its two blobs.
 * Largest first, so that readers end together. Boot thread. Cannot fail. */
#include <stdlib.h>

#include "gpu/upload.h"

static const struct nib_tensor *tensor(const struct nib_gpu_loader *l, enum nib_tensor_id id, uint32_t layer)
{
    return nib_image_tensor(l->open->image, id, layer);
}

static struct nib_gpu_job *add(struct nib_gpu_loader *l, enum nib_gpu_job_kind kind, enum nib_tensor_id id,
                               uint32_t layer, nib_gpu_ptr to)
{
    NIB_MUST(l->jobs_count < NIB_GPU_MAX_JOBS);
    struct nib_gpu_job *job = &l->jobs[l->jobs_count++];
    *job = (struct nib_gpu_job){.kind = kind, .tensor = tensor(l, id, layer), .to = to};
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

static void add_layer(struct nib_gpu_loader *l, uint32_t i)
{
    const struct nib_gpu_layer *to = &l->e->machine.layer[i];
    add_mx(l, NIB_T_UP_BLOCKS, NIB_T_UP_SCALES, i, to->up, NIB_GPU_M_UP);
    add_mx(l, NIB_T_DOWN_BLOCKS, NIB_T_DOWN_SCALES, i, to->down, NIB_GPU_M_PLAIN);
    add(l, NIB_GPU_JOB_DENSE, NIB_T_QKV_WEIGHT, i, to->qkv)->matrix = NIB_GPU_M_QKV;
    add(l, NIB_GPU_JOB_DENSE, NIB_T_OUT_WEIGHT, i, to->out);
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

void nib_gpu_jobs_list(struct nib_gpu_loader *l)
{
    const struct nib_gpu_engine *e = l->e;
    const struct nib_gpu_machine *m = &e->machine;
    struct nib_gpu_job *embed = add(l, NIB_GPU_JOB_PLAIN, NIB_T_EMBED, 0, m->embed);
    if (e->plan->embed_spilled)
        embed->host_to = e->gpu->pinned + (m->embed - e->gpu->base[NIB_SPACE_PINNED]);
    add(l, NIB_GPU_JOB_DENSE, NIB_T_LM_HEAD, 0, m->lm_head);
    add(l, NIB_GPU_JOB_PLAIN, NIB_T_FINAL_NORM, 0, m->final_norm);
    for (uint32_t i = 0; i < e->base.shape->layers; i++)
        add_layer(l, i);
    qsort(l->jobs, l->jobs_count, sizeof l->jobs[0], larger_first);
}
