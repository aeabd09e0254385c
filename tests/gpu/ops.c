/* tests/gpu/ops.c: the checks of tests/gpu/check.h. Each op is given what the device itself had before it, so that an error is
 * the op's own. Products are compared on ranges of outputs; that all outputs were written, everywhere. One thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NIB_SM 90 /* what is used of the layout is the same in every row */
#include "arch/cuda/forms.h"
#include "arch/ref/ref.h"
#include "arch/rope.h"
#include "arch/sm90/batch_dense.h"
#include "core/arith.h"
#include "core/mx.h"
#include "tests/gpu/check.h"

/* `route` as the kernels left it. */
struct route_view {
    uint32_t groups_count, groups_prompt_count;
    const struct cu_group *groups, *groups_prompt;
    const float *logits;    /* [R][E] */
    const uint32_t *expert; /* [A] */
    const float *weight;    /* [A] */
    const uint32_t *place;  /* [A] */
    const uint32_t *row;    /* [A] */
};

static struct route_view route_view(const uint8_t *route, const struct nib_gpu_machine *m)
{
    const struct cu_route *head = (const struct cu_route *)(const void *)route;
    const uint64_t bytes = cu_route_array(m->step_rows_max);
    const uint8_t *arrays = route + cu_route_expert_at(m->step_rows_max, m->experts);
    return (struct route_view){.groups_count = head->groups,
                               .groups_prompt_count = head->groups_prompt,
                               .groups = head->group,
                               .groups_prompt = head->group_prompt,
                               .logits = (const void *)(route + cu_route_logits_at()),
                               .expert = (const void *)arrays,
                               .weight = (const void *)(arrays + bytes),
                               .place = (const void *)(arrays + 2 * bytes),
                               .row = (const void *)(arrays + 3 * bytes)};
}

/* What half the smallest subnormal of fp16 hides. */
#define FP16_FLOOR 0x1p-25
/* Sums of subnormals may be lost. */
#define FP32_FLOOR 0x1p-126

static void add(struct error *e, double out, double ref)
{
    e->count++;
    if (!isfinite(out)) {
        e->bad++;
        return;
    }
    e->diff += (out - ref) * (out - ref);
    e->norm += ref * ref;
}

/* The largest error of each kind of output since the last report. */
static struct worst {
    const char *op, *of;
    double error, most;
} worst[32];

static void note_worst(const char *op, const char *of, double error, double most)
{
    struct worst *w = worst;
    while (w->op && (strcmp(w->op, op) != 0 || strcmp(w->of, of) != 0))
        w++;
    if (w == worst + sizeof worst / sizeof worst[0] - 1)
        rig_die("more kinds of outputs than worst[] has");
    w->op = op;
    w->of = of;
    w->most = most;
    w->error = error > w->error ? error : w->error;
}

void check_print_worst(void)
{
    for (struct worst *w = worst; w->op; *w++ = (struct worst){.op = NULL})
        printf("largest error of %-8s %-9s %.1e, allowed %.0e\n", w->op, w->of, w->error, w->most);
}

static void expect_floor(struct check *c, const char *op, const char *of, const struct error *e, double most,
                         double floor)
{
    const double relative = e->norm > 0 ? sqrt(e->diff / e->norm) : e->diff > 0 ? INFINITY : 0;
    const bool good = e->bad == 0 && sqrt(e->diff) <= most * sqrt(e->norm) + floor * sqrt(e->count);
    if (!good)
        c->failures++;
    if (relative <= most && !(c->bound > 0)) /* the floor was not needed */
        note_worst(op, of, relative, most);
    if (!good || getenv("VERBOSE"))
        printf("%s %-28s layer %u %-12s %-8s error %.2e (most %.0e)%s\n", good ? "ok    " : "FAILED", c->what, c->layer,
               op, of, relative, most, e->bad ? ", not finite or wrong" : "");
}

static void expect(struct check *c, const char *op, const char *of, const struct error *e, double most)
{
    expect_floor(c, op, of, e, most, 0);
}

static void *fetch(const struct check *c, nib_gpu_ptr from, uint64_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        rig_die("out of host memory");
    rig_down(c->rig, p, from, bytes);
    return p;
}

uint64_t check_acts_wide(const struct check *c)
{
    const uint32_t q = nib_q_dim(c->model->shape), h = c->model->shape->hidden;
    return q > h ? q : h;
}

/* Rows of 16-bit floats as the ref's prepared activations. */
static float *prepare(const uint16_t *from, uint64_t stride, uint32_t rows, uint32_t k, bool half)
{
    const uint64_t bytes = nib_ref_acts_bytes(k);
    uint8_t *to = malloc(rows * bytes);
    if (!to)
        rig_die("out of host memory");
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < k; i++)
            ((float *)(void *)(to + r * bytes))[i] =
                half ? nib_fp16_decode(from[r * stride + i]) : nib_bf16_decode(from[r * stride + i]);
    return (float *)(void *)to;
}

