/* tests/fake/kernels.c: the kernels of arch/gpu_abi.h in plain C, with the arithmetic of arch/ref: sums in double, one
 * rounding to fp32, and 16 bits wherever the contract keeps 16. What kernels hand to each other has the forms of
 * arch/cuda/forms.h. Weights stay canonical in the row's room: dense [n][k], in MXFP8 codes, then scales; MXFP4 blocks, then scales. Worker thread. An address outside every allocation is an illegal address, as on a GPU. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NIB_SM 90 /* what is used of the layout is the same in every row */
#include "arch/cuda/forms.h"
#include "arch/ref/ref.h"
#include "arch/rope.h"
#include "core/mx.h"
#include "core/sample.h"
#include "tests/fake/fake.h"

#define HEAD_PAGE ((uint64_t)NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM) /* elements of one head's keys in a page */

struct run {
    const struct nib_gpu_machine *m;
    const struct nib_gpu_layer *l;
    const struct nib_gpu_step *step;
    uint32_t layer;
    uint32_t first, end; /* rows this op is for */
    bool mxfp8;          /* the op is one for dense matrices in MXFP8 */
    bool overlap;        /* may have begun before the op before it had ended */
    bool spoilt;         /* the result is to be wrong */
    int spoilt_how;      /* sample: see spoil_result */
    const char *name;
    jmp_buf out; /* an illegal address ends the kernel */
};

static void *need(struct run *r, nib_gpu_ptr ptr, uint64_t bytes, size_t align, const char *what)
{
    void *at = fake_map(ptr, bytes);
    if (!at) {
        fake_violation("%s: %s: %llu bytes at %#llx are no device memory", r->name, what, (unsigned long long)bytes,
                       (unsigned long long)ptr);
        longjmp(r->out, 1);
    }
    if (ptr % align) {
        fake_violation("%s: %s: %#llx is not aligned", r->name, what, (unsigned long long)ptr);
        longjmp(r->out, 1);
    }
    return at;
}
#define AT(r, type, ptr, count) ((type *)need((r), (ptr), sizeof(type) * (uint64_t)(count), _Alignof(type), #ptr))

static uint32_t q_dim(const struct run *r)
{
    return r->m->heads * NIB_HEAD_DIM;
}

static void round_row(uint16_t *to, const float *from, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] = nib_bf16_encode(from[i]);
}

static void round_half(uint16_t *to, const float *from, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] = nib_fp16_encode(from[i]);
}

static uint16_t *acts_row(struct run *r, uint64_t row)
{
    const uint32_t stride = cu_acts_stride(r->m);
    return AT(r, uint16_t, r->m->acts, (uint64_t)r->m->step_rows_max * stride) + row * stride;
}

/* The input of a product: row `row` of acts as that op left it, in fp32. */
static const float *acts_of(struct run *r, enum nib_gpu_op left_by, uint64_t row, uint32_t k)
{
    static float x[NIB_MAX_HIDDEN];
    cu_read_acts(r->m, left_by, acts_row(r, 0), (uint32_t)row, k, x);
    return x;
}

static float *room(uint64_t count)
{
    static float *buffer;
    static uint64_t have;
    if (count > have) {
        free(buffer);
        buffer = malloc(count * sizeof *buffer);
        have = count;
    }
    return buffer;
}

/* A dense matrix [n][k]: bf16, or E4M3 codes and their scales. */
struct dense {
    const uint16_t *bf16; /* NULL: MXFP8 */
    const uint8_t *codes, *scales;
};

static struct dense dense_at(struct run *r, nib_gpu_ptr at, uint32_t n, uint32_t k, bool mxfp8)
{
    const uint64_t count = (uint64_t)n * k;
    if (!mxfp8)
        return (struct dense){.bf16 = AT(r, uint16_t, at, count)};
    const uint8_t *codes = AT(r, uint8_t, at, count + count / NIB_MX_BLOCK);
    return (struct dense){.codes = codes, .scales = codes + count};
}

static double dense_dot(const float *x, const struct dense *w, uint64_t j, uint32_t k)
{
    double sum = 0;
    for (uint32_t i = 0; i < k; i += NIB_MX_BLOCK) {
        const uint64_t at = j * k + i;
        float e[NIB_MX_BLOCK];
        if (!w->bf16)
            nib_mxfp8_decode(w->scales[at / NIB_MX_BLOCK], w->codes + at, e);
        for (uint32_t d = 0; d < NIB_MX_BLOCK; d++)
            sum += (double)x[i + d] * (double)(w->bf16 ? nib_bf16_decode(w->bf16[at + d]) : e[d]);
    }
    return sum;
}

/* y[j] = x . W[j] + b[j] */
static void dense_row(float *y, const float *x, const struct dense *w, const uint16_t *bias, uint32_t n, uint32_t k)
{
    for (uint32_t j = 0; j < n; j++)
        y[j] = (float)(dense_dot(x, w, j, k) + (bias ? (double)nib_bf16_decode(bias[j]) : 0));
}

static void mx_row(float *y, const float *x, const uint8_t *w, const uint16_t *bias, uint32_t n, uint32_t k)
{
    const uint64_t groups = k / NIB_MX_BLOCK;
    const uint8_t *scales = w + n * groups * NIB_MXFP4_BLOCK_BYTES;
    for (uint32_t j = 0; j < n; j++) {
        double sum = 0;
        for (uint64_t g = 0; g < groups; g++, w += NIB_MXFP4_BLOCK_BYTES) {
            float e[NIB_MX_BLOCK];
            nib_mxfp4_decode(*scales++, w, e);
            for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
                sum += (double)x[g * NIB_MX_BLOCK + i] * (double)e[i];
        }
        y[j] = (float)(sum + (double)nib_bf16_decode(bias[j]));
    }
}

