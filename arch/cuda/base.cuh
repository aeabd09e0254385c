/* arch/cuda/base.cuh: what every kernel uses: addresses, copies to shared memory, mma, the overlap of launches.
 * NIB_SM is the folder's compute capability times ten; nothing here needs more than sm_80 unless it says so. */
#pragma once
#define _Noreturn [[noreturn]]
#include "arch/cuda/layout.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define KERNEL(name, threads, blocks)                                                                                  \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                                      \
        nib_gpu_##name(const struct nib_gpu_machine *__restrict__ m, uint32_t layer)

template <class T> __device__ __forceinline__ T *at(nib_gpu_ptr p, uint64_t bytes = 0)
{
    return (T *)(p + bytes);
}

/* The op before this one has ended and its writes are seen. Every thread calls it before it reads or writes anything but
 * weights; the next op may then be launched beside this one. */
__device__ __forceinline__ void overlap_wait()
{
#if NIB_SM >= 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void overlap_next()
{
#if NIB_SM >= 90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Weights: read once a step. */
__device__ __forceinline__ uint64_t stream_policy()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy16_stream(uint32_t dst, const void *src, uint64_t policy)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "l"(policy)
                 : "memory");
}

/* The same, or zeros. */
__device__ __forceinline__ void copy16_stream(uint32_t dst, const void *src, uint64_t policy, bool there)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(dst), "l"(src), "r"(there ? 16 : 0), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void copy4_stream(uint32_t dst, const void *src, uint64_t policy)
{
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "l"(policy) : "memory");
}

#if NIB_SM >= 90
/* The mbarrier at `bar` is arrived at, and done when `bytes` have come, too. */
__device__ __forceinline__ void bulk_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/* `bytes`, a multiple of 16, to shared memory; they come to the mbarrier. */
__device__ __forceinline__ void copy_bulk(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                 "[%3], %4;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

/* The same without a policy: what is read again. */
__device__ __forceinline__ void copy_bulk(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst), "l"(src),
                 "r"(bytes), "r"(bar)
                 : "memory");
}

/* `bytes`, a multiple of 16, to the second-level cache. */
__device__ __forceinline__ void prefetch_bulk(const void *src, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(src), "r"(bytes) : "memory");
}

/* One thread: an mbarrier that so many arrivals complete, and the bytes expected. */
template <int ARRIVALS> __device__ __forceinline__ void bulk_init(uint32_t bar)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "n"(ARRIVALS) : "memory");
}

__device__ __forceinline__ void bulk_init(uint32_t bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

/* Behind the last bulk_init, by the same thread, before a barrier of the block: copies and the cluster's other blocks see them, too. */
__device__ __forceinline__ void bulk_inited()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* One thread, before a barrier of the block: an mbarrier that one arrival and the bytes expected with it complete. */
__device__ __forceinline__ void bulk_open(uint32_t bar)
{
    bulk_init<1>(bar);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void bulk_wait(uint32_t bar, uint32_t parity)
{
    asm volatile("{\n.reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/* One arrival at an mbarrier, by this thread. */
__device__ __forceinline__ void bulk_arrive_one(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* By one warp, all lanes. */
__device__ __forceinline__ void bulk_arrive(uint32_t bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        bulk_arrive_one(bar);
}
#endif

/* 16 bytes, or zeros. */
__device__ __forceinline__ void copy16(uint32_t dst, const void *src, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ uint4 lds16(uint32_t p)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p));
    return v;
}

__device__ __forceinline__ void sts16(uint32_t p, uint4 v)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ uint32_t lds4(uint32_t p)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(p));
    return v;
}

__device__ __forceinline__ uint32_t lds2(uint32_t p)
{
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(p));
    return v;
}

__device__ __forceinline__ uint2 lds8(uint32_t p)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(p));
    return v;
}

