/* gpu/step.c: owns the way of a step into the pinned mailbox and of its result out of the pinned outbox.
 *
 * The device never waits for the host inside a step, nor the host for the device but here, with a deadline. What comes back
 * is checked before anyone sees it: a result that cannot be is a lost device, not a token. A draft's rows are decode rows
 * like any other; which of them leaves the slot's last token and counts behind is open, and nothing reads these then
 * (core/engine.h). Stepper thread. */
#include "gpu/step.h"

#include <string.h>

enum { QUERY_EVERY = 32 }; /* naps between two looks at the stream's state */

/* The device is not to be trusted from here on. */
static enum nib_err lose(struct nib_gpu_engine *e, const struct nib_msg *why, struct nib_msg *msg)
{
    e->gpu->lost = true;
    return nib_fail(msg, NIB_E_DEVICE, "%s", why->text);
}

static struct nib_gpu_result *result_of(const struct nib_gpu_engine *e, uint64_t serial)
{
    return &e->outbox[serial % NIB_GPU_MAILBOX];
}

static bool arrived(const struct nib_gpu_engine *e, uint64_t serial)
{
    return __atomic_load_n(&result_of(e, serial)->serial, __ATOMIC_ACQUIRE) == serial;
}

/* Asks the driver how the stream fares. A stream that has done all without the result will never bring it. */
static enum nib_err look(const struct nib_gpu_engine *e, uint64_t serial, struct nib_msg *why)
{
    int result = e->cuda->cuStreamQuery(e->stream);
    if (result == NIB_CU_NOT_READY || (result == NIB_CU_SUCCESS && arrived(e, serial)))
        return NIB_OK;
    if (result == NIB_CU_SUCCESS)
        return nib_fail(why, NIB_E_DEVICE, "the GPU ended a step without a result");
    return nib_cuda_result(e->cuda, "cuStreamQuery", result, why);
}

/* When a step begins that was submitted then: behind the one before it, of which it is known when it ended. */
static uint64_t began(const struct nib_gpu_engine *e, const struct nib_gpu_flight *flight)
{
    return flight->sent_us > e->ended_us ? flight->sent_us : e->ended_us;
}

/* Naps, but not when the step is due, as far as the last one like it tells. */
static enum nib_err await(struct nib_gpu_engine *e, uint64_t serial, struct nib_msg *why)
{
    const struct nib_gpu_flight *flight = &e->flight[serial % NIB_GPU_MAILBOX];
    const uint64_t begin = nib_gpu_now_us(), due = began(e, flight) + flight->bucket->took_us;
    for (uint32_t tries = 0; !arrived(e, serial);) {
        if (nib_gpu_near(nib_gpu_now_us(), due))
            continue;
        nib_gpu_pause(tries++);
        if (tries % QUERY_EVERY != 0)
            continue;
        enum nib_err err = look(e, serial, why);
        if (err)
            return err;
        if (nib_gpu_now_us() - begin > e->step_us_max)
            return nib_fail(why, NIB_E_DEVICE, "the GPU did not end a step in %llu ms",
                            (unsigned long long)(e->step_us_max / 1000));
    }
    return NIB_OK;
}

/* Tables and sampling of the sequences that begin. Pages past the table's end are never read. */
static enum nib_err send_new(struct nib_gpu_engine *e, const struct nib_step *step, uint64_t serial,
                             struct nib_msg *why)
{
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct nib_row *row = &step->rows[i];
        if (!(row->flags & NIB_ROW_FIRST))
            continue;
        const struct nib_kv_table *table = &step->tables[row->slot];
        const uint32_t pages = table->pages_count < e->machine.ctx_pages ? table->pages_count : e->machine.ctx_pages;
        enum nib_err err = e->first[row->slot] > e->collected ? await(e, e->first[row->slot], why) : NIB_OK;
        if (err)
            return err;
        memcpy(e->tables + (size_t)row->slot * e->machine.ctx_pages, table->pages, pages * sizeof(uint32_t));
        e->sampling[row->slot] = step->sampling[row->slot];
        e->first[row->slot] = serial;
    }
    return NIB_OK;
}

