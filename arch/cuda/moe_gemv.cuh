/* arch/cuda/moe_gemv.cuh: expert products of decode rows. Work is a list of items (group of one expert's rows, tile); a block
 * takes an even, contiguous share and streams it as arch/cuda/gemv.cuh does. Activations are fp16, weights E2M1 as fp16;
 * each block of 32 inputs is summed alone and then scaled, so that every E8M0 scale is exact. */
#pragma once
#include "arch/cuda/gemv.cuh"

template <int WARPS, int RING> struct mx_stream {
    nib_gpu_ptr weights;
    const struct cu_group *groups; /* in shared memory */
    uint64_t bytes, scales_at;     /* of a matrix; in it */
    const uint8_t *codes, *scales; /* next unit to copy, this lane's */
    uint64_t policy;
    uint32_t tiles, units, u0, per, item, unit, end;
    uint32_t ring, head, tail;

    __device__ __forceinline__ void seek()
    {
        const uint64_t u = (uint64_t)(item % tiles) * units + u0;
        const nib_gpu_ptr matrix = weights + groups[item / tiles].expert * bytes;
        codes = at<const uint8_t>(matrix, u * CU_MX_BYTES + threadIdx.x % 32 * 16);
        scales = at<const uint8_t>(matrix, scales_at + u * CU_MX_SCALES + threadIdx.x % 32 / 4 * 4);
    }

    __device__ __forceinline__ void open(uint32_t first, uint32_t last, uint32_t ring_at)
    {
        const uint32_t warp = threadIdx.x / 32;
        u0 = unit_first<WARPS>(units, warp);
        per = unit_first<WARPS>(units, warp + 1) - u0;
        item = first;
        end = per ? last : first;
        unit = 0;
        ring = ring_at;
        head = tail = 0;
        policy = stream_policy();
        if (item < end)
            seek();
#pragma unroll
        for (int i = 0; i < RING - 1; i++)
            push();
    }

    __device__ __forceinline__ void push()
    {
        if (item < end) {
            const uint32_t lane = threadIdx.x % 32;
            copy16_stream(ring + head + lane * 16, codes, policy);
            copy4(ring + head + CU_MX_BYTES + lane * 4, scales);
            codes += CU_MX_BYTES;
            scales += CU_MX_SCALES;
            if (++unit == per) {
                unit = 0;
                if (++item < end)
                    seek();
            }
        }
        head = head == (RING - 1) * CU_MX_STAGE ? 0 : head + CU_MX_STAGE;
        copy_commit();
    }

    __device__ __forceinline__ void pop(uint4 &codes_now, uint32_t &scales_now)
    {
        const uint32_t lane = threadIdx.x % 32;
        copy_wait<RING - 2>();
        codes_now = lds16(ring + tail + lane * 16);
        scales_now = lds4(ring + tail + CU_MX_BYTES + lane * 4);
        tail = tail == (RING - 1) * CU_MX_STAGE ? 0 : tail + CU_MX_STAGE;
        push();
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

template <int NT, int WARPS, int RING>
__device__ __forceinline__ void mx_tile(mx_stream<WARPS, RING> &s, const gemv_shared &sh, uint32_t rows, float acc[NT][4])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint32_t b_at = sh.acts + g * sh.stride + s.u0 * 128 + t * 16;
#pragma unroll
    for (int n = 0; n < NT; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    for (uint32_t u = 0; u < s.per; u++, b_at += 128) {
        uint4 codes, b0[NT], b1[NT];
        uint32_t scales;
        s.pop(codes, scales);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            b0[n] = b1[n] = make_uint4(0, 0, 0, 0);
            if (n * 8 + g < rows) {
                b0[n] = lds16(b_at + n * 8 * sh.stride);
                b1[n] = lds16(b_at + n * 8 * sh.stride + 64);
            }
        }
        mx_block<NT>(codes.x, codes.y, mx_scale(scales & 0xff), mx_scale(scales >> 16 & 0xff), b0, acc);
        mx_block<NT>(codes.z, codes.w, mx_scale(scales >> 8 & 0xff), mx_scale(scales >> 24), b1, acc);
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

/* Items [first, last) of one group. */
template <int NT, int WARPS, int RING, class Done>
__device__ __forceinline__ void mx_pass(mx_stream<WARPS, RING> &s, const gemv_shared &sh, const struct cu_group &group,
                                        uint32_t first, uint32_t last, Done done)
{
    for (uint32_t i = first; i < last; i++) {
        float acc[NT][4], c[4];
        mx_tile<NT, WARPS, RING>(s, sh, group.count, acc);
        if (gather_sums<NT, WARPS>(sh, i - first, acc, c))
            done(group.expert, i % s.tiles, group.place + gathered_row<NT, WARPS>(i - first), group.place + group.count, c);
    }
}

/* from(place): its row of activations. done(expert, tile, place, end, c). */
template <class From, class Done>
__device__ __forceinline__ void moe_gemv(const struct nib_gpu_machine *m, nib_gpu_ptr w, uint32_t n, uint32_t k, From from,
                                         Done done)
{
    __shared__ struct cu_group groups[CU_GROUPS_MAX];
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
    __syncthreads();
    const uint32_t items = count * s.tiles;
    const uint32_t first = (uint32_t)((uint64_t)items * blockIdx.x / gridDim.x);
    const uint32_t last = (uint32_t)((uint64_t)items * (blockIdx.x + 1) / gridDim.x);
    s.open(first, last, sh.ring);
    for (uint32_t i = first; i < last;) {
        const struct cu_group group = groups[i / s.tiles];
        const uint32_t stop = min(last, (i / s.tiles + 1) * s.tiles);
        gemv_rows<CU_GEMV_WARPS>(sh, group.count, CU_MX_RING * CU_MX_STAGE);
        mx_acts(sh, group, k, from);
        __syncthreads();
        if (CU_GEMV_ROWS <= 8 || group.count <= 8)
            mx_pass<1, CU_GEMV_WARPS, CU_MX_RING>(s, sh, group, i, stop, done);
        else
            mx_pass<2, CU_GEMV_WARPS, CU_MX_RING>(s, sh, group, i, stop, done);
        __syncthreads();
        i = stop;
    }
    copy_wait<0>();
}
