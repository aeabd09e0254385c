/* tests/fake/fake.h: a libcuda on host memory, for tests only: one device, one context, real asynchrony.
 *
 * What is stricter than a GPU, so that mistakes show: device addresses cannot be touched by the host; pinned memory has
 * another address on the device; every byte of a fresh allocation is 0xff (NaN, a huge index); allocations lie between
 * guard pages. What would be undefined goes to stderr and into the report as a violation.
 *
 * Environment:
 *   NIBBLED_FAKE_PROFILE  the device's facts: a file of etc/profiles/ (required)
 *   NIBBLED_FAKE_FAULT    call:occurrence:what[:delay_ms], several separated by commas. `call` is an entry point
 *                         ("cuMemAlloc"), a kernel ("nib_gpu_attn") or "kernel" for any; with "@cubin" or
 *                         "@ptx" behind it only kernels of such an image, or its loading. `occurrence` is n (the n-th,
 *                         from 1), n+ (it and all later ones) or tK (the first once K tokens were sampled). `what` is a
 *                         CUresult, "hang", "late", "flip" (copies to the device: one bit; the last number picks it),
 *                         "wrong" (kernels: the result is spoilt; nib_gpu_sample with the last number 1 to 6: it is
 *                         one that cannot be), "missing" (the entry point is not there), "old" (cuDriverGetVersion: a
 *                         driver before CUDA 12)
 *   NIBBLED_FAKE_FILL_MIB how much of a large allocation's ends is filled with 0xff
 *   NIBBLED_FAKE_REPORT   a file that holds, at any time, how often each call was made (struct fake_report)
 *
 * One lock guards all state; one worker thread runs what streams hold. Cannot fail but as told. */
#ifndef NIB_TESTS_FAKE_FAKE_H
#define NIB_TESTS_FAKE_FAKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "arch/gpu_abi.h"
#include "core/profile.h"
#include "gpu/cuda.h"

#define FAKE_EXPORT __attribute__((visibility("default")))

/* The entry points, so that the compiler compares them with gpu/cuda.h. */
#define FAKE_PROTOTYPE(name, since, parameters) FAKE_EXPORT int name parameters;
NIB_CUDA_CALLS(FAKE_PROTOTYPE)
#undef FAKE_PROTOTYPE
FAKE_EXPORT nib_cu_get_proc cuGetProcAddress_v2;

/* Results that gpu/cuda.h has no use for. */
enum {
    FAKE_INVALID_CONTEXT = 201,
    FAKE_ILLEGAL_STATE = 401,
    FAKE_CAPTURE_UNSUPPORTED = 900,
    FAKE_INVALID_HANDLE = 400
};

/* Places a fault can be put at: entry points, then kernels, then any kernel. */
enum fake_site {
#define FAKE_SITE(name, since, parameters) FAKE_##name,
    NIB_CUDA_CALLS(FAKE_SITE)
#undef FAKE_SITE
        FAKE_CALLS,
    FAKE_OPS = FAKE_CALLS, /* + enum nib_gpu_op */
    FAKE_ANY_KERNEL = FAKE_OPS + NIB_GPU_OP_COUNT,
    FAKE_SITES
};

/* The report file. */
#define FAKE_REPORT_MAGIC 0x656b6166u
struct fake_report {
    uint32_t magic;
    uint32_t sites;      /* FAKE_SITES */
    uint32_t fired;      /* faults that happened */
    uint32_t stuck;      /* a call never returns: only another process can end this one */
    uint32_t violations; /* uses that a GPU would punish now or later */
    uint64_t tokens;     /* sampled */
    uint64_t steps;      /* finished */
    uint64_t device_bytes, pinned_bytes;
    int64_t objects; /* streams, events, modules, graphs that live */
    struct {
        char name[40];
        uint64_t count;
    } site[FAKE_SITES];
};

/* What an enqueued piece of work is. */
enum fake_work_kind { FAKE_TO_DEVICE, FAKE_TO_HOST, FAKE_WITHIN, FAKE_FILL, FAKE_KERNEL, FAKE_GRAPH, FAKE_EVENT };

struct fake_work {
    enum fake_work_kind kind;
    nib_cu_ptr device; /* copies, fill */
    nib_cu_ptr from;   /* copies within the device */
    uint8_t *host;     /* copies */
    uint8_t *staged;   /* copies from memory that is not pinned: what it held at the call */
    size_t bytes;
    unsigned char value;        /* fill */
    uint64_t flip;              /* copies to the device: 0, or what picks the bit that changes on the way */
    struct CUfunc_st *function; /* kernel */
    nib_cu_ptr machine;
    uint32_t layer;
    bool overlap;                /* kernel: may begin before the work before it has ended */
    struct CUgraphExec_st *exec; /* graph */
    struct CUevent_st *event;
};

