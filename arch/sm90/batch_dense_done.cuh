/* arch/sm90/batch_dense_done.cuh: what becomes of the sums of a batched dense product: the arithmetic of arch/cuda/done.cuh, in two steps, so that what
 * must be read for several rows is asked for at once. begin(tile0, tiles, first, rows): what is to be known of an item's rows, if `places`, by a warp that brings; open(tile,
 * first): a tile of 16 output rows; ask(held, row, step, end): what the sums of the lane's rows row + j step and the next ones, those below `end`, need; put(): c as in
 * arch/cuda/done.cuh. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/sm90/batch_wide.cuh"

/* Where the keys and values of an item's rows go: of row `first` + i in place[i] lines of a head's 64 numbers behind the layer's first. */
__device__ __forceinline__ uint32_t *batch_places()
{
    __shared__ uint32_t place[CU_BATCH_ROWS];
    return place;
}

/* q, k rotated and v. */
struct batch_qkv_tile {
    const struct nib_gpu_machine *m;
    const float *angles; /* of row 0: cos; sin lie sin_at further */
    uint32_t sin_at, head, dim, first;
    uint8_t *to; /* q: of row 0; of keys and values of an own array too; else the head's first line */
    uint32_t stride;
    bool paged;
    float bias0, bias1;

    struct held {
        float cos[2], sin[2];
    };

    /* Rows that are not there are the last one again, until they are put. */
    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&h)[COUNT], uint32_t row, uint32_t step, uint32_t end) const
    {
        const bool turns = head < m->heads + m->kv_heads;
#pragma unroll
        for (uint32_t j = 0; j < 2 * COUNT; j++) {
            const uint32_t r = min(row + j / 2 * step + j % 2, end - 1);
            h[j / 2].cos[j % 2] = turns ? angles[r * 32] : 1;
            h[j / 2].sin[j % 2] = turns ? angles[r * 32 + sin_at] : 0;
        }
    }

    __device__ __forceinline__ bool there() const
    {
        return head < m->heads + 2 * m->kv_heads;
    }

    /* Where a row's dims begin. */
    __device__ __forceinline__ uint8_t *line(uint32_t row) const
    {
        return to + (uint64_t)(paged ? batch_places()[row - first] : row) * stride;
    }

    /* Two rows of dim, and of dim + 32. */
    __device__ __forceinline__ uint2 turned(const held &h, const float c[4]) const
    {
        float a[2], b[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            a[i] = c[i] + bias0;
            b[i] = c[i + 2] + bias1;
            if (head < m->heads + m->kv_heads)
                rotate(a[i], b[i], h.cos[i], h.sin[i]);
        }
        return make_uint2(pack_bf16(a[0], a[1]), pack_bf16(b[0], b[1]));
    }

    __device__ __forceinline__ void put(const held &h, uint32_t row, uint32_t end, const float c[4]) const
    {
        const uint2 v = turned(h, c);
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            if (row + i < end && there()) {
                uint16_t *at = (uint16_t *)line(row + i) + dim;
                at[0] = (uint16_t)(v.x >> 16 * i);
                at[32] = (uint16_t)(v.y >> 16 * i);
            }
    }

    /* The head's lines of `rows` rows, which lie at `lines`; by a warpgroup. */
    __device__ __forceinline__ void leave(uint32_t lines, uint32_t rows) const
    {
        if (there())
#pragma unroll 4
            for (uint32_t i = threadIdx.x % 128 / 8; i < rows; i += 16)
                *(uint4 *)(line(first + i) + threadIdx.x % 8 * 16) = lds16(lines + i * 128 + (threadIdx.x ^ i) % 8 * 16);
    }
};

struct batch_qkv_done {
    static constexpr uint32_t LINE = NIB_HEAD_DIM * 2;

    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer;

    __device__ __forceinline__ bool paged(uint32_t head) const
    {
        return head >= m->heads && head < m->heads + 2 * m->kv_heads && !m->kv_new;
    }

    static constexpr bool places = true;

    /* By one warp. */
    __device__ __forceinline__ void begin(uint32_t tile0, uint32_t tiles, uint32_t first, uint32_t count) const
    {
        if (!paged((tile0 + tiles - 1) / 4) && !paged(tile0 / 4))
            return;
        const layer_pages pages(m, layer);
#pragma unroll
        for (uint32_t i = threadIdx.x % 32; i < CU_BATCH_ROWS; i += 32)
            if (i < count) {
                const struct nib_row *of = &rows[first + i];
                const uint32_t slot = of->slot, pos = of->pos;
                batch_places()[i] = (uint32_t)(pages.from(pages.id(slot, pos / NIB_KV_PAGE_TOKENS), NIB_GPU_QKV) / LINE) + pos % NIB_KV_PAGE_TOKENS;
            }
    }

