/* appliance/boot.c: the boot list: image, probe, row, plan, carve, load. Owns the arenas. Limits:
 * those of the plan. Stepper thread, once. Each step fails with one sentence; memory that was taken
 * stays until the process ends. */
#include "appliance/boot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "appliance/log.h"
#include "appliance/notify.h"
#include "arch/cpu.h"
#include "arch/table.h"
#include "core/arith.h"
#include "core/generation.h"
#include "core/sample.h"
#include "core/vocab.h"

#define NIB_RENDER_EXTRA (1u << 20) /* what a tool's types may need beyond the body's own bytes */
#define NIB_EVENTS_CELLS 4096u
#define NIB_CANARY_MS    60000u

static enum nib_err open_image(struct nib_boot *b, struct nib_msg *msg)
{
    enum nib_err err = nib_image_open(b->config->image_path, &b->file, &b->image, msg);
    if (err || b->config->image_key[0] == '\0')
        return err;
    uint8_t key[NIB_ED25519_KEY_BYTES];
    for (size_t i = 0; i < sizeof key; i++) {
        unsigned byte;
        if (sscanf(b->config->image_key + 2 * i, "%2x", &byte) != 1)
            return nib_fail(msg, NIB_E_ARG, "image.public_key must be 64 hex digits");
        key[i] = (uint8_t)byte;
    }
    return nib_image_check_signature(&b->image, key, msg);
}

static enum nib_err choose_row(struct nib_boot *b, const struct nib_arch_row **ret_row, struct nib_msg *msg)
{
    enum nib_err err = nib_arch_probe_cpu(&b->profile, msg);
    if (err)
        return err;
    if (b->config->row[0] == '\0')
        return nib_arch_select(&b->profile, 0, ret_row, msg);
    const struct nib_arch_row *row = nib_arch_find(b->config->row);
    if (!row)
        return nib_fail(msg, NIB_E_ARG, "engine.row: the capability table has no row \"%s\"", b->config->row);
    const char *why = nib_arch_refusal(row, &b->profile, 0);
    if (why)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "engine.row: %s cannot run here: %s", row->name, why);
    *ret_row = row;
    return NIB_OK;
}

/* One piece of the front's region. */
struct piece {
    void *to; /* address of the pointer to set */
    uint64_t bytes;
};

#define PIECES_MAX 20

static size_t list_pieces(struct nib_boot *b, struct nib_stepper *s, const struct nib_engine_dims *dims,
                          struct piece p[PIECES_MAX])
{
    struct nib_front_mem *m = &b->front->mem;
    const struct nib_config *c = b->config;
    uint64_t jobs = dims->slots + c->queue;
    uint64_t events = jobs < NIB_MAX_QUEUE ? jobs : NIB_MAX_QUEUE;
    const struct piece list[] = {
        {&m->inputs, jobs * sizeof(struct nib_job_in)},
        {&m->prompts, jobs * dims->ctx_tokens * sizeof(uint32_t)},
        {&m->jobs, jobs * sizeof(struct nib_front_job)},
        {&m->answers, jobs * c->answer_bytes},
        {&m->bodies, c->bodies * c->body_bytes},
        {&m->json_pool, c->json_bytes},
        {&m->encode_scratch, nib_tokenizer_scratch_bytes(c->body_bytes)},
        {&m->render_scratch, c->body_bytes + NIB_RENDER_EXTRA},
        {&s->handles, jobs * sizeof(struct nib_handle)},
        {&s->sched_events, (events + dims->slots) * sizeof(struct nib_sched_event)},
        {&s->step, sizeof(struct nib_step)},
        {&s->out, sizeof(struct nib_step_out)},
    };
    memcpy(p, list, sizeof list);
    m->jobs_count = (uint32_t)jobs;
    m->bodies_count = (uint32_t)c->bodies;
    m->ctx_tokens = dims->ctx_tokens;
    m->slots = dims->slots;
    m->encode_scratch_bytes = nib_tokenizer_scratch_bytes(c->body_bytes);
    m->render_scratch_bytes = c->body_bytes + NIB_RENDER_EXTRA;
    return sizeof list / sizeof list[0];
}

static uint32_t command_cells(uint32_t jobs)
{
    uint32_t cells = 4;
    while (cells < 2 * jobs + 2) /* a submit and a cancel a job, and the drain */
        cells *= 2;
    return cells;
}

static uint64_t front_bytes(struct nib_boot *b, struct nib_stepper *s, const struct nib_engine_dims *dims)
{
    struct piece pieces[PIECES_MAX];
    size_t n = list_pieces(b, s, dims, pieces);
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += nib_round_up(pieces[i].bytes, 64) + 64;
    return bytes + nib_ring_bytes(command_cells(b->front->mem.jobs_count), sizeof(struct nib_cmd)) +
           nib_ring_bytes(NIB_EVENTS_CELLS, sizeof(struct nib_job_event));
}

