/* tests/gpu/trouble.c: a libcuda that hands everything to the real one, and makes trouble once. For runs on a real card.
 *
 *   NIBBLED_TROUBLE          what:n[:ms]; before the n-th launch of a graph, on the same stream, runs a kernel that
 *                            illegal  stores to an address that is not there
 *                            spin     never ends
 *                            slow     ends after ms
 *                            or the n-th launch itself
 *                            hang     never returns
 *                            late     returns after ms
 *   NIBBLED_TROUBLE_ONCE     a file: trouble is for the process that can remove it, so not for the one that is started next
 *   NIBBLED_TROUBLE_LIBCUDA  the real one, libcuda.so.1 if not given
 *
 * The daemon finds all entry points by cuGetProcAddress_v2, so that and cuDriverGetVersion are what must be exported. Any
 * thread; graphs are launched by one. What cannot be done ends the process: the run would prove nothing. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gpu/cuda.h"

#define EXPORT __attribute__((visibility("default")))

/* the kernels; the Makefile says where the text lies */
__asm__(".section .rodata\n"
        "trouble_ptx:\n"
        ".incbin \"" NIB_IMAGE "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char trouble_ptx[];

EXPORT int cuDriverGetVersion(int *version);
EXPORT nib_cu_get_proc cuGetProcAddress_v2;

typedef int launch_graph(struct CUgraphExec_st *exec, struct CUstream_st *stream);
static launch_graph *real_launch_graph;
static char what[16];
static unsigned long nth, ms, launches;
static struct CUfunc_st *kernel;

static _Noreturn void give_up(const char *why, int result)
{
    (void)fprintf(stderr, "trouble: %s (%d)\n", why, result);
    abort();
}

static void find(const char *name, void *ret_entry)
{
    static void *library;
    if (!library) {
        const char *path = getenv("NIBBLED_TROUBLE_LIBCUDA");
        library = dlopen(path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    void *entry = library ? dlsym(library, name) : NULL;
    if (!entry)
        give_up(dlerror(), 0);
    memcpy(ret_entry, &entry, sizeof entry);
}

static void find_proc(const char *name, int since, void *ret_entry)
{
    nib_cu_get_proc *get;
    void *entry = NULL;
    int status = 0;
    find(NIB_CUDA_GET_PROC, &get);
    int result = get(name, &entry, since, 0, &status);
    if (result != NIB_CU_SUCCESS || !entry)
        give_up(name, result);
    memcpy(ret_entry, &entry, sizeof entry);
}

/* At the first launch, so that loading is not what the trouble is. */
static void load_kernel(void)
{
    int (*load)(struct CUmod_st **, const void *, unsigned, int *, void **);
    int (*get_function)(struct CUfunc_st **, struct CUmod_st *, const char *);
    struct CUmod_st *module;
    char name[32];
    find_proc("cuModuleLoadDataEx", 2010, &load);
    find_proc("cuModuleGetFunction", 2000, &get_function);
    int result = load(&module, trouble_ptx, 0, NULL, NULL);
    (void)snprintf(name, sizeof name, "trouble_%s", what);
    if (result == NIB_CU_SUCCESS)
        result = get_function(&kernel, module, name);
    if (result != NIB_CU_SUCCESS)
        give_up(name, result);
}

static void launch_kernel(struct CUstream_st *stream)
{
    int (*launch)(const struct nib_cu_launch_config *, struct CUfunc_st *, void **, void **);
    uint64_t ns = ms * 1000000ull;
    uint32_t unused = 0;
    void *arguments[] = {&ns, &unused};
    const struct nib_cu_launch_config config = {.grid = {1, 1, 1}, .block = {1, 1, 1}, .stream = stream};
    find_proc("cuLaunchKernelEx", 11060, &launch);
    int result = launch(&config, kernel, arguments, NULL);
    if (result != NIB_CU_SUCCESS)
        give_up("the kernel cannot be launched", result);
}

static void make_trouble(struct CUstream_st *stream)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    (void)fprintf(stderr, "trouble: %s at launch %lu, %lld.%03ld\n", what, launches, (long long)t.tv_sec,
                  t.tv_nsec / 1000000);
    if (kernel)
        launch_kernel(stream);
    while (strcmp(what, "hang") == 0)
        (void)pause();
    if (strcmp(what, "late") == 0)
        (void)usleep((useconds_t)(ms * 1000));
}

static int launch_hooked(struct CUgraphExec_st *exec, struct CUstream_st *stream)
{
    const bool call = strcmp(what, "hang") == 0 || strcmp(what, "late") == 0;
    const char *once = getenv("NIBBLED_TROUBLE_ONCE");
    if (++launches == 1 && !call)
        load_kernel();
    if (launches == nth && (!once || unlink(once) == 0))
        make_trouble(stream);
    return real_launch_graph(exec, stream);
}

EXPORT int cuDriverGetVersion(int *version)
{
    int (*get_version)(int *);
    find("cuDriverGetVersion", &get_version);
    return get_version(version);
}

EXPORT int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    nib_cu_get_proc *get;
    find(NIB_CUDA_GET_PROC, &get);
    int result = get(symbol, function, version, flags, status);
    if (result != NIB_CU_SUCCESS || strcmp(symbol, "cuGraphLaunch") != 0)
        return result;
    const char *asked = getenv("NIBBLED_TROUBLE");
    if (!asked || sscanf(asked, "%15[a-z]:%lu:%lu", what, &nth, &ms) < 2)
        give_up("NIBBLED_TROUBLE is not what:n[:ms]", 0);
    launch_graph *hooked = launch_hooked;
    memcpy(&real_launch_graph, function, sizeof real_launch_graph);
    memcpy(function, &hooked, sizeof hooked);
    return result;
}
