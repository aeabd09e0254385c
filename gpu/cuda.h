/* gpu/cuda.h: the part of the CUDA Driver API that is used, as prototypes and constants of our own.
 *
 * Source: CUDA Driver API manual (types, enums, entry points and the version each prototype appeared in). Nothing of the
 * toolkit is needed to build or run the host code. NIB_CUDA_CALLS is the one list of entry points: gpu/driver.h makes its
 * table of wrappers from it, and what stands in for libcuda in tests implements it.
 *
 * Results are `int` (CUresult): 0 is success. Handles are pointers to structs that nobody defines. */
#ifndef NIB_GPU_CUDA_H
#define NIB_GPU_CUDA_H

#include <stddef.h>
#include <stdint.h>

enum nib_cu_result {
    NIB_CU_SUCCESS = 0,
    NIB_CU_INVALID_VALUE = 1,
    NIB_CU_OUT_OF_MEMORY = 2,
    NIB_CU_NOT_INITIALIZED = 3,
    NIB_CU_STUB_LIBRARY = 34,
    NIB_CU_DEVICE_UNAVAILABLE = 46,
    NIB_CU_NO_DEVICE = 100,
    NIB_CU_INVALID_IMAGE = 200,
    NIB_CU_NO_BINARY_FOR_GPU = 209,
    NIB_CU_ECC_UNCORRECTABLE = 214,
    NIB_CU_INVALID_PTX = 218,
    NIB_CU_NVLINK_UNCORRECTABLE = 220,
    NIB_CU_JIT_COMPILER_NOT_FOUND = 221,
    NIB_CU_UNSUPPORTED_PTX_VERSION = 222,
    NIB_CU_CONTAINED = 226,
    NIB_CU_NOT_FOUND = 500,
    NIB_CU_NOT_READY = 600,
    NIB_CU_ILLEGAL_ADDRESS = 700,
    NIB_CU_LAUNCH_OUT_OF_RESOURCES = 701,
    NIB_CU_LAUNCH_TIMEOUT = 702,
    NIB_CU_HARDWARE_STACK_ERROR = 714,
    NIB_CU_LAUNCH_FAILED = 719,
    NIB_CU_NOT_PERMITTED = 800,
    NIB_CU_SYSTEM_NOT_READY = 802,
    NIB_CU_SYSTEM_DRIVER_MISMATCH = 803,
    NIB_CU_COMPAT_NOT_SUPPORTED = 804,
    NIB_CU_UNKNOWN = 999
};

/* CUdevice_attribute */
enum nib_cu_device_attribute {
    NIB_CU_DEV_SMS = 16,
    NIB_CU_DEV_INTEGRATED = 18,
    NIB_CU_DEV_ECC = 32,
    NIB_CU_DEV_MEMORY_CLOCK_KHZ = 36,
    NIB_CU_DEV_MEMORY_BUS_BITS = 37,
    NIB_CU_DEV_L2_BYTES = 38,
    NIB_CU_DEV_CC_MAJOR = 75,
    NIB_CU_DEV_CC_MINOR = 76,
    NIB_CU_DEV_SHARED_OPTIN_BYTES = 97
};

/* CUfunction_attribute */
enum nib_cu_func_attribute {
    NIB_CU_FUNC_MAX_THREADS = 0,
    NIB_CU_FUNC_SHARED_BYTES = 1, /* static */
    NIB_CU_FUNC_LOCAL_BYTES = 3,
    NIB_CU_FUNC_REGS = 4,
    NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES = 8
};

/* CUjit_option */
enum nib_cu_jit_option { NIB_CU_JIT_ERROR_LOG = 5, NIB_CU_JIT_ERROR_LOG_BYTES = 6 };

#define NIB_CU_HOST_PORTABLE       1u /* CU_MEMHOSTALLOC_* */
#define NIB_CU_HOST_MAPPED         2u
#define NIB_CU_STREAM_NON_BLOCKING 1u
#define NIB_CU_EVENT_DEFAULT       0u
#define NIB_CU_EVENT_NO_TIMING     2u
#define NIB_CU_CTX_SCHED_YIELD     2u
#define NIB_CU_CAPTURE_RELAXED     2  /* CUstreamCaptureMode */
#define NIB_CU_ATTR_CLUSTER        4u /* CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION */
#define NIB_CU_ATTR_OVERLAP        6u /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */

typedef uint64_t nib_cu_ptr; /* CUdeviceptr */

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;

/* CUlaunchAttribute */
struct nib_cu_launch_attribute {
    uint32_t id;
    uint32_t pad;
    union {
        char bytes[64];
        int on;             /* of NIB_CU_ATTR_OVERLAP */
        unsigned blocks[3]; /* of NIB_CU_ATTR_CLUSTER */
    } value;
};

/* CUlaunchConfig */
struct nib_cu_launch_config {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes; /* dynamic */
    struct CUstream_st *stream;
    struct nib_cu_launch_attribute *attributes;
    unsigned attributes_count;
};