uint32_t check_rows(const struct check *c)
{
    return c->bucket.decode + c->bucket.prompt;
}

static void launch(struct check *c, enum nib_gpu_op op)
{
    (void)rig_launch(c->rig, op, c->layer, c->bucket);
    rig_wait(c->rig);
}

/* The op for the decode rows, in one of its forms, and its twin for prompt rows. */
static void launch_both(struct check *c, enum nib_gpu_op op)
{
    const int forms = op == NIB_GPU_UP || op == NIB_GPU_DOWN ? 4 : 3; /* those with _SHORT */
    for (int i = 0; i < forms; i++)
        launch(c, (enum nib_gpu_op)((int)op + i));
}

/* Ranges of outputs to compare: up to three of 64. */
static uint32_t ranges(uint32_t n, uint32_t first[3])
{
    first[0] = 0;
    first[1] = n / 2 / 64 * 64;
    first[2] = n > 64 ? (n - 1) / 64 * 64 : 0;
    return n <= 64 ? 1 : n <= 128 ? 2 : 3;
}

static uint32_t range_end(uint32_t first, uint32_t n)
{
    return first + 64 < n ? first + 64 : n;
}

void check_embed(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const uint32_t rows = check_rows(c), h = s->hidden;
    launch(c, NIB_GPU_EMBED);
    float *x = fetch(c, c->rig->m.x, (uint64_t)rows * h * 4),
          *rope = fetch(c, c->rig->m.rope, c->rig->m.step_rows_max * 256ull);
    uint16_t *acts = fetch(c, c->rig->m.acts, rows * check_acts_wide(c) * 2);
    float *normed = malloc(h * 4ull);
    struct error of_x = {0}, of_acts = {0}, of_rope = {0};
    for (uint32_t r = 0; r < rows; r++) {
        const uint16_t *from = c->model->embed + (uint64_t)c->step->rows[r].token * h;
        float cos[NIB_ROPE_PAIRS], sin[NIB_ROPE_PAIRS], want[8192];
        for (uint32_t i = 0; i < h; i++) {
            want[i] = nib_bf16_decode(from[i]);
            add(&of_x, (double)x[r * h + i], (double)want[i]);
        }
        nib_ref_rmsnorm(normed, want, c->model->layer.attn_norm, h);
        for (uint32_t i = 0; i < h; i++)
            add(&of_acts, (double)nib_bf16_decode(acts[r * check_acts_wide(c) + i]), (double)normed[i]);
        nib_rope_table(c->rig->m.rope_freq, c->step->rows[r].pos, cos, sin);
        for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++) {
            add(&of_rope, (double)rope[r * 32 + i], (double)cos[i]);
            add(&of_rope, (double)rope[(c->rig->m.step_rows_max + r) * 32 + i], (double)sin[i]);
        }
    }
    expect(c, "embed", "x", &of_x, 0);
    expect(c, "embed", "acts", &of_acts, 3e-3);
    expect(c, "embed", "rope", &of_rope, 2e-7);
    free(x);
    free(rope);
    free(acts);
    free(normed);
}

/* Page of a position as the kernels find it. */
static uint64_t page_of(const struct check *c, uint32_t slot, uint32_t pos)
{
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t page = pos / NIB_KV_PAGE_TOKENS;
    return nib_layer_windowed(c->layer) ? slot * m->ring_pages + page % m->ring_pages
                                        : c->rig->host_tables[slot * m->ctx_pages + page];
}

static uint64_t page_elements(const struct check *c)
{
    return 2ull * c->rig->m.kv_heads * NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM;
}

static uint64_t layer_pages(const struct check *c)
{
    const struct nib_gpu_machine *m = &c->rig->m;
    return nib_layer_windowed(c->layer) ? (uint64_t)m->slots * m->ring_pages : m->kv_pages;
}

/* The layer's pages, in bf16: [K, V][kv_heads][64][64]; those in FP8 decoded, which bf16 can hold. */
static uint16_t *fetch_pages(const struct check *c)
{
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint64_t pages = layer_pages(c), count = page_elements(c);
    uint8_t *from = fetch(c, m->layer[c->layer].kv, pages * m->page_stride);
    if (!m->kv_new)
        return (uint16_t *)(void *)from;
    uint16_t *to = malloc(pages * count * 2);
    if (!to)
        rig_die("out of host memory");
    for (uint64_t p = 0; p < pages; p++)
        for (uint64_t b = 0; b < count / NIB_MX_BLOCK; b++) {
            const uint8_t *page = from + p * m->page_stride;
            nib_mxfp8_decode_bf16(page[count + b], page + b * NIB_MX_BLOCK, to + p * count + b * NIB_MX_BLOCK);
        }
    free(from);
    return to;
}