/* Appends the rows of one kind in the step's order; `out` counts the wanted rows of the whole step. */
static void send_kind(struct nib_gpu_step *to, struct nib_gpu_flight *flight, const struct nib_step *step,
                      uint16_t kind)
{
    uint16_t out = 0;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct nib_row *row = &step->rows[i];
        const bool wanted = row->flags & NIB_ROW_LOGITS;
        if ((row->flags & NIB_ROW_DECODE) == kind) {
            if (wanted) {
                to->want[to->want_count++] = (uint16_t)to->rows_count;
                flight->slot[flight->want_count] = row->slot;
                flight->out[flight->want_count++] = out;
            }
            to->rows[to->rows_count++] = *row;
        }
        out = (uint16_t)(out + wanted);
    }
}

static float *bounce(const struct nib_gpu_engine *e, uint64_t serial)
{
    return e->logits + serial % NIB_MAX_STEPS_AHEAD * e->logits_rows * e->machine.vocab;
}

/* Window layers of one page between a slot's rings and a page of the pool, a copy a layer: a full layer's page of that id
 * holds the window layer before it. The stream keeps the order with the steps' kernels. */
static enum nib_err copy_window(struct nib_gpu_engine *e, const struct nib_kv_copy *copy, bool load,
                                struct nib_msg *why)
{
    const struct nib_gpu_machine *m = &e->machine;
    const uint64_t ring = (uint64_t)copy->slot * m->ring_pages + copy->index % m->ring_pages;
    enum nib_err err = NIB_OK;
    for (uint32_t l = 0; l + 1 < m->layers && !err; l += 2) {
        const nib_gpu_ptr in_ring = m->layer[l].kv + ring * m->page_stride;
        const nib_gpu_ptr in_pool = m->layer[l + 1].kv + copy->page * m->page_stride;
        err = NIB_CU(e->cuda, why, cuMemcpyDtoDAsync, load ? in_ring : in_pool, load ? in_pool : in_ring,
                     m->page_stride, e->stream);
    }
    return err;
}

static enum nib_err send(struct nib_gpu_engine *e, const struct nib_step *step, struct nib_msg *why)
{
    const uint64_t serial = e->submitted + 1;
    struct nib_gpu_step *to = &e->mailbox[serial % NIB_GPU_MAILBOX];
    struct nib_gpu_flight *flight = &e->flight[serial % NIB_GPU_MAILBOX];
    enum nib_err err = send_new(e, step, serial, why);
    if (err)
        return err;
    flight->caller_serial = step->serial;
    flight->sent_us = nib_gpu_now_us();
    flight->want_count = 0;
    flight->logits = step->logits;
    to->rows_count = to->want_count = to->fault = 0;
    send_kind(to, flight, step, NIB_ROW_DECODE);
    to->decode_count = to->rows_count;
    send_kind(to, flight, step, 0);
    __atomic_store_n(&to->serial, serial, __ATOMIC_RELEASE);
    struct nib_gpu_bucket *b =
        nib_gpu_bucket_for(e, to->decode_count, to->rows_count - to->decode_count, nib_step_drafts(step));
    NIB_MUST(b != NULL);
    flight->bucket = b;
    for (uint32_t i = 0; i < step->loads_count && !err; i++)
        err = copy_window(e, &step->loads[i], true, why);
    if (!err)
        err = nib_gpu_graph_launch(e, b, why);
    for (uint32_t i = 0; i < step->saves_count && !err; i++)
        err = copy_window(e, &step->saves[i], false, why);
    if (!err && flight->logits && flight->want_count)
        err = NIB_CU(e->cuda, why, cuMemcpyDtoHAsync, bounce(e, serial), e->machine.logits,
                     (size_t)flight->want_count * e->machine.vocab * sizeof(float), e->stream);
    if (!err)
        e->submitted = serial;
    return err;
}

