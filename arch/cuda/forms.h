/* arch/cuda/forms.h: reads on the host what the kernels hand to each other (struct nib_gpu_forms of arch/gpu_abi.h). Follows
 * arch/cuda/layout.h and the number formats that the kernels write. Pure; any thread; cannot fail. */
#ifndef NIB_ARCH_CUDA_FORMS_H
#define NIB_ARCH_CUDA_FORMS_H

#include "arch/cuda/layout.h"
#include "arch/sm90/batch_mx.h"
#include "core/mx.h"

/* 16-bit floats between two rows of acts. */
static inline uint32_t cu_acts_stride(const struct nib_gpu_machine *m)
{
    const uint32_t q_dim = m->heads * NIB_HEAD_DIM;
    return q_dim > m->hidden ? q_dim : m->hidden;
}

/* Experts read fp16; everything else bf16. */
static inline void cu_read_acts(const struct nib_gpu_machine *m, enum nib_gpu_op left_by, const void *acts,
                                uint32_t row, uint32_t k, float *ret)
{
    const uint16_t *from = (const uint16_t *)acts + (uint64_t)row * cu_acts_stride(m);
    for (uint32_t i = 0; i < k; i++)
        ret[i] = left_by == NIB_GPU_ROUTE ? nib_fp16_decode(from[i]) : nib_bf16_decode(from[i]);
}

/* The list of decode rows that has a place, or NULL. */
static inline const struct cu_group *cu_list_of(const struct nib_gpu_machine *m, const void *route, uint32_t place)
{
    const struct cu_route *head = (const struct cu_route *)route;
    for (uint32_t i = 0; i < head->groups && i < CU_GROUPS_MAX; i++) {
        const struct cu_group *list = &head->group[i];
        if (place - list->place < list->count &&
            (uint64_t)list->place + list->count <= (uint64_t)m->step_rows_max * m->experts_used)
            return list;
    }
    return NULL;
}

/* Where value i of a place of `gated` lies, counted in values. list: for what a kernel with _BATCH leaves or reads; else
 * NULL. */
static inline uint64_t cu_gated_at(const struct nib_gpu_machine *m, const struct cu_group *list, uint32_t place,
                                   uint32_t i)
{
    if (list == NULL)
        return (uint64_t)place * m->intermediate + i;
    return (uint64_t)list->place * m->intermediate + cu_batch_mx_word(place - list->place, list->count, i / 2) / 2 +
           i % 2;
}

static inline void cu_read_gated(const struct nib_gpu_machine *m, enum nib_gpu_op op, const void *route,
                                 const void *gated, uint32_t place, float *ret)
{
    const bool lists = op == NIB_GPU_UP_BATCH || op == NIB_GPU_DOWN_BATCH;
    const struct cu_group *list = lists ? cu_list_of(m, route, place) : NULL;
    for (uint32_t i = 0; i < m->intermediate; i++)
        ret[i] = nib_fp16_decode(((const uint16_t *)gated)[cu_gated_at(m, list, place, i)]);
}

static inline void cu_read_choice(const struct nib_gpu_machine *m, const void *route, uint32_t row, uint32_t c,
                                  struct nib_gpu_choice *ret)
{
    const uint64_t array = cu_route_array(m->step_rows_max), at = 4ull * (row * m->experts_used + c);
    const uint8_t *expert = (const uint8_t *)route + cu_route_expert_at(m->step_rows_max, m->experts) + at;
    memcpy(&ret->expert, expert, sizeof ret->expert);
    memcpy(&ret->weight, expert + array, sizeof ret->weight);
    memcpy(&ret->place, expert + 2 * array, sizeof ret->place);
}

#endif