/* Twice: the front's needs follow from the dimensions, which the first plan decides. */
static enum nib_err make_plan(struct nib_boot *b, struct nib_stepper *s, uint64_t tokenizer_bytes, struct nib_msg *msg)
{
    const struct nib_config *c = b->config;
    struct nib_plan_request r = {.profile = &b->profile,
                                 .row = &b->facts,
                                 .shape = b->image.shape,
                                 .ctx_tokens = (uint32_t)c->ctx_tokens,
                                 .slots = (uint32_t)c->slots,
                                 .step_rows_max = (uint32_t)c->step_rows,
                                 .threads = (uint32_t)(c->threads ? c->threads : b->profile.sms),
                                 .memory_limit_bytes = c->memory_mib << 20,
                                 .queue_max = 1,
                                 .tokenizer_bytes = tokenizer_bytes};
    enum nib_err err = nib_plan_make(&r, &b->plan, msg);
    if (err)
        return err;
    uint64_t queue = b->plan.dims.slots + c->queue;
    r.queue_max = (uint32_t)(queue < NIB_MAX_QUEUE ? queue : NIB_MAX_QUEUE);
    r.front_bytes = front_bytes(b, s, &b->plan.dims);
    return nib_plan_make(&r, &b->plan, msg);
}

static enum nib_err carve(struct nib_boot *b, struct nib_msg *msg)
{
    uint64_t bytes = b->plan.arena_bytes[NIB_SPACE_HOST];
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return nib_fail(msg, NIB_E_NOMEM, "the plan needs %llu bytes and the system refused: %s",
                        (unsigned long long)bytes, strerror(errno));
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    b->base[NIB_SPACE_HOST] = base;
    struct nib_arena *const arenas[] = {&b->front_arena, &b->sched_arena, &b->tokenizer_arena};
    const enum nib_region_kind kinds[] = {NIB_R_FRONT, NIB_R_SCHED, NIB_R_TOKENIZER};
    for (size_t i = 0; i < 3; i++) {
        const struct nib_region *r = nib_plan_region(&b->plan, kinds[i], -1);
        nib_arena_init(arenas[i], nib_plan_carve(&b->plan, kinds[i], -1, b->base), r->bytes);
    }
    return NIB_OK;
}

static enum nib_err carve_front(struct nib_boot *b, struct nib_stepper *s, struct nib_msg *msg)
{
    struct piece pieces[PIECES_MAX];
    struct nib_front_mem *m = &b->front->mem;
    size_t n = list_pieces(b, s, &b->plan.dims, pieces);
    for (size_t i = 0; i < n; i++) {
        void *p = nib_arena_take(&b->front_arena, pieces[i].bytes, 64);
        if (!p)
            return nib_fail(msg, NIB_E_NOMEM, "the front's region of the plan is too small");
        memcpy(pieces[i].to, &p, sizeof p);
    }
    for (uint32_t i = 0; i < m->jobs_count; i++) {
        m->inputs[i].prompt = m->prompts + (size_t)i * m->ctx_tokens;
        m->jobs[i].used = false;
        s->handles[i] = (struct nib_handle){0, 0};
    }
    s->jobs = m->inputs;
    s->jobs_count = m->jobs_count;
    enum nib_err err =
        nib_ring_init(&s->commands, &b->front_arena, command_cells(m->jobs_count), sizeof(struct nib_cmd), msg);
    if (!err)
        err = nib_ring_init(&s->events, &b->front_arena, NIB_EVENTS_CELLS, sizeof(struct nib_job_event), msg);
    return err;
}

/* A blob tensor into `to`, checked. */
static enum nib_err read_blob(const struct nib_boot *b, enum nib_tensor_id id, void *to, struct nib_msg *msg)
{
    const struct nib_tensor *t = nib_image_tensor(&b->image, id, 0);
    enum nib_err err = nib_image_read(&b->file, t->offset, to, t->bytes, msg);
    return err ? err : nib_image_check_tensor(t, to, msg);
}

/* Bytes of the tokenizer's region: the blob, and what opening it takes. */
static enum nib_err tokenizer_bytes(const struct nib_boot *b, uint64_t *ret_bytes, struct nib_msg *msg)
{
    uint8_t head[NIB_VOCAB_HEADER_BYTES];
    const struct nib_tensor *t = nib_image_tensor(&b->image, NIB_T_TOKENIZER, 0);
    size_t bytes;
    if (t->bytes < sizeof head)
        return nib_fail(msg, NIB_E_FORMAT, "the image's tokenizer has %llu bytes; too few",
                        (unsigned long long)t->bytes);
    enum nib_err err = nib_image_read(&b->file, t->offset, head, sizeof head, msg);
    if (!err)
        err = nib_tokenizer_plan(head, t->bytes, &bytes, msg);
    if (!err)
        *ret_bytes = nib_round_up(t->bytes, 64) + bytes + 64;
    return err;
}

