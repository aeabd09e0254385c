/* arch/cuda/moe_gemv.cuh: expert products of decode rows. Work is a list of items (group of one expert's rows, tile); a block
 * takes an even, contiguous share and streams it as arch/cuda/gemv.cuh does. Activations are fp16, weights E2M1 as fp16;
 * each block of 32 inputs is summed alone and then scaled, so that every E8M0 scale is exact. */
#pragma once
#include "arch/cuda/gemv.cuh"

/* A stage of the ring is a span: up to CU_MX_SPAN units of a warp's share of one item, codes and then scales. */
template <int WARPS, int RING> struct mx_stream {
    nib_gpu_ptr weights;
    const struct cu_group *groups; /* in shared memory */
    uint64_t bytes, scales_at;     /* of a matrix; in it */
    const uint8_t *codes, *scales; /* next span to copy, this lane's */
    uint64_t policy;
    uint32_t tiles, units, u0, per, left; /* left: items not begun or not all copied */
    uint32_t group, tile, unit;           /* of the next span */
    uint32_t ring, head, tail;

    __device__ __forceinline__ void seek()
    {
        const uint32_t lane = threadIdx.x % 32;
        const uint64_t u = (uint64_t)tile * units + u0;
        const nib_gpu_ptr matrix = weights + groups[group].expert * bytes;
        codes = at<const uint8_t>(matrix, u * CU_MX_BYTES + lane * 16);
        scales = at<const uint8_t>(matrix, scales_at + u * CU_MX_SCALES + lane * 16);
    }

    __device__ __forceinline__ void open(uint32_t first, uint32_t last, uint32_t ring_at)
    {
        const uint32_t warp = threadIdx.x / 32;
        u0 = unit_first<WARPS>(units, warp);
        per = unit_first<WARPS>(units, warp + 1) - u0;
        left = per ? last - first : 0;
        group = first / tiles;
        tile = first % tiles;
        unit = 0;
        ring = ring_at;
        head = tail = 0;
        policy = stream_policy();
        if (left)
            seek();
#pragma unroll
        for (int i = 0; i < RING - 1; i++)
            push();
    }

    __device__ __forceinline__ void push()
    {
        if (left) {
            const uint32_t lane = threadIdx.x % 32, n = min(per - unit, (uint32_t)CU_MX_SPAN), to = ring + head;
#pragma unroll
            for (uint32_t i = 0; i < CU_MX_SPAN; i++)
                if (i < n)
                    copy16_stream(to + i * CU_MX_BYTES + lane * 16, codes + i * CU_MX_BYTES, policy);
            if (lane < 2 * n)
                copy16_stream(to + CU_MX_SPAN * CU_MX_BYTES + lane * 16, scales, policy);
            codes += n * CU_MX_BYTES;
            scales += n * CU_MX_SCALES;
            unit += n;
            if (unit == per)
                next();
        }
        head = head == (RING - 1) * CU_MX_STAGE ? 0 : head + CU_MX_STAGE;
        copy_commit();
    }

    __device__ __forceinline__ void next()
    {
        unit = 0;
        left--;
        codes += (units - per) * CU_MX_BYTES;
        scales += (units - per) * CU_MX_SCALES;
        if (++tile == tiles) {
            tile = 0;
            group++;
            if (left)
                seek();
        }
    }

    /* Shared address of the next span; the place of the one before is filled again. */
    __device__ __forceinline__ uint32_t pop()
    {
        copy_wait<RING - 2>();
        __syncwarp(); /* lanes read scales that other lanes copied */
        const uint32_t now = ring + tail;
        tail = tail == (RING - 1) * CU_MX_STAGE ? 0 : tail + CU_MX_STAGE;
        push();
        return now;
    }
};

/* acc += scaled products of a block of 32 inputs: two words of codes, the scale codes of rows g and g + 8. */
template <int NT>
__device__ __forceinline__ void mx_block(uint32_t w0, uint32_t w1, float scale0, float scale1, const uint4 b[NT],
                                         float acc[NT][4])
{
    uint32_t a0[4], a1[4];
    mx_fragment(w0, a0);
    mx_fragment(w1, a1);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float block[4];
        mma_fp16_zero(block, a0, b[n].x, b[n].y);
        mma_fp16(block, a1, b[n].z, b[n].w);
        acc[n][0] += scale0 * block[0];
        acc[n][1] += scale0 * block[1];
        acc[n][2] += scale1 * block[2];
        acc[n][3] += scale1 * block[3];
    }
}

/* A unit at `from` in shared memory, its scales at `scales`; b: activations of its two blocks. */
template <int NT>
__device__ __forceinline__ void mx_unit(uint32_t from, uint32_t scales, const uint4 b0[NT], const uint4 b1[NT], float acc[NT][4])
{
    const uint32_t lane = threadIdx.x % 32;
    const uint4 codes = lds16(from + lane * 16);
    const uint32_t s = lds4(scales + lane / 4 * 4);
    mx_block<NT>(codes.x, codes.y, mx_scale<0>(s), mx_scale<2>(s), b0, acc);
    mx_block<NT>(codes.z, codes.w, mx_scale<1>(s), mx_scale<3>(s), b1, acc);
}

/* This lane's activations: `at` a row's part of the warp's first unit, `step` from unit to unit. A lane whose row is not there
 * reads one place that holds zeros. */
template <int NT> struct mx_lane {
    uint32_t at[NT], step[NT];

    __device__ __forceinline__ mx_lane(const gemv_shared &sh, uint32_t u0, uint32_t rows, uint32_t zeros)
    {
        const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const bool there = n * 8 + g < rows;
            at[n] = there ? sh.acts + (n * 8 + g) * sh.stride + u0 * 128 + threadIdx.x % 4 * 16 : zeros;
            step[n] = there ? 128 : 0;
        }
    }
};

