/* tests/gpu/rig.c: owns the device, its arena and the launches. One thread. Any failing call ends the program. */
#include "tests/gpu/rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arch/ref/ref.h"
#include "core/arith.h"
#include "core/kv.h"
#include "core/sample.h"

double rig_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void rig_die(const char *what)
{
    printf("FAILED: %s\n", what);
    (void)fflush(stdout);
    _Exit(3);
}

bool rig_open(struct rig *rig)
{
    *rig = (struct rig){.overlap = true};
    struct nib_msg msg;
    if (nib_cuda_open(&rig->cu, &msg) != NIB_OK) {
        printf("skipped: %s\n", msg.text);
        return false;
    }
    int device = 0, sms = 0;
    struct CUctx_st *ctx = NULL;
    char name[128] = "";
    size_t total = 0;
    RIG_CU(rig, cuDeviceGet, &device, 0);
    RIG_CU(rig, cuDeviceGetName, name, (int)sizeof name, device);
    RIG_CU(rig, cuDeviceGetAttribute, &sms, NIB_CU_DEV_SMS, device);
    RIG_CU(rig, cuDevicePrimaryCtxRetain, &ctx, device);
    RIG_CU(rig, cuCtxSetCurrent, ctx);
    RIG_CU(rig, cuStreamCreate, &rig->stream, NIB_CU_STREAM_NON_BLOCKING);
    RIG_CU(rig, cuEventCreate, &rig->event[0], NIB_CU_EVENT_DEFAULT);
    RIG_CU(rig, cuEventCreate, &rig->event[1], NIB_CU_EVENT_DEFAULT);
    RIG_CU(rig, cuMemGetInfo, &rig->free_bytes, &total);
    rig->sms = (uint32_t)sms;
    rig->pinned_bytes = 16u << 20;
    void *pinned = NULL;
    RIG_CU(rig, cuMemHostAlloc, &pinned, rig->pinned_bytes, NIB_CU_HOST_PORTABLE | NIB_CU_HOST_MAPPED);
    rig->pinned = pinned;
    printf("device %s, %d multiprocessors, %zu MiB free\n", name, sms, rig->free_bytes >> 20);
    return true;
}

/* A cubin, or PTX with the NUL that ends it. */
static void *read_image(const char *path)
{
    enum { IMAGE_MAX = 64 << 20 };
    FILE *f = fopen(path, "rb");
    char *image = calloc(1, IMAGE_MAX + 1);
    if (!f || !image || fread(image, 1, IMAGE_MAX, f) == 0 || !feof(f))
        rig_die("--image takes a file of at most 64 MiB");
    (void)fclose(f);
    return image;
}

/* The kernel of an op: of --image, where it has one, else of the row's own image. */
static struct CUfunc_st *find_function(struct rig *rig, enum nib_gpu_op op)
{
    struct CUfunc_st *f = NULL;
    const char *symbol = nib_gpu_op_symbol(op);
    if (!rig->other || rig->cu.cuModuleGetFunction(&f, rig->other, symbol) != 0)
        RIG_CU(rig, cuModuleGetFunction, &f, rig->module, symbol);
    return f;
}

