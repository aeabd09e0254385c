/* arch/cpu_kv.c: owns the copies of window layers between a slot's rings and pages of the pool.
 * Limits: NIB_MAX_KV_LOADS, NIB_MAX_KV_SAVES, checked by nib_step_check before. The stepper thread. Cannot fail. */
#include <string.h>

#include "arch/cpu_state.h"

/* A page of the pool holds one page of each full layer, one after another. */
static uint8_t *pool_page(const struct nib_cpu *cpu, const struct nib_kv_copy *copy)
{
    return cpu->kv_full + (uint64_t)copy->page * (cpu->base.shape->layers / 2) * cpu->page_bytes;
}

/* The page's place in the slot's ring of the first window layer; the next layer's is ring_pages further. */
static uint8_t *ring_page(const struct nib_cpu *cpu, const struct nib_kv_copy *copy)
{
    const uint64_t ring_pages = cpu->plan->ring_pages, layers = cpu->base.shape->layers / 2;
    return cpu->kv_window + (copy->slot * layers * ring_pages + copy->index % ring_pages) * cpu->page_bytes;
}

void nib_cpu_kv_load(struct nib_cpu *cpu, const struct nib_step *step)
{
    const uint64_t ring_bytes = cpu->plan->ring_pages * cpu->page_bytes;
    for (uint32_t i = 0; i < step->loads_count; i++)
        for (uint32_t l = 0; l < cpu->base.shape->layers / 2; l++)
            memcpy(ring_page(cpu, &step->loads[i]) + l * ring_bytes,
                   pool_page(cpu, &step->loads[i]) + l * cpu->page_bytes, cpu->page_bytes);
}

void nib_cpu_kv_save(struct nib_cpu *cpu, const struct nib_step *step)
{
    const uint64_t ring_bytes = cpu->plan->ring_pages * cpu->page_bytes;
    for (uint32_t i = 0; i < step->saves_count; i++)
        for (uint32_t l = 0; l < cpu->base.shape->layers / 2; l++)
            memcpy(pool_page(cpu, &step->saves[i]) + l * cpu->page_bytes,
                   ring_page(cpu, &step->saves[i]) + l * ring_bytes, cpu->page_bytes);
}
