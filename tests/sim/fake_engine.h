/* tests/sim/fake_engine.h: an engine without a model, for the simulator.
 *
 * The "model" is a hash: a position's state is a hash of the state before it and its token, and the next
 * token is a hash of the state and the slot's seed, so that an oracle can follow any sequence on its own.
 * State is kept only in fake KV pages, reached through the step's tables; every row that wants a token
 * reads all cells of its sequence. A page that was lost, shared, stale or freed too early gives a wrong
 * cell, and the process stops with the seed of the run. The same states lie in a ring a slot, as those of
 * window layers; each row looks at the ends of its window there, one that wants a token at all of it. Copies
 * of window pages carry a mark, so that one taken for a page of the sequence shows.
 *
 * Late mode runs a step when it is collected, from the tables and sampling of that moment: what
 * core/engine.h says must stay valid until then. */
#ifndef NIB_TESTS_SIM_FAKE_ENGINE_H
#define NIB_TESTS_SIM_FAKE_ENGINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/kv.h"

#define FAKE_PAGES_MAX 64
#define FAKE_SLOTS_MAX 8
#define FAKE_VOCAB     499
#define FAKE_POISON    0xdddddddddddddddduLL
#define FAKE_MARK      (1uLL << 40) /* in pos: a copy of a ring */
#define FAKE_RING_MAX  8            /* pages */

/* Stops with the number that replays the run. */
#define SIM_MUST(seed, cond)                                                                                           \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s; replay with NIB_SIM_SEED=%llu\n", __FILE__, __LINE__, #cond,                   \
                    (unsigned long long)(seed));                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct fake_cell {
    uint64_t state; /* hash of the tokens 0..pos */
    uint64_t pos;
};

struct fake_engine {
    struct nib_engine engine;
    struct nib_shape shape;
    uint64_t run; /* seed of the simulation */
    bool late;
    struct fake_cell cells[FAKE_PAGES_MAX][NIB_KV_PAGE_TOKENS];
    uint32_t window, ring_pages;
    struct fake_cell rings[FAKE_SLOTS_MAX][FAKE_RING_MAX][NIB_KV_PAGE_TOKENS];
    uint32_t last[FAKE_SLOTS_MAX]; /* sampled last in the slot */
    struct nib_step steps[NIB_MAX_STEPS_AHEAD];
    struct nib_step_out outs[NIB_MAX_STEPS_AHEAD];
    uint32_t count;
    uint64_t collected;
};

static inline uint64_t fake_mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#define FAKE_START 0x5eed0f5e9uLL /* state before position 0 */

/* The model: token after a state. Sequences with an odd seed fail now and then, those with the next bit repeat
 * themselves, so that what comes can often be guessed from what came. */
static inline uint32_t fake_next(uint64_t state, uint64_t seed, bool *ret_failed)
{
    uint64_t h = fake_mix(state, seed);
    *ret_failed = (seed & 1) && h % 23 == 0;
    if (seed & 2)
        return h % 8 != 0 ? 11 : (uint32_t)((h >> 32) % 3);
    return (uint32_t)((h >> 32) % FAKE_VOCAB);
}

static inline void fake_poison(struct fake_engine *fake, uint32_t page)
{
    for (uint32_t i = 0; i < NIB_KV_PAGE_TOKENS; i++)
        fake->cells[page][i] = (struct fake_cell){.state = FAKE_POISON, .pos = FAKE_POISON};
}

static inline struct fake_cell *fake_cell_at(struct fake_engine *fake, const struct nib_kv_table *table, uint32_t pos)
{
    SIM_MUST(fake->run, pos / NIB_KV_PAGE_TOKENS < table->pages_count);
    uint32_t page = table->pages[pos / NIB_KV_PAGE_TOKENS];
    SIM_MUST(fake->run, page < fake->engine.dims.kv_pages);
    return &fake->cells[page][pos % NIB_KV_PAGE_TOKENS];
}

static inline struct fake_cell *fake_ring_at(struct fake_engine *fake, uint32_t slot, uint32_t pos)
{
    return &fake->rings[slot][pos / NIB_KV_PAGE_TOKENS % fake->ring_pages][pos % NIB_KV_PAGE_TOKENS];
}

/* The window that ends at `pos`, at its ends or all of it. */
static inline void fake_look(struct fake_engine *fake, const struct nib_kv_table *table, uint32_t slot, uint32_t pos,
                             bool all)
{
    uint32_t first = pos + 1 > fake->window ? pos + 1 - fake->window : 0;
    for (uint32_t p = first; p <= pos; p += all || p == pos ? 1 : pos - p) {
        const struct fake_cell *ring = fake_ring_at(fake, slot, p), *cell = fake_cell_at(fake, table, p);
        SIM_MUST(fake->run, ring->pos == p && ring->state == cell->state);
    }
}

static inline void fake_load(struct fake_engine *fake, const struct nib_kv_copy *copy)
{
    for (uint32_t i = 0; i < NIB_KV_PAGE_TOKENS; i++) {
        struct fake_cell cell = fake->cells[copy->page][i];
        SIM_MUST(fake->run, cell.pos == (FAKE_MARK | (copy->index * NIB_KV_PAGE_TOKENS + i)));
        cell.pos &= ~FAKE_MARK;
        fake->rings[copy->slot][copy->index % fake->ring_pages][i] = cell;
    }
}