/* FP8 pages hold what QKV left, each block as nib_kv8_encode has it. */
static void check_kv8(struct check *c)
{
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), parts = 2 * m->kv_heads;
    uint8_t *pages = fetch(c, m->layer[c->layer].kv, layer_pages(c) * m->page_stride);
    uint16_t *from = fetch(c, m->kv_new, (uint64_t)rows * parts * NIB_HEAD_DIM * 2);
    struct error e = {.norm = 1};
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t b = 0; b < 2 * parts; b++) { /* half heads */
            const struct nib_row *row = &c->step->rows[r];
            const uint8_t *page = pages + page_of(c, row->slot, row->pos) * m->page_stride;
            const uint64_t at = ((uint64_t)(b / 2) * NIB_KV_PAGE_TOKENS + row->pos % NIB_KV_PAGE_TOKENS) * 2 + b % 2;
            float x[NIB_MX_BLOCK];
            uint8_t scale, codes[NIB_MX_BLOCK];
            for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
                x[i] = nib_bf16_decode(from[((uint64_t)r * parts * 2 + b) * NIB_MX_BLOCK + i]);
            nib_kv8_encode(x, &scale, codes);
            e.bad += scale != page[page_elements(c) + at];
            e.bad += memcmp(codes, page + at * NIB_MX_BLOCK, sizeof codes) != 0;
        }
    expect(c, "kv_fp8", "codes", &e, 0);
    free(pages);
    free(from);
}

void check_qkv(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), n = nib_qkv_dim(s), q_dim = nib_q_dim(s), kv_dim = nib_kv_dim(s);
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    rig_fill(c->rig, m->q, 0xff, (uint64_t)rows * q_dim * 2);
    launch_both(c, NIB_GPU_QKV);
    launch(c, NIB_GPU_KV_FP8);
    uint16_t *q = fetch(c, m->q, (uint64_t)rows * q_dim * 2);
    uint16_t *kv = fetch_pages(c);
    float *x = prepare(acts, check_acts_wide(c), rows, s->hidden, false), *y = malloc((uint64_t)rows * n * 4);
    float *rope = fetch(c, m->rope, m->step_rows_max * 256ull);
    struct error e[2] = {{.bad = 0}, {.bad = 0}}, of_kv = {0};
    uint32_t first[3], heads[3] = {0, s->heads + s->kv_heads - 1, s->heads + 2 * s->kv_heads - 1};
    (void)ranges(n, first);
    for (int i = 0; i < 3; i++) {
        const struct nib_matmul mm = {.w = c->model->layer.qkv,
                                      .x = x,
                                      .bias = c->model->layer.qkv_bias,
                                      .y = y,
                                      .ldy = n,
                                      .m = rows,
                                      .n = n,
                                      .k = s->hidden,
                                      .n0 = heads[i] * 64,
                                      .n1 = heads[i] * 64 + 64};
        nib_ref_dense_gemv(&mm);
        for (uint32_t r = 0; r < rows; r++) {
            float *v = y + (uint64_t)r * n + heads[i] * 64;
            const struct nib_row *row = &c->step->rows[r];
            if (i < 2)
                nib_ref_rope(v, 1, rope + r * 32, rope + (m->step_rows_max + r) * 32);
            const uint16_t *out = q + (uint64_t)r * q_dim + heads[i] * 64;
            if (i > 0)
                out = kv + page_of(c, row->slot, row->pos) * page_elements(c) +
                      ((uint64_t)(i - 1) * kv_dim + (s->kv_heads - 1) * 64) * NIB_KV_PAGE_TOKENS +
                      row->pos % NIB_KV_PAGE_TOKENS * 64;
            for (uint32_t d = 0; d < 64; d++)
                add(i == 0 ? &e[r >= c->bucket.decode] : &of_kv, (double)nib_bf16_decode(out[d]), (double)v[d]);
        }
    }
    for (uint64_t i = 0; i < (uint64_t)rows * q_dim; i++)
        of_kv.bad += !isfinite(nib_bf16_decode(q[i])) ? 1 : 0;
    expect(c, "qkv", "decode", &e[0], 3e-3);
    expect(c, "qkv", "prompt", &e[1], 3e-3);
    expect(c, "qkv", "k, v", &of_kv, m->kv_new ? 4e-2 : 3e-3);
    if (m->kv_new)
        check_kv8(c);
    free(acts);
    free(q);
    free(kv);
    free(x);
    free(y);
    free(rope);
}

