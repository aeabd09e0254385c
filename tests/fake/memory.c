/* tests/fake/memory.c: owns the device's and the pinned memory.
 * Limits: ALLOCS_MAX allocations. Any thread. A device address is the host's with a high bit set, so that the host faults
 * when it follows one, and the other way round nothing is found. Big allocations are virtual; only their ends are filled. */
#define FAKE_TAG_DEVICE (1ull << 52)
#define FAKE_TAG_PINNED (1ull << 53)

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/fake/fake.h"

#define ALLOCS_MAX  4096
#define GUARD_BYTES 65536u
#define FILL_MIB    64 /* of each end; NIBBLED_FAKE_FILL_MIB in the environment: another number */

struct alloc {
    uint8_t *base; /* NULL: free place */
    uint64_t bytes;
    bool pinned;
};

static struct alloc allocs[ALLOCS_MAX];
static pthread_mutex_t allocs_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t whole_pages(uint64_t bytes)
{
    return (bytes + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
}

static uint64_t tag_of(const struct alloc *a)
{
    return a->pinned ? FAKE_TAG_PINNED : FAKE_TAG_DEVICE;
}

static uint64_t fill_bytes(void)
{
    const char *mib = getenv("NIBBLED_FAKE_FILL_MIB");
    return (mib ? strtoull(mib, NULL, 10) : FILL_MIB) << 20;
}

/* The allocation ends at its guard, as far as an alignment of 256 bytes lets it. */
static uint8_t *take(uint64_t bytes)
{
    uint64_t room = whole_pages(bytes);
    uint8_t *area = mmap(NULL, room + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED || mprotect(area + GUARD_BYTES, room, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    uint8_t *base = area + GUARD_BYTES + (room - bytes) / 4096 * 4096;
    uint64_t ends = bytes < 2 * fill_bytes() ? bytes : fill_bytes();
    memset(base, 0xff, ends);
    memset(base + bytes - ends, 0xff, ends);
    return base;
}

static void give(struct alloc *a)
{
    uint64_t room = whole_pages(a->bytes);
    fake_forget_matrices((uintptr_t)a->base | tag_of(a), a->bytes);
    munmap(a->base - (room - a->bytes) / 4096 * 4096 - GUARD_BYTES, room + 2 * GUARD_BYTES);
    *(a->pinned ? &fake.pinned_bytes : &fake.device_bytes) -= a->bytes;
    fake_report->device_bytes = fake.device_bytes;
    fake_report->pinned_bytes = fake.pinned_bytes;
    a->base = NULL;
}

static uint64_t budget(bool pinned)
{
    const struct nib_profile *p = &fake.profile;
    if (p->integrated || !pinned)
        return p->memory_bytes - p->reserved_bytes;
    return p->host_bytes;
}

int fake_alloc(size_t bytes, bool pinned, nib_cu_ptr *ret_device, void **ret_host)
{
    int result = NIB_CU_OUT_OF_MEMORY;
    if (bytes == 0)
        return NIB_CU_INVALID_VALUE;
    pthread_mutex_lock(&allocs_lock);
    uint64_t *used = pinned ? &fake.pinned_bytes : &fake.device_bytes;
    uint64_t sum = fake.profile.integrated ? fake.pinned_bytes + fake.device_bytes : *used;
    struct alloc *a = NULL;
    for (size_t i = 0; i < ALLOCS_MAX && !a; i++)
        if (!allocs[i].base)
            a = &allocs[i];
    if (a && bytes <= budget(pinned) && sum <= budget(pinned) - bytes) {
        *a = (struct alloc){.base = take(bytes), .bytes = bytes, .pinned = pinned};
        if (a->base) {
            *used += bytes;
            if (ret_device)
                *ret_device = (uintptr_t)a->base | tag_of(a);
            if (ret_host)
                *ret_host = a->base;
            fake_report->device_bytes = fake.device_bytes;
            fake_report->pinned_bytes = fake.pinned_bytes;
            result = 0;
        }
    }
    pthread_mutex_unlock(&allocs_lock);
    return result;
}

static int release(const uint8_t *base, bool pinned)
{
    int result = NIB_CU_INVALID_VALUE;
    pthread_mutex_lock(&allocs_lock);
    for (size_t i = 0; i < ALLOCS_MAX; i++) {
        if (base && allocs[i].base == base && allocs[i].pinned == pinned) {
            give(&allocs[i]);
            result = 0;
        }
    }
    pthread_mutex_unlock(&allocs_lock);
    if (result)
        fake_violation("free of %p, which is no allocation", (const void *)base);
    return result;
}

int fake_free_device(nib_cu_ptr device)
{
    return release((const uint8_t *)(uintptr_t)(device & ~FAKE_TAG_DEVICE), false);
}

int fake_free_host(void *host)
{
    return release(host, true);
}

void *fake_map(nib_cu_ptr device, uint64_t bytes)
{
    void *found = NULL;
    pthread_mutex_lock(&allocs_lock);
    for (size_t i = 0; i < ALLOCS_MAX && !found; i++) {
        const struct alloc *a = &allocs[i];
        uint64_t first = (uintptr_t)a->base | tag_of(a);
        if (a->base && device >= first && device - first <= a->bytes && bytes <= a->bytes - (device - first))
            found = a->base + (device - first);
    }
    pthread_mutex_unlock(&allocs_lock);
    return found;
}

bool fake_pinned(const void *host, size_t bytes, nib_cu_ptr *ret_device)
{
    bool found = false;
    const uint8_t *at = host;
    pthread_mutex_lock(&allocs_lock);
    for (size_t i = 0; i < ALLOCS_MAX && !found; i++) {
        const struct alloc *a = &allocs[i];
        found = a->base && a->pinned && at >= a->base && (uint64_t)(at - a->base) <= a->bytes &&
                bytes <= a->bytes - (uint64_t)(at - a->base);
        if (found && ret_device)
            *ret_device = (uintptr_t)at | FAKE_TAG_PINNED;
    }
    pthread_mutex_unlock(&allocs_lock);
    return found;
}

/* Each object is a mapping of its own: used after it was destroyed, it faults. The size lies before it. */
void *fake_new(size_t bytes)
{
    uint64_t room = bytes + 64;
    uint8_t *base = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        abort();
    memcpy(base, &room, sizeof room);
    __atomic_add_fetch(&fake_report->objects, 1, __ATOMIC_RELAXED);
    return base + 64;
}

void fake_delete(void *object)
{
    uint64_t room;
    if (!object)
        return;
    memcpy(&room, (uint8_t *)object - 64, sizeof room);
    munmap((uint8_t *)object - 64, room);
    __atomic_sub_fetch(&fake_report->objects, 1, __ATOMIC_RELAXED);
}