/* ---- where a matrix of experts begins: what the repack op was told ---- */

#define MATRICES_MAX 65536
static struct matrix {
    nib_gpu_ptr at;
    uint32_t n, k;
} matrices[MATRICES_MAX]; /* ascending */
static uint32_t matrices_count;

static uint32_t find_matrix(nib_gpu_ptr at)
{
    uint32_t low = 0, high = matrices_count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (matrices[mid].at < at)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

void fake_forget_matrices(nib_gpu_ptr at, uint64_t bytes)
{
    const uint32_t first = find_matrix(at), end = find_matrix(at + bytes);
    memmove(&matrices[first], &matrices[end], (matrices_count - end) * sizeof matrices[0]);
    matrices_count -= end - first;
}

static void note_matrix(nib_gpu_ptr at, uint32_t n, uint32_t k)
{
    uint32_t i = find_matrix(at);
    if (i == matrices_count || matrices[i].at != at) {
        if (matrices_count == MATRICES_MAX)
            abort();
        memmove(&matrices[i + 1], &matrices[i], (matrices_count++ - i) * sizeof matrices[0]);
    }
    matrices[i] = (struct matrix){at, n, k};
}

/* Matrix `expert` of those that lie from `base` on. */
static const uint8_t *expert_at(struct run *r, nib_gpu_ptr base, uint32_t expert, uint32_t n, uint32_t k)
{
    uint32_t i = find_matrix(base) + expert;
    if (i >= matrices_count || matrices[i - expert].at != base || matrices[i].n != n || matrices[i].k != k) {
        fake_violation("%s: expert %u of %#llx was never repacked as [%u][%u]", r->name, expert,
                       (unsigned long long)base, n, k);
        longjmp(r->out, 1);
    }
    return AT(r, uint8_t, matrices[i].at, nib_ref_mx_bytes(n, k));
}

/* ---- boot ---- */

static void repack_dense(struct run *r)
{
    const struct nib_gpu_repack *p = AT(r, struct nib_gpu_repack, r->m->repack, 1);
    uint64_t count = (uint64_t)(p->n1 - p->n0) * p->k;
    uint16_t *dst = AT(r, uint16_t, p->dst, (uint64_t)p->n * p->k);
    memcpy(dst + (uint64_t)p->n0 * p->k, AT(r, uint16_t, p->src, count), count * sizeof *dst);
}

static void repack_mx(struct run *r)
{
    const struct nib_gpu_repack *p = AT(r, struct nib_gpu_repack, r->m->repack, 1);
    const uint64_t groups = p->k / NIB_MX_BLOCK, first = p->n0 * groups, count = (p->n1 - p->n0) * groups;
    uint8_t *dst = AT(r, uint8_t, p->dst, nib_ref_mx_bytes(p->n, p->k));
    note_matrix(p->dst, p->n, p->k);
    memcpy(dst + first * NIB_MXFP4_BLOCK_BYTES, AT(r, uint8_t, p->src, count * NIB_MXFP4_BLOCK_BYTES),
           count * NIB_MXFP4_BLOCK_BYTES);
    memcpy(dst + p->n * groups * NIB_MXFP4_BLOCK_BYTES + first, AT(r, uint8_t, p->scales, count), count);
}

static void repack_mxfp8(struct run *r)
{
    const struct nib_gpu_repack *p = AT(r, struct nib_gpu_repack, r->m->repack, 1);
    const uint64_t all = (uint64_t)p->n * p->k, first = (uint64_t)p->n0 * p->k,
                   count = (uint64_t)(p->n1 - p->n0) * p->k;
    uint8_t *dst = AT(r, uint8_t, p->dst, all + all / NIB_MX_BLOCK);
    memcpy(dst + first, AT(r, uint8_t, p->src, count), count);
    memcpy(dst + all + first / NIB_MX_BLOCK, AT(r, uint8_t, p->scales, count / NIB_MX_BLOCK), count / NIB_MX_BLOCK);
}

static void sum(struct run *r)
{
    const struct nib_gpu_repack *p = AT(r, struct nib_gpu_repack, r->m->repack, 1);
    const uint64_t *word = AT(r, uint64_t, p->src, p->sum_bytes / 8);
    uint64_t *total = AT(r, uint64_t, p->sum, 1);
    for (uint64_t i = 0; i < p->sum_bytes / 8; i++)
        *total += NIB_GPU_SUM_WORD(word[i], i);
}

/* ---- a step ---- */

static uint32_t *seen_of(struct run *r, uint32_t slot)
{
    return AT(r, uint32_t, r->m->seen, (uint64_t)r->m->slots * r->m->vocab) + (uint64_t)slot * r->m->vocab;
}

static void open_slot(struct run *r, uint32_t slot)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t entries = (uint64_t)m->slots * m->ctx_pages, first = (uint64_t)slot * m->ctx_pages;
    memcpy(AT(r, uint32_t, m->tables, entries) + first, AT(r, uint32_t, m->host_tables, entries) + first,
           m->ctx_pages * sizeof(uint32_t));
    AT(r, struct nib_sampling, m->sampling, m->slots)
    [slot] = AT(r, struct nib_sampling, m->host_sampling, m->slots)[slot];
    nib_sample_reset(seen_of(r, slot), m->vocab);
}