/* One row of attention by the ref, over fp32 copies of the pages it sees. */
static void ref_attention(const struct check *c, const uint16_t *kv, const uint16_t *q, uint32_t r, float *out)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_row *row = &c->step->rows[r];
    const uint64_t page_bytes = nib_ref_kv_page_bytes(s->kv_heads);
    const uint32_t window = nib_layer_windowed(c->layer) ? s->window : 0, end = row->pos + 1;
    const uint32_t first = (window && end > window ? end - window : 0) / 64, count = (end + 63) / 64 - first;
    float *pages = malloc(count * page_bytes), *qf = malloc(nib_q_dim(s) * 4ull);
    uint32_t *ids = malloc((first + count) * 4ull);
    void *scratch = malloc(nib_ref_attn_scratch_bytes(end));
    for (uint32_t p = 0; p < first; p++)
        ids[p] = 0; /* not seen */
    for (uint32_t p = 0; p < count; p++) {
        const uint16_t *from = kv + page_of(c, row->slot, (first + p) * 64) * page_elements(c);
        ids[first + p] = p;
        for (uint64_t i = 0; i < page_bytes / 4; i++)
            pages[p * page_bytes / 4 + i] = nib_bf16_decode(from[i]);
    }
    for (uint32_t i = 0; i < nib_q_dim(s); i++)
        qf[i] = nib_bf16_decode(q[i]);
    const struct nib_attn a = {.q = qf,
                               .out = out,
                               .kv = (const uint8_t *)pages,
                               .pages = ids,
                               .sinks = c->model->layer.sinks,
                               .scratch = scratch,
                               .page_stride = page_bytes,
                               .ldq = nib_q_dim(s),
                               .ldo = nib_q_dim(s),
                               .pages_count = first + count,
                               .rows = 1,
                               .pos0 = row->pos,
                               .window = window,
                               .kv_heads = s->kv_heads,
                               .h0 = 0,
                               .h1 = s->kv_heads};
    nib_ref_attn(&a);
    free(pages);
    free(qf);
    free(ids);
    free(scratch);
}

void check_attn(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), q_dim = nib_q_dim(s);
    uint16_t *q = fetch(c, m->q, (uint64_t)rows * q_dim * 2);
    uint16_t *kv = fetch_pages(c);
    rig_fill(c->rig, m->acts, 0xff, rows * check_acts_wide(c) * 2);
    rig_fill(c->rig, m->partial, 0xff, (uint64_t)c->bucket.decode * s->heads * m->splits_max * 66 * 4);
    launch_both(c, NIB_GPU_ATTN);
    launch_both(c, NIB_GPU_ATTN_FP8);
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    float *want = malloc(q_dim * 4ull);
    struct error e[2] = {{.bad = 0}, {.bad = 0}};
    const uint32_t skip = rows > 80 ? rows / 40 : 1;
    for (uint32_t r = 0; r < rows; r++) {
        struct error *to = &e[r >= c->bucket.decode];
        const bool compared = r % skip == 0 || r + 1 == rows || r < c->bucket.decode;
        if (compared)
            ref_attention(c, kv, q + (uint64_t)r * q_dim, r, want);
        for (uint32_t i = 0; i < q_dim; i++) {
            const double out = (double)nib_bf16_decode(acts[r * check_acts_wide(c) + i]);
            if (compared)
                add(to, out, (double)want[i]);
            else
                to->bad += !isfinite(out) ? 1 : 0;
        }
    }
    expect(c, "attn", "decode", &e[0], 5e-3);
    expect(c, "attn", "prompt", &e[1], 5e-3);
    free(q);
    free(kv);
    free(acts);
    free(want);
}

void check_out(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), h = s->hidden, k = nib_q_dim(s);
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    float *before = fetch(c, m->x, (uint64_t)rows * h * 4);
    launch_both(c, NIB_GPU_OUT);
    float *after = fetch(c, m->x, (uint64_t)rows * h * 4), *x = prepare(acts, check_acts_wide(c), rows, k, false);
    float *y = malloc((uint64_t)rows * h * 4);
    struct error e[2] = {{.bad = 0}, {.bad = 0}};
    uint32_t first[3];
    const uint32_t count = ranges(h, first);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t end = range_end(first[i], h);
        const struct nib_matmul mm = {.w = c->model->layer.out,
                                      .x = x,
                                      .bias = c->model->layer.out_bias,
                                      .y = y,
                                      .ldy = h,
                                      .m = rows,
                                      .n = h,
                                      .k = k,
                                      .n0 = first[i],
                                      .n1 = end};
        nib_ref_dense_gemv(&mm);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t j = first[i]; j < end; j++)
                add(&e[r >= c->bucket.decode], (double)after[r * h + j],
                    (double)before[r * h + j] + (double)y[(uint64_t)r * h + j]);
    }
    for (uint64_t i = 0; i < (uint64_t)rows * h; i++)
        e[0].bad += !isfinite(after[i]) ? 1 : 0;
    expect(c, "out", "decode", &e[0], 2e-5);
    expect(c, "out", "prompt", &e[1], 2e-5);
    free(acts);
    free(before);
    free(after);
    free(x);
    free(y);
}

