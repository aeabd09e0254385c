/* tests/gpu/count_cuda.c: a libcuda that counts what is taken and passes every call on, for NIBBLED_LIBCUDA.
 *
 * NIB_CUDA_COUNTS names a file of sizeof(struct counts) that the test maps too; NIB_CUDA_REAL is the library behind, the
 * system's unless given. Counted are all entry points of gpu/cuda.h that take or give back memory or make objects; the daemon
 * has no others. While `armed` the device's free memory is looked at before launches, so that what the driver takes by itself
 * shows too. One thread calls at a time, as the daemon does. Cannot fail but as the library behind. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/cuda.h"

#define EXPORT     __attribute__((visibility("default")))
#define LOOK_EVERY 8 /* launches */

struct counts {
    uint64_t armed;
    uint64_t device_allocs, device_bytes; /* taken and not given back */
    uint64_t pinned_allocs, pinned_bytes;
    uint64_t calls;    /* of any counted entry, while armed: nothing may be taken or given back then */
    uint64_t launches; /* of graphs, and of kernels one by one, while armed */
    uint64_t looks;    /* at the free memory, while armed */
    uint64_t free_min, free_max;
    uint64_t free_first, total; /* what the first cuMemGetInfo of the program said */
    char last[64];              /* the last counted entry, while armed */
};

#define WRAPPED(X)                                                                                                     \
    X(cuMemGetInfo)                                                                                                    \
    X(cuMemAlloc)                                                                                                      \
    X(cuMemFree)                                                                                                       \
    X(cuMemHostAlloc)                                                                                                  \
    X(cuMemFreeHost)                                                                                                   \
    X(cuStreamCreate)                                                                                                  \
    X(cuStreamDestroy)                                                                                                 \
    X(cuStreamBeginCapture)                                                                                            \
    X(cuEventCreate)                                                                                                   \
    X(cuEventDestroy)                                                                                                  \
    X(cuModuleLoadDataEx)                                                                                              \
    X(cuModuleUnload)                                                                                                  \
    X(cuGraphInstantiateWithFlags)                                                                                     \
    X(cuGraphUpload)                                                                                                   \
    X(cuGraphLaunch)                                                                                                   \
    X(cuLaunchKernelEx)                                                                                                \
    X(cuGraphExecDestroy)                                                                                              \
    X(cuGraphDestroy)

static struct {
#define ENTRY(name, since, parameters) int(*name) parameters; /* NOLINT(bugprone-macro-parentheses) */
    NIB_CUDA_CALLS(ENTRY)
#undef ENTRY
    nib_cu_get_proc *get;
} real;

static struct counts nowhere, *counts = &nowhere;

static void *open_real(void)
{
    static void *library;
    if (library)
        return library;
    const char *path = getenv("NIB_CUDA_REAL");
    library = dlopen(path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library)
        (void)fprintf(stderr, "count_cuda: %s\n", dlerror());
    const char *file = getenv("NIB_CUDA_COUNTS");
    int fd = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        (void)close(fd);
    if (p != MAP_FAILED)
        counts = p;
    return library;
}

static void book(const char *name)
{
    if (!__atomic_load_n(&counts->armed, __ATOMIC_ACQUIRE))
        return;
    counts->calls++;
    (void)snprintf(counts->last, sizeof counts->last, "%s", name);
}

/* What was taken, by address: the sizes are needed when it is given back. */
static struct taken {
    uint64_t at, bytes;
} taken[64];

static uint64_t keep(uint64_t at, uint64_t bytes)
{
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        if (!taken[i].bytes) {
            taken[i] = (struct taken){at, bytes};
            return bytes;
        }
    return 0;
}

static uint64_t forget(uint64_t at)
{
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        if (taken[i].bytes && taken[i].at == at) {
            uint64_t bytes = taken[i].bytes;
            taken[i].bytes = 0;
            return bytes;
        }
    return 0;
}

static int count_cuMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    int result = real.cuMemGetInfo(free_bytes, total_bytes);
    if (result == 0 && !counts->total) {
        counts->free_first = *free_bytes;
        counts->total = *total_bytes;
    }
    return result;
}

static int count_cuMemAlloc(nib_cu_ptr *ptr, size_t bytes)
{
    book("cuMemAlloc");
    int result = real.cuMemAlloc(ptr, bytes);
    if (result == 0) {
        counts->device_allocs++;
        counts->device_bytes += keep(*ptr, bytes);
    }
    return result;
}

static int count_cuMemFree(nib_cu_ptr ptr)
{
    book("cuMemFree");
    const uint64_t bytes = forget(ptr);
    counts->device_allocs -= bytes > 0;
    counts->device_bytes -= bytes;
    return real.cuMemFree(ptr);
}