bool rig_load(struct rig *rig, const struct nib_gpu_kernels *k, const char *image)
{
    struct nib_msg msg;
    if (NIB_CU(&rig->cu, &msg, cuModuleLoadDataEx, &rig->module, k->image, 0, NULL, NULL) != NIB_OK) {
        printf("row %s: %s\n", k->name, msg.text);
        return false;
    }
    rig->other = NULL;
    if (image) {
        void *other = read_image(image);
        RIG_CU(rig, cuModuleLoadDataEx, &rig->other, other, 0, NULL, NULL);
        free(other);
    }
    rig->k = k;
    for (int op = 0; op < NIB_GPU_OP_COUNT; op++) {
        int regs = 0, local = 0, fixed = 0;
        if (!k->has((enum nib_gpu_op)op))
            continue;
        struct CUfunc_st *f = find_function(rig, (enum nib_gpu_op)op);
        RIG_CU(rig, cuFuncGetAttribute, &regs, NIB_CU_FUNC_REGS, f);
        RIG_CU(rig, cuFuncGetAttribute, &local, NIB_CU_FUNC_LOCAL_BYTES, f);
        RIG_CU(rig, cuFuncGetAttribute, &fixed, NIB_CU_FUNC_SHARED_BYTES, f);
        int device = 0, optin = 0;
        RIG_CU(rig, cuDeviceGet, &device, 0);
        RIG_CU(rig, cuDeviceGetAttribute, &optin, NIB_CU_DEV_SHARED_OPTIN_BYTES, device);
        RIG_CU(rig, cuFuncSetAttribute, f, NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, optin - fixed);
        printf("%s%s %d registers%s", op % 4 ? ", " : "\n  ", nib_gpu_op_symbol((enum nib_gpu_op)op) + 8, regs,
               local ? " + local memory" : "");
        rig->function[op] = f;
    }
    printf("\n");
    return true;
}

void rig_unload(struct rig *rig)
{
    RIG_CU(rig, cuModuleUnload, rig->module);
    if (rig->other)
        RIG_CU(rig, cuModuleUnload, rig->other);
}

void rig_close(struct rig *rig)
{
    nib_cuda_close(&rig->cu);
}

void rig_wait(struct rig *rig)
{
    const double end = rig_now() + RIG_WAIT_S;
    for (;;) {
        int result = rig->cu.cuStreamQuery(rig->stream);
        if (result == NIB_CU_SUCCESS)
            return;
        struct nib_msg msg;
        if (result != NIB_CU_NOT_READY && nib_cuda_result(&rig->cu, "cuStreamQuery", result, &msg) != NIB_OK)
            rig_die(msg.text);
        if (rig_now() > end)
            rig_die("a kernel did not end in time");
    }
}

void rig_arena(struct rig *rig, uint64_t bytes, bool poison)
{
    if (rig->arena_bytes < bytes) {
        if (rig->arena)
            RIG_CU(rig, cuMemFree, rig->arena);
        RIG_CU(rig, cuMemAlloc, &rig->arena, bytes);
        rig->arena_bytes = bytes;
    }
    if (poison)
        rig_fill(rig, rig->arena, 0xff, rig->arena_bytes);
    rig->used = 0;
    rig->pinned_used = 0;
}

void rig_separate(struct rig *rig)
{
    rig->separate = true;
    rig->pinned_used = 0;
}

void rig_together(struct rig *rig)
{
    while (rig->own_count > 0)
        RIG_CU(rig, cuMemFree, rig->own[--rig->own_count]);
    rig->separate = false;
}

static nib_cu_ptr take_own(struct rig *rig, uint64_t bytes)
{
    nib_cu_ptr p = 0;
    if (rig->own_count == RIG_OWN_MAX)
        rig_die("more buffers than RIG_OWN_MAX");
    RIG_CU(rig, cuMemAlloc, &p, bytes);
    rig->own[rig->own_count++] = p;
    return p;
}

nib_cu_ptr rig_take(struct rig *rig, uint64_t bytes)
{
    if (rig->separate)
        return take_own(rig, bytes);
    nib_cu_ptr p = rig->arena + rig->used;
    rig->used += nib_round_up(bytes, 256);
    if (rig->used > rig->arena_bytes)
        rig_die("the arena is too small");
    return p;
}

void rig_up(struct rig *rig, nib_cu_ptr to, const void *from, uint64_t bytes)
{
    RIG_CU(rig, cuMemcpyHtoDAsync, to, from, bytes, rig->stream);
    rig_wait(rig);
}

void rig_down(struct rig *rig, void *to, nib_cu_ptr from, uint64_t bytes)
{
    struct nib_msg msg;
    rig_wait(rig);
    if (NIB_CU(&rig->cu, &msg, cuMemcpyDtoHAsync, to, from, bytes, rig->stream) != NIB_OK) {
        printf("%llu bytes from device address %#llx: ", (unsigned long long)bytes, (unsigned long long)from);
        rig_die(msg.text);
    }
    rig_wait(rig);
}