    __device__ __forceinline__ uint32_t know(uint32_t) const
    {
        return 0;
    }

    __device__ __forceinline__ void end(uint32_t, uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ batch_qkv_tile open(uint32_t tile, uint32_t first, uint32_t) const
    {
        const uint32_t head = tile / 4, dim = tile % 4 * 8 + threadIdx.x % 32 / 4, heads = m->heads, kv_heads = m->kv_heads;
        const bool there = head < heads + 2 * kv_heads, kv = head >= heads;
        const nib_gpu_ptr biases = m->layer[layer].qkv_bias;
        const uint32_t part = head - heads;
        const nib_gpu_ptr to = !kv         ? m->q + head * LINE
                               : m->kv_new ? m->kv_new + part * LINE
                                           : m->layer[layer].kv + (uint64_t)part * PAGE_HEAD_BYTES;
        return {m,
                at<const float>(m->rope) + dim,
                m->step_rows_max * 32,
                head,
                dim,
                first,
                at<uint8_t>(to),
                !kv ? heads * LINE : m->kv_new ? 2 * kv_heads * LINE : LINE,
                paged(head),
                there ? bf16_at(biases, head * NIB_HEAD_DIM + dim) : 0,
                there ? bf16_at(biases, head * NIB_HEAD_DIM + dim + 32) : 0};
    }
};

/* x += y + b */
struct batch_out_tile {
    float *x; /* of row 0; output row g of the tile */
    uint32_t hidden;
    bool there[2];
    float bias[2];

    struct held {
        float old[4];
    };

    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&h)[COUNT], uint32_t row, uint32_t step, uint32_t end) const
    {
#pragma unroll
        for (uint32_t j = 0; j < COUNT; j++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                h[j].old[i] = there[i / 2] ? x[(uint64_t)min(row + j * step + i % 2, end - 1) * hidden + i / 2 * 8] : 0;
    }

    __device__ __forceinline__ void put(const held &h, uint32_t row, uint32_t end, const float c[4]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (there[i / 2] && row + i % 2 < end)
                x[(uint64_t)(row + i % 2) * hidden + i / 2 * 8] = h.old[i] + (c[i] + bias[i / 2]);
    }
};

struct batch_out_done {
    const struct nib_gpu_machine *m;
    uint32_t layer;

    static constexpr bool places = false;

    __device__ __forceinline__ void begin(uint32_t, uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ uint32_t know(uint32_t) const
    {
        return 0;
    }

    __device__ __forceinline__ void end(uint32_t, uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ batch_out_tile open(uint32_t tile, uint32_t, uint32_t) const
    {
        const uint32_t hidden = m->hidden, n = tile * CU_TILE + threadIdx.x % 32 / 4;
        const nib_gpu_ptr biases = m->layer[layer].out_bias;
        return {at<float>(m->x) + n, hidden, {n < hidden, n + 8 < hidden},
                {n < hidden ? bf16_at(biases, n) : 0, n + 8 < hidden ? bf16_at(biases, n + 8) : 0}};
    }
};

/* Logits; of bf13 times 2^(base - 96). */
template <class Form> struct batch_head_tile : done_head {
    uint32_t tile, base;

    struct held {
    };

    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&)[COUNT], uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ void put(const held &, uint32_t row, uint32_t end, const float c[4]) const
    {
        if constexpr (std::is_same<Form, weights_bf13>::value) {
            const float scale = bf13_scale(base), scaled[4] = {c[0] * scale, c[1] * scale, c[2] * scale, c[3] * scale};
            done_head::operator()(tile, row, end, scaled);
        } else {
            done_head::operator()(tile, row, end, c);
        }
    }
};

template <class Form> struct batch_head_done {
    const struct nib_gpu_machine *m;

    static constexpr bool places = false;

    __device__ __forceinline__ void begin(uint32_t, uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ uint32_t know(uint32_t tile) const
    {
        if constexpr (std::is_same<Form, weights_bf13>::value)
            return batch_head_base(m, tile);
        return 0;
    }

    __device__ __forceinline__ batch_head_tile<Form> open(uint32_t tile, uint32_t, uint32_t base) const
    {
        return {{m}, tile, base};
    }

    /* What put() left is not so. */
    __device__ __forceinline__ void end(uint32_t tile, uint32_t first, uint32_t rows, uint32_t base) const
    {
        if constexpr (std::is_same<Form, weights_bf13>::value)
            if (base == CU_BF13_WIDE)
                batch_wide(m, tile, first, rows);
    }
};