static bool row_possible(const struct run *r, uint32_t i)
{
    const struct nib_row *row = &r->step->rows[i];
    bool decode = row->flags & NIB_ROW_DECODE, fed_back = row->flags & NIB_ROW_FEEDBACK;
    return row->slot < r->m->slots && row->pos / NIB_KV_PAGE_TOKENS < r->m->ctx_pages &&
           decode == (i < r->step->decode_count) && (fed_back || row->token < r->m->vocab);
}

static bool step_possible(const struct run *r, uint64_t serial)
{
    const struct nib_gpu_step *s = r->step;
    if (s->serial != serial || s->rows_count == 0 || s->rows_count > r->m->step_rows_max)
        return false;
    if (s->decode_count > s->rows_count || s->want_count > r->m->slots || s->want_count > s->rows_count)
        return false;
    for (uint32_t i = 0; i < s->want_count; i++)
        if (s->want[i] >= s->rows_count || (i > 0 && s->want[i] <= s->want[i - 1]))
            return false;
    for (uint32_t i = 0; i < s->rows_count; i++)
        if (!row_possible(r, i))
            return false;
    return true;
}

static void begin(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t *next = AT(r, uint64_t, m->next_serial, 1);
    struct nib_gpu_step *step = AT(r, struct nib_gpu_step, m->step, 1);
    *step = AT(r, struct nib_gpu_step, m->mailbox, NIB_GPU_MAILBOX)[*next % NIB_GPU_MAILBOX];
    step->fault = step_possible(r, *next) ? 0 : NIB_GPU_BEGIN;
    if (step->fault) {
        fake_violation("step %llu, which the mailbox has as %llu, is impossible", (unsigned long long)*next,
                       (unsigned long long)step->serial);
        step->serial = *next;
        return;
    }
    for (uint32_t i = 0; i < step->rows_count; i++)
        if (step->rows[i].flags & NIB_ROW_FIRST)
            open_slot(r, step->rows[i].slot);
    step->rows[0].pos ^= r->spoilt;
}

/* acts = rmsnorm(x) of the op's rows */
static void norm(struct run *r, nib_gpu_ptr weight, void (*round)(uint16_t *to, const float *from, uint32_t n))
{
    const struct nib_gpu_machine *m = r->m;
    const float *x = AT(r, float, m->x, (uint64_t)m->step_rows_max * m->hidden);
    const uint16_t *w = AT(r, uint16_t, weight, m->hidden);
    float *y = room(m->hidden);
    for (uint64_t i = r->first; i < r->end; i++) {
        nib_ref_rmsnorm(y, x + i * m->hidden, w, m->hidden);
        round(acts_row(r, i), y, m->hidden);
    }
}

static void embed_row(struct run *r, uint32_t i, const float freq[NIB_ROPE_PAIRS])
{
    const struct nib_gpu_machine *m = r->m;
    const struct nib_row *row = &r->step->rows[i];
    uint32_t token = row->token;
    if (row->flags & NIB_ROW_FEEDBACK)
        token = AT(r, uint32_t, m->last, m->slots)[row->slot];
    const uint16_t *from = AT(r, uint16_t, m->embed, (uint64_t)m->vocab * m->hidden) + (uint64_t)token * m->hidden;
    if (token >= m->vocab) {
        fake_violation("slot %u's last token is %u, it has none", row->slot, token);
        AT(r, struct nib_gpu_step, m->step, 1)->fault = NIB_GPU_EMBED;
        return;
    }
    if (!(row->flags & NIB_ROW_DECODE))
        nib_sample_seen(seen_of(r, row->slot), token);
    float *x = AT(r, float, m->x, (uint64_t)m->step_rows_max * m->hidden) + (uint64_t)i * m->hidden;
    for (uint32_t k = 0; k < m->hidden; k++)
        x[k] = nib_bf16_decode(from[k]);
    float *rope = AT(r, float, m->rope, (uint64_t)m->step_rows_max * 2 * NIB_ROPE_PAIRS);
    nib_rope_table(freq, row->pos, rope + (uint64_t)i * NIB_ROPE_PAIRS,
                   rope + (uint64_t)(m->step_rows_max + i) * NIB_ROPE_PAIRS);
}

static void embed(struct run *r)
{
    float freq[NIB_ROPE_PAIRS];
    nib_rope_frequencies(freq);
    for (uint32_t i = r->first; i < r->end; i++)
        embed_row(r, i, freq);
    norm(r, r->m->layer[0].attn_norm, round_row);
}

/* Page of position `pos` in this layer's cache. */
static uint16_t *page_at(struct run *r, uint32_t slot, uint32_t pos)
{
    const struct nib_gpu_machine *m = r->m;
    uint64_t page;
    if (nib_layer_windowed(r->layer))
        page = (uint64_t)slot * m->ring_pages + pos / NIB_KV_PAGE_TOKENS % m->ring_pages;
    else
        page = AT(r, uint32_t, m->tables,
                  (uint64_t)m->slots * m->ctx_pages)[(uint64_t)slot * m->ctx_pages + pos / NIB_KV_PAGE_TOKENS];
    if (!nib_layer_windowed(r->layer) && page >= m->kv_pages) {
        fake_violation("%s: page %llu of position %u of slot %u, there are %u", r->name, (unsigned long long)page, pos,
                       slot, m->kv_pages);
        longjmp(r->out, 1);
    }
    const uint64_t bytes = m->kv_new ? nib_ref_kv8_page_bytes(m->kv_heads) : 2 * m->kv_heads * HEAD_PAGE * 2;
    return AT(r, uint16_t, r->l->kv + page * m->page_stride, bytes / 2);
}