enum nib_err nib_gpu_submit(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    struct nib_gpu_engine *e = (struct nib_gpu_engine *)(void *)engine;
    if (e->gpu->lost)
        return nib_fail(msg, NIB_E_DEVICE, "the GPU was lost before");
    enum nib_err err = nib_step_check(engine, step, msg);
    if (err)
        return err;
    if (e->submitted - e->collected >= engine->dims.steps_ahead)
        return nib_fail(msg, NIB_E_STATE, "%llu steps are under way and none was collected",
                        (unsigned long long)(e->submitted - e->collected));
    if (step->logits && engine->dims.slots > e->logits_rows)
        return nib_fail(msg, NIB_E_ARG, "logits of %u slots were asked for, and room is for %u rows",
                        engine->dims.slots, e->logits_rows);
    if (nib_step_drafts(step) && e->plan->sched.draft_tokens == 0)
        return nib_fail(msg, NIB_E_ARG, "a step with a draft, and the plan has none");
    struct nib_msg why;
    return send(e, step, &why) ? lose(e, &why, msg) : NIB_OK;
}

static enum nib_err check(const struct nib_gpu_engine *e, const struct nib_gpu_result *r,
                          const struct nib_gpu_flight *flight, struct nib_msg *why)
{
    if (r->fault)
        return nib_fail(why, NIB_E_DEVICE, "the kernel %s refused a step",
                        r->fault < NIB_GPU_OP_COUNT ? nib_gpu_op_symbol((enum nib_gpu_op)r->fault) : "of no name");
    if (r->count != flight->want_count)
        return nib_fail(why, NIB_E_DEVICE, "the GPU gave %u results where %u were wanted", r->count,
                        flight->want_count);
    for (uint32_t i = 0; i < r->count; i++) {
        const struct nib_sampled *s = &r->sampled[i];
        if (s->slot != flight->slot[i] || s->token >= e->machine.vocab || s->top_count > NIB_MAX_TOP_LOGPROBS)
            return nib_fail(why, NIB_E_DEVICE, "the GPU gave token %u of slot %u where slot %u was wanted", s->token,
                            s->slot, flight->slot[i]);
    }
    return NIB_OK;
}

static enum nib_err receive(struct nib_gpu_engine *e, struct nib_step_out *ret_out, struct nib_msg *why)
{
    const uint64_t serial = e->collected + 1;
    const struct nib_gpu_flight *flight = &e->flight[serial % NIB_GPU_MAILBOX];
    const struct nib_gpu_result *r = result_of(e, serial);
    enum nib_err err = await(e, serial, why);
    const uint64_t now = nib_gpu_now_us();
    flight->bucket->took_us = now - began(e, flight);
    e->ended_us = now;
    if (!err && flight->logits)
        err = nib_gpu_idle(e, e->step_us_max, why);
    if (!err)
        err = check(e, r, flight, why);
    if (err)
        return err;
    ret_out->serial = flight->caller_serial;
    ret_out->count = r->count;
    const size_t vocab = e->machine.vocab;
    for (uint32_t i = 0; i < r->count; i++) {
        ret_out->sampled[flight->out[i]] = r->sampled[i];
        if (flight->logits)
            memcpy(flight->logits + flight->out[i] * vocab, bounce(e, serial) + i * vocab, vocab * sizeof(float));
    }
    e->collected = serial;
    return NIB_OK;
}

enum nib_err nib_gpu_collect(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg)
{
    struct nib_gpu_engine *e = (struct nib_gpu_engine *)(void *)engine;
    if (e->gpu->lost)
        return nib_fail(msg, NIB_E_DEVICE, "the GPU was lost before");
    if (e->collected == e->submitted)
        return nib_fail(msg, NIB_E_STATE, "no step is under way");
    struct nib_msg why;
    return receive(e, ret_out, &why) ? lose(e, &why, msg) : NIB_OK;
}
