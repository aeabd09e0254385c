/* arch/cpu_step.c: owns the step's order of rows.
 * Limits: NIB_MAX_STEP_ROWS, NIB_MAX_SLOTS, both checked by nib_step_check before. The stepper
 * thread. Cannot fail. */
#include "arch/cpu_state.h"
#include "core/sample.h"

static void append(struct nib_cpu *cpu, uint32_t step_row)
{
    const struct nib_row *rows = cpu->step->rows;
    uint32_t row = cpu->rows++;
    cpu->order[row] = step_row;
    bool follows = row > 0 && step_row > 0 && cpu->order[row - 1] == step_row - 1 &&
                   rows[step_row - 1].slot == rows[step_row].slot;
    if (follows && cpu->spans[cpu->spans_count - 1].rows < NIB_CPU_SPAN_ROWS)
        cpu->spans[cpu->spans_count - 1].rows++;
    else
        cpu->spans[cpu->spans_count++] = (struct nib_cpu_span){.row = row, .rows = 1};
}

/* Rows of one kind, in the step's order; `out` counts the wanted rows of the step. */
static void append_kind(struct nib_cpu *cpu, uint16_t kind)
{
    const struct nib_step *step = cpu->step;
    uint32_t out = 0;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        bool wanted = step->rows[i].flags & NIB_ROW_LOGITS;
        if ((step->rows[i].flags & NIB_ROW_DECODE) == kind) {
            if (wanted) {
                cpu->wanted_row[cpu->wanted] = cpu->rows;
                cpu->wanted_out[cpu->wanted++] = out;
            }
            append(cpu, i);
        }
        out += wanted;
    }
}

void nib_cpu_step_begin(struct nib_cpu *cpu, const struct nib_step *step)
{
    cpu->step = step;
    cpu->rows = cpu->wanted = cpu->spans_count = 0;
    append_kind(cpu, NIB_ROW_DECODE);
    cpu->decode_rows = cpu->rows;
    cpu->decode_wanted = cpu->wanted;
    append_kind(cpu, 0);
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct nib_row *row = &step->rows[i];
        if (row->flags & NIB_ROW_FIRST)
            nib_sample_reset(nib_cpu_seen(cpu, row->slot), cpu->base.shape->vocab);
        if (!(row->flags & NIB_ROW_DECODE))
            nib_sample_seen(nib_cpu_seen(cpu, row->slot), nib_cpu_token(cpu, row));
    }
    cpu->out.serial = step->serial;
    cpu->out.count = cpu->wanted;
}