/* Keys and values of a row as they wait for the page, [K, V][kv_heads][64]. */
static uint16_t *kv_new(struct run *r, uint32_t row)
{
    const uint64_t count = 2ull * r->m->kv_heads * NIB_HEAD_DIM;
    return AT(r, uint16_t, r->m->kv_new, r->m->step_rows_max * count) + row * count;
}

static void qkv(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const uint32_t n = q_dim(r) + 2 * m->kv_heads * NIB_HEAD_DIM;
    const struct dense w = dense_at(r, r->l->qkv, n, m->hidden, r->mxfp8);
    const uint16_t *bias = AT(r, uint16_t, r->l->qkv_bias, n);
    const float *rope = AT(r, float, m->rope, (uint64_t)m->step_rows_max * 2 * NIB_ROPE_PAIRS);
    uint16_t *q = AT(r, uint16_t, m->q, (uint64_t)m->step_rows_max * q_dim(r));
    float *y = room(n);
    for (uint32_t i = r->first; i < r->end; i++) {
        const struct nib_row *row = &r->step->rows[i];
        dense_row(y, acts_of(r, NIB_GPU_EMBED, i, m->hidden), &w, bias, n, m->hidden);
        nib_ref_rope(y, m->heads + m->kv_heads, rope + (uint64_t)i * NIB_ROPE_PAIRS,
                     rope + (uint64_t)(m->step_rows_max + i) * NIB_ROPE_PAIRS);
        round_row(q + (uint64_t)i * q_dim(r), y, q_dim(r));
        const bool fp8 = m->kv_new != 0;
        uint16_t *keys =
            fp8 ? kv_new(r, i)
                : page_at(r, row->slot, row->pos) + (uint64_t)(row->pos % NIB_KV_PAGE_TOKENS) * NIB_HEAD_DIM;
        for (uint32_t h = 0; h < 2 * m->kv_heads; h++)
            round_row(keys + h * (fp8 ? NIB_HEAD_DIM : HEAD_PAGE), y + q_dim(r) + h * NIB_HEAD_DIM, NIB_HEAD_DIM);
    }
}

/* The page's form is that of arch/ref. */
static void kv_fp8(struct run *r)
{
    const uint32_t count = r->m->kv_heads * NIB_HEAD_DIM;
    float *kv = room(2 * count);
    for (uint32_t i = r->first; i < r->end; i++) {
        const struct nib_row *row = &r->step->rows[i];
        const uint16_t *from = kv_new(r, i);
        for (uint32_t d = 0; d < 2 * count; d++)
            kv[d] = nib_bf16_decode(from[d]);
        nib_ref_kv8_put(page_at(r, row->slot, row->pos), r->m->kv_heads, row->pos % NIB_KV_PAGE_TOKENS, kv, kv + count);
    }
}

/* A page in FP8 as one in bf16, which holds every value. */
static const uint16_t *widen_page(struct run *r, const uint16_t *page, uint16_t *room_of)
{
    const uint64_t count = 2 * r->m->kv_heads * HEAD_PAGE;
    const uint8_t *codes = (const uint8_t *)page, *scales = codes + count;
    for (uint64_t b = 0; b < count / NIB_MX_BLOCK; b++)
        nib_mxfp8_decode_bf16(scales[b], codes + b * NIB_MX_BLOCK, room_of + b * NIB_MX_BLOCK);
    return room_of;
}

static double dot64(const uint16_t *a, const uint16_t *b)
{
    double total = 0;
    for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
        total += (double)nib_bf16_decode(a[d]) * (double)nib_bf16_decode(b[d]);
    return total;
}

/* One head of one row. */
static void attend(struct run *r, const struct nib_row *row, uint32_t head, const uint16_t *q, float *out)
{
    const struct nib_gpu_machine *m = r->m;
    const uint32_t window = nib_layer_windowed(r->layer) ? m->window : 0, end = row->pos + 1;
    const uint32_t first = window && end > window ? end - window : 0, kv_head = head / NIB_GQA_GROUP;
    const double sink = (double)nib_bf16_decode(AT(r, uint16_t, r->l->sinks, m->heads)[head]);
    double max = sink, total = 0, value[NIB_HEAD_DIM] = {0};
    for (int pass = 0; pass < 2; pass++) {
        const uint16_t *keys = NULL;
        for (uint32_t j = first; j < end; j++) {
            if (!keys || j % NIB_KV_PAGE_TOKENS == 0) {
                keys = page_at(r, row->slot, j);
                if (m->kv_new)
                    keys = widen_page(r, keys, (uint16_t *)room(m->kv_heads * HEAD_PAGE));
            }
            const uint16_t *key = keys + kv_head * HEAD_PAGE + (uint64_t)(j % NIB_KV_PAGE_TOKENS) * NIB_HEAD_DIM;
            double s = dot64(q, key) / 8.0;
            if (pass == 0) {
                max = s > max || isnan(s) ? s : max;
                continue;
            }
            double p = exp(s - max);
            total += p;
            for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
                value[d] += p * (double)nib_bf16_decode(key[m->kv_heads * HEAD_PAGE + d]);
        }
    }
    total += exp(sink - max);
    for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
        out[d] = (float)(value[d] / total);
}