static int count_cuMemHostAlloc(void **ptr, size_t bytes, unsigned flags)
{
    book("cuMemHostAlloc");
    int result = real.cuMemHostAlloc(ptr, bytes, flags);
    if (result == 0) {
        counts->pinned_allocs++;
        counts->pinned_bytes += keep((uintptr_t)*ptr, bytes);
    }
    return result;
}

static int count_cuMemFreeHost(void *ptr)
{
    book("cuMemFreeHost");
    const uint64_t bytes = forget((uintptr_t)ptr);
    counts->pinned_allocs -= bytes > 0;
    counts->pinned_bytes -= bytes;
    return real.cuMemFreeHost(ptr);
}

static int count_cuStreamCreate(struct CUstream_st **stream, unsigned flags)
{
    book("cuStreamCreate");
    return real.cuStreamCreate(stream, flags);
}

static int count_cuStreamDestroy(struct CUstream_st *stream)
{
    book("cuStreamDestroy");
    return real.cuStreamDestroy(stream);
}

static int count_cuStreamBeginCapture(struct CUstream_st *stream, int mode)
{
    book("cuStreamBeginCapture");
    return real.cuStreamBeginCapture(stream, mode);
}

static int count_cuEventCreate(struct CUevent_st **event, unsigned flags)
{
    book("cuEventCreate");
    return real.cuEventCreate(event, flags);
}

static int count_cuEventDestroy(struct CUevent_st *event)
{
    book("cuEventDestroy");
    return real.cuEventDestroy(event);
}

static int count_cuModuleLoadDataEx(struct CUmod_st **mod, const void *image, unsigned options_count, int *options,
                                    void **values)
{
    book("cuModuleLoadDataEx");
    return real.cuModuleLoadDataEx(mod, image, options_count, options, values);
}

static int count_cuModuleUnload(struct CUmod_st *mod)
{
    book("cuModuleUnload");
    return real.cuModuleUnload(mod);
}

static int count_cuGraphInstantiateWithFlags(struct CUgraphExec_st **exec, struct CUgraph_st *graph,
                                             unsigned long long flags)
{
    book("cuGraphInstantiateWithFlags");
    return real.cuGraphInstantiateWithFlags(exec, graph, flags);
}

static int count_cuGraphUpload(struct CUgraphExec_st *exec, struct CUstream_st *stream)
{
    book("cuGraphUpload");
    return real.cuGraphUpload(exec, stream);
}

static int count_cuGraphExecDestroy(struct CUgraphExec_st *exec)
{
    book("cuGraphExecDestroy");
    return real.cuGraphExecDestroy(exec);
}

static int count_cuGraphDestroy(struct CUgraph_st *graph)
{
    book("cuGraphDestroy");
    return real.cuGraphDestroy(graph);
}

static void look(void)
{
    size_t free_bytes = 0, total = 0;
    if (real.cuMemGetInfo(&free_bytes, &total) != 0)
        return;
    if (!counts->looks || free_bytes < counts->free_min)
        counts->free_min = free_bytes;
    if (!counts->looks || free_bytes > counts->free_max)
        counts->free_max = free_bytes;
    counts->looks++;
}

static void launched(void)
{
    if (__atomic_load_n(&counts->armed, __ATOMIC_ACQUIRE) && counts->launches++ % LOOK_EVERY == 0)
        look();
}

static int count_cuGraphLaunch(struct CUgraphExec_st *exec, struct CUstream_st *stream)
{
    launched();
    return real.cuGraphLaunch(exec, stream);
}

static int count_cuLaunchKernelEx(const struct nib_cu_launch_config *config, struct CUfunc_st *function,
                                  void **arguments, void **extra)
{
    launched();
    return real.cuLaunchKernelEx(config, function, arguments, extra);
}

EXPORT int cuDriverGetVersion(int *version);
EXPORT nib_cu_get_proc cuGetProcAddress_v2;

int cuDriverGetVersion(int *version)
{
    void *library = open_real(), *entry = library ? dlsym(library, "cuDriverGetVersion") : NULL;
    int (*get)(int *) = NULL;
    memcpy(&get, &entry, sizeof entry);
    return get ? get(version) : NIB_CU_STUB_LIBRARY;
}

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    void *library = open_real(), *entry = library ? dlsym(library, NIB_CUDA_GET_PROC) : NULL;
    memcpy(&real.get, &entry, sizeof entry);
    if (!real.get)
        return NIB_CU_STUB_LIBRARY;
    int result = real.get(symbol, function, version, flags, status);
    if (result != 0)
        return result;
#define REPLACE(name)                                                                                                  \
    if (strcmp(symbol, #name) == 0) {                                                                                  \
        __typeof__(&count_##name) own = count_##name;                                                                  \
        memcpy(&real.name, function, sizeof *function);                                                                \
        memcpy(function, &own, sizeof own);                                                                            \
    }
    WRAPPED(REPLACE)
#undef REPLACE
    return 0;
}
