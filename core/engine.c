/* core/engine.c: checks a step against the rules of core/engine.h. Owns nothing, any thread; fails
 * with one sentence that names the row. */
#include "core/engine.h"

#include <string.h>

#define ROW_FLAGS (NIB_ROW_LOGITS | NIB_ROW_DECODE | NIB_ROW_FEEDBACK | NIB_ROW_FIRST)

static enum nib_err check_row(const struct nib_engine *engine, const struct nib_row *row, uint32_t at,
                              struct nib_msg *msg)
{
    const struct nib_engine_dims *dims = &engine->dims;
    if (row->slot >= dims->slots)
        return nib_fail(msg, NIB_E_ARG, "row %u: slot %u, the engine has %u", at, row->slot, dims->slots);
    if (row->pos >= dims->ctx_tokens)
        return nib_fail(msg, NIB_E_ARG, "row %u: position %u, the context is %u tokens", at, row->pos,
                        dims->ctx_tokens);
    if (row->flags & ~ROW_FLAGS)
        return nib_fail(msg, NIB_E_ARG, "row %u: flags 0x%x, allowed are 0x%x", at, row->flags, (unsigned)ROW_FLAGS);
    if ((row->flags & NIB_ROW_FEEDBACK) && !(row->flags & NIB_ROW_DECODE))
        return nib_fail(msg, NIB_E_ARG, "row %u: FEEDBACK without DECODE", at);
    if ((row->flags & NIB_ROW_FIRST) && (row->flags & NIB_ROW_DECODE))
        return nib_fail(msg, NIB_E_ARG, "row %u: FIRST and DECODE together", at);
    if (row->pos == 0 && !(row->flags & NIB_ROW_FIRST))
        return nib_fail(msg, NIB_E_ARG, "row %u: position 0 without FIRST", at);
    if (!(row->flags & NIB_ROW_FEEDBACK) && row->token >= engine->shape->vocab)
        return nib_fail(msg, NIB_E_ARG, "row %u: token %u, the vocabulary has %u", at, row->token,
                        engine->shape->vocab);
    return NIB_OK;
}

/* The table must cover the slot's last position with pages of the pool. */
static enum nib_err check_table(const struct nib_engine *engine, const struct nib_kv_table *table,
                                const struct nib_row *last, struct nib_msg *msg)
{
    uint32_t need = last->pos / NIB_KV_PAGE_TOKENS + 1;
    if (!table->pages || table->pages_count < need)
        return nib_fail(msg, NIB_E_ARG, "slot %u: position %u needs %u KV pages, its table has %u", last->slot,
                        last->pos, need, table->pages_count);
    for (uint32_t i = 0; i < need; i++)
        if (table->pages[i] >= engine->dims.kv_pages)
            return nib_fail(msg, NIB_E_ARG, "slot %u: KV page %u is %u, the pool has %u", last->slot, i,
                            table->pages[i], engine->dims.kv_pages);
    return NIB_OK;
}

/* One slot's rows, rows[first..end): a run of ascending positions with the flags in their places.
 */
static enum nib_err check_run(const struct nib_engine *engine, const struct nib_step *step, uint32_t first,
                              uint32_t end, struct nib_msg *msg)
{
    const bool draft = end - first > 1 && (step->rows[first].flags & NIB_ROW_DECODE);
    for (uint32_t i = first; i < end; i++) {
        const struct nib_row *row = &step->rows[i];
        if (i > first && row->pos != step->rows[i - 1].pos + 1)
            return nib_fail(msg, NIB_E_ARG, "row %u: position %u follows %u of the same slot", i, row->pos,
                            step->rows[i - 1].pos);
        if (i > first && (row->flags & NIB_ROW_FIRST))
            return nib_fail(msg, NIB_E_ARG, "row %u: FIRST inside slot %u's rows", i, row->slot);
        if (!draft && i + 1 < end && (row->flags & NIB_ROW_LOGITS))
            return nib_fail(msg, NIB_E_ARG, "row %u: LOGITS before slot %u's last row", i, row->slot);
        if (!draft && end - first > 1 && (row->flags & NIB_ROW_DECODE))
            return nib_fail(msg, NIB_E_ARG, "row %u: DECODE after slot %u's prompt rows", i, row->slot);
        if (draft && row->flags != (NIB_ROW_DECODE | NIB_ROW_LOGITS))
            return nib_fail(msg, NIB_E_ARG, "row %u: flags 0x%x in slot %u's draft, allowed are 0x%x", i, row->flags,
                            row->slot, (unsigned)(NIB_ROW_DECODE | NIB_ROW_LOGITS));
    }
    const struct nib_row *last = &step->rows[end - 1];
    if (draft && nib_sampling_penalises(&step->sampling[last->slot]))
        return nib_fail(msg, NIB_E_ARG, "row %u: a draft of slot %u, which has a penalty", first, last->slot);
    return check_table(engine, &step->tables[last->slot], last, msg);
}

