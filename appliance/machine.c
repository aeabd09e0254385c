/* appliance/machine.c: owns the image file, the arenas and the engine of one process.
 * Limits: the plan. Boot thread. Fails with the sentence of the part that failed. */
#include "appliance/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "appliance/device.h"
#include "appliance/stepper.h"
#include "arch/cpu.h"
#include "core/arith.h"
#include "core/sample.h"

#define AHEAD_BYTES (8ull << 20) /* of a tensor, asked of the disk before they are read */

static enum nib_err map_image(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    enum nib_err err = nib_image_open(o->image, &m->file, &m->image, msg);
    if (err)
        return err;
    m->file_open = true;
    if (o->key)
        err = nib_image_check_signature(&m->image, o->key, msg);
    if (!err)
        err = nib_image_map(&m->file, &m->image, &m->image_base, msg);
    return err;
}

static const struct nib_tensor *blob(const struct nib_machine *m, enum nib_tensor_id id)
{
    return nib_image_tensor(&m->image, id, 0);
}

/* The vocabulary blob: the image's, or that which came with made-up weights. */
static enum nib_err find_vocab(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    if (o->made_up) {
        m->vocab = o->made_up_vocab;
        m->vocab_bytes = o->made_up_vocab_bytes;
        return NIB_OK;
    }
    const struct nib_tensor *t = blob(m, NIB_T_TOKENIZER);
    m->vocab = m->image_base + t->offset;
    m->vocab_bytes = t->bytes;
    return nib_image_check_tensor(t, m->vocab, msg);
}

/* The vocabulary blob and its tables. */
static enum nib_err tokenizer_bytes(struct nib_machine *m, const struct nib_machine_options *o, uint64_t *ret_bytes,
                                    struct nib_msg *msg)
{
    size_t tables;
    enum nib_err err = find_vocab(m, o, msg);
    if (err || !m->vocab)
        return err;
    err = nib_tokenizer_plan(m->vocab, m->vocab_bytes, &tables, msg);
    if (!err)
        *ret_bytes = nib_round_up(m->vocab_bytes, 64) + nib_round_up(tables, 64) + 64;
    return err;
}

static enum nib_err read_generation(struct nib_machine *m, struct nib_msg *msg)
{
    if (!m->file_open) {
        nib_generation_default(m->image.shape, &m->generation);
        return NIB_OK;
    }
    const struct nib_tensor *t = blob(m, NIB_T_GENERATION);
    const char *text = (const char *)m->image_base + t->offset;
    enum nib_err err = nib_image_check_tensor(t, text, msg);
    if (!err)
        err = nib_generation_parse(text, t->bytes, "the image's generation defaults", m->image.shape, &m->generation,
                                   NULL, msg);
    return err;
}

/* Twice when the front has needs of its own: they follow from the dimensions, which the first plan decides. */
static enum nib_err make_plan(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    struct nib_plan_request request = o->ask;
    enum nib_err err = tokenizer_bytes(m, o, &request.tokenizer_bytes, msg);
    if (err)
        return err;
    m->facts = nib_arch_facts(m->row);
    request.profile = &m->profile;
    request.row = &m->facts;
    request.shape = m->image.shape;
    request.dense = m->image.dense;
    request.front_bytes = 0;
    if (!request.threads)
        request.threads = m->row->gpu ? 1 : m->profile.sms;
    err = nib_plan_make(&request, &m->plan, msg);
    if (err || !o->front_bytes)
        return err;
    request.front_bytes = o->front_bytes(o->front_arg, &m->plan.dims);
    return nib_plan_make(&request, &m->plan, msg);
}

enum nib_err nib_machine_plan(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    m->source = o->made_up_source;
    m->step_ms_max = o->step_ms_max;
    const uint64_t begin = nib_now_us();
    enum nib_err err = o->made_up ? nib_image_layout(o->made_up, o->made_up_dense, "made up", 1, 1, &m->image, msg)
                                  : map_image(m, o, msg);
    const uint64_t image = nib_now_us();
    if (!err)
        err = nib_device_choose(m, o, msg);
    m->device_us = nib_now_us() - image;
    if (!err && o->made_up && !m->row->gpu)
        err = nib_fail(msg, NIB_E_UNSUPPORTED, "made-up weights run on a GPU only; %s", m->device_note.text);
    if (!err)
        err = read_generation(m, msg);
    if (!err)
        err = make_plan(m, o, msg);
    m->image_us = nib_now_us() - begin - m->device_us;
    return err;
}

void nib_machine_device(const struct nib_machine *m, char *ret_text, size_t bytes)
{
    const uint32_t cc = m->profile.compute_capability;
    if (m->gpu_open)
        (void)snprintf(ret_text, bytes, "%s at %s, compute capability %u.%u", m->profile.name, m->gpu.bus, cc / 10,
                       cc % 10);
    else
        (void)snprintf(ret_text, bytes, "%s", m->profile.name);
}