/* Choices, weights and grouping, from the device's own logits. */
static void check_grouping(struct check *c, const float *logits)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), used = s->experts_used, picks = rows * used;
    uint8_t *route = fetch(c, m->route, c->rig->k->route_bytes(m->step_rows_max, s->experts));
    const struct route_view v = route_view(route, m);
    struct error weights = {0};
    uint32_t wrong = 0, next = 0;
    uint8_t *seen = calloc(picks, 1);
    for (uint32_t r = 0; r < rows; r++) {
        bool taken[NIB_MAX_EXPERTS] = {false};
        double w[NIB_MAX_EXPERTS_USED], sum = 0;
        for (uint32_t k = 0; k < used; k++) {
            uint32_t best = s->experts;
            for (uint32_t e = 0; e < s->experts; e++)
                if (!taken[e] && (best == s->experts || logits[r * s->experts + e] > logits[r * s->experts + best]))
                    best = e;
            taken[best] = true;
            wrong += v.expert[r * used + k] != best;
            w[k] = exp((double)logits[r * s->experts + best] - (double)logits[r * s->experts + v.expert[r * used]]);
            sum += w[k];
        }
        for (uint32_t k = 0; k < used; k++)
            add(&weights, (double)v.weight[r * used + k], w[k] / sum);
    }
    /* the lists: experts ascending, decode before prompt within an expert, rows ascending, every place once */
    uint32_t i = 0, j = 0;
    for (uint32_t e = 0; e < s->experts && wrong == 0; e++)
        for (int prompt = 0; prompt < 2; prompt++) {
            uint32_t *list = prompt ? &j : &i;
            const uint32_t lists = prompt ? v.groups_prompt_count : v.groups_count;
            const struct cu_group *groups = prompt ? v.groups_prompt : v.groups;
            uint32_t last_row = 0;
            for (; *list < lists && groups[*list].expert == e; ++*list) {
                wrong += groups[*list].place != next || groups[*list].count == 0;
                for (uint32_t p = 0; p < groups[*list].count && next < picks; p++, next++) {
                    const uint32_t row = v.row[next];
                    uint32_t k = 0;
                    while (k < used && row < rows && v.expert[row * used + k] != e)
                        k++;
                    wrong += row >= rows || k == used || row < last_row || (row >= c->bucket.decode) != prompt ||
                             v.place[row * used + k] != next;
                    last_row = row;
                }
            }
        }
    wrong += next != picks;
    weights.bad += wrong;
    expect(c, "route", "grouping", &weights, 1e-6);
    free(seen);
    free(route);
}

void check_route(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), h = s->hidden;
    float *x = fetch(c, m->x, (uint64_t)rows * h * 4);
    rig_fill(c->rig, m->acts, 0xff, rows * check_acts_wide(c) * 2);
    launch(c, NIB_GPU_ROUTE);
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    uint8_t *route = fetch(c, m->route, c->rig->k->route_bytes(m->step_rows_max, s->experts));
    const struct route_view v = route_view(route, m);
    float *normed = malloc((uint64_t)rows * nib_ref_acts_bytes(h)), *y = malloc((uint64_t)rows * s->experts * 4);
    double *scale = malloc(rows * sizeof *scale);
    struct error of_acts = {0}, of_logits = {0};
    for (uint32_t r = 0; r < rows; r++) {
        float *to = (float *)(void *)((uint8_t *)normed + r * nib_ref_acts_bytes(h));
        double squares = 0;
        nib_ref_rmsnorm(to, x + (uint64_t)r * h, c->model->layer.mlp_norm, h);
        for (uint32_t i = 0; i < h; i++) {
            const float value = x[(uint64_t)r * h + i];
            add(&of_acts, (double)nib_fp16_decode(acts[r * check_acts_wide(c) + i]), (double)to[i]);
            squares += (double)value * (double)value;
            to[i] = nib_bf16_decode(nib_bf16_encode(value * nib_bf16_decode(c->model->layer.mlp_norm[i])));
        }
        scale[r] = 1 / sqrt(squares / h + (double)NIB_RMS_EPS);
    }
    const struct nib_matmul mm = {.w = c->model->layer.router,
                                  .x = normed,
                                  .y = y,
                                  .ldy = s->experts,
                                  .m = rows,
                                  .n = s->experts,
                                  .k = h,
                                  .n0 = 0,
                                  .n1 = s->experts};
    nib_ref_dense_gemv(&mm);
    for (uint64_t i = 0; i < (uint64_t)rows * s->experts; i++)
        add(&of_logits, (double)v.logits[i],
            (double)y[i] * scale[i / s->experts] +
                (double)nib_bf16_decode(c->model->layer.router_bias[i % s->experts]));
    expect_floor(c, "route", "acts", &of_acts, 4e-4, FP16_FLOOR);
    expect(c, "route", "logits", &of_logits, 3e-4);
    check_grouping(c, v.logits);
    free(x);
    free(acts);
    free(route);
    free(normed);
    free(y);
    free(scale);
}