/* d += a b; a 16 x 16, b 16 x 8. */
__device__ __forceinline__ void mma_bf16(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_fp16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* d = a b */
__device__ __forceinline__ void mma_fp16_zero(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/* Two k-steps of a bf16 tile: weights as they lie, activations 16 bytes. */
__device__ __forceinline__ void mma_unit(float d[4], uint4 w0, uint4 w1, uint4 b)
{
    mma_bf16(d, w0.x, w0.y, w0.z, w0.w, b.x, b.y);
    mma_bf16(d, w1.x, w1.y, w1.z, w1.w, b.z, b.w);
}

/* A word of eight E2M1 codes to a fragment of fp16, each value times 2^-14 (its half step is then a subnormal, exact). Which bits are where (arch/cuda/layout.h)
 * is chosen for few instructions: a mask and a moved copy of the word a register. */
__device__ __forceinline__ void mx_fragment(uint32_t w, uint32_t a[4])
{
    a[0] = w << 6 & 0x8e008e00u;
    a[1] = w << 9 & 0x8e008e00u;
    a[2] = (w ^ w >> 3) & 0x8e008e00u;
    a[3] = (w ^ w << 2) & 0x8e008e00u;
}
#define MX_UNSCALE 16384.0f /* 2^14 */

/* Scale I of a word of four E8M0 codes (arch/cuda/layout.h): 2^(code - 127); 0 for code 0, as what 2^-127 adds to is not worth an instruction in twenty
 * of every expert's product; 255 as infinity, which mx_finish makes a NaN. */
template <int I> __device__ __forceinline__ float mx_scale(uint32_t codes)
{
    return __uint_as_float((I == 0 ? __funnelshift_l(codes, codes, 24) : codes << (24 - 8 * I)) & 0x7f800000u);
}

/* Code I itself. */
template <int I> __device__ __forceinline__ uint32_t mx_code(uint32_t codes)
{
    return __funnelshift_l(codes, codes, 1) >> 8 * I & 0xff;
}

/* The scales of a block of a unit, the first or the second half: of rows g and g + 8. */
__device__ __forceinline__ void mx_scales(uint32_t codes, bool half, float ret[2])
{
    ret[0] = half ? mx_scale<1>(codes) : mx_scale<0>(codes);
    ret[1] = half ? mx_scale<3>(codes) : mx_scale<2>(codes);
}

/* A finished sum. */
__device__ __forceinline__ float mx_finish(float sum)
{
    sum *= MX_UNSCALE;
    return fabsf(sum) < INFINITY ? sum : NAN;
}

__device__ __forceinline__ uint32_t dynamic_shared_bytes()
{
    uint32_t bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}

/* A field of the machine block, read here and not where it is used, behind a wait, whither the compiler would move it. From the first-level cache: a
 * volatile read goes to the second level for each warp. But an address that asm is given may be anybody's for the compiler: whatever else such a kernel reads
 * of the block it reads again behind each wait and barrier. */
__device__ __forceinline__ uint64_t read_now(const uint64_t &field)
{
    uint64_t v;
    asm volatile("ld.global.b64 %0, [%1];" : "=l"(v) : "l"(&field));
    return v;
}

__device__ __forceinline__ uint32_t read_now(const uint32_t &field)
{
    uint32_t v;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(&field));
    return v;
}

__device__ __forceinline__ float bf16_at(nib_gpu_ptr p, uint64_t i)
{
    return __bfloat162float(at<const __nv_bfloat16>(p)[i]);
}

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&v;
}

__device__ __forceinline__ uint32_t pack_fp16(float lo, float hi)
{
    __half2 v = __floats2half2_rn(lo, hi);
    return *(uint32_t *)&v;
}

__device__ __forceinline__ struct nib_gpu_step *step_of(const struct nib_gpu_machine *m)
{
    return at<struct nib_gpu_step>(m->step);
}

/* The step is void: its input was impossible. Later ops still run, inside their bounds. */
__device__ __forceinline__ void fault(const struct nib_gpu_machine *m, enum nib_gpu_op op)
{
    *(volatile uint32_t *)&step_of(m)->fault = (uint32_t)op;
}

/* Four bf16. */
__device__ __forceinline__ float4 bf16_four(uint2 w)
{
    return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u), __uint_as_float(w.y << 16),
                       __uint_as_float(w.y & 0xffff0000u));
}

/* x scale w: a norm, rounded the same way wherever it is used. */
__device__ __forceinline__ float4 normed(float4 x, float scale, float4 w)
{
    return make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w);
}

/* The scale of a norm, from the sum of squares. */
__device__ __forceinline__ float norm_scale(float squares, uint32_t hidden)
{
    return 1.0f / sqrtf(squares / (float)hidden + NIB_RMS_EPS);
}