/* One mapping a space, on huge pages where the system has them, every page touched now and not later. */
static enum nib_err map_arena(const struct nib_machine *m, enum nib_space space, void **ret_base, struct nib_msg *msg)
{
    size_t bytes = m->plan.arena_bytes[space];
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return nib_fail(msg, NIB_E_NOMEM, "the plan needs %zu bytes of %s memory and the system refuses them: %s",
                        bytes, nib_space_name(space), strerror(errno));
    *ret_base = base;
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    (void)madvise(base, bytes, MADV_DONTDUMP);
    if (madvise(base, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINVAL)
        return nib_fail(msg, NIB_E_NOMEM, "the plan needs %zu bytes of %s memory and the system does not have them",
                        bytes, nib_space_name(space));
    return NIB_OK;
}

static enum nib_err open_tokenizer(struct nib_machine *m, struct nib_msg *msg)
{
    const struct nib_region *region = nib_plan_region(&m->plan, NIB_R_TOKENIZER, -1);
    const struct nib_shape *s = m->image.shape;
    struct nib_arena arena;
    nib_arena_init(&arena, (uint8_t *)m->base[region->space] + region->offset, region->bytes);
    uint8_t *copy = nib_arena_take(&arena, m->vocab_bytes, 64);
    NIB_MUST(copy);
    memcpy(copy, m->vocab, m->vocab_bytes);
    m->vocab = NULL;
    enum nib_err err = nib_tokenizer_open(&arena, copy, m->vocab_bytes, &m->tokenizer, msg);
    if (err)
        return err;
    if (nib_tokenizer_vocab(m->tokenizer) != s->vocab || nib_tokenizer_special_base(m->tokenizer) != s->special_base)
        return nib_fail(msg, NIB_E_FORMAT, "the vocabulary has %u ids, its shape %s has %u",
                        nib_tokenizer_vocab(m->tokenizer), s->name, s->vocab);
    return NIB_OK;
}

enum nib_err nib_machine_map(struct nib_machine *m, struct nib_msg *msg)
{
    const uint64_t begin = nib_now_us();
    enum nib_err err = map_arena(m, NIB_SPACE_HOST, &m->base[NIB_SPACE_HOST], msg);
    if (!err && m->gpu_open)
        err = nib_gpu_take(&m->gpu, &m->plan, msg);
    m->memory_us = nib_now_us() - begin;
    return err || !m->vocab ? err : open_tokenizer(m, msg);
}

typedef void progress_fn(void *arg, uint64_t done, uint64_t total);

static enum nib_err load_cpu(struct nib_machine *m, const uint32_t *banned, progress_fn *progress, void *arg,
                             struct nib_msg *msg)
{
    struct nib_cpu_open open = {.plan = &m->plan,
                                .kernels = m->row->kernels,
                                .image = &m->image,
                                .image_base = m->image_base,
                                .banned = banned,
                                .progress = progress,
                                .progress_arg = arg};
    memcpy(open.base, m->base, sizeof open.base);
    return nib_cpu_engine_open(&open, &m->engine, msg);
}

/* Each byte is announced once, some MiB before it is read, so that the disk never waits for a reader. */
static void read_ahead(const struct nib_image_file *file, const struct nib_tensor *t, uint64_t at, size_t n)
{
    const uint64_t from = at == 0 ? n : nib_min_u64(t->bytes, at + AHEAD_BYTES);
    const uint64_t to = nib_min_u64(t->bytes, at + AHEAD_BYTES + n);
    if (from < to)
        (void)posix_fadvise(file->fd, (off_t)(t->offset + from), (off_t)(to - from), POSIX_FADV_WILLNEED);
}

static enum nib_err read_file(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n,
                              struct nib_msg *msg)
{
    const struct nib_image_file *file = arg;
    read_ahead(file, t, at, n);
    return nib_image_read(file, t->offset + at, buf, n, msg);
}

static enum nib_err load_gpu(struct nib_machine *m, const uint32_t *banned, progress_fn *progress, void *arg,
                             struct nib_msg *msg)
{
    const struct nib_gpu_source file = {.read = read_file, .arg = &m->file, .hashed = true};
    const struct nib_gpu_engine_open open = {.gpu = &m->gpu,
                                             .plan = &m->plan,
                                             .host = m->base[NIB_SPACE_HOST],
                                             .kernels = m->row->gpu_kernels,
                                             .profile = &m->profile,
                                             .image = &m->image,
                                             .source = m->file_open ? file : m->source,
                                             .banned = banned,
                                             .step_ms_max = m->step_ms_max,
                                             .progress = progress,
                                             .progress_arg = arg,
                                             .times = &m->times};
    enum nib_err err = nib_gpu_engine_open(&open, &m->engine, msg);
    return err ? err : nib_gpu_growth(&m->gpu, &m->plan, &m->growth_bytes, msg);
}

enum nib_err nib_machine_load(struct nib_machine *m, void (*progress)(void *arg, uint64_t done, uint64_t total),
                              void *arg, struct nib_msg *msg)
{
    static uint32_t banned[NIB_MAX_VOCAB / 32];
    if (m->tokenizer)
        nib_tokenizer_fill_banned(m->tokenizer, banned);
    else
        nib_sample_ban_reserved(m->image.shape, banned);
    enum nib_err err = m->row->gpu ? load_gpu(m, banned, progress, arg, msg) : load_cpu(m, banned, progress, arg, msg);
    if (err || !m->file_open)
        return err;
    err = nib_image_check_unchanged(&m->file, msg);
    if (err)
        return err;
    nib_image_unmap(&m->image, m->image_base);
    m->image_base = NULL;
    nib_image_close(&m->file);
    m->file_open = false;
    return NIB_OK;
}

bool nib_machine_lost(const struct nib_machine *m)
{
    return m->gpu.lost;
}

void nib_machine_close(struct nib_machine *m)
{
    if (m->engine)
        m->engine->ops->close(m->engine);
    if (m->image_base)
        nib_image_unmap(&m->image, m->image_base);
    if (m->file_open)
        nib_image_close(&m->file);
    if (m->gpu_open)
        nib_gpu_close(&m->gpu);
    if (m->base[NIB_SPACE_HOST])
        (void)munmap(m->base[NIB_SPACE_HOST], m->plan.arena_bytes[NIB_SPACE_HOST]);
    *m = (struct nib_machine){0};
}