/* Decode attention that begins early reads all keys but its row's own as earlier steps left them, not those of a row before
 * it. */
static bool reads_too_early(const struct run *r, uint32_t row)
{
    const struct nib_row *rows = r->step->rows;
    for (uint32_t i = r->first; r->overlap && i < row; i++)
        if ((rows[row].flags & NIB_ROW_DECODE) && rows[i].slot == rows[row].slot)
            return true;
    return false;
}

/* All keys in one split, so there is nothing left to merge. */
static void attn(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const uint16_t *q = AT(r, uint16_t, m->q, (uint64_t)m->step_rows_max * q_dim(r));
    for (uint32_t i = r->first; i < r->end; i++) {
        for (uint32_t h = 0; h < m->heads; h++) {
            uint64_t at = (uint64_t)i * q_dim(r) + (uint64_t)h * NIB_HEAD_DIM;
            float out[NIB_HEAD_DIM];
            attend(r, &r->step->rows[i], h, q + at, out);
            if (reads_too_early(r, i))
                out[0] += 1;
            round_row(acts_row(r, i) + (uint64_t)h * NIB_HEAD_DIM, out, NIB_HEAD_DIM);
        }
    }
}

static void attn_out(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const struct dense w = dense_at(r, r->l->out, m->hidden, q_dim(r), r->mxfp8);
    const uint16_t *bias = AT(r, uint16_t, r->l->out_bias, m->hidden);
    float *x = AT(r, float, m->x, (uint64_t)m->step_rows_max * m->hidden), *y = room(m->hidden);
    for (uint32_t i = r->first; i < r->end; i++) {
        dense_row(y, acts_of(r, NIB_GPU_ATTN, i, q_dim(r)), &w, bias, m->hidden, q_dim(r));
        for (uint32_t k = 0; k < m->hidden; k++)
            x[(uint64_t)i * m->hidden + k] += y[k];
    }
}

/* Assignments lie in the order of rows: a choice's place is its own index. */
static void choose(struct run *r, uint32_t row, const float *logits)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t array = cu_route_array(m->step_rows_max), first = cu_route_expert_at(m->step_rows_max, m->experts);
    uint8_t *expert = AT(r, uint8_t, m->route, first + 4 * array) + first;
    bool taken[NIB_MAX_EXPERTS] = {false};
    double total = 0, weight[NIB_MAX_EXPERTS_USED] = {0};
    uint32_t top = 0;
    for (uint32_t c = 0; c < m->experts_used; c++) {
        uint32_t best = m->experts;
        for (uint32_t e = 0; e < m->experts; e++)
            if (!taken[e] && (best == m->experts || logits[e] > logits[best]))
                best = e;
        taken[best] = true;
        top = c ? top : best;
        ((uint32_t *)(void *)expert)[row * m->experts_used + c] = best;
        weight[c] = exp((double)logits[best] - (double)logits[top]);
        total += weight[c];
    }
    for (uint32_t c = 0; c < m->experts_used; c++) {
        ((float *)(void *)(expert + array))[row * m->experts_used + c] = (float)(weight[c] / total);
        ((uint32_t *)(void *)(expert + 2 * array))[row * m->experts_used + c] = row * m->experts_used + c;
    }
}

static struct nib_gpu_choice choice_of(struct run *r, uint32_t row, uint32_t c)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t bytes = cu_route_expert_at(m->step_rows_max, m->experts) + 4 * cu_route_array(m->step_rows_max);
    struct nib_gpu_choice choice;
    cu_read_choice(m, AT(r, uint8_t, m->route, bytes), row, c, &choice);
    return choice;
}

static void route(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    norm(r, r->l->mlp_norm, round_half);
    const struct dense w = dense_at(r, r->l->router, m->experts, m->hidden, false);
    const uint16_t *bias = AT(r, uint16_t, r->l->router_bias, m->experts);
    float *y = room(m->experts);
    for (uint32_t i = r->first; i < r->end; i++) {
        dense_row(y, acts_of(r, NIB_GPU_ROUTE, i, m->hidden), &w, bias, m->experts, m->hidden);
        choose(r, i, y);
    }
}

static void up(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const uint32_t n = 2 * m->intermediate;
    const uint64_t places = (uint64_t)m->step_rows_max * m->experts_used;
    const uint16_t *bias = AT(r, uint16_t, r->l->up_bias, (uint64_t)m->experts * n);
    uint16_t *gated = AT(r, uint16_t, m->gated, places * m->intermediate);
    float *y = room(n + m->intermediate), *a = y + n;
    for (uint32_t i = r->first * m->experts_used; i < r->end * m->experts_used; i++) {
        const struct nib_gpu_choice c = choice_of(r, i / m->experts_used, i % m->experts_used);
        const uint8_t *w = expert_at(r, r->l->up, c.expert, n, m->hidden);
        mx_row(y, acts_of(r, NIB_GPU_ROUTE, i / m->experts_used, m->hidden), w, bias + (uint64_t)c.expert * n, n,
               m->hidden);
        nib_ref_swiglu(a, y, m->intermediate);
        round_half(gated + (uint64_t)c.place * m->intermediate, a, m->intermediate);
    }
}

