/* tests/wire/noalloc.c: an LD_PRELOAD library that counts who allocates, maps memory or opens files.
 *
 * NIB_ALLOC_FILE names a file of sizeof(struct counts) that the test maps too: it sets `armed`, and
 * reads the counts. Every allocation is booked by thread (the main one, or another) and by the
 * object that called (the program itself, or a library by name). Mappings and opened files are
 * counted whoever asks for them; what the C library's allocator maps for itself follows from its
 * callers, who are counted. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct counts {
    atomic_ullong armed;
    atomic_ullong other_threads; /* any object */
    atomic_ullong main_program;  /* main thread, called by the program itself */
    atomic_ullong main_http;     /* main thread, called by libmicrohttpd */
    atomic_ullong main_rest;     /* main thread, called by any other library */
    atomic_ullong http_bytes;
    atomic_ullong maps;   /* mmap, mremap, brk, sbrk of any thread */
    atomic_ullong files;  /* open, openat, fopen of any thread */
    atomic_ullong driver; /* allocations and mappings that the GPU's driver makes for itself; in none of the others */
    char last_rest[200];  /* who the last of these was */
};

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static struct counts *counts;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("NIB_ALLOC_FILE");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0)
        return;
    void *p = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED)
        counts = p;
    (void)close(fd);
}

static const char *object(const void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname ? info.dli_fname : "?";
}

/* NVIDIA's libraries; not what stands in for them in tests, which is ours. */
static int is_driver(const char *name)
{
    return strstr(name, "/libcuda.so.") || strstr(name, "/libnvidia-");
}

static void book(const void *caller, size_t bytes)
{
    if (!counts || !atomic_load(&counts->armed))
        return;
    const char *name = object(caller);
    if (is_driver(name)) {
        atomic_fetch_add(&counts->driver, 1);
        return;
    }
    if (syscall(SYS_gettid) != getpid()) {
        atomic_fetch_add(&counts->other_threads, 1);
        return;
    }
    if (strstr(name, "libmicrohttpd")) {
        atomic_fetch_add(&counts->main_http, 1);
        atomic_fetch_add(&counts->http_bytes, bytes);
    } else if (strstr(name, "/nibbled")) {
        atomic_fetch_add(&counts->main_program, 1);
    } else {
        atomic_fetch_add(&counts->main_rest, 1);
        strncpy(counts->last_rest, name, sizeof counts->last_rest - 1);
    }
}

void *malloc(size_t n)
{
    book(__builtin_return_address(0), n);
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t each)
{
    book(__builtin_return_address(0), n * each);
    return __libc_calloc(n, each);
}

void *realloc(void *p, size_t n)
{
    book(__builtin_return_address(0), n);
    return __libc_realloc(p, n);
}

void *memalign(size_t align, size_t n)
{
    book(__builtin_return_address(0), n);
    return __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    book(__builtin_return_address(0), n);
    return __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    book(__builtin_return_address(0), n);
    *p = __libc_memalign(align, n);
    return *p ? 0 : 12;
}

/* malloc as the C library's own strdup calls it would be booked as the C library's. */
char *strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    book(__builtin_return_address(0), n);
    char *copy = __libc_malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static void count(atomic_ullong *what, const void *caller)
{
    if (counts && atomic_load(&counts->armed))
        atomic_fetch_add(is_driver(object(caller)) ? &counts->driver : what, 1);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    count(&counts->maps, __builtin_return_address(0));
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    count(&counts->maps, __builtin_return_address(0));
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void *mremap(void *at, size_t before, size_t n, int flags, ...)
{
    count(&counts->maps, __builtin_return_address(0));
    return (void *)syscall(SYS_mremap, at, before, n, flags, NULL);
}

void *sbrk(intptr_t more)
{
    void *(*real)(intptr_t) = (void *(*)(intptr_t))next("sbrk");
    count(&counts->maps, __builtin_return_address(0));
    return real(more);
}

int brk(void *at)
{
    int (*real)(void *) = (int (*)(void *))next("brk");
    count(&counts->maps, __builtin_return_address(0));
    return real(at);
}

static int open_at(const void *caller, int folder, const char *path, int flags, va_list args)
{
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, int) : 0;
    count(&counts->files, caller);
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int fd = open_at(__builtin_return_address(0), AT_FDCWD, path, flags, args);
    va_end(args);
    return fd;
}

int open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int fd = open_at(__builtin_return_address(0), AT_FDCWD, path, flags, args);
    va_end(args);
    return fd;
}

int openat(int folder, const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int fd = open_at(__builtin_return_address(0), folder, path, flags, args);
    va_end(args);
    return fd;
}

FILE *fopen(const char *path, const char *mode)
{
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) next("fopen");
    count(&counts->files, __builtin_return_address(0));
    return real(path, mode);
}