void rig_fill(struct rig *rig, nib_cu_ptr to, uint8_t value, uint64_t bytes)
{
    RIG_CU(rig, cuMemsetD8Async, to, value, bytes, rig->stream);
    rig_wait(rig);
}

static void *take_pinned(struct rig *rig, uint64_t bytes, nib_gpu_ptr *ret_device)
{
    uint8_t *p = rig->pinned + rig->pinned_used;
    rig->pinned_used += nib_round_up(bytes, 256);
    if (rig->pinned_used > rig->pinned_bytes)
        rig_die("the pinned arena is too small");
    memset(p, 0, bytes);
    RIG_CU(rig, cuMemHostGetDevicePointer, ret_device, p, 0);
    return p;
}

static nib_cu_ptr take_zero(struct rig *rig, uint64_t bytes)
{
    nib_cu_ptr p = rig_take(rig, bytes);
    rig_fill(rig, p, 0, bytes);
    return p;
}

static void machine_state(struct rig *rig)
{
    struct nib_gpu_machine *m = &rig->m;
    m->tables = rig_take(rig, (uint64_t)m->slots * m->ctx_pages * 4);
    /* a kernel may read more of it than the step has: at boot that is zeros, in a poisoned arena poison, which must not be used */
    m->step = rig->separate ? take_zero(rig, sizeof(struct nib_gpu_step)) : rig_take(rig, sizeof(struct nib_gpu_step));
    m->sampling = rig_take(rig, m->slots * sizeof(struct nib_sampling));
    m->last = take_zero(rig, m->slots * 4ull);
    m->seen = take_zero(rig, (uint64_t)m->slots * m->vocab * 4);
    m->banned = take_zero(rig, nib_sample_banned_words(m->vocab) * 4ull);
    m->repack = rig_take(rig, sizeof(struct nib_gpu_repack));
    m->next_serial = rig_take(rig, 8);
    const uint64_t one = 1;
    rig_up(rig, m->next_serial, &one, 8);
    rig->mailbox = take_pinned(rig, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_step), &m->mailbox);
    rig->outbox = take_pinned(rig, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_result), &m->outbox);
    rig->host_tables = take_pinned(rig, (uint64_t)m->slots * m->ctx_pages * 4, &m->host_tables);
    rig->host_sampling = take_pinned(rig, m->slots * sizeof(struct nib_sampling), &m->host_sampling);
    for (uint32_t i = 0; i < m->slots; i++)
        nib_sample_defaults(&rig->host_sampling[i]);
}

void rig_machine(struct rig *rig, const struct nib_shape *s, uint32_t layers, uint32_t slots, uint32_t ctx_tokens,
                 uint32_t rows, uint32_t kv_pages)
{
    struct nib_gpu_machine *m = &rig->m;
    *m = (struct nib_gpu_machine){.slots = slots,
                                  .ctx_pages = (uint32_t)nib_div_up(ctx_tokens, NIB_KV_PAGE_TOKENS),
                                  .ring_pages = nib_kv_ring_pages(s->window, rows),
                                  .step_rows_max = rows,
                                  .splits_max = rig->k->splits_max(ctx_tokens),
                                  .kv_pages = kv_pages,
                                  .sms = rig->sms};
    nib_gpu_machine_model(m, s);
    m->layers = layers;
    machine_state(rig);
    const uint64_t picks = (uint64_t)rows * s->experts_used, q_dim = nib_q_dim(s);
    const uint64_t wide = q_dim > s->hidden ? q_dim : s->hidden, decode = slots < rows ? slots : rows;
    m->x = rig_take(rig, (uint64_t)rows * s->hidden * 4);
    m->acts = rig_take(rig, rows * wide * 2);
    m->q = rig_take(rig, rows * q_dim * 2);
    m->partial = rig_take(rig, decode * s->heads * m->splits_max * 66 * 4);
    m->rope = rig_take(rig, rows * 64ull * 4);
    m->route = take_zero(rig, rig->k->route_bytes(rows, s->experts)); /* as at boot */
    m->gated = rig_take(rig, picks * s->intermediate * 2);
    m->down = rig_take(rig, picks * s->hidden * 4);
    m->logits = rig_take(rig, (uint64_t)slots * s->vocab * 4);
    m->scratch_bytes = rig->k->scratch_bytes(s, slots, rows);
    m->scratch = take_zero(rig, m->scratch_bytes);
    const uint64_t kv = 2ull * s->kv_heads * NIB_HEAD_DIM;
    m->page_stride = rig->kv == NIB_KV_FP8 ? nib_ref_kv8_page_bytes(s->kv_heads) : kv * NIB_KV_PAGE_TOKENS * 2;
    m->kv_new = rig->kv == NIB_KV_FP8 ? rig_take(rig, rows * kv * 2) : 0;
    rig->m_at = rig_take(rig, sizeof *m);
}

