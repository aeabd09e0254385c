/* arch/cpu_head.c: owns the end of a step: logits of the rows that want them, and their tokens.
 * Limits: NIB_MAX_SLOTS wanted rows, however few slots they are of. Every worker. Cannot fail; a row whose logits hold a NaN fails
 * alone. */
#include <string.h>

#include "arch/cpu_state.h"
#include "core/sample.h"

/* The last layer's experts, the final norm; a.input row w is wanted row w. */
static void norm_wanted(struct nib_cpu *cpu)
{
    uint32_t w;
    while ((w = nib_pool_take(&cpu->pool)) < cpu->wanted) {
        uint32_t row = cpu->wanted_row[w];
        nib_cpu_combine(cpu, row);
        nib_cpu_norm_rows(cpu, cpu->final_norm, row, row + 1, w);
    }
    nib_pool_barrier(&cpu->pool);
}

static void sample(struct nib_cpu *cpu, uint32_t worker, uint32_t w)
{
    const uint32_t vocab = cpu->base.shape->vocab;
    const struct nib_row *row = &cpu->step->rows[cpu->order[cpu->wanted_row[w]]];
    const float *logits = cpu->a.logits + (uint64_t)w * vocab;
    if (cpu->step->logits)
        memcpy(cpu->step->logits + (uint64_t)cpu->wanted_out[w] * vocab, logits, vocab * sizeof(float));
    const struct nib_sample_in in = {.logits = logits,
                                     .banned = cpu->banned,
                                     .state = nib_cpu_seen(cpu, row->slot),
                                     .sampling = &cpu->step->sampling[row->slot],
                                     .vocab = vocab,
                                     .pos = row->pos};
    struct nib_sampled *out = &cpu->out.sampled[cpu->wanted_out[w]];
    nib_sample(&in, cpu->sample + worker * cpu->sample_bytes, out);
    out->slot = row->slot;
}

void nib_cpu_took(struct nib_cpu *cpu)
{
    for (uint32_t i = 0; i < cpu->out.count; i++) {
        const struct nib_sampled *out = &cpu->out.sampled[i];
        const bool draft = (i > 0 && out[-1].slot == out->slot) || (i + 1 < cpu->out.count && out[1].slot == out->slot);
        cpu->last_token[out->slot] = out->token;
        if (!out->failed && !draft)
            nib_sample_took(nib_cpu_seen(cpu, out->slot), out->token);
    }
}

void nib_cpu_head(struct nib_cpu *cpu, uint32_t worker)
{
    const struct nib_shape *s = cpu->base.shape;
    norm_wanted(cpu);
    struct nib_matmul mm = {.w = cpu->lm_head, .x = cpu->a.input, .y = cpu->a.logits};
    mm.ldy = mm.n = s->vocab;
    mm.k = s->hidden;
    mm.m = cpu->wanted;
    nib_cpu_dense(cpu, worker, &mm, cpu->decode_wanted, NULL);
    nib_pool_barrier(&cpu->pool);
    uint32_t w;
    while ((w = nib_pool_take(&cpu->pool)) < cpu->wanted)
        sample(cpu, worker, w);
}