static void down(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t places = (uint64_t)m->step_rows_max * m->experts_used;
    const uint16_t *gated = AT(r, uint16_t, m->gated, places * m->intermediate);
    const uint16_t *bias = AT(r, uint16_t, r->l->down_bias, (uint64_t)m->experts * m->hidden);
    float *out = AT(r, float, m->down, places * m->hidden), *x = room(m->intermediate);
    for (uint32_t i = r->first * m->experts_used; i < r->end * m->experts_used; i++) {
        const struct nib_gpu_choice c = choice_of(r, i / m->experts_used, i % m->experts_used);
        cu_read_gated(m, NIB_GPU_DOWN, NULL, gated, c.place, x);
        mx_row(out + (uint64_t)c.place * m->hidden, x, expert_at(r, r->l->down, c.expert, m->hidden, m->intermediate),
               bias + (uint64_t)c.expert * m->hidden, m->hidden, m->intermediate);
    }
}

static void combine(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const float *y = AT(r, float, m->down, (uint64_t)m->step_rows_max * m->experts_used * m->hidden);
    float *x = AT(r, float, m->x, (uint64_t)m->step_rows_max * m->hidden);
    for (uint32_t i = r->first; i < r->end; i++) {
        float *total = room(m->hidden);
        memset(total, 0, m->hidden * sizeof *total);
        for (uint32_t c = 0; c < m->experts_used; c++) {
            const struct nib_gpu_choice choice = choice_of(r, i, c);
            for (uint32_t k = 0; k < m->hidden; k++)
                total[k] += choice.weight * y[(uint64_t)choice.place * m->hidden + k];
        }
        for (uint32_t k = 0; k < m->hidden; k++)
            x[(uint64_t)i * m->hidden + k] += total[k];
    }
    norm(r, r->layer + 1 < m->layers ? m->layer[r->layer + 1].attn_norm : m->final_norm, round_row);
}

static float *logits_of(struct run *r, uint32_t i)
{
    return AT(r, float, r->m->logits, (uint64_t)r->m->slots * r->m->vocab) + (uint64_t)i * r->m->vocab;
}

static void head(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    const struct dense w = dense_at(r, m->lm_head, m->vocab, m->hidden, r->mxfp8);
    for (uint32_t i = 0; i < r->step->want_count; i++)
        dense_row(logits_of(r, i), acts_of(r, NIB_GPU_COMBINE, r->step->want[i], m->hidden), &w, NULL, m->vocab,
                  m->hidden);
}

static void scan(struct run *r)
{
    const struct nib_sampling *all = AT(r, struct nib_sampling, r->m->sampling, r->m->slots);
    for (uint32_t i = 0; i < r->step->want_count; i++) {
        const struct nib_sampling *s = &all[r->step->rows[r->step->want[i]].slot];
        for (uint32_t b = 0; b < s->bias_count; b++)
            logits_of(r, i)[s->bias[b].token] += s->bias[b].bias;
    }
}

static void sample_row(struct run *r, uint32_t i, struct nib_sampled *ret)
{
    static void *scratch;
    static struct nib_sampling sampling;
    const struct nib_gpu_machine *m = r->m;
    const struct nib_row *row = &r->step->rows[r->step->want[i]];
    sampling = AT(r, struct nib_sampling, m->sampling, m->slots)[row->slot];
    sampling.bias_count = 0; /* scan has added them */
    const struct nib_sample_in in = {.logits = logits_of(r, i),
                                     .banned = AT(r, uint32_t, m->banned, nib_sample_banned_words(m->vocab)),
                                     .state = seen_of(r, row->slot),
                                     .sampling = &sampling,
                                     .vocab = m->vocab,
                                     .pos = row->pos};
    if (!scratch)
        scratch = aligned_alloc(64, (nib_sample_scratch_bytes(NIB_MAX_VOCAB) + 63) / 64 * 64);
    nib_sample(&in, scratch, ret);
    ret->slot = row->slot;
    AT(r, uint32_t, m->last, m->slots)[row->slot] = ret->token;
    if (!ret->failed)
        nib_sample_took(seen_of(r, row->slot), ret->token);
}

/* 1 to 6: a result that cannot be; else another token. */
static void spoil_result(const struct run *r, struct nib_gpu_result *out)
{
    struct nib_sampled *s = &out->sampled[0];
    if (r->spoilt_how == 1)
        out->count++;
    else if (r->spoilt_how == 2)
        s->slot++;
    else if (r->spoilt_how == 3)
        s->token = r->m->vocab;
    else if (r->spoilt_how == 4)
        s->top_count = NIB_MAX_TOP_LOGPROBS + 1;
    else if (r->spoilt_how <= 6)
        out->fault = r->spoilt_how == 5 ? NIB_GPU_ROUTE : NIB_GPU_OP_COUNT;
    else
        s->token ^= 1;
}

static void sample(struct run *r)
{
    const struct nib_gpu_machine *m = r->m;
    uint64_t *next = AT(r, uint64_t, m->next_serial, 1);
    struct nib_gpu_result *out = &AT(r, struct nib_gpu_result, m->outbox, NIB_GPU_MAILBOX)[*next % NIB_GPU_MAILBOX];
    out->count = r->step->fault ? 0 : r->step->want_count;
    out->fault = r->step->fault;
    for (uint32_t i = 0; i < out->count; i++)
        sample_row(r, i, &out->sampled[i]);
    if (r->spoilt)
        spoil_result(r, out);
    __atomic_add_fetch(&fake_report->tokens, out->count, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&fake_report->steps, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&out->serial, r->step->serial, __ATOMIC_RELEASE);
    ++*next;
}

