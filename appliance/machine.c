/* appliance/machine.c: owns the image file, the arenas and the engine of one process.
 * Limits: the plan. Boot thread. Fails with the sentence of the part that failed. */
#include "appliance/machine.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/cpu.h"
#include "core/arith.h"

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

/* Vocabulary blob, its tables, the encoder's scratch and the generation text. */
static enum nib_err tokenizer_bytes(const struct nib_machine *m, const struct nib_machine_options *o,
                                    uint64_t *ret_bytes, struct nib_msg *msg)
{
    const struct nib_tensor *t = blob(m, NIB_T_TOKENIZER);
    size_t tables;
    enum nib_err err = nib_image_check_tensor(t, m->image_base + t->offset, msg);
    if (!err)
        err = nib_tokenizer_plan(m->image_base + t->offset, t->bytes, &tables, msg);
    if (!err)
        *ret_bytes = nib_round_up(t->bytes, 64) + nib_round_up(tables, 64) +
                     nib_round_up(nib_tokenizer_scratch_bytes(o->text_bytes_max), 64) +
                     nib_round_up(blob(m, NIB_T_GENERATION)->bytes + 1, 64) + 256;
    return err;
}

enum nib_err nib_machine_plan(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    uint32_t mask = 0;
    struct nib_plan_request request = o->ask;
    enum nib_err err = map_image(m, o, msg);
    if (!err)
        err = nib_arch_probe_cpu(&m->profile, msg);
    if (!err && o->mask)
        err = nib_arch_mask_parse(o->mask, &mask, msg);
    if (!err)
        err = nib_arch_select(&m->profile, mask, &m->row, msg);
    if (!err)
        err = tokenizer_bytes(m, o, &request.tokenizer_bytes, msg);
    if (err)
        return err;
    m->facts = nib_arch_facts(m->row);
    request.profile = &m->profile;
    request.row = &m->facts;
    request.shape = m->image.shape;
    if (!request.threads)
        request.threads = m->profile.sms;
    return nib_plan_make(&request, &m->plan, msg);
}

/* One mapping a space, on huge pages where the system has them, every page touched now and not later. */
static enum nib_err map_arena(const struct nib_machine *m, enum nib_space space, bool lock, void **ret_base,
                              struct nib_msg *msg)
{
    size_t bytes = m->plan.arena_bytes[space];
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return nib_fail(msg, NIB_E_NOMEM, "the plan needs %zu bytes of %s memory and the system refuses them: %s",
                        bytes, nib_space_name(space), strerror(errno));
    *ret_base = base;
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    (void)madvise(base, bytes, MADV_DONTDUMP);
    if (lock && mlock(base, bytes) != 0)
        return nib_fail(msg, NIB_E_NOMEM, "the %zu bytes of the plan cannot be locked (%s); raise LimitMEMLOCK", bytes,
                        strerror(errno));
    if (madvise(base, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINVAL)
        return nib_fail(msg, NIB_E_NOMEM, "the plan needs %zu bytes of %s memory and the system does not have them",
                        bytes, nib_space_name(space));
    return NIB_OK;
}

static enum nib_err open_tokenizer(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    const struct nib_region *region = nib_plan_region(&m->plan, NIB_R_TOKENIZER, -1);
    const struct nib_tensor *t = blob(m, NIB_T_TOKENIZER), *g = blob(m, NIB_T_GENERATION);
    struct nib_arena arena;
    nib_arena_init(&arena, (uint8_t *)m->base[region->space] + region->offset, region->bytes);
    uint8_t *copy = nib_arena_take(&arena, t->bytes, 64);
    m->generation = nib_arena_take(&arena, g->bytes + 1, 64);
    m->encode_scratch_bytes = nib_tokenizer_scratch_bytes(o->text_bytes_max);
    m->encode_scratch = nib_arena_take(&arena, m->encode_scratch_bytes, 64);
    NIB_MUST(copy && m->generation && m->encode_scratch);
    memcpy(copy, m->image_base + t->offset, t->bytes);
    memcpy(m->generation, m->image_base + g->offset, g->bytes);
    m->generation[g->bytes] = 0;
    enum nib_err err = nib_image_check_tensor(g, m->generation, msg);
    if (!err)
        err = nib_tokenizer_open(&arena, copy, t->bytes, &m->tokenizer, msg);
    if (err)
        return err;
    const struct nib_shape *s = m->image.shape;
    if (nib_tokenizer_vocab(m->tokenizer) != s->vocab || nib_tokenizer_special_base(m->tokenizer) != s->special_base)
        return nib_fail(msg, NIB_E_FORMAT, "the image's vocabulary has %u ids, its shape %s has %u",
                        nib_tokenizer_vocab(m->tokenizer), s->name, s->vocab);
    return NIB_OK;
}

enum nib_err nib_machine_map(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    for (int s = 0; s < NIB_SPACE_COUNT; s++) {
        if (m->plan.arena_bytes[s] == 0)
            continue;
        enum nib_err err = map_arena(m, (enum nib_space)s, o->lock, &m->base[s], msg);
        if (err)
            return err;
    }
    return open_tokenizer(m, o, msg);
}

enum nib_err nib_machine_load(struct nib_machine *m, void (*progress)(void *arg, uint64_t done, uint64_t total),
                              void *arg, struct nib_msg *msg)
{
    static uint32_t banned[NIB_MAX_VOCAB / 32];
    nib_tokenizer_fill_banned(m->tokenizer, banned);
    struct nib_cpu_open open = {.plan = &m->plan,
                                .kernels = m->row->kernels,
                                .image = &m->image,
                                .image_base = m->image_base,
                                .banned = banned,
                                .progress = progress,
                                .progress_arg = arg};
    memcpy(open.base, m->base, sizeof open.base);
    enum nib_err err = nib_cpu_engine_open(&open, &m->engine, msg);
    if (!err)
        err = nib_image_check_unchanged(&m->file, msg);
    if (err)
        return err;
    nib_image_unmap(&m->image, m->image_base);
    m->image_base = NULL;
    nib_image_close(&m->file);
    m->file_open = false;
    return NIB_OK;
}

void nib_machine_close(struct nib_machine *m)
{
    if (m->engine)
        m->engine->ops->close(m->engine);
    if (m->image_base)
        nib_image_unmap(&m->image, m->image_base);
    if (m->file_open)
        nib_image_close(&m->file);
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        if (m->base[s])
            (void)munmap(m->base[s], m->plan.arena_bytes[s]);
    *m = (struct nib_machine){0};
}