#define FAKE_QUEUE 4096 /* work of one stream; a power of two */

struct CUstream_st {
    struct CUstream_st *next;
    bool capturing;
    struct CUgraph_st *graph;
    uint64_t head, tail; /* of the ring */
    bool running;        /* its front runs now */
    struct fake_work work[FAKE_QUEUE];
};

struct CUevent_st {
    uint32_t queued; /* pieces of work that still name it */
    bool destroyed;  /* goes when none does */
    bool recorded, done, timed;
    struct timespec at;
};

struct CUmod_st {
    const char *image;
    size_t bytes;
    bool ptx;
};

enum fake_image { FAKE_IMAGE_ANY, FAKE_IMAGE_CUBIN, FAKE_IMAGE_PTX };

struct CUfunc_st {
    enum nib_gpu_op op; /* NIB_GPU_OP_COUNT: not one of the contract */
    enum fake_image image;
    int shared_max; /* dynamic shared memory it was allowed */
    char name[64];
};

#define FAKE_NODES 4096
struct CUgraph_st {
    uint32_t count;
    struct fake_work node[FAKE_NODES];
};

struct CUgraphExec_st {
    uint32_t queued;
    bool destroyed;
    uint32_t count;
    struct fake_work *node;
};

struct CUctx_st {
    int references;
};

struct fake {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* of the worker */
    pthread_t worker;
    bool worker_started;
    bool inited;
    int sticky; /* error that every call returns from now on */
    bool hung;  /* the device never finishes what it runs */
    struct nib_profile profile;
    struct CUctx_st ctx;
    struct CUstream_st *streams;
    uint64_t device_bytes, pinned_bytes;
};
extern struct fake fake;
extern struct fake_report *fake_report;

/* device.c: facts of the environment's profile; false (and a line on stderr) when there is none. */
bool fake_read_profile(struct nib_profile *ret_profile);

/* fault.c */
/* Which image this thread's next calls are about. */
void fake_about(enum fake_image image);
enum fake_act { FAKE_GO_ON, FAKE_FAIL, FAKE_FLIP, FAKE_WRONG };
/* Counts an occurrence of the site and does what the environment asks: waits, hangs, or says what to return. */
enum fake_act fake_fault(int site, int *ret_code);
/* For ever. A kernel's hang leaves the host free; a call's does not. */
_Noreturn void fake_hang(void);
bool fake_missing(const char *name, const char *what);
void fake_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *fake_site_name(int site);
bool fake_is_sticky(int code);
void fake_poison(int code); /* lock held or not; first one stays */

/* memory.c: allocations. Lookups may be made by the worker while the lock is free. */
int fake_alloc(size_t bytes, bool pinned, nib_cu_ptr *ret_device, void **ret_host);
int fake_free_device(nib_cu_ptr device);
int fake_free_host(void *host);
/* The host's view of [device, device + bytes), or NULL when that is not all inside one allocation. */
void *fake_map(nib_cu_ptr device, uint64_t bytes);
/* True when [host, host + bytes) lies in pinned memory; *ret_device (or NULL) is its device address. */
bool fake_pinned(const void *host, size_t bytes, nib_cu_ptr *ret_device);

/* Zeroed objects of the driver, counted in the report. Leak checkers do not see them, as they do not see a driver's. */
void *fake_new(size_t bytes);
void fake_delete(void *object);

/* stream.c */
int fake_enqueue(struct CUstream_st *stream, const struct fake_work *work);
bool fake_start_worker(void);
/* Lock held: frees them if they were destroyed and no work names them. */
void fake_settle_event(struct CUevent_st *event);
void fake_settle_exec(struct CUgraphExec_st *exec);

/* module.c */
int fake_module_open(const void *image, struct CUmod_st **ret_module);
bool fake_module_has(const struct CUmod_st *module, const char *symbol);

/* kernels.c: runs a kernel; 0 or the error a GPU would raise. Worker thread. */
int fake_kernel(const struct fake_work *work);
/* What was repacked into memory that is given back. Nothing runs. */
void fake_forget_matrices(nib_gpu_ptr at, uint64_t bytes);

#endif