enum rows { ROWS_NONE, ROWS_ALL, ROWS_DECODE, ROWS_PROMPT };

static void token(struct run *r);

static const struct {
    void (*run)(struct run *r);
    enum rows rows;
} ops[NIB_GPU_OP_COUNT] = {
    [NIB_GPU_REPACK_DENSE] = {repack_dense, ROWS_NONE},
    [NIB_GPU_REPACK_MX] = {repack_mx, ROWS_NONE},
    [NIB_GPU_REPACK_MXFP8] = {repack_mxfp8, ROWS_NONE},
    [NIB_GPU_REPACK_HEAD] = {repack_dense, ROWS_NONE},
    [NIB_GPU_SUM] = {sum, ROWS_NONE},
    [NIB_GPU_BEGIN] = {begin, ROWS_NONE},
    [NIB_GPU_EMBED] = {embed, ROWS_ALL},
    [NIB_GPU_QKV] = {qkv, ROWS_DECODE},
    [NIB_GPU_QKV_BATCH] = {qkv, ROWS_DECODE},
    [NIB_GPU_QKV_PROMPT] = {qkv, ROWS_PROMPT},
    [NIB_GPU_KV_FP8] = {kv_fp8, ROWS_ALL},
    [NIB_GPU_ATTN_FP8] = {attn, ROWS_DECODE},
    [NIB_GPU_ATTN_BATCH_FP8] = {attn, ROWS_DECODE},
    [NIB_GPU_ATTN_PROMPT_FP8] = {attn, ROWS_PROMPT},
    [NIB_GPU_ATTN] = {attn, ROWS_DECODE},
    [NIB_GPU_ATTN_BATCH] = {attn, ROWS_DECODE},
    [NIB_GPU_ATTN_PROMPT] = {attn, ROWS_PROMPT},
    [NIB_GPU_OUT] = {attn_out, ROWS_DECODE},
    [NIB_GPU_OUT_BATCH] = {attn_out, ROWS_DECODE},
    [NIB_GPU_OUT_PROMPT] = {attn_out, ROWS_PROMPT},
    [NIB_GPU_ROUTE] = {route, ROWS_ALL},
    [NIB_GPU_UP] = {up, ROWS_DECODE},
    [NIB_GPU_UP_BATCH] = {up, ROWS_DECODE},
    [NIB_GPU_UP_SHORT] = {up, ROWS_DECODE},
    [NIB_GPU_UP_PROMPT] = {up, ROWS_PROMPT},
    [NIB_GPU_DOWN] = {down, ROWS_DECODE},
    [NIB_GPU_DOWN_BATCH] = {down, ROWS_DECODE},
    [NIB_GPU_DOWN_SHORT] = {down, ROWS_DECODE},
    [NIB_GPU_DOWN_PROMPT] = {down, ROWS_PROMPT},
    [NIB_GPU_COMBINE] = {combine, ROWS_ALL},
    [NIB_GPU_TOKEN] = {token, ROWS_ALL},
    [NIB_GPU_HEAD] = {head, ROWS_NONE},
    [NIB_GPU_HEAD_BATCH] = {head, ROWS_NONE},
    [NIB_GPU_SCAN] = {scan, ROWS_NONE},
    [NIB_GPU_SAMPLE] = {sample, ROWS_NONE},
    [NIB_GPU_QKV_MXFP8] = {qkv, ROWS_DECODE},
    [NIB_GPU_QKV_BATCH_MXFP8] = {qkv, ROWS_DECODE},
    [NIB_GPU_QKV_PROMPT_MXFP8] = {qkv, ROWS_PROMPT},
    [NIB_GPU_OUT_MXFP8] = {attn_out, ROWS_DECODE},
    [NIB_GPU_OUT_BATCH_MXFP8] = {attn_out, ROWS_DECODE},
    [NIB_GPU_OUT_PROMPT_MXFP8] = {attn_out, ROWS_PROMPT},
    [NIB_GPU_TOKEN_MXFP8] = {token, ROWS_ALL},
    [NIB_GPU_HEAD_MXFP8] = {head, ROWS_NONE},
    [NIB_GPU_HEAD_BATCH_MXFP8] = {head, ROWS_NONE},
};

static void choose_rows(struct run *r, enum rows rows)
{
    const struct nib_gpu_step *s = r->step;
    r->first = rows == ROWS_PROMPT ? s->decode_count : 0;
    r->end = rows == ROWS_NONE ? 0 : rows == ROWS_DECODE ? s->decode_count : s->rows_count;
}

/* All that lies between BEGIN and HEAD. */
static void token(struct run *r)
{
    embed(r);
    for (uint32_t layer = 0; layer < r->m->layers; layer++) {
        r->layer = layer;
        r->l = &r->m->layer[layer];
        for (int op = NIB_GPU_QKV; op <= NIB_GPU_COMBINE; op++) {
            if (nib_gpu_op_few((enum nib_gpu_op)op) != (enum nib_gpu_op)op ||
                (op >= NIB_GPU_KV_FP8 && op <= NIB_GPU_ATTN_PROMPT_FP8))
                continue;
            choose_rows(r, ops[op].rows);
            ops[op].run(r);
        }
    }
}