/* This warp's share of an item. */
template <int NT, int WARPS, int RING>
__device__ __forceinline__ void mx_tile(mx_stream<WARPS, RING> &s, const mx_lane<NT> &from_acts, float acc[NT][4])
{
    uint32_t at_acts[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        at_acts[n] = from_acts.at[n];
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    }
    for (uint32_t u = 0; u < s.per; u += CU_MX_SPAN) {
        const uint32_t from = s.pop(), n = min(s.per - u, (uint32_t)CU_MX_SPAN);
#pragma unroll
        for (uint32_t i = 0; i < CU_MX_SPAN; i++) {
            if (i >= n)
                break;
            uint4 b0[NT], b1[NT];
#pragma unroll
            for (int k = 0; k < NT; k++) {
                b0[k] = lds16(at_acts[k]);
                b1[k] = lds16(at_acts[k] + from_acts.step[k] / 2);
                at_acts[k] += from_acts.step[k];
            }
            mx_unit<NT>(from + i * CU_MX_BYTES, from + CU_MX_SPAN * CU_MX_BYTES + i * CU_MX_SCALES, b0, b1, acc);
        }
    }
}

/* Activations of a group, k 16-bit numbers a row, and zeros up to a whole unit. */
template <class From>
__device__ __forceinline__ void mx_acts(const gemv_shared &sh, const struct cu_group &group, uint32_t k, From from)
{
    const uint32_t chunks = CU_DIV_UP(k, CU_MX_UNIT) * 8, there = k / 8;
    for (uint32_t r = 0; r < group.count; r++) {
        const uint8_t *src = (const uint8_t *)from(group.place + r);
        for (uint32_t c = threadIdx.x; c < chunks; c += blockDim.x) {
            const uint4 v = c < there ? *(const uint4 *)(src + c * 16) : make_uint4(0, 0, 0, 0);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(sh.acts + r * sh.stride + c * 16), "r"(v.x),
                         "r"(v.y), "r"(v.z), "r"(v.w)
                         : "memory");
        }
    }
}

/* `count` items of one group from `tile` on. */
template <int NT, int WARPS, int RING, class Done>
__device__ __forceinline__ void mx_pass(mx_stream<WARPS, RING> &s, const gemv_shared &sh, const struct cu_group &group,
                                        uint32_t tile, uint32_t count, uint32_t zeros, const Done &done)
{
    const mx_lane<NT> acts(sh, s.u0, group.count, zeros);
    for (uint32_t i = 0; i < count; i++) {
        float acc[NT][4], c[4];
        const uint32_t row = gathered_row<NT, WARPS>(i);
        const float2 bias = row < NT * 8 ? done.bias(group.expert, tile + i) : make_float2(0, 0);
        mx_tile<NT, WARPS, RING>(s, acts, acc);
        if (gather_sums<NT, WARPS>(sh, i, acc, c))
            done(tile + i, group.place + row + threadIdx.x % 4 * 2, group.place + group.count, c, bias);
    }
}

/* from(place): its row of activations. */
template <class From, class Done>
__device__ __forceinline__ void moe_gemv(const struct nib_gpu_machine *m, nib_gpu_ptr w, uint32_t n, uint32_t k, From from,
                                         Done done)
{
    __shared__ struct cu_group groups[CU_GROUPS_MAX];
    __shared__ uint4 zeros;
    /* a row's stride covers whole units */
    gemv_shared sh = gemv_carve<CU_GEMV_WARPS>(CU_DIV_UP(k, CU_MX_UNIT) * CU_MX_UNIT, CU_MX_RING * CU_MX_STAGE);
    overlap_next();
    mx_stream<CU_GEMV_WARPS, CU_MX_RING> s;
    s.weights = w;
    s.groups = groups;
    s.tiles = cu_tiles(n);
    s.units = CU_DIV_UP(k, CU_MX_UNIT);
    s.bytes = cu_mx_bytes(n, k);
    s.scales_at = cu_mx_scales_at(n, k);
    overlap_wait();
    const struct cu_route *route = route_head(m);
    const uint32_t count = min(route->groups, (uint32_t)CU_GROUPS_MAX);
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
        groups[i] = route->group[i];
    if (threadIdx.x == 0)
        zeros = make_uint4(0, 0, 0, 0);
    __syncthreads();
    const uint32_t items = count * s.tiles;
    const uint32_t first = (uint32_t)((uint64_t)items * blockIdx.x / gridDim.x);
    const uint32_t last = (uint32_t)((uint64_t)items * (blockIdx.x + 1) / gridDim.x);
    s.open(first, last, sh.ring);
    for (uint32_t i = first; i < last;) {
        const struct cu_group group = groups[i / s.tiles];
        const uint32_t tile = i % s.tiles, n = min(last - i, s.tiles - tile);
        gemv_rows<CU_GEMV_WARPS>(sh, group.count, CU_MX_RING * CU_MX_STAGE);
        mx_acts(sh, group, k, from);
        __syncthreads();
        if (CU_GEMV_ROWS > 8 && group.count > 8)
            mx_pass<2, CU_GEMV_WARPS, CU_MX_RING>(s, sh, group, tile, n, smem_at(&zeros), done);
        else
            mx_pass<1, CU_GEMV_WARPS, CU_MX_RING>(s, sh, group, tile, n, smem_at(&zeros), done);
        __syncthreads();
        i += n;
    }
    copy_wait<0>();
}