_Static_assert(sizeof(struct nib_cu_launch_attribute) == 72, "CUlaunchAttribute");
_Static_assert(sizeof(struct nib_cu_launch_config) == 56, "CUlaunchConfig");

/* X(name, version of CUDA x 1000 that has this prototype, parameters) */
/* clang-format off */
#define NIB_CUDA_CALLS(X) \
    X(cuInit, 2000, (unsigned flags)) \
    X(cuDriverGetVersion, 2020, (int *version)) \
    X(cuGetErrorName, 6000, (int result, const char **name)) \
    X(cuDeviceGetCount, 2000, (int *count)) \
    X(cuDeviceGet, 2000, (int *device, int ordinal)) \
    X(cuDeviceGetName, 2000, (char *name, int bytes, int device)) \
    X(cuDeviceGetAttribute, 2000, (int *value, int attribute, int device)) \
    X(cuDeviceGetPCIBusId, 4010, (char *id, int bytes, int device)) \
    X(cuDevicePrimaryCtxSetFlags, 11000, (int device, unsigned flags)) \
    X(cuDevicePrimaryCtxRetain, 7000, (struct CUctx_st **ctx, int device)) \
    X(cuDevicePrimaryCtxRelease, 11000, (int device)) \
    X(cuCtxSetCurrent, 4000, (struct CUctx_st *ctx)) \
    X(cuMemGetInfo, 3020, (size_t *free_bytes, size_t *total_bytes)) \
    X(cuMemAlloc, 3020, (nib_cu_ptr *ptr, size_t bytes)) \
    X(cuMemFree, 3020, (nib_cu_ptr ptr)) \
    X(cuMemHostAlloc, 2020, (void **ptr, size_t bytes, unsigned flags)) \
    X(cuMemFreeHost, 2000, (void *ptr)) \
    X(cuMemHostGetDevicePointer, 3020, (nib_cu_ptr *ptr, void *host, unsigned flags)) \
    X(cuMemcpyHtoDAsync, 3020, (nib_cu_ptr dst, const void *src, size_t bytes, struct CUstream_st *stream)) \
    X(cuMemcpyDtoHAsync, 3020, (void *dst, nib_cu_ptr src, size_t bytes, struct CUstream_st *stream)) \
    X(cuMemcpyDtoDAsync, 3020, (nib_cu_ptr dst, nib_cu_ptr src, size_t bytes, struct CUstream_st *stream)) \
    X(cuMemsetD8Async, 3020, (nib_cu_ptr dst, unsigned char value, size_t bytes, struct CUstream_st *stream)) \
    X(cuStreamCreate, 2000, (struct CUstream_st **stream, unsigned flags)) \
    X(cuStreamDestroy, 4000, (struct CUstream_st *stream)) \
    X(cuStreamQuery, 2000, (struct CUstream_st *stream)) \
    X(cuStreamBeginCapture, 10010, (struct CUstream_st *stream, int mode)) \
    X(cuStreamEndCapture, 10000, (struct CUstream_st *stream, struct CUgraph_st **graph)) \
    X(cuEventCreate, 2000, (struct CUevent_st **event, unsigned flags)) \
    X(cuEventRecord, 2000, (struct CUevent_st *event, struct CUstream_st *stream)) \
    X(cuEventQuery, 2000, (struct CUevent_st *event)) \
    X(cuEventElapsedTime, 2000, (float *ms, struct CUevent_st *from, struct CUevent_st *to)) \
    X(cuEventDestroy, 4000, (struct CUevent_st *event)) \
    X(cuModuleLoadDataEx, 2010, (struct CUmod_st **mod, const void *image, unsigned options_count, int *options, void **values)) \
    X(cuModuleUnload, 2000, (struct CUmod_st *mod)) \
    X(cuModuleGetFunction, 2000, (struct CUfunc_st **function, struct CUmod_st *mod, const char *name)) \
    X(cuFuncGetAttribute, 2020, (int *value, int attribute, struct CUfunc_st *function)) \
    X(cuFuncSetAttribute, 9000, (struct CUfunc_st *function, int attribute, int value)) \
    X(cuLaunchKernelEx, 11060, (const struct nib_cu_launch_config *config, struct CUfunc_st *function, void **arguments, void **extra)) \
    X(cuGraphInstantiateWithFlags, 11040, (struct CUgraphExec_st **exec, struct CUgraph_st *graph, unsigned long long flags)) \
    X(cuGraphUpload, 11010, (struct CUgraphExec_st *exec, struct CUstream_st *stream)) \
    X(cuGraphLaunch, 10000, (struct CUgraphExec_st *exec, struct CUstream_st *stream)) \
    X(cuGraphExecDestroy, 10000, (struct CUgraphExec_st *exec)) \
    X(cuGraphDestroy, 10000, (struct CUgraph_st *graph))
/* clang-format on */

/* How every other entry point is found; exported by libcuda under this name since CUDA 12.0. *status: 0 found, 1 not
 * found, 2 the driver is too old. */
#define NIB_CUDA_GET_PROC "cuGetProcAddress_v2"
typedef int nib_cu_get_proc(const char *symbol, void **function, int version, uint64_t flags, int *status);

#endif