/* What the expert products of a step read and wrote. */
struct products {
    bool up;
    uint32_t n, out_n;
    float *x;     /* [rows, or places] prepared */
    void *out;    /* [places][out_n] */
    float *y, *a; /* [n] */
};

static double product(const struct products *t, uint64_t i)
{
    return t->up ? (double)nib_fp16_decode(((uint16_t *)t->out)[i]) : (double)((float *)t->out)[i];
}

/* One place of one expert, on ranges; in->rows is its row of activations. */
static void add_place(const struct check *c, const struct products *t, struct nib_matmul mm, uint64_t place,
                      struct error *e)
{
    uint32_t first[3];
    const uint32_t count = ranges(t->n, first);
    for (uint32_t i = 0; i < count; i++) {
        mm.n0 = first[i];
        mm.n1 = range_end(first[i], t->n);
        nib_ref_mx_gemv(&mm);
        if (t->up)
            nib_ref_swiglu(t->a, t->y + mm.n0, (mm.n1 - mm.n0) / 2);
        for (uint32_t j = mm.n0; j < mm.n1 && !c->nan; j += t->up ? 2 : 1)
            add(e, product(t, place * t->out_n + (t->up ? j / 2 : j)),
                (double)(t->up ? t->a[(j - mm.n0) / 2] : t->y[j]));
    }
    for (uint64_t j = 0; j < t->out_n; j++) { /* all were written */
        const double out = product(t, place * t->out_n + j);
        e->bad += (c->nan ? isnan(out) : isfinite(out)) ? 0 : 1;
    }
}

/* Whether the experts' products of the decode rows are those of many rows. */
static bool has_lists(const struct check *c)
{
    struct nib_gpu_geometry g;
    c->rig->k->geometry(NIB_GPU_UP_BATCH, &c->rig->m, c->bucket.decode, c->bucket.prompt, c->bucket.want, &g);
    return g.grid[0] != 0;
}

void check_order_gated(struct check *c, uint16_t *gated, bool plain)
{
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t picks = check_rows(c) * m->experts_used, inner = m->intermediate;
    if (!has_lists(c))
        return;
    uint8_t *route = fetch(c, m->route, c->rig->k->route_bytes(m->step_rows_max, m->experts));
    uint16_t *from = malloc((uint64_t)picks * inner * 2);
    memcpy(from, gated, (uint64_t)picks * inner * 2);
    for (uint32_t p = 0; p < picks; p++) {
        const struct cu_group *list = cu_list_of(m, route, p);
        for (uint32_t i = 0; i < inner; i++) {
            const uint64_t at = cu_gated_at(m, list, p, i), to = (uint64_t)p * inner + i;
            gated[plain ? to : at] = from[plain ? at : to];
        }
    }
    free(from);
    free(route);
}

void check_order_acts(struct check *c)
{
    const uint32_t h = c->rig->m.hidden, wide = (uint32_t)check_acts_wide(c), rows = c->bucket.decode;
    if (!has_lists(c))
        return;
    uint16_t *acts = fetch(c, c->rig->m.acts, (uint64_t)rows * wide * 2);
    uint8_t *to = malloc((uint64_t)rows * h * 2);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t w = 0; w < h / 2; w++)
            memcpy(to + cu_batch_mx_acts_word(r, h, w), acts + (uint64_t)r * wide + w * 2, 4);
    rig_up(c->rig, c->rig->m.scratch + cu_batch_acts_at(), to, (uint64_t)rows * h * 2);
    free(to);
    free(acts);
}