static inline void fake_save(struct fake_engine *fake, const struct nib_kv_copy *copy)
{
    for (uint32_t i = 0; i < NIB_KV_PAGE_TOKENS; i++) {
        struct fake_cell cell = fake->rings[copy->slot][copy->index % fake->ring_pages][i];
        SIM_MUST(fake->run, cell.pos == copy->index * NIB_KV_PAGE_TOKENS + i);
        cell.pos |= FAKE_MARK;
        fake->cells[copy->page][i] = cell;
    }
}

static inline void fake_row(struct fake_engine *fake, const struct nib_step *step, const struct nib_row *row,
                            struct nib_step_out *out)
{
    const struct nib_kv_table *table = &step->tables[row->slot];
    uint32_t token = row->flags & NIB_ROW_FEEDBACK ? fake->last[row->slot] : row->token;
    uint64_t before = FAKE_START;
    if (row->pos > 0) {
        const struct fake_cell *cell = fake_cell_at(fake, table, row->pos - 1);
        SIM_MUST(fake->run, cell->pos == row->pos - 1);
        before = cell->state;
    }
    *fake_cell_at(fake, table, row->pos) = (struct fake_cell){.state = fake_mix(before, token), .pos = row->pos};
    *fake_ring_at(fake, row->slot, row->pos) = *fake_cell_at(fake, table, row->pos);
    fake_look(fake, table, row->slot, row->pos, row->flags & NIB_ROW_LOGITS);
    if (!(row->flags & NIB_ROW_LOGITS))
        return;
    for (uint32_t pos = 0; pos <= row->pos; pos++) { /* "attention": every cell is the sequence's own */
        const struct fake_cell *cell = fake_cell_at(fake, table, pos);
        SIM_MUST(fake->run, cell->pos == pos && cell->state != FAKE_POISON);
    }
    struct nib_sampled *sampled = &out->sampled[out->count++];
    memset(sampled, 0, sizeof *sampled);
    sampled->slot = row->slot;
    sampled->token = fake_next(fake_mix(before, token), step->sampling[row->slot].seed, &sampled->failed);
    fake->last[row->slot] = sampled->token;
}

static inline void fake_run(struct fake_engine *fake, const struct nib_step *step, struct nib_step_out *out)
{
    out->serial = step->serial;
    out->count = 0;
    for (uint32_t i = 0; i < step->loads_count; i++)
        fake_load(fake, &step->loads[i]);
    for (uint32_t i = 0; i < step->rows_count; i++)
        fake_row(fake, step, &step->rows[i], out);
    for (uint32_t i = 0; i < step->saves_count; i++)
        fake_save(fake, &step->saves[i]);
}

static inline enum nib_err fake_submit(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    struct fake_engine *fake = (struct fake_engine *)engine;
    enum nib_err err = nib_step_check(engine, step, msg);
    if (err)
        return err;
    SIM_MUST(fake->run, fake->count < engine->dims.steps_ahead);
    SIM_MUST(fake->run, step->serial == fake->collected + fake->count + 1);
    fake->steps[fake->count] = *step;
    if (!fake->late)
        fake_run(fake, step, &fake->outs[fake->count]);
    fake->count++;
    return NIB_OK;
}

static inline enum nib_err fake_collect(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg)
{
    struct fake_engine *fake = (struct fake_engine *)engine;
    if (fake->count == 0)
        return nib_fail(msg, NIB_E_STATE, "no step is under way");
    if (fake->late)
        fake_run(fake, &fake->steps[0], &fake->outs[0]);
    *ret_out = fake->outs[0];
    fake->count--;
    memmove(&fake->steps[0], &fake->steps[1], fake->count * sizeof fake->steps[0]);
    memmove(&fake->outs[0], &fake->outs[1], fake->count * sizeof fake->outs[0]);
    fake->collected++;
    return NIB_OK;
}

static inline void fake_close(struct nib_engine *engine)
{
    (void)engine;
}

static inline void fake_open(struct fake_engine *fake, const struct nib_engine_dims *dims, uint32_t window, bool late,
                             uint64_t run)
{
    static const struct nib_engine_ops ops = {.submit = fake_submit, .collect = fake_collect, .close = fake_close};
    memset(fake, 0, sizeof *fake);
    fake->shape = (struct nib_shape){.name = "fake", .vocab = FAKE_VOCAB};
    fake->engine = (struct nib_engine){.ops = &ops, .row = "fake", .shape = &fake->shape, .dims = *dims};
    fake->late = late;
    fake->window = window;
    fake->ring_pages = nib_kv_ring_pages(window, dims->step_rows_max);
    SIM_MUST(run, fake->ring_pages <= FAKE_RING_MAX);
    fake->run = run;
    for (uint32_t page = 0; page < FAKE_PAGES_MAX; page++)
        fake_poison(fake, page);
}

#endif
