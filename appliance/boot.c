/* appliance/boot.c: the boot list: machine (image, row, plan, arenas, engine), then what the front and the stepper get
 * of the plan. Limits: those of the plan. Stepper thread, once. Each step fails with one sentence; memory that was taken
 * stays until the process ends. */
#include "appliance/boot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sysexits.h>

#include "appliance/again.h"
#include "appliance/log.h"
#include "core/arith.h"

#define NIB_RENDER_EXTRA (1u << 20) /* what a tool's types may need beyond the body's own bytes */
#define NIB_EVENTS_CELLS 4096u
#define NIB_CANARY_MS    60000u

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
        {&m->small_bodies, c->connections * NIB_SMALL_BODY_BYTES},
        {&m->bodies, c->bodies * c->body_bytes},
        {&m->json_pool, c->json_bytes},
        {&m->encode_scratch, nib_tokenizer_scratch_bytes(c->body_bytes)},
        {&m->render_scratch, c->body_bytes + NIB_RENDER_EXTRA},
        {&s->handles, jobs * sizeof(struct nib_handle)},
        {&s->sched_events, (events + NIB_MAX_SLOTS) * sizeof(struct nib_sched_event)},
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

struct sizing {
    struct nib_boot *boot;
    struct nib_stepper *stepper;
};

static uint64_t front_bytes(void *arg, const struct nib_engine_dims *dims)
{
    struct sizing *sizing = arg;
    struct nib_boot *b = sizing->boot;
    struct piece pieces[PIECES_MAX];
    size_t n = list_pieces(b, sizing->stepper, dims, pieces);
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += nib_round_up(pieces[i].bytes, 64) + 64;
    return bytes + nib_ring_bytes(command_cells(b->front->mem.jobs_count), sizeof(struct nib_cmd)) +
           nib_ring_bytes(NIB_EVENTS_CELLS, sizeof(struct nib_job_event));
}

static struct nib_arena region_arena(const struct nib_boot *b, enum nib_region_kind kind)
{
    struct nib_arena arena;
    const struct nib_plan *plan = &b->machine.plan;
    nib_arena_init(&arena, nib_plan_carve(plan, kind, -1, b->machine.base), nib_plan_region(plan, kind, -1)->bytes);
    return arena;
}

static enum nib_err init_sched(const struct nib_boot *b, struct nib_stepper *s, struct nib_msg *msg)
{
    struct nib_arena arena = region_arena(b, NIB_R_SCHED);
    struct nib_sched_config config = b->machine.plan.sched;
    config.gap_percent = (uint32_t)(100 * b->config->gap_ratio + 0.5);
    if (getrandom(&config.prefix.key, sizeof config.prefix.key, 0) != sizeof config.prefix.key)
        return nib_fail(msg, NIB_E_IO, "getrandom: %s", strerror(errno));
    return nib_sched_init(&arena, &config, &s->sched, msg);
}