/* Expert products: `up` or down, place by place. */
void check_experts(struct check *c, bool up)
{
    const struct nib_shape *s = c->model->shape;
    const struct model_layer *l = &c->model->layer;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), picks = rows * s->experts_used, inner = s->intermediate, h = s->hidden;
    const uint32_t k = up ? h : inner, inputs = up ? rows : picks;
    struct products t = {.up = up, .n = up ? 2 * inner : h, .out_n = up ? inner : h};
    const uint64_t in_stride = up ? check_acts_wide(c) : inner, out_bytes = (uint64_t)picks * t.out_n * (up ? 2 : 4);
    uint8_t *route = fetch(c, m->route, c->rig->k->route_bytes(m->step_rows_max, s->experts));
    const struct route_view v = route_view(route, m);
    uint16_t *in = fetch(c, up ? m->acts : m->gated, inputs * in_stride * 2);
    rig_fill(c->rig, up ? m->gated : m->down, 0xff, out_bytes);
    launch_both(c, up ? NIB_GPU_UP : NIB_GPU_DOWN);
    t.out = fetch(c, up ? m->gated : m->down, out_bytes);
    check_order_gated(c, up ? t.out : in, true);
    t.x = prepare(in, in_stride, inputs, k, true);
    t.y = malloc(t.n * 4ull);
    t.a = malloc(t.n * 4ull);
    struct error e[2] = {{.bad = 0}, {.bad = 0}};
    /* places that are compared: an odd step meets every place of a tile; without a chosen expert all are looked at for NaN */
    const uint32_t skip = picks > 150 ? picks / 75 | 1 : 1;
    for (uint32_t p = 0; p < picks; p++) {
        const uint32_t row = v.row[p];
        uint32_t choice = 0, index = up ? row : p;
        while (choice + 1 < s->experts_used && v.place[row * s->experts_used + choice] != p)
            choice++;
        const uint32_t expert = v.expert[row * s->experts_used + choice];
        if (c->expert != ~0u && expert != c->expert)
            continue;
        const struct nib_matmul mm = {.w = up ? l->up + expert * c->model->up_bytes
                                              : l->down + expert * c->model->down_bytes,
                                      .x = t.x,
                                      .rows = &index,
                                      .bias = (up ? l->up_bias : l->down_bias) + (uint64_t)expert * t.n,
                                      .y = t.y,
                                      .ldy = t.n,
                                      .m = 1,
                                      .n = t.n,
                                      .k = k};
        if (p % skip == 0)
            add_place(c, &t, mm, p, &e[row >= c->bucket.decode]);
    }
    for (uint64_t i = 0; i < (uint64_t)picks * t.out_n && c->expert == ~0u; i++)
        e[0].bad += isfinite(product(&t, i)) ? 0 : 1;
    const double most = c->bound > 0 ? c->bound : up ? 5e-4 : 2e-5;
    expect_floor(c, up ? "up" : "down", "decode", &e[0], most, up ? FP16_FLOOR : 0);
    expect_floor(c, up ? "up" : "down", "prompt", &e[1], most, up ? FP16_FLOOR : 0);
    free(route);
    free(in);
    free(t.out);
    free(t.x);
    free(t.y);
    free(t.a);
}

void check_combine(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), used = s->experts_used, h = s->hidden;
    uint8_t *route = fetch(c, m->route, c->rig->k->route_bytes(m->step_rows_max, s->experts));
    const struct route_view v = route_view(route, m);
    float *before = fetch(c, m->x, (uint64_t)rows * h * 4), *down = fetch(c, m->down, (uint64_t)rows * used * h * 4);
    launch(c, NIB_GPU_COMBINE);
    float *after = fetch(c, m->x, (uint64_t)rows * h * 4), *normed = malloc(h * 4ull);
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    struct error of_x = {0}, of_acts = {0};
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < h; i++) {
            double sum = 0;
            for (uint32_t k = 0; k < used; k++)
                sum += (double)v.weight[r * used + k] * (double)down[(uint64_t)v.place[r * used + k] * h + i];
            add(&of_x, (double)after[(uint64_t)r * h + i], (double)before[(uint64_t)r * h + i] + sum);
        }
        nib_ref_rmsnorm(normed, after + (uint64_t)r * h, c->layer ? c->model->final_norm : c->model->layer.attn_norm,
                        h);
        for (uint32_t i = 0; i < h; i++)
            add(&of_acts, (double)nib_bf16_decode(acts[r * check_acts_wide(c) + i]), (double)normed[i]);
    }
    expect(c, "combine", "x", &of_x, 1e-6);
    expect(c, "combine", "acts", &of_acts, 3e-3);
    free(route);
    free(before);
    free(down);
    free(after);
    free(normed);
    free(acts);
}

