/* tests/wire/noalloc.c: an LD_PRELOAD library that counts who allocates.
 *
 * NIB_ALLOC_FILE names a file of sizeof(struct counts) that the test maps too: it sets `armed`, and
 * reads the counts. Every allocation is booked by thread (the main one, or another) and by the
 * object that called (the program itself, or a library by name). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
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
    char last_rest[200]; /* who the last of these was */
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

static void book(const void *caller, size_t bytes)
{
    Dl_info info;
    if (!counts || !atomic_load(&counts->armed))
        return;
    if (syscall(SYS_gettid) != getpid()) {
        atomic_fetch_add(&counts->other_threads, 1);
        return;
    }
    const char *name = dladdr(caller, &info) && info.dli_fname ? info.dli_fname : "?";
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