static enum nib_err check_copies(const struct nib_engine *engine, const char *what, const struct nib_kv_copy *copies,
                                 uint32_t count, uint32_t most, struct nib_msg *msg)
{
    const struct nib_engine_dims *dims = &engine->dims;
    if (count > most)
        return nib_fail(msg, NIB_E_ARG, "step with %u %s, allowed are %u", count, what, most);
    for (uint32_t i = 0; i < count; i++) {
        const struct nib_kv_copy *c = &copies[i];
        if (c->slot >= dims->slots || c->page >= dims->kv_pages ||
            c->index > (dims->ctx_tokens - 1) / NIB_KV_PAGE_TOKENS)
            return nib_fail(msg, NIB_E_ARG,
                            "copy %u of the %s: page %u, place %u, slot %u; the engine has %u pages, %u tokens of "
                            "context and %u slots",
                            i, what, c->page, c->index, c->slot, dims->kv_pages, dims->ctx_tokens, dims->slots);
    }
    return NIB_OK;
}

/* Every slot's rows together, and each run as it must be. */
static enum nib_err check_runs(const struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    bool seen[NIB_MAX_SLOTS];
    memset(seen, 0, sizeof seen);
    for (uint32_t first = 0, end; first < step->rows_count; first = end) {
        uint16_t slot = step->rows[first].slot;
        for (end = first; end < step->rows_count && step->rows[end].slot == slot; end++) {
            enum nib_err err = check_row(engine, &step->rows[end], end, msg);
            if (err)
                return err;
        }
        if (seen[slot])
            return nib_fail(msg, NIB_E_ARG, "row %u: slot %u's rows are not consecutive", first, slot);
        seen[slot] = true;
        enum nib_err err = check_run(engine, step, first, end, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

bool nib_step_drafts(const struct nib_step *step)
{
    for (uint32_t i = 1; i < step->rows_count; i++)
        if ((step->rows[i].flags & NIB_ROW_DECODE) && step->rows[i].slot == step->rows[i - 1].slot)
            return true;
    return false;
}

enum nib_err nib_step_check(const struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    if (step->serial == 0)
        return nib_fail(msg, NIB_E_ARG, "step without a serial: they count from 1");
    uint32_t rows_max = engine->dims.step_rows_max;
    if (rows_max > NIB_MAX_STEP_ROWS)
        rows_max = NIB_MAX_STEP_ROWS;
    if (step->rows_count == 0 || step->rows_count > rows_max)
        return nib_fail(msg, NIB_E_ARG, "step of %u rows: allowed are 1 to %u", step->rows_count, rows_max);
    if (!step->tables || !step->sampling)
        return nib_fail(msg, NIB_E_ARG, "step without %s", step->tables ? "sampling" : "tables");
    enum nib_err wrong = check_copies(engine, "loads", step->loads, step->loads_count, NIB_MAX_KV_LOADS, msg);
    if (!wrong)
        wrong = check_copies(engine, "saves", step->saves, step->saves_count, NIB_MAX_KV_SAVES, msg);
    if (wrong)
        return wrong;
    uint32_t wanted = 0, decode = 0;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        wanted += (step->rows[i].flags & (NIB_ROW_LOGITS | NIB_ROW_DECODE)) != 0;
        decode += (step->rows[i].flags & NIB_ROW_DECODE) != 0;
    }
    if (wanted > nib_want_rows_max(&engine->dims))
        return nib_fail(msg, NIB_E_ARG, "%u rows decode or want logits: at most %u of a step", wanted,
                        nib_want_rows_max(&engine->dims));
    enum nib_err err = check_runs(engine, step, msg);
    if (!err && decode < step->rows_count && nib_step_drafts(step))
        return nib_fail(msg, NIB_E_ARG, "%u prompt rows beside a draft", step->rows_count - decode);
    return err;
}
