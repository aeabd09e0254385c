/* arch/pool.c: owns the worker threads and their barrier.
 * Limits: NIB_MAX_THREADS. Any thread may open; then see pool.h. Fails only in open. */
#include "arch/pool.h"

#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Pauses before a waiter sleeps: tens of microseconds, about the imbalance of a phase. */
enum { SPIN_PAUSES = 2000 };

#define STACK_BYTES (512u << 10) /* of a worker; kernels keep large buffers in their scratch */

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_on(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void nib_pool_barrier(struct nib_pool *pool)
{
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    unsigned arrived = atomic_fetch_add(&pool->arrived, 1) + 1;
    if (arrived == atomic_load_explicit(&pool->meeting, memory_order_relaxed)) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
        atomic_store(&pool->phase, phase + 1);
        /* A sleeper counts itself before it looks at `phase` a last time: either it sees the new
         * value, or we see it. */
        if (atomic_load(&pool->sleeping) > 0)
            wake_all(&pool->phase);
        return;
    }
    for (int i = 0; i < SPIN_PAUSES; i++) {
        if (atomic_load_explicit(&pool->phase, memory_order_acquire) != phase)
            return;
        pause_cpu();
    }
    atomic_fetch_add(&pool->sleeping, 1);
    while (atomic_load(&pool->phase) == phase)
        sleep_on(&pool->phase, phase);
    atomic_fetch_sub(&pool->sleeping, 1);
}

static void *worker_main(void *arg)
{
    struct nib_pool_thread *self = arg;
    struct nib_pool *pool = self->pool;
    for (;;) {
        nib_pool_barrier(pool);
        if (pool->quit)
            return NULL;
        pool->fn(pool->arg, self->worker);
        nib_pool_barrier(pool);
    }
}

void nib_pool_run(struct nib_pool *pool, nib_pool_fn *fn, void *arg)
{
    pool->fn = fn;
    pool->arg = arg;
    nib_pool_barrier(pool);
    fn(arg, 0);
    nib_pool_barrier(pool);
}

static void join_all(struct nib_pool *pool)
{
    for (uint32_t i = 1; i < pool->started; i++)
        pthread_join(pool->thread[i].handle, NULL);
}

static int start_all(struct nib_pool *pool)
{
    pthread_attr_t attr;
    int rc = pthread_attr_init(&attr);
    if (rc)
        return rc;
    rc = pthread_attr_setstacksize(&attr, STACK_BYTES);
    for (uint32_t i = 1; i < pool->threads && rc == 0; i++) {
        pool->thread[i] = (struct nib_pool_thread){.pool = pool, .worker = i};
        rc = pthread_create(&pool->thread[i].handle, &attr, worker_main, &pool->thread[i]);
        if (rc == 0) {
            (void)pthread_setname_np(pool->thread[i].handle, "nib-worker");
            pool->started++;
        }
    }
    pthread_attr_destroy(&attr);
    return rc;
}

enum nib_err nib_pool_open(struct nib_pool *pool, uint32_t threads, struct nib_msg *msg)
{
    if (threads == 0 || threads > NIB_MAX_THREADS)
        return nib_fail(msg, NIB_E_ARG, "threads is %u, allowed is 1 to %d", threads, NIB_MAX_THREADS);
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->started = 1;
    atomic_store(&pool->meeting, threads);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = start_all(pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        return NIB_OK;
    uint32_t got = pool->started;
    atomic_store(&pool->meeting, got); /* those that run wait at their first barrier: ours completes it */
    nib_pool_close(pool);
    return nib_fail(msg, NIB_E_NOMEM, "the system started %u of %u worker threads (error %d)", got, threads, rc);
}

void nib_pool_close(struct nib_pool *pool)
{
    pool->quit = true;
    nib_pool_barrier(pool);
    join_all(pool);
}