static enum nib_err open_text(struct nib_boot *b, struct nib_msg *msg)
{
    struct nib_front_mem *m = &b->front->mem;
    const struct nib_shape *shape = b->image.shape;
    const struct nib_tensor *t = nib_image_tensor(&b->image, NIB_T_TOKENIZER, 0);
    void *blob = nib_arena_take(&b->tokenizer_arena, t->bytes, 64);
    if (!blob)
        return nib_fail(msg, NIB_E_NOMEM, "the tokenizer's region of the plan is too small");
    enum nib_err err = read_blob(b, NIB_T_TOKENIZER, blob, msg);
    if (!err)
        err = nib_tokenizer_open(&b->tokenizer_arena, blob, t->bytes, &m->tokenizer, msg);
    if (err)
        return err;
    if (nib_tokenizer_vocab(m->tokenizer) != shape->vocab ||
        nib_tokenizer_special_base(m->tokenizer) != shape->special_base)
        return nib_fail(msg, NIB_E_FORMAT, "the image's tokenizer is not one of the shape %s", shape->name);
    char text[NIB_MAX_GENERATION_BYTES];
    struct nib_generation g;
    t = nib_image_tensor(&b->image, NIB_T_GENERATION, 0);
    if ((err = read_blob(b, NIB_T_GENERATION, text, msg)) != NIB_OK ||
        (err = nib_generation_parse(text, t->bytes, "the image's generation defaults", shape, &g, NULL, msg)) != NIB_OK)
        return err;
    m->stop_count = g.eos_count;
    memcpy(m->stop, g.eos, sizeof m->stop);
    m->vocab = shape->vocab;
    m->model = b->config->model_name[0] ? b->config->model_name : shape->name;
    return NIB_OK;
}

static void progress(void *arg, uint64_t done, uint64_t total)
{
    struct nib_stepper *s = arg;
    atomic_store_explicit(&s->boot_total, total, memory_order_relaxed);
    atomic_store_explicit(&s->boot_done, done, memory_order_relaxed);
}

static enum nib_err load(struct nib_boot *b, struct nib_stepper *s, const struct nib_arch_row *row, struct nib_msg *msg)
{
    static uint32_t banned[NIB_MAX_VOCAB / 32];
    nib_tokenizer_fill_banned(b->front->mem.tokenizer, banned);
    struct nib_cpu_open open = {.plan = &b->plan,
                                .kernels = row->kernels,
                                .image = &b->image,
                                .banned = banned,
                                .progress = progress,
                                .progress_arg = s};
    memcpy(open.base, b->base, sizeof open.base);
    enum nib_err err = nib_image_map(&b->file, &b->image, &open.image_base, msg);
    if (err)
        return err;
    err = nib_cpu_engine_open(&open, &s->engine, msg);
    if (!err)
        err = nib_image_check_unchanged(&b->file, msg);
    nib_image_unmap(&b->image, open.image_base);
    nib_image_close(&b->file);
    return err;
}

static enum nib_err lock_memory(const struct nib_boot *b, struct nib_msg *msg)
{
    if (b->config->memory_lock && mlockall(MCL_CURRENT) != 0)
        return nib_fail(msg, NIB_E_ARG,
                        "memory.lock: the system refused to lock %llu bytes (%s); raise "
                        "LimitMEMLOCK or set it to false",
                        (unsigned long long)b->plan.arena_bytes[NIB_SPACE_HOST], strerror(errno));
    return NIB_OK;
}

enum nib_err nib_boot_run(void *arg, struct nib_stepper *s, struct nib_msg *msg)
{
    struct nib_boot *b = arg;
    const struct nib_arch_row *row = NULL;
    uint64_t vocab_bytes = 0;
    enum nib_err err;
    s->canary_ms = NIB_CANARY_MS;
    if ((err = open_image(b, msg)) != NIB_OK || (err = choose_row(b, &row, msg)) != NIB_OK ||
        (err = tokenizer_bytes(b, &vocab_bytes, msg)) != NIB_OK)
        return err;
    b->facts = nib_arch_facts(row);
    if ((err = make_plan(b, s, vocab_bytes, msg)) != NIB_OK || (err = carve(b, msg)) != NIB_OK)
        return err;
    nib_log(NIB_LOG_INFO, "%s, row %s: %llu MiB planned, context %u tokens, %u slots, %u threads", b->image.shape->name,
            row->name, (unsigned long long)(b->plan.arena_bytes[NIB_SPACE_HOST] >> 20), b->plan.dims.ctx_tokens,
            b->plan.dims.slots, b->plan.threads);
    if ((err = carve_front(b, s, msg)) != NIB_OK || (err = open_text(b, msg)) != NIB_OK ||
        (err = load(b, s, row, msg)) != NIB_OK ||
        (err = nib_sched_init(&b->sched_arena, &b->plan.sched, &s->sched, msg)) != NIB_OK)
        return err;
    nib_arena_seal(&b->front_arena);
    nib_arena_seal(&b->sched_arena);
    nib_arena_seal(&b->tokenizer_arena);
    return lock_memory(b, msg);
}
