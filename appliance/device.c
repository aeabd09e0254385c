/* appliance/device.c: owns the choice of device and row, and the fall back to the next row when a self-test fails.
 * Limits: each row is tested once. Boot thread. Fails with the sentence of what is missing, or of the kernel that is wrong. */
#include "appliance/device.h"

#include <stdatomic.h>
#include <string.h>

#include "appliance/stepper.h"
#include "arch/selftest.h"
#include "gpu/selftest.h"

static uint32_t struck_mask(const struct nib_machine *m)
{
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    uint32_t mask = 0;
    for (uint32_t s = 0; s < m->struck_count; s++)
        for (size_t i = 0; i < count; i++)
            mask |= strcmp(rows[i].name, m->struck[s].row) == 0 ? 1u << i : 0;
    return mask;
}

/* The named row, or the best that the profile of *m satisfies. */
static enum nib_err choose_row(struct nib_machine *m, const struct nib_machine_options *o, uint32_t mask,
                               struct nib_msg *msg)
{
    if (!o->row)
        return nib_arch_select(&m->profile, mask, &m->row, msg);
    const struct nib_arch_row *row = nib_arch_find(o->row);
    if (!row)
        return nib_fail(msg, NIB_E_ARG, "the capability table has no row '%s'", o->row);
    const char *why = nib_arch_refusal(row, &m->profile, mask);
    if (why)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "the row '%s' cannot run here: %s", o->row, why);
    m->row = row;
    return NIB_OK;
}

static void strike(struct nib_machine *m, const struct nib_msg *why)
{
    NIB_MUST(m->struck_count < NIB_MAX_ARCH_ROWS);
    m->struck[m->struck_count++] = (struct nib_struck){.row = m->row->name, .why = *why};
}

/* Tests the row of *m. *ret_struck: it failed by its own fault. */
static enum nib_err test_row(struct nib_machine *m, enum nib_kv_form kv, bool *ret_struck, struct nib_msg *why)
{
    struct nib_gpu_selftest gpu;
    struct nib_cpu_selftest cpu = {0};
    const uint64_t begin = nib_now_us();
    enum nib_err err = NIB_OK;
    atomic_store(&m->testing, m->row);
    if (m->row->gpu) {
        err =
            nib_gpu_selftest(&m->gpu, m->row->gpu_kernels, &m->profile, m->image.shape, m->image.dense, kv, &gpu, why);
        *ret_struck = gpu.struck;
    } else if (m->row->kernels != &nib_kernels_ref) {
        err = nib_cpu_selftest(m->row->kernels, m->image.shape, &cpu, why);
        *ret_struck = cpu.struck;
    }
    atomic_store(&m->testing, NULL);
    m->test_us = nib_now_us() - begin;
    return err;
}

/* The best row whose kernels are right. */
static enum nib_err take_row(struct nib_machine *m, const struct nib_machine_options *o, uint32_t mask,
                             struct nib_msg *msg)
{
    for (;;) {
        struct nib_msg why;
        bool struck = false;
        enum nib_err err = choose_row(m, o, mask | struck_mask(m), &why);
        if (err && m->struck_count)
            return nib_fail(msg, err, "no row is left for %s: row %s was struck, %s", m->profile.name,
                            m->struck[m->struck_count - 1].row, m->struck[m->struck_count - 1].why.text);
        if (err)
            return nib_fail(msg, err, "%s", why.text);
        err = o->self_test ? test_row(m, o->ask.kv, &struck, &why) : NIB_OK;
        if (!err)
            return NIB_OK;
        if (struck)
            strike(m, &why);
        m->stopped = struck && m->gpu.lost;
        if (!struck || o->row || m->gpu.lost)
            return nib_fail(msg, err, "the self-test of row %s: %s", m->row->name, why.text);
    }
}

/* Opens the GPU and takes a row for it; on failure no GPU is open, unless it is lost. */
static enum nib_err choose_gpu(struct nib_machine *m, const struct nib_machine_options *o,
                               const struct nib_profile *host, uint32_t mask, struct nib_msg *msg)
{
    enum nib_err err = nib_gpu_open(&m->gpu, msg);
    if (err)
        return err;
    m->gpu_open = true;
    err = nib_gpu_probe(&m->gpu, host, &m->profile, msg);
    if (!err)
        err = take_row(m, o, mask, msg);
    if (err && !m->gpu.lost) {
        nib_gpu_close(&m->gpu);
        m->gpu_open = false;
    }
    return err;
}

/* A GPU that is there and fails is an error; only one that is not there, or that no row is for or right on, leaves it to
 * the CPU. */
enum nib_err nib_device_choose(struct nib_machine *m, const struct nib_machine_options *o, struct nib_msg *msg)
{
    NIB_MUST(o->struck_count <= NIB_MAX_ARCH_ROWS);
    for (uint32_t i = 0; i < o->struck_count; i++)
        m->struck[m->struck_count++] = o->struck[i];
    struct nib_profile host;
    uint32_t mask = 0;
    enum nib_err err = nib_arch_probe_cpu(&host, msg);
    if (!err && o->mask)
        err = nib_arch_mask_parse(o->mask, &mask, msg);
    if (err)
        return err;
    mask |= nib_arch_unbuilt_mask();
    const struct nib_arch_row *named = o->row ? nib_arch_find(o->row) : NULL;
    const bool cpu_named = named && !named->gpu;
    if (o->device == NIB_DEVICE_GPU || (named && named->gpu && o->device == NIB_DEVICE_AUTO))
        return choose_gpu(m, o, &host, mask, msg);
    if (o->device == NIB_DEVICE_AUTO && !cpu_named) {
        err = choose_gpu(m, o, &host, mask, &m->device_note);
        if (!err)
            m->device_note.text[0] = '\0';
        if (!err)
            return NIB_OK;
        if (err != NIB_E_UNSUPPORTED)
            return nib_fail(msg, err, "%s", m->device_note.text);
    }
    m->profile = host;
    return take_row(m, o, mask, msg);
}