/* A kernel that computes nonsense: every seventh value of what it wrote is off. */
static void spoil(struct run *r, enum nib_gpu_op op)
{
    const struct nib_gpu_machine *m = r->m;
    const uint64_t rows = r->end - r->first, place = (uint64_t)r->first * m->experts_used;
    nib_gpu_ptr at = m->x + (uint64_t)r->first * m->hidden * 4;
    uint64_t words = rows * m->hidden;
    if (op == NIB_GPU_QKV || op == NIB_GPU_QKV_PROMPT) {
        at = m->q + (uint64_t)r->first * q_dim(r) * 2;
        words = rows * q_dim(r) / 2;
    } else if (op == NIB_GPU_KV_FP8) {
        const struct nib_row *row = &r->step->rows[r->first];
        ((uint8_t *)page_at(r, row->slot, row->pos))[row->pos % NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM] ^= 0x20;
        return;
    } else if (op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_PROMPT || op == NIB_GPU_ATTN_FP8 ||
               op == NIB_GPU_ATTN_PROMPT_FP8) {
        at = m->acts + (uint64_t)r->first * q_dim(r) * 2;
        words = rows * q_dim(r) / 2;
    } else if (op == NIB_GPU_ROUTE || op == NIB_GPU_TOKEN) {
        at = m->acts;
        words = rows * m->hidden / 2;
    } else if (op == NIB_GPU_UP || op == NIB_GPU_UP_PROMPT) {
        at = m->gated + place * m->intermediate * 2;
        words = rows * m->experts_used * m->intermediate / 2;
    } else if (op == NIB_GPU_DOWN || op == NIB_GPU_DOWN_PROMPT) {
        at = m->down + place * m->hidden * 4;
        words = rows * m->experts_used * m->hidden;
    } else if (op == NIB_GPU_BEGIN || op == NIB_GPU_SAMPLE) {
        return; /* have spoilt what they hand over themselves */
    } else if (op >= NIB_GPU_HEAD) {
        at = m->logits;
        words = m->vocab;
    } else if (op < NIB_GPU_BEGIN) {
        const struct nib_gpu_repack *p = AT(r, struct nib_gpu_repack, m->repack, 1);
        const uint64_t row = p->k * 2ull /
                             (op == NIB_GPU_REPACK_MX      ? 4
                              : op == NIB_GPU_REPACK_MXFP8 ? 2
                                                           : 1); /* bytes */
        at = op == NIB_GPU_SUM ? p->sum : p->dst + p->n0 * row;
        words = op == NIB_GPU_SUM ? 2 : (p->n1 - p->n0) * row / 4;
    }
    if (words == 0)
        return; /* had no rows */
    uint32_t *word = AT(r, uint32_t, at, words);
    for (uint64_t i = 0; i < words; i += 7)
        word[i] ^= 0x00800080; /* one bit of the exponent, of a float and of two bf16 */
}

/* The kernels of tests/gpu/trouble.ptx. */
static int run_trouble(const struct fake_work *w)
{
    const struct timespec ns = {.tv_sec = (time_t)(w->machine / 1000000000),
                                .tv_nsec = (long)(w->machine % 1000000000)};
    if (strcmp(w->function->name, "trouble_illegal") == 0)
        return NIB_CU_ILLEGAL_ADDRESS;
    if (strcmp(w->function->name, "trouble_spin") == 0)
        fake_hang();
    if (strcmp(w->function->name, "trouble_slow") != 0) {
        fake_violation("%s is no kernel of the contract", w->function->name);
        return NIB_CU_LAUNCH_FAILED;
    }
    (void)nanosleep(&ns, NULL);
    return 0;
}

int fake_kernel(const struct fake_work *w)
{
    int code = 0;
    enum nib_gpu_op op = w->function->op;
    fake_about(w->function->image);
    if (fake_fault(FAKE_ANY_KERNEL, &code) == FAKE_FAIL)
        return code;
    if (op == NIB_GPU_OP_COUNT)
        return run_trouble(w);
    const enum fake_act act = fake_fault(FAKE_OPS + (int)op, &code);
    if (act == FAKE_FAIL)
        return code;
    struct run r = {.layer = w->layer,
                    .name = w->function->name,
                    .mxfp8 = nib_gpu_op_plain(op) != op,
                    .overlap = w->overlap,
                    .spoilt = act == FAKE_WRONG,
                    .spoilt_how = code};
    if (setjmp(r.out))
        return NIB_CU_ILLEGAL_ADDRESS;
    r.m = AT(&r, struct nib_gpu_machine, w->machine, 1);
    if (w->layer >= NIB_MAX_LAYERS)
        return NIB_CU_ILLEGAL_ADDRESS;
    r.l = &r.m->layer[w->layer];
    if (op >= NIB_GPU_BEGIN) {
        r.step = AT(&r, struct nib_gpu_step, r.m->step, 1);
        choose_rows(&r, ops[op].rows);
    }
    if (op <= NIB_GPU_BEGIN || op == NIB_GPU_SAMPLE || !r.step->fault)
        ops[op].run(&r);
    if (r.spoilt)
        spoil(&r, nib_gpu_op_few(nib_gpu_op_plain(op)));
    return 0;
}