static enum nib_err carve_front(struct nib_boot *b, struct nib_stepper *s, struct nib_msg *msg)
{
    struct piece pieces[PIECES_MAX];
    struct nib_arena arena = region_arena(b, NIB_R_FRONT);
    struct nib_front_mem *m = &b->front->mem;
    size_t n = list_pieces(b, s, &b->machine.plan.dims, pieces);
    for (size_t i = 0; i < n; i++) {
        void *p = nib_arena_take(&arena, pieces[i].bytes, 64);
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
    enum nib_err err = nib_ring_init(&s->commands, &arena, command_cells(m->jobs_count), sizeof(struct nib_cmd), msg);
    if (!err)
        err = nib_ring_init(&s->events, &arena, NIB_EVENTS_CELLS, sizeof(struct nib_job_event), msg);
    return err;
}

static void open_text(struct nib_boot *b)
{
    struct nib_front_mem *m = &b->front->mem;
    const struct nib_machine *machine = &b->machine;
    m->tokenizer = machine->tokenizer;
    m->stop_count = machine->generation.eos_count;
    memcpy(m->stop, machine->generation.eos, sizeof m->stop);
    m->vocab = machine->image.shape->vocab;
    while (m->text_ids < machine->image.shape->special_base && nib_tokenizer_id_generable(m->tokenizer, m->text_ids))
        m->text_ids++;
    m->struck = machine->struck;
    m->struck_count = machine->struck_count;
    m->model = b->config->model_name[0] ? b->config->model_name : machine->image.shape->name;
}

static void progress(void *arg, uint64_t done, uint64_t total)
{
    struct nib_stepper *s = arg;
    atomic_store_explicit(&s->boot_total, total, memory_order_relaxed);
    atomic_store_explicit(&s->boot_done, done, memory_order_relaxed);
}

static enum nib_err lock_memory(const struct nib_boot *b, struct nib_msg *msg)
{
    if (b->config->memory_lock && mlockall(MCL_CURRENT) != 0)
        return nib_fail(msg, NIB_E_ARG,
                        "memory.lock: the system refused to lock %llu bytes (%s); raise "
                        "LimitMEMLOCK or set it to false",
                        (unsigned long long)b->machine.plan.arena_bytes[NIB_SPACE_HOST], strerror(errno));
    return NIB_OK;
}

static enum nib_err read_key(const char *hex, uint8_t ret_key[NIB_ED25519_KEY_BYTES], struct nib_msg *msg)
{
    for (size_t i = 0; i < NIB_ED25519_KEY_BYTES; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return nib_fail(msg, NIB_E_ARG, "image.public_key must be 64 hex digits");
        ret_key[i] = (uint8_t)byte;
    }
    return NIB_OK;
}

enum nib_err nib_boot_plan(struct nib_boot *b, struct nib_stepper *s, struct nib_msg *msg)
{
    const struct nib_config *c = b->config;
    uint8_t key[NIB_ED25519_KEY_BYTES];
    struct sizing sizing = {b, s};
    struct nib_machine_options o = {.image = c->image_path,
                                    .key = c->image_key[0] ? key : NULL,
                                    .step_ms_max = (uint32_t)c->step_ms_max,
                                    .row = c->row[0] ? c->row : NULL,
                                    .device = (enum nib_device)c->device,
                                    .ask = {.ctx_tokens = (uint32_t)c->ctx_tokens,
                                            .slots = (uint32_t)c->slots,
                                            .step_rows_max = (uint32_t)c->step_rows,
                                            .threads = (uint32_t)c->threads,
                                            .memory_limit_bytes = c->memory_mib << 20,
                                            .queue_max = NIB_MAX_QUEUE, /* the front's jobs are the limit */
                                            .prefix_off = !c->prefix_reuse,
                                            .prefix_shared = c->prefix_share,
                                            .draft_tokens = (uint32_t)c->draft_tokens,
                                            .kv = (enum nib_kv_form)c->kv},
                                    .self_test = b->self_test,
                                    .struck = b->struck,
                                    .struck_count = b->struck_count,
                                    .made_up = b->made_up,
                                    .made_up_dense = b->made_up_dense,
                                    .made_up_source = b->made_up_source,
                                    .made_up_vocab = b->made_up_vocab,
                                    .made_up_vocab_bytes = b->made_up_vocab_bytes,
                                    .front_bytes = front_bytes,
                                    .front_arg = &sizing};
    enum nib_err err = o.key ? read_key(c->image_key, key, msg) : NIB_OK;
    return err ? err : nib_machine_plan(&b->machine, &o, msg);
}

static void log_plan(const struct nib_machine *m)
{
    char device[160];
    const uint64_t *bytes = m->plan.arena_bytes;
    nib_machine_device(m, device, sizeof device);
    if (m->device_note.text[0])
        nib_log(NIB_LOG_WARN, "%s the CPU runs the model: %s", m->struck_count ? "so" : "no GPU, so",
                m->device_note.text);
    if (m->test_us)
        nib_log(NIB_LOG_INFO, "row %s passed its self-test, %.1f ms", m->row->name, (double)m->test_us / 1e3);
    nib_log(NIB_LOG_INFO,
            "%s on %s, row %s: %llu MiB planned (%llu on the device, %llu pinned), context %u tokens, "
            "%u slots, %u thread%s",
            m->image.shape->name, device, m->row->name,
            (unsigned long long)((bytes[NIB_SPACE_DEVICE] + bytes[NIB_SPACE_PINNED] + bytes[NIB_SPACE_HOST]) >> 20),
            (unsigned long long)(bytes[NIB_SPACE_DEVICE] >> 20), (unsigned long long)(bytes[NIB_SPACE_PINNED] >> 20),
            m->plan.dims.ctx_tokens, m->plan.dims.slots, m->plan.threads, m->plan.threads == 1 ? "" : "s");
}

/* A GPU's kernels have as many rows for answers as there are slots; guesses take those of idle ones. */
static void log_lookup(const struct nib_machine *m)
{
    const struct nib_engine_dims *d = &m->plan.dims;
    const uint32_t spare = nib_want_rows_max(d) - 1;
    if (m->plan.sched.draft_tokens == 0)
        return;
    if (spare == 0)
        nib_log(NIB_LOG_WARN,
                "lookup.draft_tokens is %u and has no effect: row %s verifies guesses in the rows of idle "
                "slots, and there is one slot",
                m->plan.sched.draft_tokens, m->row->name);
    else
        nib_log(NIB_LOG_INFO, "lookup: up to %u guessed tokens of an answer in a step, %u of all answers",
                m->plan.sched.draft_tokens < spare ? m->plan.sched.draft_tokens : spare, spare);
}

static double seconds(uint64_t us)
{
    return (double)us * 1e-6;
}

/* Where the time went, and what the driver took beyond the plan. */
static void log_load(const struct nib_machine *m)
{
    const struct nib_gpu_times *t = &m->times;
    if (!m->gpu_open)
        return;
    nib_log(m->growth_bytes > NIB_GPU_GROWTH_BYTES ? NIB_LOG_WARN : NIB_LOG_INFO,
            "loaded: image and vocabulary %.3f s, driver %.3f, self-test %.3f, memory %.3f, kernels %.3f, weights %.3f "
            "(%.2f GB/s), graphs %.3f; the driver took %llu MiB of the device besides the plan, %llu were kept for it",
            seconds(m->image_us), seconds(m->device_us - m->test_us), seconds(m->test_us), seconds(m->memory_us),
            seconds(t->kernels_us), seconds(t->weights_us),
            (double)t->weights_bytes / 1e3 / (double)(t->weights_us ? t->weights_us : 1), seconds(t->graphs_us),
            (unsigned long long)(m->growth_bytes >> 20), (unsigned long long)(NIB_GPU_GROWTH_BYTES >> 20));
}

static void log_struck(const struct nib_machine *m)
{
    for (uint32_t i = 0; i < m->struck_count; i++)
        nib_log(NIB_LOG_ERR, "row %s is struck by its self-test: %s", m->struck[i].row, m->struck[i].why.text);
}

void nib_boot_again(struct nib_boot *b)
{
    struct nib_machine *m = &b->machine;
    const struct nib_arch_row *testing = atomic_load(&m->testing);
    uint32_t count = m->struck_count;
    if (testing && count < NIB_MAX_ARCH_ROWS) {
        m->struck[count].row = testing->name;
        (void)nib_fail(&m->struck[count++].why, NIB_E_DEVICE, "a call of the driver did not return");
    }
    if (!b->config_path || b->config->row[0] || (!testing && !m->stopped))
        return;
    nib_log(NIB_LOG_WARN, "the GPU has stopped: starting again without row %s", m->struck[count - 1].row);
    nib_again(b->config_path, b->passed_fd, m->struck, count);
}

enum nib_err nib_boot_run(void *arg, struct nib_stepper *s, struct nib_msg *msg)
{
    struct nib_boot *b = arg;
    struct nib_machine *m = &b->machine;
    s->canary_ms = NIB_CANARY_MS;
    b->self_test = true;
    enum nib_err err = nib_boot_plan(b, s, msg);
    log_struck(m);
    if (err)
        return err;
    log_plan(m);
    log_lookup(m);
    if ((err = nib_machine_map(m, msg)) != NIB_OK || (err = carve_front(b, s, msg)) != NIB_OK)
        return err;
    open_text(b);
    if ((err = nib_machine_load(m, progress, s, msg)) != NIB_OK || (err = init_sched(b, s, msg)) != NIB_OK)
        return err;
    s->engine = m->engine;
    /* a turn may wait for two steps, an idle one sleeps a second; what takes longer sits in the driver */
    s->stall_ms_max = m->row->gpu ? 2 * b->config->step_ms_max + 3000 : 0;
    log_load(m);
    return lock_memory(b, msg);
}

int nib_boot_exit_code(enum nib_err err)
{
    switch (err) {
    case NIB_E_FORMAT:
    case NIB_E_HASH:
    case NIB_E_SIGNATURE:
    case NIB_E_IO:
        return EX_NOINPUT;
    case NIB_E_ARG:
    case NIB_E_LIMIT:
        return EX_CONFIG;
    default:
        return EX_OSERR;
    }
}