/* Sum of squares of four numbers; rounded the same way wherever it is used. */
__device__ __forceinline__ float square4(float4 v)
{
    return __fadd_rn(__fmaf_rn(v.x, v.x, __fmul_rn(v.y, v.y)), __fmaf_rn(v.z, v.z, __fmul_rn(v.w, v.w)));
}

/* The smaller or the larger of two; NaN when one is. */
__device__ __forceinline__ float min_nan(float a, float b)
{
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

__device__ __forceinline__ float max_nan(float a, float b)
{
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

/* x / d, rounded as the operator does, for d of at least 1: what it does where neither is far from 1, without a branch. */
__device__ __forceinline__ float divide_plain(float x, float d)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    r = __fmaf_rn(r, __fmaf_rn(-d, r, 1.0f), r);
    float q = __fmul_rn(x, r);
    q = __fmaf_rn(__fmaf_rn(-d, q, x), r, q);
    return __fmaf_rn(__fmaf_rn(-d, q, x), r, q);
}

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

/* Where the pages of a layer lie. */
struct layer_pages {
    const struct nib_gpu_machine *m;
    bool ring;
    uint32_t each, count; /* of a slot; ids are below it */
    nib_gpu_ptr tables;
    uint64_t stride;

    __device__ __forceinline__ layer_pages(const struct nib_gpu_machine *machine, uint32_t layer)
        : m(machine), ring(layer % 2 == 0), each(ring ? machine->ring_pages : machine->ctx_pages), count(machine->kv_pages),
          tables(machine->tables), stride(machine->page_stride)
    {
    }

    /* Which of them holds a page of a slot's positions. */
    __device__ __forceinline__ uint32_t id(uint32_t slot, uint32_t page) const
    {
        return ring ? slot * each + page % each : at<const uint32_t>(tables)[(uint64_t)slot * each + page];
    }

    /* In bytes from the layer's first; a broken table entry is a fault and page 0. */
    __device__ __forceinline__ uint64_t from(uint32_t id, enum nib_gpu_op op) const
    {
        if (!ring && id >= count) {
            fault(m, op);
            id = 0;
        }
        return id * stride;
    }
};

__device__ __forceinline__ uint64_t page_at(const struct nib_gpu_machine *m, uint32_t layer, uint32_t slot, uint32_t page,
                                            enum nib_gpu_op op)
{
    const layer_pages pages(m, layer);
    return pages.from(pages.id(slot, page), op);
}

#define PAGE_HEAD_BYTES (NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM * 2) /* keys, or values, of one head in a page */

/* A row of `acts` in 16 bytes. */
__device__ __forceinline__ uint32_t acts_stride16(const struct nib_gpu_machine *m)
{
    return max(m->hidden, m->heads * NIB_HEAD_DIM) / 8;
}

/* A row of `acts`. */
__device__ __forceinline__ uint8_t *acts_row(const struct nib_gpu_machine *m, uint32_t row)
{
    return at<uint8_t>(m->acts, (uint64_t)row * acts_stride16(m) * 16);
}

/* Brings constants that are read after overlap_wait into the cache before it; a thread a line of 128 bytes. */
__device__ __forceinline__ void prefetch(nib_gpu_ptr p, uint32_t bytes)
{
    for (uint32_t i = threadIdx.x * 128; i < bytes; i += blockDim.x * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i));
}

/* Adds n and returns the sum. What the thread wrote before, and its block before a barrier, is seen by who adds later, and by whom that one then meets at a
 * barrier: one fence, of the weaker kind, where an atomic between two __threadfence has two of the stronger. */
__device__ __forceinline__ uint32_t counted(uint32_t *sum, uint32_t n = 1)
{
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(sum), "r"(n) : "memory");
    return before + n;
}

/* Parts of `route`. */
__device__ __forceinline__ struct cu_route *route_head(const struct nib_gpu_machine *m)
{
    return at<struct cu_route>(m->route);
}

__device__ __forceinline__ float *route_logits(const struct nib_gpu_machine *m)
{
    return at<float>(m->route, cu_route_logits_at());
}

/* which: 0 expert, 1 weight (fp32), 2 place of (row, choice); 3 row of a place */
__device__ __forceinline__ uint32_t *route_array(const struct nib_gpu_machine *m, uint32_t which)
{
    return at<uint32_t>(m->route, cu_route_expert_at(m->step_rows_max, m->experts) + which * cu_route_array(m->step_rows_max));
}