void rig_send_machine(struct rig *rig)
{
    rig_up(rig, rig->m_at, &rig->m, sizeof rig->m);
}

bool rig_launch(struct rig *rig, enum nib_gpu_op plain, uint32_t layer, struct rig_bucket bucket)
{
    const enum nib_gpu_op op = nib_gpu_op_in(plain, rig->dense);
    struct nib_gpu_geometry g;
    rig->k->geometry(op, &rig->m, bucket.decode, bucket.prompt, bucket.want, &g);
    if (g.grid[0] == 0 || rig->without >> plain & 1)
        return false;
    if (rig->blocks[op])
        g.grid[0] = rig->blocks[op];
    struct nib_cu_launch_attribute attributes[2] = {{0}};
    unsigned count = 0;
    if (g.overlap && rig->overlap)
        attributes[count++] = (struct nib_cu_launch_attribute){.id = NIB_CU_ATTR_OVERLAP, .value = {.on = 1}};
    if (g.grid[3])
        attributes[count++] =
            (struct nib_cu_launch_attribute){.id = NIB_CU_ATTR_CLUSTER, .value = {.blocks = {g.grid[3], 1, 1}}};
    const struct nib_cu_launch_config config = {.grid = {g.grid[0], g.grid[1], g.grid[2]},
                                                .block = {g.block, 1, 1},
                                                .shared_bytes = g.shared_bytes,
                                                .stream = rig->stream,
                                                .attributes = attributes,
                                                .attributes_count = count};
    void *arguments[] = {&rig->m_at, &layer};
    struct nib_msg msg;
    if (NIB_CU(&rig->cu, &msg, cuLaunchKernelEx, &config, rig->function[op], arguments, NULL) != NIB_OK) {
        printf("%s, grid %u %u %u, block %u, %u bytes: ", nib_gpu_op_symbol(op), g.grid[0], g.grid[1], g.grid[2],
               g.block, g.shared_bytes);
        rig_die(msg.text);
    }
    return true;
}

bool rig_fused(const struct rig *rig, struct rig_bucket bucket)
{
    struct nib_gpu_geometry g;
    rig->k->geometry(nib_gpu_op_in(NIB_GPU_TOKEN, rig->dense), &rig->m, bucket.decode, bucket.prompt, bucket.want, &g);
    return !rig->apart && g.grid[0] != 0;
}

void rig_step(struct rig *rig, struct rig_bucket bucket)
{
    const bool fused = rig_fused(rig, bucket);
    (void)rig_launch(rig, NIB_GPU_BEGIN, 0, bucket);
    if (fused)
        (void)rig_launch(rig, NIB_GPU_TOKEN, 0, bucket);
    else
        (void)rig_launch(rig, NIB_GPU_EMBED, 0, bucket);
    for (uint32_t layer = 0; layer < rig->m.layers && !fused; layer++)
        for (int op = NIB_GPU_QKV; op <= NIB_GPU_COMBINE; op++)
            (void)rig_launch(rig, (enum nib_gpu_op)op, layer, bucket);
    for (int op = NIB_GPU_HEAD; op <= NIB_GPU_SAMPLE; op++)
        (void)rig_launch(rig, (enum nib_gpu_op)op, 0, bucket);
}