void check_head(struct check *c)
{
    const struct nib_shape *s = c->model->shape;
    const struct nib_gpu_machine *m = &c->rig->m;
    const uint32_t rows = check_rows(c), want = c->bucket.want;
    uint16_t *acts = fetch(c, m->acts, rows * check_acts_wide(c) * 2);
    rig_fill(c->rig, m->logits, 0xff, (uint64_t)want * s->vocab * 4);
    launch(c, NIB_GPU_HEAD);
    launch(c, NIB_GPU_HEAD_BATCH);
    float *logits = fetch(c, m->logits, (uint64_t)want * s->vocab * 4),
          *x = prepare(acts, check_acts_wide(c), rows, s->hidden, false);
    float *y = malloc((uint64_t)want * s->vocab * 4);
    uint32_t *index = malloc(want * 4ull), first[3];
    struct error e = {0};
    for (uint32_t i = 0; i < want; i++)
        index[i] = c->step->want[i];
    const uint32_t count = ranges(s->vocab, first);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t end = range_end(first[i], s->vocab);
        const struct nib_matmul mm = {.w = c->model->lm_head,
                                      .x = x,
                                      .rows = index,
                                      .y = y,
                                      .ldy = s->vocab,
                                      .m = want,
                                      .n = s->vocab,
                                      .k = s->hidden,
                                      .n0 = first[i],
                                      .n1 = end};
        nib_ref_dense_gemv(&mm);
        for (uint32_t r = 0; r < want; r++)
            for (uint32_t j = first[i]; j < end; j++)
                add(&e, (double)logits[(uint64_t)r * s->vocab + j], (double)y[(uint64_t)r * s->vocab + j]);
    }
    for (uint64_t i = 0; i < (uint64_t)want * s->vocab; i++)
        e.bad += !isfinite(logits[i]) ? 1 : 0;
    expect_floor(c, "head", "logits", &e, 2e-5, FP32_FLOOR);
    /* greedy: the largest logit, the outbox complete */
    const uint64_t serial = c->step->serial;
    launch(c, NIB_GPU_SCAN);
    launch(c, NIB_GPU_SAMPLE);
    const struct nib_gpu_result *out = &c->rig->outbox[serial % NIB_GPU_MAILBOX];
    struct error of_token = {.bad = out->serial != serial || out->count != want || out->fault};
    for (uint32_t r = 0; r < want && !of_token.bad; r++) {
        uint32_t best = 0;
        for (uint32_t j = 1; j < s->vocab; j++)
            best = logits[(uint64_t)r * s->vocab + j] > logits[(uint64_t)r * s->vocab + best] ? j : best;
        of_token.bad += out->sampled[r].token != best || out->sampled[r].failed ||
                        out->sampled[r].slot != c->step->rows[c->step->want[r]].slot;
    }
    expect(c, "sample", "greedy", &of_token, 0);
    free(acts);
    free(logits);
    free(x);
    free(y);
    free(index);
}

struct check check_begin(struct rig *rig, struct model *model, const char *what, const struct model_run *runs,
                         uint32_t count)
{
    struct check c = {.rig = rig, .model = model, .what = what, .expert = ~0u};
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    c.bucket = model_send(rig, model, runs, count);
    c.step = &rig->mailbox[serial % NIB_GPU_MAILBOX];
    launch(&c, NIB_GPU_BEGIN);
    return c;
}

int check_report(const struct check *c)
{
    printf("%s %s: %u decode rows, %u prompt rows\n", c->failures ? "FAILED" : "ok    ", c->what, c->bucket.decode,
           c->bucket.prompt);
    (void)fflush(stdout);
    return c->failures;
}

int check_step(struct rig *rig, struct model *model, const char *what, const struct model_run *runs, uint32_t count)
{
    struct check c = check_begin(rig, model, what, runs, count);
    check_embed(&c);
    for (c.layer = 0; c.layer < 2; c.layer++) {
        check_qkv(&c);
        check_attn(&c);
        check_out(&c);
        check_route(&c);
        check_experts(&c, true);
        check_experts(&c, false);
        check_combine(&c);
    }
    c.layer = 0;
    check_head(&c);
    return check_report(&c);
}

uint32_t check_decode_runs(struct model_run *runs, uint32_t count, uint32_t ctx)
{
    static const uint32_t at[] = {0, 1, 63, 64, 127, 128, 129, 255, 256, 257, 300, 511, 1023, 1500, 2000, 90, 191};
    for (uint32_t i = 0; i < count; i++)
        runs[i] = (struct model_run){.slot = i,
                                     .pos = i == 0             ? ctx - 1
                                            : at[i % 17] < ctx ? at[i % 17]
                                                               : i,
                                     .count = 1,
                                     .decode = true};
    return count;
}
