/* tests/gpu/late.c: an op may begin before the one before it has ended, and must read nothing of what that one writes until then. Each
 * op of a step is launched behind a kernel (late.ptx) that lets it begin at once and only later brings what the op before it left: in
 * all buffers, and in one of them while the others are there, for readers that take a word in one as a sign that all is there. What is
 * read too soon is of earlier still. What the op leaves must be what it leaves behind an op that has ended. One thread. */
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/model.h"

enum { SLOTS = 256, CTX = 192, ROWS = 128, BUFFERS_MAX = 24, ALL = BUFFERS_MAX, BLOCKS = 8, THREADS = 256 };
#define LATE_NS 100000ull

/* the kernel; the Makefile says where the text lies */
__asm__(".section .rodata\n"
        "late_ptx:\n"
        ".incbin \"" NIB_IMAGE "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char late_ptx[];

/* As late.ptx reads it. */
struct range {
    nib_cu_ptr to, from;
    uint64_t words; /* of 16 bytes */
};

/* One that a step changes. */
struct buffer {
    const char *name;
    nib_gpu_ptr at;
    uint64_t bytes;
    bool pages;             /* of keys and values */
    bool changed;           /* by the last op */
    nib_cu_ptr before, now; /* on the device: as it was before the last op, and behind it */
    /* on the host: as the last op left it; behind the op that is tested, and the same behind the late kernel */
    uint8_t *is, *want, *got;
};

struct late {
    struct rig *rig;
    struct CUmod_st *module;
    struct CUfunc_st *copy;
    struct buffer buffer[BUFFERS_MAX];
    int count;
    nib_cu_ptr ranges; /* struct range [BUFFERS_MAX] */
    bool begun;        /* there is a last op */
    int failures, launches;
};

static void *take(uint64_t bytes)
{
    void *p = malloc(bytes);
    if (!p)
        rig_die("out of host memory");
    return p;
}

static void add_buffer(struct late *l, const char *name, nib_gpu_ptr at, uint64_t bytes, bool pages)
{
    if (at == 0) /* the machine has none */
        return;
    if (l->count == BUFFERS_MAX)
        rig_die("more buffers than BUFFERS_MAX");
    struct buffer *b = &l->buffer[l->count++];
    *b = (struct buffer){.name = name, .at = at, .bytes = bytes, .pages = pages};
    b->before = rig_take(l->rig, bytes);
    b->now = rig_take(l->rig, bytes);
    b->is = take(bytes);
    b->want = take(bytes);
    b->got = take(bytes);
}

static void open_late(struct late *l, struct rig *rig)
{
    const struct nib_gpu_machine *m = &rig->m;
    const struct {
        const char *name;
        nib_gpu_ptr at;
    } inside[] = {{"tables", m->tables},
                  {"step", m->step},
                  {"sampling", m->sampling},
                  {"last", m->last},
                  {"seen", m->seen},
                  {"banned", m->banned},
                  {"repack", m->repack},
                  {"next_serial", m->next_serial},
                  {"x", m->x},
                  {"acts", m->acts},
                  {"q", m->q},
                  {"partial", m->partial},
                  {"rope", m->rope},
                  {"route", m->route},
                  {"gated", m->gated},
                  {"down", m->down},
                  {"logits", m->logits},
                  {"scratch", m->scratch},
                  {"kv_new", m->kv_new},
                  {NULL, rig->m_at}};
    *l = (struct late){.rig = rig};
    RIG_CU(rig, cuModuleLoadDataEx, &l->module, late_ptx, 0, NULL, NULL);
    RIG_CU(rig, cuModuleGetFunction, &l->copy, l->module, "late_copy");
    for (size_t i = 0; inside[i].name; i++) { /* one behind the other in the arena, in the order of rig_machine */
        const nib_gpu_ptr next = inside[i + 1].at ? inside[i + 1].at : rig->m_at;
        add_buffer(l, inside[i].name, inside[i].at, next - inside[i].at, false);
    }
    add_buffer(l, "a window layer's pages", m->layer[0].kv, (uint64_t)m->slots * m->ring_pages * m->page_stride, true);
    add_buffer(l, "a full layer's pages", m->layer[1].kv, m->kv_pages * m->page_stride, true);
    l->ranges = rig_take(rig, BUFFERS_MAX * sizeof(struct range));
}

static void close_late(struct late *l)
{
    for (int i = 0; i < l->count; i++) {
        free(l->buffer[i].is);
        free(l->buffer[i].want);
        free(l->buffer[i].got);
    }
    RIG_CU(l->rig, cuModuleUnload, l->module);
}

/* All buffers as the last op left them, but for `late`, or ALL, which are as they were before it. */
static void put_back(struct late *l, int late)
{
    for (int i = 0; i < l->count; i++) {
        const struct buffer *b = &l->buffer[i];
        RIG_CU(l->rig, cuMemcpyDtoDAsync, b->at, late == i || late == ALL ? b->before : b->now, b->bytes,
               l->rig->stream);
    }
}

static void launch_late(struct late *l, int late)
{
    struct range ranges[BUFFERS_MAX];
    uint32_t count = 0;
    uint64_t ns = LATE_NS;
    for (int i = 0; i < l->count; i++)
        if (late == i || late == ALL)
            ranges[count++] = (struct range){l->buffer[i].at, l->buffer[i].now, l->buffer[i].bytes / 16};
    rig_up(l->rig, l->ranges, ranges, count * sizeof ranges[0]);
    const struct nib_cu_launch_config config = {
        .grid = {BLOCKS, 1, 1}, .block = {THREADS, 1, 1}, .stream = l->rig->stream};
    void *arguments[] = {&l->ranges, &count, &ns};
    RIG_CU(l->rig, cuLaunchKernelEx, &config, l->copy, arguments, NULL);
}

/* Whether the op may change the buffer: pages only those from QKV to KV_FP8, so that they are not looked at behind others. */
static bool may_change(enum nib_gpu_op op, const struct buffer *b)
{
    return !b->pages || (op >= NIB_GPU_QKV && op <= NIB_GPU_KV_FP8);
}

static bool expect_same(struct late *l, enum nib_gpu_op op, uint32_t layer, struct rig_bucket bucket, int late)
{
    bool same = true;
    for (int i = 0; i < l->count; i++) {
        const struct buffer *b = &l->buffer[i];
        if (!may_change(op, b))
            continue;
        rig_down(l->rig, b->got, b->at, b->bytes);
        if (memcmp(b->got, b->want, b->bytes) == 0)
            continue;
        uint64_t at = 0;
        while (b->got[at] == b->want[at])
            at++;
        same = false;
        printf("FAILED late: %s of layer %u, %u decode and %u prompt rows, %s late: %s differs from byte %llu on\n",
               nib_gpu_op_symbol(op) + 8, layer, bucket.decode, bucket.prompt,
               late == ALL ? "all" : l->buffer[late].name, b->name, (unsigned long long)at);
    }
    return same;
}

static void try_late(struct late *l, enum nib_gpu_op op, uint32_t layer, struct rig_bucket bucket, int late)
{
    put_back(l, late);
    launch_late(l, late);
    (void)rig_launch(l->rig, op, layer, bucket);
    rig_wait(l->rig);
    l->launches++;
    l->failures += !expect_same(l, op, layer, bucket, late);
}

/* What the op leaves behind one that has ended. False when it has nothing to do. */
static bool run_plain(struct late *l, enum nib_gpu_op op, uint32_t layer, struct rig_bucket bucket)
{
    for (int i = 0; i < l->count; i++) {
        const struct buffer *b = &l->buffer[i];
        RIG_CU(l->rig, cuMemcpyDtoDAsync, b->now, b->at, b->bytes, l->rig->stream);
    }
    if (!rig_launch(l->rig, op, layer, bucket))
        return false;
    for (int i = 0; i < l->count; i++)
        if (may_change(op, &l->buffer[i]))
            rig_down(l->rig, l->buffer[i].want, l->buffer[i].at, l->buffer[i].bytes);
    return true;
}

/* What is there now is what the next op begins with. */
static void go_on(struct late *l, enum nib_gpu_op op)
{
    for (int i = 0; i < l->count; i++) {
        struct buffer *b = &l->buffer[i];
        RIG_CU(l->rig, cuMemcpyDtoDAsync, b->before, b->now, b->bytes, l->rig->stream);
        b->changed = may_change(op, b) && memcmp(b->is, b->want, b->bytes) != 0;
        if (!b->changed)
            continue;
        uint8_t *is = b->is;
        b->is = b->want;
        b->want = is;
    }
}

/* An op behind one that has ended, then behind one that is late; but the very first. */
static void run_op(struct late *l, enum nib_gpu_op op, uint32_t layer, struct rig_bucket bucket)
{
    if (!run_plain(l, op, layer, bucket))
        return;
    for (int i = 0; i < l->count; i++)
        if (l->buffer[i].changed)
            try_late(l, op, layer, bucket, i);
    if (l->begun)
        try_late(l, op, layer, bucket, ALL);
    l->begun = true;
    go_on(l, op);
}

static void run_step(struct late *l, const struct model *model, const struct model_run *runs, uint32_t count)
{
    struct rig *rig = l->rig;
    const struct rig_bucket b = model_send(rig, model, runs, count);
    const bool fused = rig_fused(rig, b);
    run_op(l, NIB_GPU_BEGIN, 0, b);
    run_op(l, fused ? NIB_GPU_TOKEN : NIB_GPU_EMBED, 0, b);
    for (uint32_t layer = 0; layer < rig->m.layers && !fused; layer++)
        for (int op = NIB_GPU_QKV; op <= NIB_GPU_COMBINE; op++)
            run_op(l, (enum nib_gpu_op)op, layer, b);
    for (int op = NIB_GPU_HEAD; op <= NIB_GPU_SAMPLE; op++)
        run_op(l, (enum nib_gpu_op)op, 0, b);
}

/* Steps of every form that a bucket's decode rows may have, of one row both ways, and a prompt alone and beside them. */
static int test_shape(struct rig *rig, const char *shape)
{
    static const uint32_t decode[] = {1, 1, 2, 9, 17, 64, 65, 130, 256, 0, 3};
    enum { STEPS = sizeof decode / sizeof decode[0] };
    struct model model;
    struct late l;
    rig_arena(rig, 6ull << 30, true);
    model_open(rig, &model, shape, SLOTS, CTX, ROWS + SLOTS, SLOTS * CTX / 64, 31);
    model_tables_even(rig, &model, CTX, SLOTS);
    open_late(&l, rig);
    /* the first fused step leaves its plan, with bytes in it that nobody reads or sets */
    const struct model_run one = {.slot = 0, .pos = 70, .count = 1, .decode = true};
    rig_step(rig, model_send(rig, &model, &one, 1));
    for (int i = 0; i < l.count; i++)
        rig_down(rig, l.buffer[i].is, l.buffer[i].at, l.buffer[i].bytes);
    for (size_t k = 0; k < STEPS; k++) {
        struct model_run runs[SLOTS + 1];
        uint32_t n = 0;
        for (; n < decode[k]; n++)
            runs[n] = (struct model_run){.slot = n, .pos = (n * 37 + 70) % (CTX - 1), .count = 1, .decode = true};
        if (k + 2 >= STEPS)
            runs[n++] = (struct model_run){.slot = 7, .pos = 0, .count = 100, .fresh = true};
        rig->apart = k == 0;
        run_step(&l, &model, runs, n);
    }
    rig->apart = false;
    printf("%s late %s, dense %s, keys and values %s: of %d launches %d differ\n", l.failures ? "FAILED" : "ok    ",
           shape, nib_dense_name(rig->dense), nib_kv_form_name(rig->kv), l.launches, l.failures);
    (void)fflush(stdout);
    close_late(&l);
    model_close(&model);
    return l.failures;
}

int rig_test_late(struct rig *rig)
{
    struct nib_gpu_geometry g;
    int failures = 0;
    rig->k->geometry(NIB_GPU_EMBED, &rig->m, 1, 0, 1, &g);
    if (!g.overlap) {
        printf("late: nothing of this row begins early\n");
        return 0;
    }
    for (int form = 0; form < 2; form++) {
        rig->dense = form ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
        rig->kv = form ? NIB_KV_FP8 : NIB_KV_BF16;
        failures += test_shape(rig, "20b-slice");
    }
    rig->dense = NIB_DENSE_BF16;
    rig->kv = NIB_KV_BF16;
    return failures;
}
